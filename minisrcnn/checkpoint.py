"""Model files: our own format (safetensors), and the authors' MATLAB files.

A model is a safetensors file: a JSON header, then raw numbers. It holds ``conv1.weight``
(F,C,KH,KW), ``conv1.bias`` (F,), ... and, in the header, strings: the architecture, the scale and
whatever training wants to remember. It cannot hold code. Nothing here ever unpickles.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import MinisrcnnError
from .imaging.files import atomic_open

PathLike = str | os.PathLike[str]

MODEL_FILE = "model.safetensors"
RUNS = Path("runs")

_OUR_KEYS = ("format", "arch", "filters", "channels")
_FORMAT = "minisrcnn model"

# Far above any SRCNN (9-5-5 is 0.5 MB) and far below what could exhaust a machine.
_LARGEST = 1 << 28


class Network(Protocol):
    """What is written of a network: :class:`minisrcnn.SRCNN`, seen from below."""

    arch: str
    filters: tuple[int, ...]
    channels: int
    backend: ModuleType
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes
    ----------
    arch : str
        ``"9-1-5"``, from the shapes of the filters.
    filters : tuple of int
        Filters of every layer but the last.
    channels : int
        Channels of the images, in and out.
    parameters : dict
        ``"conv1.weight"`` (F,C,KH,KW), ``"conv1.bias"`` (F,), ...: floats, in order.
    metadata : dict of str to str
        The header's strings, such as ``"scale"``; empty for the authors' files, which have none.
    """

    arch: str
    filters: tuple[int, ...]
    channels: int
    parameters: dict[str, NDArray[Any]]
    metadata: dict[str, str]

    @property
    def scale(self) -> int | None:
        """The scale that the model was trained for, where the file says so."""
        text = self.metadata.get("scale", "")
        return int(text) if re.fullmatch(r"[1-9][0-9]{0,2}", text) else None


def save_state(
    path: PathLike, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays and strings to a safetensors file: whole or not at all.

    Parameters
    ----------
    path : path
        In a folder that exists; a file there is replaced.
    arrays : mapping of str to array
        NumPy arrays of floats, integers or booleans, any shape.
    metadata : mapping of str to str, optional

    Raises
    ------
    TypeError
        If an array is not a NumPy array, or a key or a string is not a ``str``.
    MinisrcnnError
        If the file cannot be written (folder missing or not writable, disk full).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise TypeError(f"arrays[{name!r}] is {type(array).__name__} "
                            f"{getattr(array, 'dtype', '')}, want a NumPy array of numbers")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}] is {value!r}, want strings")
    # safetensors writes the buffer as it lies in memory, whatever the strides say
    packed = {name: np.array(array, order="C") for name, array in arrays.items()}
    try:
        data = save(packed, metadata=dict(metadata or {}))
        with atomic_open(path) as file:
            file.write(data)
    except (OSError, SafetensorError) as error:
        raise MinisrcnnError(f"{os.fspath(path)}: cannot be written ({_reason(error)})") from None


def load_state(path: PathLike) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read back what :func:`save_state` wrote: the arrays and the strings.

    Raises
    ------
    MinisrcnnError
        If the file is missing, unreadable, truncated, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    _head(path)
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return arrays, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError,
            MemoryError) as error:
        raise MinisrcnnError(
            f"{path}: damaged, or not a safetensors file ({_reason(error)})"
        ) from None


