"""Read models of other programs into a :class:`minisrcnn.checkpoint.ModelFile`."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import (
    LARGEST,
    ModelFile,
    load_model,
    load_state,
    model_of,
    read_head,
    resolve_model,
    scale_from_name,
)
from ..errors import MinisrcnnError, reason

PathLike = str | os.PathLike[str]
Arrays = dict[str, NDArray[Any]]

Y_RANGES = ("studio", "full")

_BLACK, _SPAN = 16 / 255, 219 / 255

# What the layers are called elsewhere, and here.
_NAMES = (("features.0.", "conv1."), ("map.0.", "conv2."), ("reconstruction.", "conv3."))
_WRAPPERS = ("module.", "_orig_mod.", "generator.", "model.", "net.")
_NESTED = ("state_dict", "model_state_dict", "params_ema", "params", "model")


@dataclass(frozen=True)
class Foreign:
    """A model that was read.

    Attributes
    ----------
    model : ModelFile
    notes : list of str
        What is known to differ from the program that the model comes from.
    """

    model: ModelFile
    notes: list[str] = field(default_factory=list)


def read_model(name: PathLike, *, scale: int | None = None, y_range: str = "studio") -> Foreign:
    """Read a model of ours or of another program; the format is found from the contents.

    Parameters
    ----------
    name : path or str
        A file, or what ``--model`` takes: safetensors with one of the known layouts of names, a
        PyTorch ``.pth`` (by PyTorch's weights-only loader, which runs no code), an ONNX graph
        that is a chain of convolutions and ReLU, or the authors' ``.mat``.
    scale : int, optional
        What the model was trained for, where the file does not say it.
    y_range : {"studio", "full"}
        What the model's Y is: 16 to 235 of 255, as ours and MATLAB's, or 0 to 255. A model of
        the full range is rewritten, exactly, for ours.

    Raises
    ------
    ValueError
        If ``y_range`` is neither.
    MinisrcnnError
        If the file is none of these, by its name, or what reads it is not installed.
    """
    if y_range not in Y_RANGES:
        raise ValueError(f"y_range is {y_range!r}, want one of {', '.join(Y_RANGES)}")
    path = resolve_model(name)
    kind = _kind(path)
    if kind == "onnx":
        from .onnx_files import read_onnx

        arrays, notes = read_onnx(path)
        model = model_of(os.fspath(path), arrays, {})
    elif kind == "torch":
        model, notes = _from_names(path, _load_torch(path), {})
    elif kind == "safetensors":
        arrays, metadata = load_state(path)
        if metadata.get("format") == "minisrcnn model":
            model, notes = load_model(path), []
        else:
            model, notes = _from_names(path, arrays, metadata)
    else:  # the authors', or what load_model refuses by name
        model, notes = load_model(path), []
    if y_range == "full":
        if model.channels != 1:
            raise MinisrcnnError(f"{path}: has {model.channels} channels; a Y range is of models "
                                 "of Y alone")
        model = replace(model, parameters=studio_range(model.parameters))
    elif notes and model.channels == 1:
        notes.append("taken for a model of studio-range Y (16 to 235); if it learned Y from 0 to "
                     "255, give --y-range full")
    return Foreign(_with_scale(model, path, scale, notes), notes)


def _with_scale(model: ModelFile, path: Path, scale: int | None, notes: list[str]) -> ModelFile:
    if scale is None and model.scale is not None:
        return model
    if scale is None:
        scale = scale_from_name(path)
        if scale is None:
            notes.append("its scale is said nowhere: give --scale")
            return model
        notes.append(f"taken for scale {scale}, from the file's name")
    return replace(model, metadata=dict(model.metadata) | {"scale": str(scale)})


def _kind(path: Path) -> str:
    head = read_head(os.fspath(path))
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if head.startswith(b"\x80") and len(head) > 1 and head[1] in range(2, 6):
        return "torch"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                pickled = any(name.endswith("/data.pkl") for name in archive.namelist())
                unpacked = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            pickled = False
        if pickled and unpacked > LARGEST:
            raise MinisrcnnError(f"{path}: {unpacked:,} bytes unpacked, want at most {LARGEST:,}")
        return "torch" if pickled else "other"
    if head.startswith((b"MATLAB", b"\x89HDF", b"\x93NUMPY")):
        return "other"
    return "safetensors" if head[8:9] == b"{" else "other"


def _load_torch(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a PyTorch file: by its loader that accepts no code, or not at all."""
    try:
        import torch
    except ImportError:
        raise MinisrcnnError(
            f"{path}: a PyTorch file: reading it needs PyTorch (pip install torch); "
            "or save its state dict as safetensors there") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be wrong in any way
        first = str(error).split("\n")[0][:160]
        raise MinisrcnnError(f"{path}: refused by PyTorch's weights-only loader ({first})"
                             ) from None
    for _ in range(2):
        for key in _NESTED:
            if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise MinisrcnnError(f"{path}: holds a {type(loaded).__name__}, want a state dict")
    arrays: dict[str, Any] = {}
    size = 0
    for name, value in loaded.items():
        try:
            if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim):
                continue
            size += 4 * value.numel()  # more than the file where a tensor repeats its numbers
            if size > LARGEST:
                raise MinisrcnnError(f"{path}: {name} makes it {size:,} bytes, want at most "
                                     f"{LARGEST:,}")
            arrays[str(name)] = value.float().numpy(force=True)
        except (RuntimeError, TypeError) as error:  # sparse, nested, without numbers
            raise MinisrcnnError(f"{path}: {name} cannot be read ({reason(error)})") from None
    return arrays


