"""``minisrcnn gradcheck``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import note, print_table, user_values


def gradcheck_command(
    backend: Annotated[list[str] | None, typer.Option(
        metavar="NAME ...", show_default="all that run here", help="Backends to check.")] = None,
) -> None:
    """Check every layer and loss of every backend against finite differences."""
    from ..engine.backends import BACKENDS, cache_problem, get_backend, unavailable_reason
    from ..engine.selfcheck import run, table

    with user_values():
        names = [get_backend(name).NAME for name in backend or []]
    package = Path(__file__).resolve().parents[1]
    note(f"Checking the copy of minisrcnn in {package}.")
    here = Path("minisrcnn").resolve()
    if here != package and (here / "engine").is_dir():
        note(f"The copy in {here} is another one: python -m minisrcnn gradcheck checks it.")
    working = [name for name in names or BACKENDS if unavailable_reason(name) is None]
    for problem in dict.fromkeys(cache_problem(get_backend(name)) for name in working):
        if problem:
            note(f"{problem[0].upper()}{problem[1:]}.")
    rows = run(names)
    print_table(table(rows))
    if any(row.failed for row in rows):
        raise typer.Exit(1)
