"""``minisrcnn upscale``."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..arguments import check_number
from ..errors import MinisrcnnError
from .terminal import (
    Backend,
    Model,
    ask_for_scale,
    complain,
    load_network,
    model_scale,
    note,
    print_json,
    print_line,
    progress_bar,
    user_values,
)

if TYPE_CHECKING:
    from ..upscale.batch import Manifest, Outcome
    from ..upscale.pixels import Networks


def upscale_command(
    inputs: Annotated[list[str], typer.Argument(
        metavar="INPUT...", help="Pictures, folders of pictures, patterns such as 'in/*.jpg', or - "
        "for standard input.")],
    out: Annotated[str | None, typer.Option(
        "-o", "--out", metavar="OUT", show_default="NAME_x3.png beside each picture",
        help="A file, for one picture; a folder; or - for standard output.")] = None,
    scale: Annotated[float | None, typer.Option(
        min=1.01, max=16, help="How many times larger; 2.5 is the next larger model, then down.",
        show_default="the model's own, else 3")] = None,
    size: Annotated[str | None, typer.Option(
        metavar="WxH", help="Fit each picture into W x H pixels instead; Wx or xH: one side.",
        )] = None,
    model: Model = None,
    backend: Backend = "auto",
    format: Annotated[str | None, typer.Option(
        metavar="FORMAT", show_default="png; tif for a TIFF of several pages",
        help="png, jpg, webp, tif, avif, heic, gif, jp2, tga, bmp, ppm, ..., or same: the "
        "picture's own.")] = None,
    quality: Annotated[int | None, typer.Option(
        min=1, max=100, show_default="95; WebP lossless",
        help="Of JPEG, WebP, AVIF and HEIC.")] = None,
    suffix: Annotated[str | None, typer.Option(
        metavar="TEXT", show_default="_x3", help="What results are called after the name.")] = None,
    recursive: Annotated[bool, typer.Option(
        "-r", "--recursive", help="Take folders in folders too, and keep their tree.")] = False,
    skip_existing: Annotated[bool, typer.Option(
        "--skip-existing", help="Leave out pictures whose result exists, even those that were "
        "named; those of folders are skipped anyway.")] = False,
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Replace results that exist.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Say what would be written, and stop.")] = False,
    strip: Annotated[bool, typer.Option(
        "--strip", help="Leave out EXIF with its places, XMP, IPTC and text.")] = False,
    first_frame: Annotated[bool, typer.Option(
        "--first-frame", help="Take the first frame or page alone.")] = False,
    scale_dpi: Annotated[bool, typer.Option(
        "--scale-dpi", help="Multiply the DPI: the printed size stays.")] = False,
    max_input: Annotated[float, typer.Option(
        "--max-input", metavar="MP", help="Refuse pictures of more megapixels.")] = 250,
    max_output: Annotated[float, typer.Option(
        "--max-output", metavar="MP", help="Refuse results of more megapixels, all frames "
        "together.")] = 4000,
    jobs: Annotated[int, typer.Option(
        min=1, max=256, help="Processes that share the work.")] = 1,
    shard: Annotated[str | None, typer.Option(
        metavar="I/N", show_default="all, or the rank under mpiexec and srun",
        help="Do part I, from 0, of N: for job arrays.")] = None,
    manifest: Annotated[str | None, typer.Option(
        metavar="FILE", help="Append a line of JSON for every picture; each part to a "
        "file of its own.")] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Leave out what the manifest says is done, or that of any part.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a report as JSON.")] = False,
    contact_sheet: Annotated[str | None, typer.Option(
        metavar="FILE", help="Write details, before beside after, into one picture.")] = None,
) -> None:
    """Upscale pictures: the luma through the network, the colours bicubic."""
    from ..engine.backends import announce_backend
    from ..imaging.decode import quiet
    from ..imaging.files import remove_leftovers
    from ..imaging.save import FORMATS
    from ..upscale.batch import Manifest, Outcome, name_of_part, shard_of
    from ..upscale.plan import find_sources, make_plan
    from ..upscale.run import Options, Result

    if format is not None:
        format = format.lower().lstrip(".")
        if format != "same" and f".{format}" not in FORMATS:
            known = ", ".join(sorted(name[1:] for name in FORMATS))
            raise MinisrcnnError(f"--format is {format!r}, want same or one of {known}")
    with user_values():
        max_pixels, max_results = (
            round(check_number(name, megapixels, 0, 1e12) * 1e6) for name, megapixels in (
                ("--max-input", max_input), ("--max-output", max_output)))
    box = _box(size)
    part = shard_of(shard)
    if resume and manifest is None:
        raise MinisrcnnError("--resume needs the --manifest of the run to go on with")
    if manifest is not None and not Path(manifest).name:
        raise MinisrcnnError(f"--manifest is {manifest!r}, want a file")
    with quiet(), _stopped_cleanly():
        problems: list[str] = []
        notes: list[str] = []
        sources = find_sources(inputs, recursive, problems, notes)
        for text in problems:
            complain(text)
        if not sources:
            raise typer.Exit(2)
        if contact_sheet is not None:
            from ..imaging.save import format_of

            format_of(contact_sheet)
        load = functools.partial(load_networks, model, scale, backend)
        networks, scale = load_named(model, scale, backend)
        ending = suffix if suffix is not None else _default_suffix(scale, box)
        # At --resume a result without a line of the manifest is one that a kill came after.
        plan = make_plan(sources, out, ending, format, skip_existing or resume, overwrite, part,
                         dry_run)
        todo = plan.jobs
        for text in notes + plan.notes:
            note(text)
        if part[1] > 1:
            note(f"Part {part[0]} of {part[1]}: {len(todo)} of {plan.pictures} pictures.")
        if dry_run:
            for job in todo:
                print_line(f"{job.source} -> {job.target}")
            raise typer.Exit(1 if problems else 0)
        options = Options(
            scale=scale, box=box, format="png" if format in (None, "same") else str(format),
            quality=quality, overwrite=overwrite, strip=strip, first_frame=first_frame,
            scale_dpi=scale_dpi, max_pixels=max_pixels,
            max_output=max_results)
        announce_backend(networks(1)[0][0].backend, backend, note)
        written = Manifest(Path(manifest), part) if manifest is not None else None
        there: list[Any] = []
        if written is not None and resume:
            todo, there = _still_to_do(todo, plan.existing, written)
        remove_leftovers(job.target for job in [*todo, *plan.existing])
        with written or contextlib.nullcontext():
            for job in there:
                assert written is not None
                result = Result(str(job.source), str(job.target), notes=["was there"])
                written.add(Outcome(job, result, None))
            outcomes = _run(todo, networks, load, options, jobs, written, as_json)
        if contact_sheet is not None and (outcomes or part[1] == 1):
            _sheet(str(name_of_part(Path(contact_sheet), part)), outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    if as_json:
        from ..upscale.batch import as_dict

        print_json({"pictures": [as_dict(outcome) for outcome in outcomes],
                    "problems": problems})
    if failed or problems:
        note(f"{failed + len(problems)} of {len(outcomes) + len(problems)} inputs failed.")
        raise typer.Exit(1)


def load_named(
    model: str | None, scale: float | None, backend: str
) -> tuple[Networks, float]:
    """Return the networks of a model, or the package's, and the scale that is wanted."""
    if model is None:
        return functools.partial(_shipped, {}, backend), 3 if scale is None else scale
    loaded, path, net = load_network(model, backend)
    if net.channels != 1:
        raise MinisrcnnError(f"{model}: has {net.channels} channels, want a model of 1: "
                             "the network restores Y alone")
    # A model that does not say its scale is taken for one of the scale that is asked.
    whole = model_scale(loaded, path)
    if whole is None:
        if scale is None:
            raise ask_for_scale(path)
        whole = _next_whole(scale)
    return functools.partial(_repeated, (net, whole)), whole if scale is None else scale


