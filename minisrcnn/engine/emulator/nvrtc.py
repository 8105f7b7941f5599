"""Compile kernels for real GPUs on a machine without one, and read what they will need there.

NVRTC, NVIDIA's compiler as a library, comes in a wheel and asks for no driver. Its assembler
reports for every kernel the registers of a thread, the static shared memory of a block, and what
did not fit into registers and was *spilled* to slow memory. The limits stand beside each kernel::

    // limits: conv_forward_fused registers<=184 shared<=49152 spills=0

As a program: ``python -m minisrcnn.engine.emulator.nvrtc [--all] [SM ...]`` compiles every source
in the configurations that the backend uses and prints the table; exit code 1 if a limit is broken.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Where the wheels put the library: that of CUDA 13, that of CUDA 12.
_WHEELS = (
    ("nvidia-cuda-nvrtc", "libnvrtc.so.13"),
    ("nvidia-cuda-nvrtc-cu12", "libnvrtc.so.12"),
)


def find_library() -> Path | None:
    """Return the NVRTC library of an installed wheel, the newest first; None without."""
    for wheel, name in _WHEELS:
        try:
            files = importlib.metadata.files(wheel) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if path.name == name and path.exists():
                return path
    return None


def unavailable_reason() -> str | None:
    """Say in one sentence why nothing can be compiled for GPUs here; None if it can."""
    if find_library() is None:
        return "NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12 (or nvidia-cuda-nvrtc)"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    path = find_library()
    if path is None:
        raise ImportError(unavailable_reason())
    library = ctypes.CDLL(str(path))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> tuple[int, int]:
    """Return the version of NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def supported_architectures() -> list[int]:
    """Return what this NVRTC compiles for, as numbers: 90 is sm_90."""
    count = ctypes.c_int()
    _library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    _library().nvrtcGetSupportedArchs(numbers)
    return list(numbers)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the assembler says about one kernel.

    Attributes
    ----------
    kernel : str
    architecture : int
        90 for sm_90.
    registers : int
        32-bit registers of a thread.
    shared : int
        Bytes of static shared memory of a block.
    stack : int
        Bytes of local memory of a thread: arrays that are indexed by a variable, and spills.
    spill_stores, spill_loads : int
        Bytes written to and read from local memory for want of registers.
    """

    kernel: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        """Bytes spilled, written and read."""
        return self.spill_stores + self.spill_loads


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a kernel may need, from the ``// limits:`` line beside it."""

    registers: int
    shared: int
    spills: int

    def broken_by(self, found: Resources) -> list[str]:
        """Return what is over the limit, in words; empty if nothing is."""
        return [
            f"{found.kernel} on sm_{found.architecture}: {getattr(found, what)} {what}, "
            f"the limit is {getattr(self, what)}"
            for what in ("registers", "shared", "spills")
            if getattr(found, what) > getattr(self, what)
        ]


_LIMIT = re.compile(r"^// limits: (\w+) +registers<=(\d+) +shared<=(\d+) +spills=(\d+)", re.M)
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w?'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SMEM = re.compile(r"(\d+) bytes smem")


def read_limits(text: str) -> dict[str, Limit]:
    """Return the limits written in a kernel text, by kernel."""
    return {name: Limit(int(r), int(s), int(p)) for name, r, s, p in _LIMIT.findall(text)}


def parse_log(log: str) -> list[Resources]:
    """Read the assembler's report (``--ptxas-options=-v``).

    Raises
    ------
    ValueError
        If it is not in the form known from CUDA 12 and 13: then nothing may be concluded from it.
    """
    found = []
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        entry, spills, used = _ENTRY.search(part), _SPILLS.search(part), _USED.search(part)
        if not (entry and spills and used):
            raise ValueError(f"the assembler's report has an unknown form: {part[:300]!r}")
        shared = _SMEM.search(used[2])
        stack, stores, loads = (int(n) for n in spills.groups())
        found.append(
            Resources(
                kernel=entry[1],
                architecture=int(entry[2]),
                registers=int(used[1]),
                shared=int(shared[1]) if shared else 0,
                stack=stack,
                spill_stores=stores,
                spill_loads=loads,
            )
        )
    return found


