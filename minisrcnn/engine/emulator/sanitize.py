"""Run a Python program whose kernels are watched by g++'s sanitizers.

``python -m minisrcnn.engine.emulator.sanitize address,undefined script.py [arguments]``

Kernels are then compiled with ``-fsanitize=...``: ``address,undefined`` finds accesses outside an
array (device memory and shared memory alike), misaligned vectors, overflows; ``thread`` finds data
races between CUDA threads. Python itself is not instrumented, so the sanitizer's runtime has to be
loaded before it (``LD_PRELOAD``): hence a new process.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from minisrcnn.engine.emulator import build


def _runtime(sanitizer: str) -> str | None:
    """Return the runtime library of the thread or the address sanitizer."""
    name = "libtsan.so" if sanitizer == "thread" else "libasan.so"
    found = subprocess.run(
        [*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return str(Path(found).resolve()) if os.path.isabs(found) and Path(found).exists() else None


def unavailable_reason(sanitizer: str) -> str | None:
    """Say in one sentence why kernels cannot be watched here; None if they can."""
    reason = build.unavailable_reason()
    if reason is None and _runtime(sanitizer) is None:
        return f"{build.compiler()[0]} has no library for -fsanitize={sanitizer} here"
    return reason


def environment(sanitizer: str) -> dict[str, str]:
    """Return the environment for a Python process whose kernels are watched.

    Parameters
    ----------
    sanitizer : str
        ``"address,undefined"`` or ``"thread"``.
    """
    return {
        **os.environ,
        "MINISRCNN_EMULATOR_SANITIZE": sanitizer,
        "LD_PRELOAD": _runtime(sanitizer) or "",
        # Python keeps what it has allocated until it ends; that is no leak of a kernel's.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66:report_signal_unsafe=0:history_size=4",
        "OPENBLAS_NUM_THREADS": "1",  # the only threads here are CUDA's
    }


def command(sanitizer: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs Python with these arguments, watched.

    The thread sanitizer wants its own places in the address space, which the randomisation of
    recent kernels can take away: it is switched off for the process where ``setarch`` can do so.
    """
    run = [sys.executable, *arguments]
    if sanitizer == "thread" and shutil.which("setarch"):
        fixed = ["setarch", platform.machine(), "-R"]
        if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode == 0:
            return [*fixed, *run]
    return run


def main(arguments: Sequence[str]) -> int:
    """Run the rest of the command line; the exit code is the program's, or the sanitizer's."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    sanitizer, *rest = arguments
    reason = unavailable_reason(sanitizer)
    if reason:
        print(reason, file=sys.stderr)
        return 2
    return subprocess.run(
        command(sanitizer, rest), env=environment(sanitizer), check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
