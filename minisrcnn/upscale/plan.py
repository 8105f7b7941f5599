"""Decide, before anything is computed, which picture becomes which file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MinisrcnnError
from ..imaging.files import find_images
from ..imaging.save import FORMATS, format_of

STANDARD = "-"  # standard input as a source, standard output as a target


@dataclass(frozen=True)
class Source:
    """A picture that was found; ``tree`` is where it lies below the folder that was named."""

    path: Path
    asked: bool  # by its own name, rather than by a folder or a pattern
    tree: Path = Path()


@dataclass(frozen=True)
class Job:
    """One picture to read and where its result goes; ``named`` if the user named that file."""

    source: Path
    target: Path
    named: bool = False


@dataclass
class Plan:
    """What is to be done, and what should be said before; ``pictures`` are those of all parts."""

    pictures: int = 0
    jobs: list[Job] = field(default_factory=list)
    existing: list[Job] = field(default_factory=list)  # skipped: their results are there
    notes: list[str] = field(default_factory=list)


def find_sources(
    inputs: Sequence[str], recursive: bool, problems: list[str], notes: list[str]
) -> list[Source]:
    """Find the pictures that files, folders and patterns name; none twice.

    Parameters
    ----------
    inputs : sequence of str
        ``-`` is standard input.
    recursive : bool
        Whether folders stand for all below them.
    problems, notes : list of str
        What names nothing, and what is skipped in folders, add a line.
    """
    found: dict[str, Source] = {}
    others: list[Path] = []
    for item in inputs:
        if item == STANDARD:
            found.setdefault(item, Source(Path(item), True))
            continue
        if not item.strip():
            problems.append("an input is empty, want a file, a folder or a pattern")
            continue
        root = Path(item)
        folder = root.is_dir()
        for path in find_images(item, problems, recursive=recursive, others=others):
            tree = path.parent.relative_to(root) if folder else Path()
            asked = not folder and os.path.exists(item)
            found.setdefault(os.path.realpath(path), Source(path, asked, tree))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"Skipping what is no picture by its name: {others[0]}{more}.")
    return list(found.values())


def make_plan(
    sources: Sequence[Source],
    out: str | None,
    suffix: str,
    format: str | None = None,
    skip_existing: bool = False,
    overwrite: bool = False,
    part: tuple[int, int] = (0, 1),
    dry_run: bool = False,
) -> Plan:
    """Name the result of every picture.

    Parameters
    ----------
    sources : sequence of Source
    out : str or None
        A file (for one picture), a folder, made if need be, or ``-``; by default each result goes
        beside its picture.
    suffix : str
        Put after the name: ``_x3`` makes ``a_x3.png`` of ``a.jpg``.
    format : str, optional
        The suffix of the format, such as ``jpg``; ``same``: that of the picture. By default PNG,
        and TIFF for a TIFF of several pages.
    skip_existing : bool
        Whether pictures whose result exists are skipped even where they were named one by one.
    overwrite : bool
        Whether results that exist are replaced.
    part : (int, int)
        (I, N): every N-th picture from I on, whichever results exist by now.
    dry_run : bool
        Whether a folder that is missing is not made.

    Raises
    ------
    MinisrcnnError
        If a picture would be overwritten by a result that was named, several pictures are to go
        to one file, or nothing can be written to ``out``.
    """
    plan = Plan()
    sources = _without_results(sources, out, suffix, plan)
    plan.pictures = len(sources)
    index, count = part
    if out is not None and (out == STANDARD or not _is_folder(out)):
        if len(sources) > 1:
            raise MinisrcnnError(f"{out}: one file for {len(sources)} pictures, want a folder")
        target = Path(out)
        if out != STANDARD:
            format_of(out)
            _check_folder(target.parent)
        for source in sources:
            if os.path.realpath(target) == os.path.realpath(source.path) and out != STANDARD:
                raise MinisrcnnError(f"{out} is the picture to upscale and would be overwritten: "
                                     "name another -o")
            if index == 0:  # one picture: the first part's
                plan.jobs.append(Job(source.path, target, named=True))
        return plan
    if out is None and any(source.path == Path(STANDARD) for source in sources):
        if len(sources) > 1:
            raise MinisrcnnError("- and other pictures have no common place, want -o FOLDER")
        if index == 0:
            plan.jobs.append(Job(Path(STANDARD), Path(STANDARD), named=True))
        return plan
    if out is not None and not dry_run:
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MinisrcnnError(f"{out}: cannot make this folder ({error.strerror})") from None
        _check_folder(Path(out))
    taken = {os.path.realpath(source.path): source.path for source in sources}
    for number, source in enumerate(sources):
        folder = source.path.parent if out is None else Path(out) / source.tree
        target = _free_name(source, folder, suffix, _ending(source, format, plan), taken, plan)
        taken[os.path.realpath(target)] = source.path
        if number % count != index:
            continue
        there = target.exists() and not overwrite and (skip_existing or not source.asked)
        (plan.existing if there else plan.jobs).append(Job(source.path, target))
    if plan.existing:
        plan.notes.append(f"Skipping {len(plan.existing)} pictures whose result exists "
                          "(--overwrite replaces them).")
    return plan


def _without_results(
    sources: Sequence[Source], out: str | None, suffix: str, plan: Plan
) -> list[Source]:
    """Leave out what folders and patterns hold of earlier results."""
    # All that a folder has in a folder for results below it; by path, each folder looked up once.
    results = Path(os.path.realpath(out)) if out not in (None, STANDARD) else None
    inside: dict[tuple[Path, Path], bool] = {}
    for source in sources:
        if (key := (source.path.parent, source.tree)) not in inside:
            here = Path(os.path.realpath(source.path.parent))
            top = here.parents[len(source.tree.parts) - 1] if source.tree.parts else here
            inside[key] = (results is not None and here.is_relative_to(results)
                           and not top.is_relative_to(results))
    if within := [source for source in sources if inside[source.path.parent, source.tree]]:
        plan.notes.append(f"Skipping {len(within)} pictures in {out}, where results go: name them "
                          "to upscale them.")
        sources = [source for source in sources if not inside[source.path.parent, source.tree]]
    stems = {source.path.parent / source.path.stem for source in sources}
    kept: list[Source] = []
    left: list[Source] = []
    ending = re.compile(rf"(.+?)(?:_x\d+(?:\.\d+)?|{re.escape(suffix) or '(?!)'})")
    for source in sources:
        earlier = ending.fullmatch(source.path.stem)
        # a_x3 beside a, and a_jpg_x3 beside a
        bases = {earlier[1], earlier[1].rpartition("_")[0]} if earlier else set()
        result = any(source.path.parent / base in stems for base in bases if base)
        (left if result and not source.asked else kept).append(source)
    if left:
        plan.notes.append(f"Skipping {len(left)} pictures that an earlier run has made "
                          f"({left[0].path.name}, ...): name them to upscale them again.")
    return kept


def _ending(source: Source, format: str | None, plan: Plan) -> str:
    own = source.path.suffix.lower()
    if format == "same":
        if own in FORMATS:
            return source.path.suffix
        plan.notes.append(f"{source.path}: {own or 'its format'} cannot be written; it becomes "
                          ".png")
        return ".png"
    if format is not None:
        return f".{format}"
    return ".tif" if own in (".tif", ".tiff") and _has_pages(source.path) else ".png"


def _has_pages(path: Path) -> bool:
    from ..imaging.decode import open_picture

    try:
        with open_picture(path) as picture:
            return picture.count > 1
    except MinisrcnnError:  # reading it will say why
        return False


def _free_name(
    source: Source, folder: Path, suffix: str, ending: str, taken: dict[str, Path], plan: Plan
) -> Path:
    stem, own = source.path.stem, source.path.suffix[1:]
    if source.path == Path(STANDARD):
        stem, own = "stdin", ""
    names = [f"{stem}{suffix}", f"{stem}_{own}{suffix}"]
    number = 1
    while True:
        for name in names:
            target = folder / f"{name}{ending}"
            other = taken.get(os.path.realpath(target))
            if other is None:
                if name != f"{stem}{suffix}":
                    first = folder / f"{stem}{suffix}{ending}"
                    plan.notes.append(f"{source.path}: becomes {target.name}; {first.name} is "
                                      "taken by another picture")
                return target
        number += 1
        names = [f"{stem}_{own}_{number}{suffix}"]


def _is_folder(out: str) -> bool:
    return os.path.isdir(out) or out.endswith(("/", os.sep)) or not Path(out).suffix


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise MinisrcnnError(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK):
        raise MinisrcnnError(f"{folder}: not allowed to write there")
