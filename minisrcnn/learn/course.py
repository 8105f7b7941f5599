"""The exercises, in order, and what a student gets of each.

An exercise is one file in ``exercises/``. Above the line ``# ---- grading`` stands what the student
sees, below it how it is graded. In the upper part, gaps are marked::

    # gap: what belongs here
    ...the solution...
    # end of gap

The student's copy has the first line and a ``raise NotImplementedError``; the solution has the
lines between. So both can differ only there.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import MinisrcnnError

FOLDER = Path(__file__).with_name("exercises")
_GRADING = "\n# ---- grading"
_GAP = re.compile(
    r"^(?P<indent>[ ]*)(?P<mark>#|//) gap: (?P<task>[^\n]*)\n(?P<body>.*?)"
    r"^[ ]*(?:#|//) end of gap\n",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes
    ----------
    number : int
        From 1, in the order of the book.
    name : str
        Of the student's file, without ``.py``: ``"04_bias_gradient"``.
    text : str
        The whole file.
    """

    number: int
    name: str
    text: str

    @property
    def title(self) -> str:
        """The first line of the task."""
        return (ast.get_docstring(ast.parse(self.text)) or "").splitlines()[0]

    @property
    def task(self) -> str:
        """The whole task."""
        return ast.get_docstring(ast.parse(self.text)) or ""

    @property
    def solution(self) -> str:
        """The file with its gaps filled."""
        return _GAP.sub(lambda gap: gap["body"], self._shown())

    @property
    def skeleton(self) -> str:
        """The file as a student gets it."""

        def fill(gap: re.Match[str]) -> str:
            line = f"{gap['indent']}{gap['mark']} your code: {gap['task']}\n"
            missing = f"not written yet: {gap['task']}"
            if gap["mark"] == "//":  # CUDA C in a string
                return f"{line}#error \"{missing}\"\n"
            return f"{line}{gap['indent']}raise NotImplementedError({missing!r})\n"

        return _GAP.sub(fill, self._shown())

    @property
    def grading(self) -> str:
        """How it is graded: the code that the student does not get."""
        return "import numpy as np\n" + self.text.split(_GRADING, 1)[1].split("\n", 1)[1]

    def planted(self, old: str, new: str) -> str:
        """Return the solution with a known mistake: in its gaps, ``new`` for the first ``old``.

        Raises
        ------
        ValueError
            If ``old`` does not stand in a gap.
        """
        if not any(old in gap["body"] for gap in _GAP.finditer(self._shown())):
            raise ValueError(f"old is {old!r}, want text that stands in a gap of {self.name}")
        left = [1]  # how many are still to be replaced

        def plant(gap: re.Match[str]) -> str:
            body = gap["body"]
            if left[0] and old in body:
                left[0] = 0
                return body.replace(old, new, 1)
            return body

        return _GAP.sub(plant, self._shown())

    def _shown(self) -> str:
        return self.text.split(_GRADING, 1)[0] + "\n"


@cache
def exercises() -> tuple[Exercise, ...]:
    """Return all exercises, in order."""
    return tuple(Exercise(int(path.stem.split("_")[0]), path.stem, path.read_text("utf-8"))
                 for path in sorted(FOLDER.glob("[0-9]*.py")))


def exercise(number: int) -> Exercise:
    """Return an exercise by its number.

    Raises
    ------
    MinisrcnnError
        If there is none.
    """
    found = [each for each in exercises() if each.number == number]
    if not found:
        raise MinisrcnnError(f"exercise is {number}, want 1 to {len(exercises())}")
    return found[0]
