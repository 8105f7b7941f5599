"""From any model that can be read to any form that can be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..checkpoint import save_model
from ..errors import MinisrcnnError
from ..imaging.files import remove_leftovers
from ..srcnn import SRCNN
from .folders import write_folder
from .onnx_files import write_onnx
from .reading import read_model

PathLike = str | os.PathLike[str]


def convert(
    source: PathLike, target: PathLike, *, rgb: bool = False, scale: int | None = None,
    y_range: str = "studio", say: Callable[[str], None] | None = None,
) -> None:
    """Read a model and write it in the form that the target's name asks for.

    Parameters
    ----------
    source : path or name
        See :func:`minisrcnn.exchange.read_model`.
    target : path
        ``.safetensors``: a model of ours, which is a PyTorch state dict too. ``.onnx``: a graph.
        A name without suffix, or ending in a slash: a folder for the Hugging Face Hub.
    rgb : bool
        Write an ONNX graph that is a whole RGB upscaler.
    scale : int, optional
        What the model was trained for, where its file does not say it.
    y_range : {"studio", "full"}
        Of the source.
    say : callable, optional
        Takes each line about what differs.

    Raises
    ------
    MinisrcnnError
        If the source is not a model that can be read, or the target cannot be written.
    """
    path = Path(target)
    folder = os.fspath(target).endswith(("/", os.sep)) or path.suffix == ""
    suffix = "" if folder else path.suffix.lower()
    if suffix not in ("", ".onnx", ".safetensors"):
        raise MinisrcnnError(f"{path}: ends in {path.suffix}, want .onnx, .safetensors or a folder")
    if rgb and suffix != ".onnx":
        raise MinisrcnnError(f"{path}: --rgb is for .onnx alone")
    read = read_model(source, scale=scale, y_range=y_range)
    for note in read.notes:
        (say or (lambda text: None))(f"{os.fspath(source)}: {note}.")
    if suffix:
        remove_leftovers([path])
    if suffix == ".onnx":
        write_onnx(path, read.model, rgb=rgb)
    elif suffix == ".safetensors":
        metadata = {key: value for key, value in read.model.metadata.items()
                    if key not in ("format", "arch", "filters", "channels", "sha256")}
        save_model(path, SRCNN.from_file(read.model, backend="numpy"), metadata)
    else:
        write_folder(path, read.model)
