"""``minisrcnn train``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..arguments import check_bytes
from ..training.recipes import DEFAULT, RECIPES
from .terminal import BACKEND_HELP, complain, user_values


def train_command(
    data: Annotated[str | None, typer.Option(
        metavar="DIR|SET|T91", show_default="T91, else photographs of scikit-image",
        help="What to train on: T91, a folder that holds it, a folder of pictures, or a set "
        "that minisrcnn data pack made.")] = None,
    scale: Annotated[int | None, typer.Option(
        min=2, max=16, show_default="3", help="How many times larger.")] = None,
    arch: Annotated[str | None, typer.Option(
        metavar="F1-F2-F3", show_default="9-1-5", help="Sizes of the kernels.")] = None,
    recipe: Annotated[str | None, typer.Option(
        metavar="|".join(RECIPES), show_default=DEFAULT, help="How to train.")] = None,
    degradation: Annotated[str | None, typer.Option(
        metavar="NAME", show_default="the recipe's", help="How pictures are made small "
        "and large again: bicubic, bicubic-mirror, zoom.")] = None,
    epochs: Annotated[int | None, typer.Option(
        min=1, show_default="the recipe's", help="Passes over the patches.")] = None,
    batch_size: Annotated[int | None, typer.Option(
        min=1, show_default="the recipe's", help="Patches a step.")] = None,
    rgb: Annotated[bool, typer.Option(
        "--rgb", help="One network for R, G and B together, instead of one for Y.")] = False,
    backend: Annotated[str | None, typer.Option(
        metavar="NAME", show_default="auto", help=BACKEND_HELP)] = None,
    threads: Annotated[int | None, typer.Option(
        min=1, show_default="all", help="Of the numba backend; the result is the same.")] = None,
    seed: Annotated[int | None, typer.Option(
        min=0, show_default="0", help="Where all randomness comes from.")] = None,
    memory: Annotated[str, typer.Option(
        metavar="SIZE", help="Of degraded pictures that are kept, such as 500MB or 2GB; the "
        "result is the same.")] = "2GB",
    max_minutes: Annotated[float | None, typer.Option(
        min=0, help="Stop after so long, saved; --resume goes on.")] = None,
    out: Annotated[Path | None, typer.Option(
        metavar="runs/NAME", show_default="runs/RECIPE-ARCH-xSCALE",
        help="Where the results go.")] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on where --out stopped, with the settings it began with.")] = False,
) -> None:
    """Train the network on the 91 images, a folder of pictures, or a packed set.

    Exit codes: 1 if the loss is no longer a finite number or the disk is full (the last
    checkpoint is kept), 130 after Ctrl-C (all is saved; --resume goes on).
    """
    from ..training.loop import train
    from ..training.ranks import find_ranks
    from ..training.settings import TrainSettings
    from ..training.state import TrainingFailedError, TrainingStoppedError, summary

    if find_ranks().rank > 0:  # the first rank speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with user_values():
        budget = check_bytes("--memory", memory, 10**6)
    settings = TrainSettings(
        data=data, scale=scale, arch=arch, recipe=recipe, degradation=degradation,
        epochs=epochs, batch_size=batch_size, rgb=rgb or None, backend=backend, seed=seed,
        out=out, resume=resume, threads=threads, max_minutes=max_minutes, memory=budget)
    try:
        print(summary(train(settings)))
    except (TrainingFailedError, TrainingStoppedError) as error:
        complain(str(error))
        raise typer.Exit(130 if isinstance(error, TrainingStoppedError) else 1) from None
