"""From the text of a ``.cu`` file to a library that this process has loaded.

The generated C++ file is the header, the ``-D`` options as ``#define`` lines, the kernel text, and
a table of its kernels. (The options come after the header: a macro called ``N`` must change the
kernel and nothing else.) The kernel text is unchanged but for its declarations of dynamic shared
memory, which have no counterpart in C++: ``extern __shared__ float tile[];`` becomes a pointer to
the emulator's buffer, on the same line.

Environment
-----------
MINISRCNN_EMULATOR_ORDER
    ``forward`` (default), ``reverse`` or a number, the seed of a shuffled schedule.
MINISRCNN_EMULATOR_SANITIZE
    ``address,undefined`` or ``thread`` (or any list that g++ takes). The sanitizer's runtime must
    be in the process from its start: see ``docs/cuda-emulator.md``.
MINISRCNN_EMULATOR_DEBUG
    ``1``: compile with ``-O0 -g3``, for gdb.
MINISRCNN_CACHE
    Where compiled kernels are kept, instead of ``$XDG_CACHE_HOME/minisrcnn``; where that cannot be,
    it is a folder among the temporary files.
CXX
    The compiler, instead of ``g++``.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from minisrcnn.errors import BackendUnavailableError, MinisrcnnError
from minisrcnn.kernels.cache import Refused, private_folder

HEADER = Path(__file__).with_name("cuda_on_cpu.h")


class CompileError(RuntimeError):
    """The kernel text is not CUDA C, as far as the emulator knows it; holds g++'s messages."""


class KernelError(RuntimeError):
    """A kernel did what would hang a GPU, or be undefined there: the message says who and where."""


# --------------------------------------------------------------------------------------- settings
@dataclasses.dataclass(frozen=True)
class Settings:
    """How kernels are compiled and scheduled.

    Attributes
    ----------
    order : "forward", "reverse" or int
        In which order blocks, and threads between two barriers, take their turns; an integer
        (0 or more) seeds a shuffle. A correct kernel gives the same bits in every order.
    sanitize : str
        The value of ``-fsanitize=``: ``"address,undefined"``, ``"thread"``; empty for none.
    debug : bool
        Compile with ``-O0 -g3``.
    portable : bool
        Switch stacks with ``ucontext`` instead of a few lines of assembly (slow; for processors
        that the header has no assembly for, and to test that path).
    """

    order: str | int = "forward"
    sanitize: str = ""
    debug: bool = False
    portable: bool = False

    def __post_init__(self) -> None:
        seed = isinstance(self.order, int) and not isinstance(self.order, bool) and self.order >= 0
        if not seed and self.order not in ("forward", "reverse"):
            raise ValueError(
                f"order is {self.order!r}; wanted 'forward', 'reverse' or a seed (an integer >= 0)"
            )
        if not re.fullmatch(r"[a-z,-]*", self.sanitize):
            raise ValueError(f"sanitize is {self.sanitize!r}; wanted e.g. 'address,undefined'")

    @property
    def schedule(self) -> int:
        """The order as the header takes it: 0 forward, 1 reverse, 2 + seed."""
        if isinstance(self.order, int):
            return 2 + self.order
        return ("forward", "reverse").index(self.order)

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the ``MINISRCNN_EMULATOR_*`` variables."""
        order = os.environ.get("MINISRCNN_EMULATOR_ORDER") or "forward"
        return cls(
            order=int(order) if order.isdecimal() else order,
            sanitize=os.environ.get("MINISRCNN_EMULATOR_SANITIZE", ""),
            debug=os.environ.get("MINISRCNN_EMULATOR_DEBUG", "") not in ("", "0"),
        )


_configured: Settings | None = None


def settings() -> Settings:
    """Return the settings in force: those of :func:`configure`, else those of the environment."""
    return _configured or Settings.from_environment()


@contextlib.contextmanager
def configure(**changes: object) -> Iterator[Settings]:
    """Change settings for the body of a ``with`` statement.

    >>> with configure(order="reverse"):
    ...     settings().order
    'reverse'

    Parameters are the fields of :class:`Settings`. ``order`` takes effect at the next launch; the
    others choose another build of the same kernels, compiled when it is first launched.
    """
    global _configured
    before = _configured
    _configured = dataclasses.replace(settings(), **changes)  # type: ignore[arg-type]
    try:
        yield _configured
    finally:
        _configured = before


# --------------------------------------------------------------------------------------- compiler
def compiler() -> list[str]:
    """Return the compiler as a command: ``$CXX`` (which may hold arguments) or ``g++``."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def unavailable_reason() -> str | None:
    """Say in one sentence why kernels cannot be emulated here; None if they can. Runs nothing."""
    if sys.platform != "linux":
        return f"the CUDA emulator runs on Linux only, and this is {platform.system()}"
    command = compiler()[0]
    if shutil.which(command) is None:
        return (
            f"the CUDA emulator needs a C++17 compiler and found no {command!r}: install g++ "
            "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or set CXX"
        )
    return None


