"""Two revisions of this repository, timed in turns on one machine.

Each is checked out into a folder of its own; the benchmarks are those of this checkout. ``.`` is
this checkout as it stands, with what is not committed.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from . import machine
from .ours import Implementation
from .results import Run
from .runner import Side

_SIDES = ("before", "after")


@contextlib.contextmanager
def sides(
    revisions: tuple[str, str], columns: Sequence[Implementation]
) -> Iterator[tuple[list[Side], dict[str, str]]]:
    """Check out both revisions; give their columns, and what to note in the file.

    Raises
    ------
    ValueError
        If git does not know a revision.
    """
    with tempfile.TemporaryDirectory(prefix="minisrcnn-ab-") as folder:
        roots, names = [], {}
        try:
            for side, revision in zip(_SIDES, revisions, strict=True):
                root = machine.ROOT if revision == "." else Path(folder) / side
                if revision != ".":
                    _git("worktree", "add", "--detach", "--force", str(root), revision)
                    roots.append(root)
                names[side] = machine.revision(root)["revision"] + (
                    " and what is not committed" if revision == "." else "")
            yield [Side(column, f"{column.name}, {side}",
                        machine.ROOT if revision == "." else Path(folder) / side)
                   for column in columns
                   for side, revision in zip(_SIDES, revisions, strict=True)], names
        finally:
            for root in roots:
                _git("worktree", "remove", "--force", str(root))


def split(run: Run) -> tuple[Run, Run]:
    """Return the two halves of such a run, with the same names for the same columns."""
    halves = []
    for side in _SIDES:
        rows = [replace(row, implementation=row.implementation.removesuffix(f", {side}"))
                for row in run.rows if row.implementation.endswith(f", {side}")]
        halves.append(replace(run, rows=rows))
    return halves[0], halves[1]


def _git(*words: str) -> None:
    done = subprocess.run(["git", "-C", str(machine.ROOT), *words], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        raise ValueError(f"git {words[0]} {words[1]}: {lines[-1]}")
