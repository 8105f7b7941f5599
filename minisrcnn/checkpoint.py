"""Model files: our own format (safetensors), and the authors' MATLAB files.

A model is a safetensors file: a JSON header, then raw numbers. It holds ``conv1.weight``
(F,C,KH,KW), ``conv1.bias`` (F,), ... and, in the header, strings: the architecture, the scale,
whatever training wants to remember, and the SHA-256 of all of it. It cannot hold code. Nothing
here ever unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import MinisrcnnError, printable, reason
from .imaging.files import atomic_open
from .matlab import read_arrays
from .models import find_model, shipped_models

PathLike = str | os.PathLike[str]

MODEL_FILE = "model.safetensors"
RUNS = Path("runs")

#: What a model may have: far above any SRCNN, far below what could exhaust a machine.
MAX_KERNEL, MAX_FILTERS, MAX_LAYERS = 63, 4096, 64

_OUR_KEYS = ("format", "arch", "filters", "channels", "sha256")
_FORMAT = "minisrcnn model"

#: Bytes of a model, its file and its numbers: 9-5-5 has 0.5 MB.
LARGEST = 1 << 28

# Outputs are bounded by the weights; above this, sums and Winograd transforms could overflow.
_LARGEST_OUTPUT = 1e30


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

    The header also gets the key ``sha256``, of all arrays and strings.

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
    # safetensors writes the buffer in memory order, whatever the strides say
    packed = {name: np.array(array, order="C") for name, array in arrays.items()}
    header = dict(metadata or {})
    header["sha256"] = _digest(packed, header)
    try:
        data = _in_order(save(packed, metadata=header))
        with atomic_open(path) as file:
            file.write(data)
    except (OSError, SafetensorError) as error:
        raise MinisrcnnError(f"{os.fspath(path)}: cannot be written ({reason(error)})") from None


#: The dtypes of safetensors that NumPy has too; bfloat16, for one, it has not.
_KINDS = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64"}


def load_state(
    path: PathLike, *, want_checksum: bool = False
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read back what :func:`save_state` wrote: the arrays and the strings.

    Parameters
    ----------
    path : path
    want_checksum : bool
        Whether a file without a SHA-256, as other programs write them, is refused.

    Raises
    ------
    MinisrcnnError
        If the file is missing, unreadable, truncated, not a safetensors file, of a dtype that NumPy
        has not, or not what its SHA-256 says.
    """
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    read_head(path)
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if kind not in _KINDS:
                    raise MinisrcnnError(
                        f"{path}: {printable(name)} has dtype {printable(kind)}, want F16, F32 or "
                        "F64")
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = dict(sorted((file.metadata() or {}).items()))  # any order, each time
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError,
            MemoryError) as error:
        raise MinisrcnnError(
            f"{path}: damaged, or not a safetensors file ({reason(error)})"
        ) from None
    written = metadata.pop("sha256", None)
    if written is None and want_checksum:
        raise MinisrcnnError(f"{path}: damaged: its header has no SHA-256")
    if written is not None and written != _digest(arrays, metadata):
        raise MinisrcnnError(f"{path}: damaged: its contents are not what its SHA-256 says")
    return arrays, metadata