def _run(command: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the compiler, without the sanitizer that this process may have been started with."""
    environment = {**os.environ}
    if "san.so" in environment.get("LD_PRELOAD", ""):
        del environment["LD_PRELOAD"]
    return subprocess.run(
        command, input=text, env=environment, capture_output=True, text=True, check=False
    )


@functools.cache
def _compiler_version(command: tuple[str, ...]) -> str:
    return _run([*command, "--version"]).stdout


@functools.cache
def _processor_flags() -> tuple[str, ...]:
    """Return this processor's flags: without FMA instructions fmaf() is a slow library call."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return ()
    has = set(found[1].split()) if found else set()
    return ("-mavx2", "-mfma") if platform.machine() == "x86_64" and {"avx2", "fma"} <= has else ()


def _flags(wanted: Settings) -> list[str]:
    flags = ["-std=c++17", "-shared", "-fPIC", "-w", *_processor_flags()]
    # A kernel runs for a moment and takes longer to compile: -O2 gains less than it costs.
    flags += ["-O0", "-g3"] if wanted.debug else ["-O1", "-g1"]
    flags.append("-D_GLIBCXX_BITS_SPECFUN_H")  # nor does it need Bessel functions, half of math.h
    # a * b + c stays two roundings, as written, and fmaf() one: the same bits at every
    # optimisation level and under every sanitizer.
    flags.append("-ffp-contract=off")
    # Kernels read float arrays through float4 pointers, as nvcc allows and C++ does not.
    flags.append("-fno-strict-aliasing")
    # A kernel called `stat` must not be bound to the C library's.
    flags.append("-fvisibility=hidden")
    # Local variables that nobody initialises hold a pattern (about -1.7e38 as a float), not luck.
    flags.append("-ftrivial-auto-var-init=pattern")
    if wanted.sanitize:
        flags += [f"-fsanitize={wanted.sanitize}", "-fno-omit-frame-pointer"]
        flags.append("-fno-sanitize-recover=all")
        if "address" in wanted.sanitize:
            flags.append("-fsanitize-sections=emu_shared")  # red zones around shared arrays too
    if wanted.portable:
        flags.append("-DEMU_PORTABLE")
    return flags


# ------------------------------------------------------------------------------------------ cache
def cache_directory() -> tuple[Path, str]:
    """Return the folder for compiled kernels, and why it is not the usual one.

    Raises
    ------
    MinisrcnnError
        If the folder cannot be made or is not private: libraries in it are loaded.
    """
    try:
        return private_folder("cuda-on-cpu", "MINISRCNN_CACHE")
    except Refused as error:
        raise MinisrcnnError(str(error)) from None


# ---------------------------------------------------------------------------------------- sources
_DYNAMIC = re.compile(
    r"\bextern\s+__shared__\s+((?:(?:__align__|alignas)\s*\(\s*\w+\s*\)\s*)?)"
    r"([^;(){}]*?)\b(\w+)(\s*)\[\s*\]\s*;"
)
_UNROLL = re.compile(r"^([ \t]*)#pragma\s+unroll[ \t]*(//.*)?$", re.M)
_BOUNDS = r"__launch_bounds__\s*\((?P<{}>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)\s*"
_KERNEL = re.compile(
    r"(?P<template>template\s*<[^;{}]*?>\s*)?(?P<c>extern\s*\"C\"\s*)?(?P<static>static\s+)?"
    rf"__global__\s+(?:{_BOUNDS.format('b1')})?(?:static\s+)?void\s+(?:{_BOUNDS.format('b2')})?"
    r"(?P<name>\w+)\s*\("
)


def source_file(code: str) -> Path | None:
    """Return the file in ``minisrcnn.kernels.cuda`` that a kernel text comes from, for gdb."""
    import minisrcnn.kernels.cuda

    for folder in minisrcnn.kernels.cuda.__path__:
        for path in sorted(Path(folder).glob("*.cu")):
            with contextlib.suppress(OSError):
                if path.read_text() == code:
                    return path
    return None


def _defines(options: Sequence[str]) -> str:
    """``-DNAME=value`` options as ``#define`` lines; what only NVRTC understands is dropped."""
    lines = []
    for option in options:
        if option.startswith("-D"):
            name, _, value = option[2:].partition("=")
            lines.append(f"#define {name} {value if '=' in option else 1}")
        elif option.startswith("-U"):
            lines.append(f"#undef {option[2:]}")
    return "".join(line + "\n" for line in lines)


def _kernels(defines: str, code: str, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Find the kernels of a text, after the preprocessor: (name, C++ expression, bounds)."""
    done = _run([*compiler(), "-E", "-P", "-x", "c++", "-"], defines + code)
    if done.returncode:
        raise CompileError(done.stderr.strip())
    text, found, templates = done.stdout, [], {}
    matches = list(_KERNEL.finditer(text))
    if len(matches) != len(re.findall(r"\b__global__\b", text)):
        raise CompileError(
            'a kernel is declared as: extern "C" __global__ void [__launch_bounds__(...)] name('
        )
    in_c = 'extern "C" {' in re.sub(r"\s+", " ", text)
    for match in matches:
        bounds = match["b1"] or match["b2"] or ""
        if match["template"]:
            templates[match["name"]] = bounds
        elif match["c"] or in_c:
            found.append((match["name"], match["name"], bounds))
        else:
            templates[match["name"]] = bounds  # has a mangled name: must be named, like a template
    for expression in names:
        base = expression.split("<")[0].strip()
        if base not in templates and base not in [name for name, _, _ in found]:
            raise CompileError(f"name_expressions: there is no kernel {expression!r}")
        found.append((expression, expression, templates.get(base, "")))
    return found


def generate(code: str, options: Sequence[str] = (), names: Sequence[str] = ()) -> str:
    """Return the C++ text that is compiled for a kernel text; see the module's docstring."""
    defines = _defines(options)
    kernels = _kernels(defines, code, names)
    text = _DYNAMIC.sub(
        lambda m: (
            f"{m[2]}*const {m[3]} = reinterpret_cast<{m[2]}*>(emu::dynamic_shared);"
            + "\n" * m[0].count("\n")
        ),
        code,
    )
    text = _UNROLL.sub(r"\1#pragma GCC unroll 64", text)
    path = source_file(code)
    table = "".join(
        f'  {{"{name}", emu::signature(&{function}), emu::bounds({bounds}), '
        f"&emu::body<&{function}>}},\n"
        for name, function, bounds in kernels
    )
    return (
        f'#include "{HEADER}"\n{defines}#line 1 "{path or "kernel.cu"}"\n{text}\n'
        f'#line 1 "table of kernels"\nEMU_API const emu::Kernel emu_kernels[] = {{\n{table}'
        "  {nullptr, nullptr, 0, nullptr}};\n"
    )


# ------------------------------------------------------------------------------------------ build
def compile_library(
    code: str,
    options: Sequence[str] = (),
    names: Sequence[str] = (),
    wanted: Settings | None = None,
) -> Path:
    """Compile a kernel text, or find it compiled, and return the path of the library.

    Two processes that compile the same text at once do not disturb each other: each writes a file
    of its own and then renames it, and whichever comes last replaces the same by the same.

    Parameters
    ----------
    code : str
        The text of a ``.cu`` file.
    options : sequence of str
        Compiler options as for NVRTC; ``-D`` and ``-U`` are used, all others ignored.
    names : sequence of str
        Instances of kernel templates to build, such as ``"scale<float>"``.
    wanted : Settings, optional
        Instead of those in force.

    Raises
    ------
    CompileError
        With the compiler's messages, which name lines of the ``.cu`` text.
    BackendUnavailableError
        Without a compiler.
    """
    reason = unavailable_reason()
    if reason:
        raise BackendUnavailableError(reason)
    wanted = wanted or settings()
    command, flags = compiler(), _flags(wanted)
    folder, _ = cache_directory()
    parts = [code, *options, "names", *names, "flags", *command, *flags, str(source_file(code))]
    parts += [HEADER.read_text(), str(HEADER), Path(__file__).read_text()]
    parts.append(_compiler_version(tuple(command)))
    library = folder / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + ".so")
    if _is_whole(library):
        return library
    source = library.with_suffix(".cpp")
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as work:
        new_source, new_library = Path(work) / source.name, Path(work) / library.name
        new_source.write_text(generate(code, options, names))
        done = _run([*command, *flags, str(new_source), "-o", str(new_library)])
        if done.returncode:
            raise CompileError(done.stderr.strip())
        digest = hashlib.sha256(new_library.read_bytes()).digest()
        with open(new_library, "ab") as file:  # what follows its sections is never loaded
            file.write(digest)
        new_source.replace(source)  # kept, for whoever wants to see what was compiled
        new_library.replace(library)
    return library


def _is_whole(library: Path) -> bool:
    """Whether a library is there, undamaged: with the SHA-256 of the rest at its end."""
    try:
        data = library.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("signature", ctypes.c_char_p),
        ("max_threads", ctypes.c_int),
        ("body", ctypes.c_void_p),
    ]