def load_networks(model: str | None, scale: float | None, backend: str) -> Networks:
    """Return the networks of a model, in a worker process: what is to be said was said."""
    with contextlib.redirect_stderr(None):
        return load_named(model, scale, backend)[0]


def _shipped(nets: dict[str, Any], backend: str, factor: float) -> list[tuple[Any, int]]:
    """Return the models of the package for a factor, each loaded once."""
    from ..models import models_for

    with user_values():
        models = models_for(factor)
    for model in models:
        if model.name not in nets:
            _, _, nets[model.name] = load_network(model.name, backend)
    return [(nets[model.name], model.scale) for model in models]


def _repeated(step: tuple[Any, int], factor: float) -> list[tuple[Any, int]]:
    """Return the one network, as often as it takes to enlarge by a factor."""
    steps, reached = [step], float(step[1])
    while reached < factor - 1e-9:
        steps.append(step)
        reached *= step[1]
    return steps


def _next_whole(scale: float) -> int:
    return max(2, int(-(-scale // 1)))


def _default_suffix(scale: float, box: tuple[int | None, int | None] | None) -> str:
    if box is None:
        return f"_x{scale:g}"
    return "_" + "x".join(str(side or "") for side in box)


def _box(text: str | None) -> tuple[int | None, int | None] | None:
    if text is None:
        return None
    width, cross, height = text.lower().partition("x")
    sides = [int(side) if side.isdecimal() else None if side == "" else 0
             for side in (width, height)]
    if not cross or 0 in sides or sides == [None, None]:
        raise MinisrcnnError(f"--size is {text!r}, want WxH, Wx or xH, such as 1920x1080")
    return sides[0], sides[1]


def _still_to_do(
    todo: list[Any], existing: list[Any], manifest: Manifest
) -> tuple[list[Any], list[Any]]:
    """Leave out the pictures that a manifest has as done; the others of both lists."""
    finished = manifest.finished(
        {(str(job.source), str(job.target)) for job in [*todo, *existing]})
    left, without_line = (
        [job for job in jobs if (str(job.source), str(job.target)) not in finished]
        for jobs in (todo, existing))
    if len(left) < len(todo):
        note(f"Going on: {len(todo) - len(left)} of {len(todo)} pictures are done.")
    return left, without_line


def _run(
    todo: list[Any], networks: Networks, load: Any, options: Any, jobs: int,
    manifest: Manifest | None, as_json: bool,
) -> list[Outcome]:
    from ..upscale.batch import run_jobs, run_workers
    from ..upscale.plan import STANDARD

    outcomes: list[Outcome] = []
    if not todo:
        return outcomes
    title = todo[0].source.name if len(todo) == 1 else f"{len(todo)} pictures"
    with progress_bar(title) as progress:
        def report(done: float) -> None:
            progress(round(1000 * done), 1000 * len(todo))

        running: Any = (run_workers(todo, networks, load, options, jobs, report)
                        if jobs > 1 and len(todo) > 1 else
                        run_jobs(todo, networks, options, report))
        with contextlib.closing(running):
            for outcome in running:
                if manifest is not None:
                    manifest.add(outcome)
                outcomes.append(outcome)
                if outcome.error is not None:
                    complain(outcome.error)
                    continue
                assert outcome.result is not None
                if outcome.result.notes:
                    note(f"{outcome.result.source}: {'; '.join(outcome.result.notes)}")
                if not as_json and str(outcome.job.target) != STANDARD:
                    print_line(str(outcome.job.target))
    return outcomes


def _sheet(path: str, outcomes: list[Outcome]) -> None:
    from ..upscale.sheet import MOST, write_sheet

    done = [(str(o.job.source), str(o.job.target)) for o in outcomes if o.error is None]
    if len(done) > MOST:
        note(f"{path}: shows the first {MOST} of {len(done)} pictures.")
    write_sheet(path, done)


@contextlib.contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """End at SIGTERM and SIGHUP as at Ctrl-C: half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(name, stop) for name in names
              if signal.getsignal(name) != signal.SIG_IGN}
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
        complain(f"stopped by {signal.Signals(received[0]).name}")
        raise typer.Exit(128 + received[0]) from None
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
