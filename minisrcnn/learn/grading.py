"""Grade one file: ``python -m minisrcnn.learn.grading NUMBER FILE`` prints a verdict as JSON.

A file is graded in two steps. The exercise's ``judge`` compares it with something independent:
finite differences, SciPy, a direct sum; where it is a gradient, the gradient checker names the
mistake. If that fails, the file is run on fixed inputs (``probe``) beside every known mistake of
the exercise: where it gives what a known mistake gives, that mistake is named, with its hint.

A student's file can do anything, from an endless loop to ``sys.exit``: so it runs in a process of
its own, with a time limit (:func:`grade`).
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import traceback
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .course import Exercise, exercise

SECONDS = 60  # for one file; the slowest, the CUDA kernels, take a few


@dataclass(frozen=True)
class Verdict:
    """What came of a file.

    Attributes
    ----------
    status : {"passed", "open", "wrong", "skipped"}
        ``"open"``: a gap is not filled yet. ``"skipped"``: this machine cannot grade it.
    text : str
        What is wrong, or not written, or missing.
    hint : str
        For a known mistake, what to look at; else empty.
    """

    status: str
    text: str = ""
    hint: str = ""


class Wrong(AssertionError):
    """Raised by a judge: the message says what is wrong."""


class Skipped(Exception):
    """Raised by a judge: the message says what this machine lacks."""


def expect(got: Any, want: Any, what: str, tolerance: float = 1e-9) -> None:
    """Raise :class:`Wrong` where an array differs from what it should be.

    Errors are relative to the largest number of ``want``.
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.dtype == object or got.shape != want.shape:
        raise Wrong(f"{what} has shape {got.shape}, want {want.shape}")
    error = abs(got - want) / max(abs(want).max(initial=0), 1e-300)
    if not np.all(error <= tolerance):
        at = tuple(int(i) for i in np.unravel_index(np.nanargmax(error), error.shape))
        raise Wrong(f"{what}{list(at)} is {got[at]:.9g}, want {want[at]:.9g}")


def load(source: str, name: str) -> types.SimpleNamespace:
    """Run a file's text as a module and return its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # Numba and dataclasses look a function's module up
    exec(compile(source, name, "exec"), module.__dict__)
    return types.SimpleNamespace(**module.__dict__)


def judge(task: Exercise, source: str) -> Verdict:
    """Grade a file's text, in this process."""
    grader = load(task.grading, "grading_of_" + task.name)
    try:
        student = load(source, task.name + ".py")
        grader.judge(student)
    except NotImplementedError as error:
        return Verdict("open", str(error))
    except Skipped as error:
        return Verdict("skipped", str(error))
    except AssertionError as error:
        return Verdict("wrong", str(error), _known_mistake(task, grader, source))
    except SystemExit:
        return Verdict("wrong", "the file calls sys.exit")
    except Exception as error:
        return Verdict("wrong", _trace(error, task.name + ".py"),
                       _known_mistake(task, grader, source))
    return Verdict("passed")


def grade(number: int, file: Path, seconds: float = SECONDS) -> Verdict:
    """Grade a student's file in a process of its own."""
    run = [sys.executable, "-m", "minisrcnn.learn.grading", str(number), str(file)]
    try:
        done = subprocess.run(run, capture_output=True, text=True, errors="replace",
                              timeout=seconds, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return Verdict("wrong", f"not finished after {seconds:g} s: is there an endless loop?")
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        return Verdict("wrong", f"the file ended its process (exit code {done.returncode}): {last}")
    return Verdict(**json.loads(lines[-1]))


def _known_mistake(task: Exercise, grader: Any, source: str) -> str:
    """Return the hint of the known mistake that gives the same numbers; empty if none does."""
    made = _outcome(grader, source, task.name)
    if made is None or made == _outcome(grader, task.solution, task.name):
        return ""
    for old, new, hint in grader.MISTAKES:
        if _outcome(grader, task.planted(old, new), task.name) == made:
            return hint
    return ""


def _outcome(grader: Any, source: str, name: str) -> str | None:
    """Return what a file gives on fixed inputs, rounded so that orders of sums do not show."""
    try:
        results = grader.probe(load(source, name + "_probed.py"))
    except (Wrong, Skipped, NotImplementedError):
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return repr([None if a is None else np.array2string(
        np.asarray(a, float) + 0.0, precision=6, threshold=10**6, suppress_small=True)
        for a in results])


def _trace(error: BaseException, name: str) -> str:
    """Return the error, with the last line of the student's file that led to it."""
    at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
          if frame.filename == name]
    if isinstance(error, SyntaxError) and error.filename == name:
        at = [error.lineno]
    place = f"line {at[-1]}: " if at else ""
    return f"{place}{type(error).__name__}: {error}"


def main(arguments: list[str]) -> None:
    """Grade, and print the verdict as the last line."""
    number, file = int(arguments[0]), Path(arguments[1])
    with contextlib.redirect_stdout(io.StringIO()):  # what the student prints
        verdict = judge(exercise(number), file.read_text("utf-8"))
    print(json.dumps(asdict(verdict)))


if __name__ == "__main__":
    from minisrcnn.learn.grading import main as run  # the module that exercises import, not a copy

    run(sys.argv[1:])