def save_model(path: PathLike, net: Network, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's parameters and what is needed to build it again, atomically.

    Parameters
    ----------
    path : path
        In a folder that exists; by habit ``model.safetensors``.
    net : SRCNN
    metadata : mapping of str to str, optional
        More for the header, such as ``{"scale": "3"}``. ``format``, ``arch``, ``filters`` and
        ``channels`` are ours.

    Raises
    ------
    TypeError, ValueError
        If metadata is not strings, or has one of our keys.
    MinisrcnnError
        If the file cannot be written.
    """
    metadata = dict(metadata or {})
    for key in _OUR_KEYS:
        if key in metadata:
            raise ValueError(f"metadata has the key {key!r}, which is written from the network")
    header = {
        "format": _FORMAT,
        "arch": net.arch,
        "filters": ",".join(map(str, net.filters)),
        "channels": str(net.channels),
    }
    arrays = {name: net.backend.to_numpy(value) for name, value in net.parameters.items()}
    save_state(path, arrays, header | metadata)


def load_model(path: PathLike) -> ModelFile:
    """Read a model: our own format, or the authors' ``.mat``; told apart by content.

    Raises
    ------
    MinisrcnnError
        If the file is missing, damaged, not a model, or has a number that is NaN or infinite.
        Pickles, NumPy archives and MATLAB 7.3 files are refused unread.
    """
    path = os.fspath(path)
    head = _head(path)
    for start, what in _REFUSED:
        if head.startswith(start):
            raise MinisrcnnError(f"{path}: {what}")
    if head.startswith(b"MATLAB 5.0 MAT-file"):
        return _model(path, _load_authors(path), {})
    return _model(path, *load_state(path))


def resolve_model(name: PathLike) -> Path:
    """Find the model file that ``--model NAME|PATH`` means.

    A file is itself; a folder stands for the ``model.safetensors`` in it; a bare name for
    ``runs/NAME/model.safetensors`` below the current folder.

    Raises
    ------
    MinisrcnnError
        If there is no such file; the message says where it was looked for.
    """
    path = Path(name)
    places = [path, path / MODEL_FILE]
    if len(path.parts) == 1 and not path.is_absolute():
        places.append(RUNS / path / MODEL_FILE)
    for place in places:
        if place.exists() and not place.is_dir():
            return place
    looked = ", ".join(map(str, places))
    raise MinisrcnnError(f"no model {os.fspath(name)!r}: looked for {looked}")


def latest_model(scale: int, runs: Path = RUNS) -> Path | None:
    """Return the newest model of that scale among the trainings in ``runs``; None without one.

    Models of luma that were trained on bicubic degradation, as pictures are upscaled, go first.
    """
    found = []
    for path in runs.glob(f"*/{MODEL_FILE}"):
        with contextlib.suppress(MinisrcnnError, OSError):  # a damaged file is not a candidate
            model = load_model(path)
            if model.scale == scale and model.channels == 1:
                bicubic = model.metadata.get("degradation", "bicubic") == "bicubic"
                found.append((bicubic, path.stat().st_mtime_ns, path))
    return max(found)[-1] if found else None


_PICKLE = "may hold code and is refused unread: want a safetensors file or the authors' .mat"
_REFUSED = (
    (b"PK\x03\x04", f"a zip archive (.npz or .pth), which {_PICKLE}"),
    (b"\x93NUMPY", f"a NumPy file, which {_PICKLE}"),
    (b"\x80", f"looks like a pickle, which {_PICKLE}"),
    (b"MATLAB 7.3", "a MATLAB 7.3 (HDF5) file, want the authors' own version 5 (save it with -v7)"),
    (b"\x89HDF", "an HDF5 file, want a safetensors file or the authors' .mat"),
)


def _head(path: str) -> bytes:
    """Return the first bytes of a plain file of reasonable size."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise MinisrcnnError(f"{path}: a folder, want a file")
        if not stat.S_ISREG(status.st_mode):
            raise MinisrcnnError(f"{path}: not a plain file")
        if status.st_size == 0:
            raise MinisrcnnError(f"{path}: an empty file")
        if status.st_size > _LARGEST:
            raise MinisrcnnError(f"{path}: {status.st_size:,} bytes, want at most {_LARGEST:,}")
        with open(path, "rb") as file:
            return file.read(128)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise MinisrcnnError(f"{path}: cannot be read ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]


def _model(path: str, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> ModelFile:
    """Check that arrays are a chain of square convolutions and name its architecture."""
    count = len(arrays) // 2
    names = [f"conv{i + 1}.{kind}" for i in range(count) for kind in ("weight", "bias")]
    if not arrays or sorted(arrays) != sorted(names):
        some = ", ".join(sorted(arrays)[:4]) or "nothing"
        raise MinisrcnnError(f"{path}: not a model: holds {some[:200]}, "
                             "want conv1.weight, conv1.bias, conv2.weight, ...")
    kernels: list[int] = []
    widths: list[int] = []
    for i in range(count):
        w, b = arrays[f"conv{i + 1}.weight"], arrays[f"conv{i + 1}.bias"]
        C = widths[-1] if widths else (w.shape[1] if w.ndim == 4 else 0)
        if w.ndim != 4 or 0 in w.shape or w.shape[2] != w.shape[3] or w.shape[1] != C:
            want = f"(F, {C or 'C'}, K, K)"
            raise MinisrcnnError(f"{path}: conv{i + 1}.weight has shape {w.shape}, want {want}")
        if b.shape != w.shape[:1]:
            raise MinisrcnnError(f"{path}: conv{i + 1}.bias has shape {b.shape}, "
                                 f"want {w.shape[:1]}")
        for name, a in ((f"conv{i + 1}.weight", w), (f"conv{i + 1}.bias", b)):
            if a.dtype.kind != "f":
                raise MinisrcnnError(f"{path}: {name} has dtype {a.dtype}, want floats")
            if not np.isfinite(a).all():
                raise MinisrcnnError(f"{path}: {name} has NaN or infinite numbers")
        kernels.append(w.shape[2])
        widths.append(w.shape[0])
    channels = arrays["conv1.weight"].shape[1]
    if widths[-1] != channels:
        raise MinisrcnnError(f"{path}: takes {channels} channels and gives {widths[-1]}, "
                             "want as many out as in")
    model = ModelFile(
        arch="-".join(map(str, kernels)),
        filters=tuple(widths[:-1]),
        channels=channels,
        parameters={name: arrays[name] for name in names},
        metadata=metadata,
    )
    if metadata.get("arch", model.arch) != model.arch:
        raise MinisrcnnError(f"{path}: says that it is {metadata['arch'][:40]!r}, "
                             f"but its filters are {model.arch}")
    return model


# --- the authors' MATLAB files ------------------------------------------------------------------

_AUTHORS = tuple(f"{kind}_conv{i}" for i in (1, 2, 3) for kind in ("weights", "biases"))


def _load_authors(path: str) -> dict[str, NDArray[Any]]:
    r"""Turn the authors' arrays into filters.

    MATLAB counts down columns first, so row :math:`k` of ``weights_conv1`` (f1*f1, n1) is the
    tap at row :math:`k \bmod f_1`, column :math:`\lfloor k / f_1 \rfloor`. Their test code
    filters with ``imfilter``, a correlation, as ours: nothing is flipped.

    .. math:: w^1_{f,0,u,v} = W^1_{u + f_1 v,\, f} \qquad
              w^2_{f,c,u,v} = W^2_{c,\, u + f_2 v,\, f} \qquad
              w^3_{0,c,u,v} = W^3_{c,\, u + f_3 v}
    """
    raw = _read_mat(path)
    w1, w2, w3 = (raw[f"weights_conv{i}"] for i in (1, 2, 3))
    if w2.ndim == 2:  # MATLAB drops a last dimension of 1: a single filter
        w2 = w2[:, :, None]
    shapes = ", ".join(str(w.shape) for w in (w1, w2, w3))
    (taps1, n1), taps3 = w1.shape[:2], w3.shape[1]
    if w1.ndim != 2 or w2.ndim != 3 or w3.ndim != 2 or w2.shape[0] != n1:
        raise MinisrcnnError(f"{path}: weights_conv1, 2, 3 have shapes {shapes}, "
                             "want (f1*f1, n1), (n1, f2*f2, n2), (n2, f3*f3)")
    _, taps2, n2 = w2.shape
    f1, f2, f3 = (round(taps**0.5) for taps in (taps1, taps2, taps3))
    if (f1 * f1, f2 * f2, f3 * f3) != (taps1, taps2, taps3) or w3.shape[0] != n2:
        raise MinisrcnnError(f"{path}: weights_conv1, 2, 3 have shapes {shapes}, "
                             "want (f1*f1, n1), (n1, f2*f2, n2), (n2, f3*f3)")
    weights = (
        w1.reshape(f1, f1, 1, n1).transpose(3, 2, 1, 0),  # (v, u, c, f) to (f, c, u, v)
        w2.reshape(n1, f2, f2, n2).transpose(3, 0, 2, 1),
        w3.reshape(1, n2, f3, f3).transpose(0, 1, 3, 2),
    )
    parameters: dict[str, NDArray[Any]] = {}
    for i, w in enumerate(weights, 1):
        parameters[f"conv{i}.weight"] = np.ascontiguousarray(w)
        parameters[f"conv{i}.bias"] = raw[f"biases_conv{i}"].ravel()
    return parameters


def _read_mat(path: str) -> dict[str, NDArray[Any]]:
    """Read the authors' six variables, and nothing else, from a version 5 ``.mat`` file."""
    from scipy.io import loadmat, whosmat

    try:
        with open(path, "rb") as file:
            plain: Any = io.BytesIO(b"".join(_unpacked(file.read())))
        listing = {name: (shape, kind) for name, shape, kind in whosmat(plain)}
        missing = [name for name in _AUTHORS if name not in listing]
        if missing:
            raise MinisrcnnError(f"{path}: not one of the authors' models: has no {missing[0]}")
        for name in _AUTHORS:
            shape, kind = listing[name]
            if kind not in ("double", "single") or 0 in shape or len(shape) > 3:
                raise MinisrcnnError(f"{path}: {name} is {kind} {shape}, want an array of floats")
        plain.seek(0)
        contents = loadmat(plain, variable_names=_AUTHORS)
        raw = {name: np.asarray(contents[name]) for name in _AUTHORS}
    except MinisrcnnError:
        raise
    except Exception as error:  # a damaged file can raise anything inside the reader
        raise MinisrcnnError(f"{path}: damaged .mat file ({_reason(error)})") from None
    for name, array in raw.items():
        # complex, object or mislabelled data; an array smaller than the shape it announces
        if array.dtype.kind not in "f" or array.shape != listing[name][0]:
            raise MinisrcnnError(f"{path}: {name} is not an array of floats")
    return raw


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Yield a version 5 file with its compressed elements unpacked, never above ``_LARGEST``.

    The reader would take the sizes in the file for true; so a few bytes could ask for gigabytes.
    """
    yield data[:128]
    order: Literal["little", "big"] = "little" if data[126:128] == b"IM" else "big"
    position, total = 128, 0
    while position + 8 <= len(data):
        kind = int.from_bytes(data[position : position + 4], order)
        size = int.from_bytes(data[position + 4 : position + 8], order)
        body = data[position + 8 : position + 8 + size]
        if len(body) < size:
            raise ValueError("truncated")
        if kind == 15:  # miCOMPRESSED: a zlib stream of one element
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(body, _LARGEST - total + 1)
            total += len(body)
            if total > _LARGEST:
                raise ValueError(f"unpacks to more than {_LARGEST:,} bytes")
            if not unpacker.eof:
                raise ValueError("truncated")
            yield body
        elif kind == 14:  # miMATRIX
            yield data[position : position + 8] + body
        position += 8 + size