def _from_names(
    path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[ModelFile, list[str]]:
    """Rename the layers of a known layout; any other is refused by :func:`model_of`."""
    arrays = {name: value for name, value in arrays.items() if getattr(value, "ndim", 0)}
    for wrapper in _WRAPPERS:
        if arrays and all(name.startswith(wrapper) for name in arrays):
            arrays = {name.removeprefix(wrapper): value for name, value in arrays.items()}
    renamed: Arrays = {}
    for name, value in arrays.items():
        new = name
        for theirs, ours in _NAMES:
            new = ours + new.removeprefix(theirs) if new.startswith(theirs) else new
        floats = value.astype(np.float32) if value.dtype.kind == "f" else value
        renamed[new.replace("conv3.0.", "conv3.")] = floats
    said = re.fullmatch("[0-9]+", metadata.get("scale", ""))
    scale = {"scale": said[0]} if said else {}
    model = model_of(os.fspath(path), renamed, scale)
    reach = sum(int(k) // 2 for k in model.arch.split("-"))
    return model, [f"PyTorch programs pad with zeros as a rule, minisrcnn repeats the border: "
                   f"results differ within {reach} pixels of it"]


def studio_range(parameters: Mapping[str, NDArray[Any]]) -> Arrays:
    """Rewrite a model of full-range Y for studio-range Y; exact, with replicated borders.

    With y_s = k y_f + o, k = 219/255 and o = 16/255, the first layer undoes it and the last one
    does it again::

        w_1 <- w_1 / k        b_1 <- b_1 - (o / k) sum of w_1        w_n <- k w_n
        b_n <- k b_n + o
    """
    changed = {name: np.array(value, np.float64) for name, value in parameters.items()}
    first_w, first_b, *_ = changed
    *_, last_w, last_b = changed
    sums = changed[first_w].sum(axis=(1, 2, 3))
    changed[first_b] -= _BLACK / _SPAN * sums
    changed[first_w] /= _SPAN
    changed[last_w] *= _SPAN
    changed[last_b] = changed[last_b] * _SPAN + _BLACK
    return {name: value.astype(np.float32) for name, value in changed.items()}
