"""The network of Dong et al.: a chain of convolutions with ReLU between them.

Patch extraction and representation, non-linear mapping, reconstruction (Section 3.1 of the
paper, arXiv:1501.00092) are three convolutions, "9-1-5" by the sizes of their kernels. Any number
of convolutions of any size may be named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arguments import check_integer
from .checkpoint import MAX_KERNEL, MAX_LAYERS, ModelFile, load_model, save_model
from .engine.backends import get_backend
from .engine.backends.checks import check_writable
from .engine.layers import Chain, Conv2d, Init, Layer, ReLU

Array = Any

# Output pixels on a side for which predict runs the layers at once, where a backend has no
# tiling of its own.
_TILE = 256


class SRCNN:
    """Super-resolution convolutional network.

    Parameters
    ----------
    arch : str
        Sizes of the square kernels, first to last: ``"9-1-5"``, ``"9-3-5"``, ``"9-5-5"``,
        ``"11-1-7"``, ``"9-1-1-5"``, ...
    filters : sequence of int, optional
        Filters of every layer but the last. By default the paper's 64 and 32, then 16 for each
        further layer (Section 4.3.3).
    channels : int
        Channels of the images, in and out: 1 (luma) or 3.
    backend : str or module
        What computes; see :func:`minisrcnn.get_backend`.
    dtype : dtype
        float32 or float64 (``reference`` and ``numpy`` accept more).
    seed : int or numpy.random.Generator
        Where the initial weights are drawn from.
    init : {"normal", "he"}
        See :class:`minisrcnn.Conv2d`.

    Attributes
    ----------
    parameters : dict
        ``"conv1.weight"`` (F, C, KH, KW), ``"conv1.bias"`` (F,), ``"conv2.weight"``, ...: the
        very arrays that the layers compute with and that an optimizer updates in place.
    chain : Chain
        The layers ``conv1``, ``relu1``, ``conv2``, ...

    Raises
    ------
    TypeError, ValueError
        If the architecture, a size, the dtype or the backend is not understood.
    BackendUnavailableError
        If this machine cannot run the backend.
    """

    def __init__(
        self,
        arch: str = "9-1-5",
        filters: Sequence[int] | None = None,
        channels: int = 1,
        backend: str | ModuleType = "auto",
        dtype: DTypeLike = "float32",
        seed: int | np.random.Generator = 0,
        *,
        init: Init = "normal",
    ) -> None:
        kernels = parse_arch(arch)
        if filters is None:
            filters = [(64, 32)[i] if i < 2 else 16 for i in range(len(kernels) - 1)]
        if len(filters) != len(kernels) - 1:
            raise ValueError(f"filters is {tuple(filters)}, want {len(kernels) - 1} numbers: "
                             f"one for each layer of {arch} but the last")
        self.arch = "-".join(map(str, kernels))
        self.filters = tuple(check_integer("filters", f) for f in filters)
        self.channels = check_integer("channels", channels)
        self.backend = get_backend(backend)
        self.dtype = np.dtype(dtype)
        rng = np.random.default_rng(seed)
        widths = (self.channels, *self.filters, self.channels)
        layers: dict[str, Layer] = {}
        for i, size in enumerate(kernels):
            if i > 0:
                layers[f"relu{i}"] = ReLU(backend=self.backend)
            layers[f"conv{i + 1}"] = Conv2d(
                widths[i], widths[i + 1], size,
                backend=self.backend, dtype=self.dtype, rng=rng, init=init,
            )
        self.chain = Chain(layers)
        self.parameters = self.chain.parameters

    @property
    def shrinkage(self) -> int:
        """By how many rows, and columns, the valid convolutions make an image smaller."""
        return sum(size - 1 for size in parse_arch(self.arch))

    def __repr__(self) -> str:
        return (f"SRCNN({self.arch!r}, filters={self.filters}, channels={self.channels}, "
                f"backend={self.backend.NAME!r}, dtype={self.dtype.name!r})")

    def __call__(self, x: Array) -> Array:
        """Return the output alone: ``y`` of :meth:`forward`."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, list[Any]]:
        """Run the valid convolutions on a batch, as a layer does.

        Parameters
        ----------
        x : (N, C, H, W) array
            Input, of this network's backend and dtype.

        Returns
        -------
        y : (N, C, OH, OW) array
            ``OH = H - shrinkage``: 33x33 pixels in, 21x21 out for 9-1-5.
        cache : list
            What :meth:`backward` will need.

        Raises
        ------
        TypeError, ValueError
            If ``x`` is not an array of this network's backend, dtype and channels, or too small.
        """
        return self.chain.forward(x)

    def backward(self, dy: Array, cache: list[Any]) -> tuple[Array, dict[str, Array]]:
        """Return the gradients with respect to the input and to each parameter.

        Parameters
        ----------
        dy : (N, C, OH, OW) array
            Gradient of the loss with respect to the output.
        cache : list
            From :meth:`forward`.

        Returns
        -------
        dx : (N, C, H, W) array
        grads : dict
            With the keys of ``parameters``.

        Raises
        ------
        TypeError, ValueError
            If ``dy`` is not an array of the output's shape and dtype.
        """
        return self.chain.backward(dy, cache)

    def loss_and_gradients(self, x: Array, t: Array) -> tuple[Any, dict[str, Array]]:
        """Mean squared error of a batch and its gradients with respect to all parameters.

        Uses the backend's fused path where it has one; it is tested against
        :meth:`loss_and_gradients_by_layer`, which reads like the derivation.

        Parameters
        ----------
        x : (N, C, H, W) array
            Inputs.
        t : (N, C, OH, OW) array
            Targets, of the size of the output.

        Returns
        -------
        loss : float
            On ``cupy`` an array with no dimensions, still on the device.
        grads : dict
            With the keys of ``parameters``.

        Raises
        ------
        TypeError, ValueError
            If an array is not of this network's backend, dtype and shape.
        """
        fused = getattr(self.backend, "chain_loss_and_gradients", None)
        if fused is not None:
            return fused(self.parameters, x, t)
        return self.loss_and_gradients_by_layer(x, t)

    def loss_and_gradients_by_layer(self, x: Array, t: Array) -> tuple[Any, dict[str, Array]]:
        """Compute the same as :meth:`loss_and_gradients`, layer by layer."""
        y, cache = self.forward(x)
        loss, dy = self.backend.mse(y, t)
        _, grads = self.backward(dy, cache)
        return loss, grads

    def predict(self, image: NDArray[Any]) -> NDArray[Any]:
        """Restore an upscaled image; the result has the size of the input.

        Every convolution keeps the size, with replicated borders, as in the authors' own
        test code. The image is processed in tiles, so that memory stays bounded.

        Parameters
        ----------
        image : (H, W) array, or (C, H, W) for a network of C channels
            The picture, already upscaled, as floats in [0, 1] (a little overshoot is fine).

        Returns
        -------
        NumPy array of the same shape, of the network's dtype; not clipped.

        Raises
        ------
        TypeError, ValueError
            If the image is not an array of floats, of another shape, not finite, or not in
            [0, 1].
        """
        image = self._check_image(image)
        whole = image if image.ndim == 3 else image[None]
        fused = getattr(self.backend, "chain_predict", None)
        if fused is not None:
            x = self.backend.asarray(whole, self.dtype)
            y = self.backend.to_numpy(fused(self.parameters, x))
        else:
            y = np.empty(whole.shape, self.dtype)
            _, H, W = whole.shape
            for rows, columns in _tiles(H, W, _TILE):
                y[:, slice(*rows), slice(*columns)] = self._predict_tile(whole, rows, columns)
        return y.reshape(image.shape)

    def _predict_tile(
        self, image: NDArray[Any], rows: tuple[int, int], columns: tuple[int, int]
    ) -> NDArray[Any]:
        """Compute the output pixels of one tile from the input pixels that they depend on.

        Backwards through the layers, find the rows and columns that each one needs; where
        these reach over the image, that layer replicates its border; where not, the
        neighbouring pixels are there and nothing is replicated.
        """
        convs = [layer for layer in self.chain.layers.values() if isinstance(layer, Conv2d)]
        pads = []
        for conv in reversed(convs):
            _, _, KH, KW = conv.parameters["weight"].shape
            rows, pad_rows = _widen(rows, KH, image.shape[1])
            columns, pad_columns = _widen(columns, KW, image.shape[2])
            pads.append(((0, 0), (0, 0), pad_rows, pad_columns))
        x = image[None, :, slice(*rows), slice(*columns)]
        for layer in self.chain.layers.values():
            if isinstance(layer, Conv2d):
                x = np.pad(x, pads.pop(), mode="edge")
            y, _ = layer.forward(self.backend.asarray(x, self.dtype))
            x = self.backend.to_numpy(y)
        return x[0]

    def _check_image(self, image: NDArray[Any]) -> NDArray[Any]:
        want = "(H, W)" if self.channels == 1 else f"({self.channels}, H, W)"
        if not isinstance(image, np.ndarray) or image.dtype.kind != "f":
            got = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image)}"
            raise TypeError(f"image is {got}, want a NumPy array of floats in [0, 1]")
        shapes = {3: image.shape[:1] == (self.channels,), 2: self.channels == 1}
        if not shapes.get(image.ndim, False) or image.size == 0:
            raise ValueError(f"image has shape {image.shape}, want {want}")
        low, high = float(image.min()), float(image.max())
        if not (low >= -1 and high <= 2):  # also refuses NaN
            raise ValueError(f"image has values from {low:g} to {high:g}, want them in [0, 1]: "
                             "divide 8-bit pixels by 255")
        return image

    def load_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Overwrite the parameters, in place, with arrays of the same names and shapes.

        Raises
        ------
        ValueError
            If a name or a shape differs, a number is not finite, or a parameter of the network is
            read-only; then nothing is changed.
        """
        check_writable(**self.parameters)
        if set(parameters) != set(self.parameters):
            raise ValueError(f"parameters has the keys {sorted(parameters)}, "
                             f"want {sorted(self.parameters)}")
        for name, value in parameters.items():
            if value.shape != self.parameters[name].shape:
                raise ValueError(f"parameters[{name!r}] has shape {value.shape}, "
                                 f"want {self.parameters[name].shape}")
            if not np.isfinite(self.backend.to_numpy(value)).all():
                raise ValueError(f"parameters[{name!r}] has NaN or infinite numbers, "
                                 "want finite ones")
        for name, value in parameters.items():
            self.parameters[name][...] = self.backend.asarray(value, self.dtype)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write the network to a safetensors file, atomically; see :mod:`minisrcnn.checkpoint`."""
        save_model(path, self, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, backend: str | ModuleType = "auto",
        dtype: DTypeLike = "float32",
    ) -> SRCNN:
        """Read a network from its own format or from the authors' ``.mat``.

        Raises
        ------
        MinisrcnnError
            If the file is missing, damaged, or not a model. Nothing is ever unpickled.
        """
        return cls.from_file(load_model(path), backend=backend, dtype=dtype)

    @classmethod
    def from_file(
        cls, model: ModelFile, *, backend: str | ModuleType = "auto", dtype: DTypeLike = "float32",
    ) -> SRCNN:
        """Build the network that a model file holds; arguments and errors as for the class."""
        net = cls(model.arch, model.filters, model.channels, backend, dtype)
        net.load_parameters(model.parameters)
        return net