@dataclasses.dataclass(frozen=True)
class Function:
    """A kernel in a loaded library.

    Attributes
    ----------
    name : str
        As in the ``.cu`` file.
    parameters : tuple of str
        One code each: ``"pcf4"`` is ``const float*``, ``"f8"`` ``double``, ``"i4"`` ``int``.
    max_threads : int
        From ``__launch_bounds__``; 1024 without.
    """

    name: str
    parameters: tuple[str, ...]
    max_threads: int
    _entry: _Kernel
    _library: ctypes.CDLL

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData],
        shared_bytes: int,
    ) -> None:
        """Run the whole grid, in the order of the settings in force.

        Raises
        ------
        KernelError
            If a block can never finish: its threads wait at different barriers.
        """
        addresses = (ctypes.c_void_p * max(1, len(arguments)))(
            *(ctypes.addressof(argument) for argument in arguments)
        )
        geometry = (ctypes.c_uint * 6)(*grid, *block)
        with _one_at_a_time:
            failed = self._library.emu_launch(
                ctypes.byref(self._entry), geometry, shared_bytes, addresses, settings().schedule
            )
            if failed:
                raise KernelError(self._library.emu_error().decode())


_one_at_a_time = threading.Lock()  # each library has one threadIdx, one copy of shared memory
_stacks, _tsan_threads = (ctypes.c_void_p * 2048)(), (ctypes.c_void_p * 2048)()  # for all of them


@functools.cache
def _load(path: Path) -> dict[str, Function]:
    library = ctypes.CDLL(str(path))
    library.emu_launch.argtypes = [
        ctypes.POINTER(_Kernel),
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_long,
    ]
    library.emu_error.restype = ctypes.c_char_p
    library.emu_share(_stacks, _tsan_threads)
    table = ctypes.cast(library.emu_kernels, ctypes.POINTER(_Kernel))
    functions, i = {}, 0
    while table[i].name:
        entry = table[i]
        name, parameters = entry.name.decode(), tuple(entry.signature.decode().split())
        functions[name] = Function(name, parameters, entry.max_threads, entry, library)
        i += 1
    return functions


def load(
    code: str,
    options: Sequence[str] = (),
    names: Sequence[str] = (),
    wanted: Settings | None = None,
) -> dict[str, Function]:
    """Compile (see :func:`compile_library`) and load a kernel text: its kernels by name."""
    return _load(compile_library(code, options, names, wanted))
