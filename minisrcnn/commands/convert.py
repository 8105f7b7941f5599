"""``minisrcnn convert``."""

from __future__ import annotations

from typing import Annotated

import typer

from .terminal import note, print_line, user_values


def convert_command(
    source: Annotated[str, typer.Argument(
        metavar="IN", help="A model: a file of ours, of PyTorch (.pth, safetensors), ONNX, the "
        "authors' .mat, or a name that --model takes.")],
    target: Annotated[str, typer.Argument(
        metavar="OUT", help="What to write: .safetensors, .onnx, or a folder for the Hugging Face "
        "Hub.")],
    rgb: Annotated[bool, typer.Option(
        "--rgb", help="ONNX: a whole RGB upscaler, bicubic and borders built in.")] = False,
    scale: Annotated[int | None, typer.Option(
        min=2, max=16, help="What IN was trained for, where it does not say.")] = None,
    y_range: Annotated[str, typer.Option(
        metavar="studio|full", help="The Y that IN learned: 16 to 235, or 0 to 255.")] = "studio",
) -> None:
    """Convert a model from or to the forms of other programs."""
    from ..exchange import convert

    with user_values():
        convert(source, target, rgb=rgb, scale=scale, y_range=y_range, say=note)
    print_line(target)
