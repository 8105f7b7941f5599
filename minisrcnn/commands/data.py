"""``minisrcnn data list | fetch | verify | pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import MinisrcnnError
from ..training.recipes import RECIPES
from .terminal import (
    Command,
    add_row,
    complain,
    new_table,
    print_line,
    print_table,
    progress_bar,
)

app = typer.Typer(help="The data sets T91, Set5 and Set14, and packed sets of your own pictures.",
                  no_args_is_help=True)


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
        metavar="[NAME|SET]...", help="T91, Set5, Set14, all of them by default; packed sets.")
    ] = None,
) -> None:
    """Check the files on disk, or packed sets, by SHA-256; exit code 1 if one has changed."""
    from ..imaging import packed
    from ..imaging.datasets import NAMES, dataset_name, verify

    bad = 0
    for name in names or NAMES:
        if Path(name).is_file():
            with progress_bar(name) as progress:
                damaged = packed.verify(name, progress)
            bad += len(damaged)
            for picture in damaged:
                complain(f"{name}: {picture} is not as it was packed")
            if not damaged:
                print_line(f"{name}: every picture is as it was packed")
            continue
        if dataset_name(name) is None:
            raise MinisrcnnError(f"{name}: neither a packed set nor one of {', '.join(NAMES)}")
        files = verify(name)
        wrong = [file for file in files if file.status != "ok"]
        bad += len(wrong)
        for file in wrong:
            complain(f"{file.path}: {file.status}")
        print_line(f"{name}: {len(files) - len(wrong)} of {len(files)} files are the originals")
    if bad:
        raise typer.Exit(1)


FACTORS = tuple(sorted({f for recipe in RECIPES.values() for f in recipe.rescaled}, reverse=True))


@app.command("pack", cls=Command)
def data_pack(
    folders: Annotated[list[str], typer.Argument(
        metavar="FOLDER...", help="Pictures, with those in the folders below; T91 by its name.")],
    out: Annotated[Path, typer.Option(
        "-o", "--out", metavar="SET", help="The file to write; it must not exist.")],
    copies: Annotated[bool, typer.Option(
        help=f"Also pack each picture at {', '.join(map(str, FACTORS))} of its size, as recipes "
        "fast and deep want; the set is 3.3 times as large.")] = True,
) -> None:
    """Pack the luma of pictures into one file, for trainings larger than memory.

    minisrcnn train --data SET gives the weights that the folder would. A pack
    that was killed goes on where it was; until it is whole, it is in SET.part.
    What cannot be read is skipped with a warning, and the exit code is 1.
    """
    from ..imaging.packed import find_sources, pack

    with progress_bar(out.name) as progress:
        packed = pack(find_sources(folders), out, FACTORS if copies else (), complain, progress)
    more = f" and {packed.planes - packed.pictures:,} copies" if copies else ""
    print_line(f"{out}: {packed.pictures:,} pictures{more}, "
               f"{packed.pixels / 1e6:,.1f} million pixels")
    if packed.skipped:
        complain(f"{len(packed.skipped):,} of {packed.pictures + len(packed.skipped):,} pictures "
                 "are not in it")
        raise typer.Exit(1)