def compile_text(
    text: str, name: str, architecture: int, options: Sequence[str] = ()
) -> tuple[bytes, list[Resources]]:
    """Compile a kernel text for one architecture, as CuPy would.

    Parameters
    ----------
    text, name : str
        The source, and what to call it in messages.
    architecture : int
        90 for sm_90.
    options : sequence of str
        As for NVRTC. CuPy's own ``-ftz=true`` is added.

    Returns
    -------
    (bytes, list of Resources)
        The binary (a cubin), and what each kernel needs.

    Raises
    ------
    RuntimeError
        If it does not compile; the message holds the compiler's.
    """
    library = _library()

    def check(status: int, what: str) -> None:
        if status:
            raise RuntimeError(f"{what}: {library.nvrtcGetErrorString(status).decode()}")

    def read(what: str) -> bytes:
        size = ctypes.c_size_t()
        check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
        buffer = ctypes.create_string_buffer(size.value)
        check(getattr(library, f"nvrtcGet{what}")(program, buffer), what)
        return buffer.raw

    program = ctypes.c_void_p()
    status = library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), name.encode(), 0, None, None
    )
    check(status, "nvrtcCreateProgram")
    try:
        flags = [f"-arch=sm_{architecture}", "-ftz=true", "--ptxas-options=-v", *options]
        status = library.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
        )
        log = read("ProgramLog").rstrip(b"\0").decode()
        if status:
            raise RuntimeError(f"{name} does not compile for sm_{architecture}: {log.strip()}")
        return read("CUBIN"), parse_log(log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def compile_file(
    path: Path, options: Sequence[str] = (), architectures: Iterable[int] = ARCHITECTURES
) -> list[Resources]:
    """Compile a ``.cu`` file for several architectures and return what its kernels need."""
    text = path.read_text(encoding="utf-8")
    return [
        resources
        for architecture in architectures
        for resources in compile_text(text, path.name, architecture, options)[1]
    ]


# ------------------------------------------------------------------------------------------- table
def kernel_folder() -> Path:
    """Return the folder of ``.cu`` files."""
    import minisrcnn.kernels.cuda

    return Path(next(iter(minisrcnn.kernels.cuda.__path__)))


def main(arguments: Sequence[str]) -> int:
    """Print the table; see the module's docstring."""
    reason = unavailable_reason()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    from minisrcnn.engine.backends.cupy_emulated import compile_configurations

    architectures = [int(a.removeprefix("sm_")) for a in arguments if not a.startswith("-")]
    architectures = architectures or list(ARCHITECTURES)
    jobs = [
        (kernel_folder() / file, options)
        for file, options in compile_configurations()
        if "--all" in arguments or "-DREAL=double" not in options
    ]
    print(f"NVRTC {version()[0]}.{version()[1]}, float{' and double' * ('--all' in arguments)}")
    print("registers of a thread, static shared memory of a block in bytes, spills in bytes:")
    print("the most over all configurations of the kernel\n")
    with ThreadPoolExecutor() as pool:  # NVRTC is called without Python's lock
        done = list(pool.map(lambda job: compile_file(job[0], job[1], architectures), jobs))
    most: dict[str, dict[int, tuple[int, int, int]]] = {}
    broken = []
    for (path, options), results in zip(jobs, done, strict=True):
        limits = read_limits(path.read_text(encoding="utf-8"))
        for r in results:
            row = most.setdefault(r.kernel, {})
            before = row.get(r.architecture, (0, 0, 0))
            now = (r.registers, r.shared, r.spills)
            row[r.architecture] = tuple(map(max, before, now))  # type: ignore[assignment]
            macros = " ".join(o[2:] for o in options if o.startswith("-D"))
            if r.kernel in limits:
                broken += [f"{line} ({macros})" for line in limits[r.kernel].broken_by(r)]
            else:
                broken.append(f"{r.kernel} has no limits in {path.name}")
    width = max(map(len, most))
    print(" " * width, *(f"{'sm_' + str(a):>15}" for a in architectures))
    for kernel, row in most.items():
        cells = ("{:>4} {:>6} {:>3}".format(*row[a]) for a in architectures)
        print(f"{kernel:<{width}}", *(f"{cell:>15}" for cell in cells))
    for line in dict.fromkeys(broken):
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
