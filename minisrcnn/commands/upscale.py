"""``minisrcnn upscale``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import MinisrcnnError
from .terminal import Backend, Model, Scale, complain, load_network, note, progress_bar


def upscale_command(
    inputs: Annotated[list[str], typer.Argument(
        metavar="INPUT...", help="Pictures, folders of pictures, or patterns such as 'in/*.jpg'.")],
    out: Annotated[str | None, typer.Option(
        "-o", "--out", metavar="OUT", show_default="NAME_x3.png beside each picture",
        help="A file, for one picture, or a folder.")] = None,
    scale: Scale = None,
    model: Model = None,
    backend: Backend = "auto",
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Replace files of the default names.")] = False,
) -> None:
    """Upscale pictures: the luma through the network, the colours bicubic."""
    from ..checkpoint import latest_model
    from ..engine.backends import announce_backend
    from ..upscale import plan, run_job

    if model is None:
        wanted = 3 if scale is None else scale
        latest = latest_model(wanted)
        if latest is None:
            raise MinisrcnnError(
                f"no model for scale {wanted} in runs/: train one (minisrcnn train --scale "
                f"{wanted}), or name a file with --model (the authors' .mat files are read too)")
        note(f"Using {latest}, the last training for scale {wanted}.")
        model, scale = str(latest), wanted
    _, _, net, scale = load_network(model, scale, backend)
    assert net is not None
    if net.channels != 1:
        raise MinisrcnnError(f"{model}: has {net.channels} channels, want a model of 1: "
                             "the network restores Y alone")
    failed: list[str] = []
    jobs, skipped = plan(inputs, out, scale, failed)
    total = len(jobs) + len(failed)
    for text in failed:
        complain(text)
    if not jobs:
        raise typer.Exit(2)
    if skipped:
        note(f"Skipping {len(skipped)} pictures that an earlier run has made "
              f"({skipped[0].name}, ...): name them to upscale them again.")
    announce_backend(net.backend, backend, note)
    for job in jobs:
        try:
            with progress_bar(job.source.name) as progress:
                run_job(job, net, scale, overwrite, progress)
        except MinisrcnnError as error:
            complain(str(error))
            failed.append(str(error))
        else:
            print(job.target)
    if failed:
        note(f"{len(failed)} of {total} inputs failed.")
        raise typer.Exit(1)
