"""``minisrcnn data list | fetch | verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from .terminal import (
    Command,
    add_row,
    complain,
    new_table,
    print_line,
    print_table,
    progress_bar,
)

app = typer.Typer(help="The data sets T91, Set5 and Set14.", no_args_is_help=True)


@app.command("list", cls=Command)
def data_list() -> None:
    """Show the data sets and where they are."""
    from ..imaging.datasets import list_datasets

    table = new_table("data set", "pictures", "here", "folder", left=("data set", "folder"))
    for row in list_datasets():
        add_row(table, row.name, str(row.images), str(row.present), str(row.place or "-"))
    print_table(table)


@app.command("fetch", cls=Command)
def data_fetch(
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME]...", help="T91, Set5, Set14; all of them by default.")] = None,
) -> None:
    """Download data sets into the cache; every file is checked against its SHA-256."""
    from ..imaging.datasets import NAMES, fetch

    for name in names or NAMES:
        with progress_bar(name) as progress:
            dataset = fetch(name, progress=progress)
        print_line(f"{dataset.name}: {len(dataset)} pictures in {dataset.paths[0].parent}")


@app.command("verify", cls=Command)
def data_verify(
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME]...", help="T91, Set5, Set14; all of them by default.")] = None,
) -> None:
    """Check the files on disk against their SHA-256; exit code 1 if one is not the original."""
    from ..imaging.datasets import NAMES, verify

    bad = 0
    for name in names or NAMES:
        files = verify(name)
        wrong = [file for file in files if file.status != "ok"]
        bad += len(wrong)
        for file in wrong:
            complain(f"{file.path}: {file.status}")
        print_line(f"{name}: {len(files) - len(wrong)} of {len(files)} files are the originals")
    if bad:
        raise typer.Exit(1)