def parse_arch(arch: str) -> tuple[int, ...]:
    """Return the kernel sizes of an architecture: ``"9-1-5"`` gives ``(9, 1, 5)``.

    Raises
    ------
    ValueError
        If ``arch`` is not one or more integers of at least 1 joined by dashes, or has more
        layers or larger kernels than a model may have.
    """
    parts = arch.split("-") if isinstance(arch, str) else []
    if not parts or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ValueError(f"arch is {arch!r}, want kernel sizes joined by dashes, such as '9-1-5'")
    kernels = tuple(map(int, parts))
    if max(kernels) > MAX_KERNEL or len(kernels) > MAX_LAYERS:
        raise ValueError(f"arch is {arch[:60]!r}, want kernels of at most {MAX_KERNEL} and at most "
                         f"{MAX_LAYERS} layers")
    return kernels


def _tiles(H: int, W: int, size: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for top in range(0, H, size):
        for left in range(0, W, size):
            yield (top, min(top + size, H)), (left, min(left + size, W))


def _widen(span: tuple[int, int], K: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the part of [0, size) that a 'same' convolution needs for ``span``, and the rest."""
    low, high = span[0] - (K - 1) // 2, span[1] + K // 2
    return (max(low, 0), min(high, size)), (max(-low, 0), max(high - size, 0))
