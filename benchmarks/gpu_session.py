"""All that a GPU is needed for, in one go: tests, sanitizers, benchmarks, a profile, a report.

For a bare machine with CUDA, CuPy, NumPy, Numba and pytest, from a checkout that is not installed.
Each part is a process with a time limit; what fails does not stop the others, and what is
missing is named and skipped. The limits add up to less than ten minutes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import cases, gpu, machine

_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# The largest images take longest, and say no more than the next smaller ones.
_COLUMNS = r"^(?!.*4096x4096).*(cupy|cuda|emulated)"


@dataclass(frozen=True)
class Part:
    """A command, its time limit in seconds, and why it cannot run here, if it cannot."""

    name: str
    command: list[str]
    limit: float
    missing: str = ""


def run(folder: Path, backend: str = "cupy") -> int:
    """Run all parts; write logs, results and ``summary.md`` into ``folder``.

    Returns
    -------
    int
        1 if a part failed, else 0; a part that was skipped has not failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine.use_checkout()
    from minisrcnn.engine.backends import unavailable_reason

    reason = unavailable_reason(backend) or ""
    facts = machine.describe()
    lines = [f"# GPU session: {facts['gpu'] if backend == 'cupy' else backend}", "",
             f"Revision {facts['revision']}{', with changes' * (facts['clean'] is False)}, "
             f"{time.strftime('%Y-%m-%d', time.gmtime())}, {facts['processor']}.", "",
             "| part | outcome | seconds |", "|---|---|---|"]
    failed = False
    for part in parts(folder, backend, reason):
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        outcome = (part.missing and f"skipped: {part.missing}") or _run(part, folder)
        failed |= outcome.startswith("failed")
        lines.append(f"| {part.name} | {outcome} | {time.monotonic() - start:.0f} |")
        print(f"  {outcome}", file=sys.stderr, flush=True)
        (folder / "summary.md").write_text("\n".join(lines) + "\n")
    print(f"{folder / 'summary.md'} says what ran")
    return int(failed)


def parts(folder: Path, backend: str, reason: str) -> list[Part]:
    """Return the parts of a session, each with why it cannot run here."""
    python, emulated = sys.executable, backend != "cupy"
    small = [python, "-m", "benchmarks.gpu_session", backend]
    results = folder / "results.json"
    tests = ["-m", "gpu", "tests"] if not emulated else ["-k", "emulated and conv",
                                                        "tests/test_cuda_kernels.py"]
    code = ("import sys, pytest, benchmarks.machine as m; m.use_checkout(); "
            "sys.exit(pytest.main(sys.argv[1:]))")
    sizes = ["--quick"] if emulated else []
    workers = [] if _missing("xdist") else ["-p", "xdist", "-n", str(min(8, os.cpu_count() or 1))]
    sanitizer = reason or ("" if shutil.which("compute-sanitizer")
                           else "compute-sanitizer is not on the path")
    return [
        Part("checks on small shapes", small, 40, reason),
        Part("tests", [python, "-c", code, "-o", "addopts=", "-q", "-ra",
                       "-p", "minisrcnn.gradcheck_pytest", "--continue-on-collection-errors",
                       *workers, *tests], 150, reason or _missing("pytest")),
        *(Part(tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *small], 25,
               sanitizer) for tool in _TOOLS),
        Part("benchmarks", [
            python, "-m", "benchmarks", "all", "--rounds", "3", "--time-limit", "3.3",
            "--filter", _COLUMNS if not emulated else r"^transfer.*64 KB|3x3 3->8.*v[13]",
            "--out", str(results), *sizes, *(["--emulated"] if emulated else [])], 240, reason),
        Part("profile", ["ncu", "--set", "basic", "-k", "regex:conv_", "-c", "20", "-f", "-o",
                         str(folder / "profile"), *small], 40,
             reason or ("" if shutil.which("ncu") else "ncu is not on the path")),
        Part("report", [python, "-m", "benchmarks", "report", str(results), "--out", str(folder)],
             20, reason),
    ]


def check_small(backend: str) -> None:
    """Run the columns of the benchmark on small shapes, without a memory pool; check the results.

    Raises
    ------
    SystemExit
        If a result is wrong.
    """
    machine.use_checkout()
    if backend == "cupy":
        import cupy

        cupy.cuda.set_allocator(None)  # the pool hides what was never written, and overruns
    chosen = [*(cases.Convolution(operation, 2, 3, 5, 3, 9, 10) for operation in cases.OPERATIONS),
              cases.Training("5-1-3", 2, 12), cases.Inference("5-1-3", 20, 17)]
    wrong = 0
    for column in gpu.implementations(backend):
        for case in chosen:
            if case.suite in column.suites:
                prepared = column.prepare(case, 1)
                want = case.answer()
                for call in prepared.calls.values():
                    error = cases.error_of(case, prepared.fetch(call()), want)
                    wrong += not error <= column.gate
                    print(f"{column.name}, {case.label}: error {error:.1e}")
    if wrong:
        sys.exit(f"{wrong} results are wrong")


def _run(part: Part, folder: Path) -> str:
    log = folder / f"{part.name.replace(' ', '-')}.log"
    environment = os.environ | {"PYTHONPATH": machine.python_path(),
                                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with open(log, "w") as file:
        try:
            done = subprocess.run(part.command, cwd=machine.ROOT, stdout=file, timeout=part.limit,
                                  stderr=subprocess.STDOUT, env=environment, check=False)
        except subprocess.TimeoutExpired:
            return f"failed: longer than {part.limit:.0f} s, see {log.name}"
        except OSError as error:
            return f"failed: {error}"
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
        return f"failed: exit code {done.returncode}, see {log.name}: {last[0][:160]}"
    return f"done, see {log.name}"


def _missing(package: str) -> str:
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


if __name__ == "__main__":
    check_small(sys.argv[1])