def _in_order(data: bytes) -> bytes:
    """Sort the header, whose strings the library writes in another order each time.

    So the same contents are the same file, byte for byte.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, dtypes, shapes, numbers and strings, whatever their order."""
    names = sorted(arrays)
    kinds = [(name, arrays[name].dtype.str, arrays[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), kinds]).encode())
    for name in names:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def save_model(path: PathLike, net: Network, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's parameters and what is needed to build it again, atomically.

    Parameters
    ----------
    path : path
        In a folder that exists; by habit ``model.safetensors``.
    net : SRCNN
    metadata : mapping of str to str, optional
        More for the header, such as ``{"scale": "3"}``. ``format``, ``arch``, ``filters``,
        ``channels`` and ``sha256`` are ours.

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
            raise ValueError(f"metadata has the key {key!r}, want others: it is written from the "
                             "network")
    header = {
        "format": _FORMAT,
        "arch": net.arch,
        "filters": ",".join(map(str, net.filters)),
        "channels": str(net.channels),
    }
    arrays = {name: net.backend.to_numpy(value) for name, value in net.parameters.items()}
    save_state(path, arrays, header | metadata)


def load_model(path: PathLike) -> ModelFile:
    """Read a model: our own format, or the authors' ``.mat``; distinguished by content.

    Raises
    ------
    MinisrcnnError
        If the file is missing, damaged, not a model, has a number that is NaN or infinite, or
        weights whose outputs could overflow float32. Files of PyTorch, ONNX, TensorFlow, Keras,
        NumPy and MATLAB 7.3 are refused unread, by name.
    """
    path = os.fspath(path)
    head = read_head(path)
    other = _other_format(path, head)
    if other is not None:
        raise MinisrcnnError(f"{path}: {other}")
    if head.startswith(b"MATLAB 5.0 MAT-file"):
        return model_of(path, _load_authors(path), {})
    return model_of(path, *load_state(path))


def resolve_model(name: PathLike) -> Path:
    """Find the model file that ``--model NAME|PATH`` means.

    A file is itself; a folder stands for the ``model.safetensors`` in it; a bare name for
    ``runs/NAME/model.safetensors`` below the current folder, or else for a model of the package.

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
        if os.path.exists(place) and not os.path.isdir(place):
            return place
    shipped = find_model(os.fspath(name))
    if shipped is not None:
        return shipped.path
    if os.path.exists(path / "saved_model.pb"):
        raise MinisrcnnError(f"{path}: a TensorFlow SavedModel; {_BY_ONNX}")
    looked = ", ".join(map(str, places))
    names = ", ".join(model.name for model in shipped_models())
    raise MinisrcnnError(f"no model {os.fspath(name)!r}: looked for {looked}; "
                         f"the package has {names}")


def scale_from_name(path: PathLike) -> int | None:
    """Return the scale that a file's name hints at: 2 for ``x2.mat`` and ``9-1-5_91_x2.mat``.

    The authors' files say it nowhere else. None where the name has no scale, or several.
    """
    stem = Path(path).stem.lower()
    found = set(re.findall(r"(?<![a-z0-9])x([2-9]|1[0-6])(?!\.?[0-9]|[a-z])", stem))
    return int(found.pop()) if len(found) == 1 else None


# --- files of other programs --------------------------------------------------------------------

_BY_ONNX = "export it to ONNX, which `minisrcnn convert` reads"
_CONVERT = "`minisrcnn convert` turns it into a model of ours, if it is a chain of convolutions"
_WANT = "want a safetensors file or the authors' .mat"
_PYTORCH = f"a PyTorch file, which may hold code and is not read here; {_CONVERT}"


def _other_format(path: str, head: bytes) -> str | None:
    """Say what a file of another program is, and what to do with it; None for what we read."""
    starts = (
        (b"\x93NUMPY", f"a NumPy file, which may hold code and is not read; {_WANT}"),
        (b"\x80", f"a pickle, as PyTorch writes them, which may hold code; {_CONVERT}"),
        (b"MATLAB 7.3", "a MATLAB 7.3 (HDF5) file, want the authors' own version 5 "
                        "(save it with -v7)"),
        (b"\x89HDF", f"an HDF5 file, such as Keras writes; {_BY_ONNX}"),
    )
    for start, what in starts:
        if head.startswith(start):
            return what
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite file; {_BY_ONNX}"
    if len(head) > 2 and head[0] == 8 and head[2] in (0x12, 0x1A, 0x3A, 0x42):
        # Protocol buffers: field 1 is the version, 1 of a SavedModel and from 3 of an ONNX file.
        if head[1] == 1:
            return f"a TensorFlow SavedModel; {_BY_ONNX}"
        if 3 <= head[1] < 32:
            return f"an ONNX file; {_CONVERT}"
    if re.search(r"\.(pb|meta|index|data-\d+-of-\d+|ckpt)$", path):
        return f"a TensorFlow file, by its name; {_BY_ONNX}"
    return None


def _archive(path: str) -> str:
    """Say what program a zip archive is of, from the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return f"a damaged zip archive, {_WANT}"
    if "data.pkl" in names:
        return _PYTORCH
    if "model.weights.h5" in names:
        return f"a Keras file; {_BY_ONNX}"
    if any(name.endswith(".npy") for name in names):
        return f"a NumPy archive, which may hold code and is not read; {_WANT}"
    return f"a zip archive, {_WANT}"


def _is_fsrcnn(names: Collection[str]) -> bool:
    """Whether these are the names of an FSRCNN: PReLU, and a deconvolution at the end."""
    words = ("deconv", "prelu", "first_part", "mid_part", "last_part")
    return any(word in name.lower() for name in names for word in words)


# --- checks -------------------------------------------------------------------------------------


def read_head(path: str) -> bytes:
    """Return the first bytes of a file, if it is a plain one of reasonable size.

    Raises
    ------
    MinisrcnnError
        If it is anything else, such as a pipe, which would block.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise MinisrcnnError(f"{path}: a folder, want a file")
        if not stat.S_ISREG(status.st_mode):
            raise MinisrcnnError(f"{path}: not a plain file")
        if status.st_size == 0:
            raise MinisrcnnError(f"{path}: an empty file")
        if status.st_size > LARGEST:
            raise MinisrcnnError(f"{path}: {status.st_size:,} bytes, want at most {LARGEST:,}")
        with open(path, "rb") as file:
            return file.read(128)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise MinisrcnnError(f"{path}: cannot be read ({reason(error)})") from None


def model_of(path: str, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> ModelFile:
    """Check that arrays are a chain of square convolutions and name its architecture.

    Parameters
    ----------
    path : str
        Of the file that they come from, for messages.
    arrays : dict
        ``"conv1.weight"`` (F,C,K,K), ``"conv1.bias"`` (F,), ...
    metadata : dict of str to str

    Raises
    ------
    MinisrcnnError
        If they are not.
    """
    if _is_fsrcnn(arrays):
        raise MinisrcnnError(f"{path}: an FSRCNN, which is another network: want an SRCNN")
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
        if w.shape[2] > MAX_KERNEL or max(w.shape[:2]) > MAX_FILTERS or count > MAX_LAYERS:
            raise MinisrcnnError(
                f"{path}: layer {i + 1} of {count} has shape {w.shape}, want kernels of at most "
                f"{MAX_KERNEL}x{MAX_KERNEL}, {MAX_FILTERS} filters, {MAX_LAYERS} layers")
        for name, a in ((f"conv{i + 1}.weight", w), (f"conv{i + 1}.bias", b)):
            if a.dtype.kind != "f":
                raise MinisrcnnError(f"{path}: {name} has dtype {a.dtype}, want floats")
            if not np.isfinite(a).all():
                raise MinisrcnnError(f"{path}: {name} has NaN or infinite numbers")
        kernels.append(w.shape[2])
        widths.append(w.shape[0])
    output = _largest_output([(arrays[f"conv{i + 1}.weight"], arrays[f"conv{i + 1}.bias"])
                              for i in range(count)])
    if not output <= _LARGEST_OUTPUT:
        raise MinisrcnnError(f"{path}: its weights allow outputs up to {output:.1g}, want at most "
                             f"{_LARGEST_OUTPUT:g}: float32 could overflow")
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


def _largest_output(layers: list[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """Bound every number that a chain computes from an image in [-1, 2].

    Of layer l, with y_0 = 2:  y_l = max over f of (sum over c,u,v of |w[f,c,u,v]|) y_(l-1) + |b[f]|
    """
    largest = bound = 2.0
    with np.errstate(over="ignore", invalid="ignore"):
        for w, b in layers:
            sums = np.abs(w.astype(np.float64)).reshape(len(w), -1).sum(axis=1)
            bound = float((sums * bound + np.abs(b.astype(np.float64))).max())
            largest = max(largest, bound)
    return largest


# --- the authors' MATLAB files ------------------------------------------------------------------

_AUTHORS = tuple(f"{kind}_conv{i}" for i in (1, 2, 3) for kind in ("weights", "biases"))


def _load_authors(path: str) -> dict[str, NDArray[Any]]:
    """Turn the authors' arrays into filters.

    MATLAB counts down columns first, so row k of ``weights_conv1`` (f1*f1, n1) is the tap at row
    k mod f1, column k div f1. Their test code filters with ``imfilter``, a correlation, as ours:
    nothing is flipped. ::

        w1[f,0,u,v] = W1[u + f1 v, f]    w2[f,c,u,v] = W2[c, u + f2 v, f]
        w3[0,c,u,v] = W3[c, u + f3 v]
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
    try:
        with open(path, "rb") as file:
            raw, names = read_arrays(file.read(), _AUTHORS, LARGEST)
    except OSError as error:
        raise MinisrcnnError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, MemoryError) as error:
        raise MinisrcnnError(f"{path}: damaged, or not one of the authors' models "
                             f"({reason(error)})") from None
    if _is_fsrcnn(names):
        raise MinisrcnnError(f"{path}: an FSRCNN, which is another network: want an SRCNN")
    missing = [name for name in _AUTHORS if name not in raw]
    if missing:
        raise MinisrcnnError(f"{path}: not one of the authors' models: has no {missing[0]}")
    for name, array in raw.items():
        if array.ndim > 3:
            raise MinisrcnnError(f"{path}: {name} has shape {array.shape}, "
                                 "want at most 3 dimensions")
    return raw
