"""Layers with hand-derived gradients, and the chain that composes them.

A layer has two functions and no hidden state::

    y, cache = layer.forward(x)
    dx, grads = layer.backward(dy, cache)

``cache`` is whatever ``backward`` will need; the caller keeps it. ``grads`` maps the names in
``layer.parameters`` to gradients. The backend does the arithmetic: read ``backends/reference.py``
beside this file for the derivation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike

from ..arguments import check_integer
from .backends import get_backend

Array = Any  # a NumPy or CuPy array, as the backend has it

Init = Literal["normal", "he"]


class Layer(Protocol):
    """The contract of a layer: two functions and a dict of parameters."""

    parameters: dict[str, Array]

    def forward(self, x: Array) -> tuple[Array, Any]:
        """Return the output, and the cache that ``backward`` will need."""

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradients with respect to the input and to each parameter."""


class Conv2d:
    """Valid convolution with bias; the kernel is not flipped (cross-correlation).

    ::

        y[n,f,i,j] = b[f] + sum_{c,u,v} x[n,c,i+u,j+v] w[f,c,u,v]

    Parameters
    ----------
    in_channels, out_channels : int
        C and F.
    kernel_size : int or (int, int)
        KH and KW.
    backend : str or module
        What computes; see :func:`minisrcnn.get_backend`.
    dtype : dtype
        Of the parameters, and so of the input and the output.
    rng : numpy.random.Generator, int or None
        Where the initial weights are drawn from; an int seeds a new generator. The draw is
        made in float64, so that one seed means the same weights in every dtype.
    init : {"normal", "he"}
        ``"normal"``: standard deviation 1e-3, as in Section 3.3 of the paper. ``"he"``:
        ``sqrt(2 / (C KH KW))`` (He et al. 2015), for deeper nets. Biases are zero.

    Attributes
    ----------
    parameters : dict
        ``"weight"`` (F, C, KH, KW) and ``"bias"`` (F,).

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, or the backend, dtype or init is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        backend: str | ModuleType = "auto",
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | int | None = None,
        init: Init = "normal",
    ) -> None:
        C = check_integer("in_channels", in_channels)
        F = check_integer("out_channels", out_channels)
        pair = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * 2
        if len(pair) != 2:
            raise ValueError(f"kernel_size is {kernel_size!r}, want an integer or (KH, KW)")
        KH, KW = (check_integer("kernel_size", size) for size in pair)
        if init not in ("normal", "he"):
            raise ValueError(f"init is {init!r}, want 'normal' or 'he'")
        self.backend = get_backend(backend)
        std = 1e-3 if init == "normal" else math.sqrt(2 / (C * KH * KW))
        w = np.random.default_rng(rng).normal(0.0, std, (F, C, KH, KW))
        self.parameters: dict[str, Array] = {
            "weight": self.backend.asarray(w, dtype),
            "bias": self.backend.asarray(np.zeros(F), dtype),
        }

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Convolve ``x`` (N,C,H,W); return ``y`` (N,F,OH,OW) and the cache, which is ``x``."""
        y = self.backend.conv2d_forward(x, self.parameters["weight"], self.parameters["bias"])
        return y, x

    def backward(self, dy: Array, cache: Array) -> tuple[Array, dict[str, Array]]:
        """Return ``dx`` and the gradients of weight and bias, given ``dy`` (N,F,OH,OW)."""
        dx = self.backend.conv2d_backward_input(dy, self.parameters["weight"])
        return dx, self.parameter_gradients(dy, cache)

    def parameter_gradients(self, dy: Array, cache: Array) -> dict[str, Array]:
        """Return the gradients of weight and bias alone: a first layer needs no ``dx``."""
        return {
            "weight": self.backend.conv2d_backward_weight(cache, dy),
            "bias": self.backend.conv2d_backward_bias(dy),
        }


class ReLU:
    """Rectified linear unit.

    ::

        y = max(0, x)        dx = dy where y > 0, else 0

    Parameters
    ----------
    backend : str or module
        What computes; see :func:`minisrcnn.get_backend`.
    """

    def __init__(self, *, backend: str | ModuleType = "auto") -> None:
        self.backend = get_backend(backend, "relu_forward", "relu_backward")
        self.parameters: dict[str, Array] = {}

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return ``y``, of the shape of ``x``, and the cache, which is ``y``."""
        y = self.backend.relu_forward(x)
        return y, y

    def backward(self, dy: Array, cache: Array) -> tuple[Array, dict[str, Array]]:
        """Return ``dx`` and no parameter gradients."""
        return self.backend.relu_backward(dy, cache), {}


#: The layers without parameters that work element by element. ``minisrcnn gradcheck`` and the tests
#: of all backends take them from here.
ACTIVATIONS = (ReLU,)


class Chain:
    """Layers one after another: ``x[l] = f[l](x[l-1])``.

    The chain rule, from the last layer to the first, is all there is to backpropagation. With J[l]
    the matrix of partial derivatives of layer l, ``J[l] = d x[l] / d x[l-1]``::

        dx[l-1] = transpose(J[l]) dx[l]

    Parameters
    ----------
    layers : mapping of str to layer
        In order of execution; the names become prefixes of the parameters' names.

    Attributes
    ----------
    parameters : dict
        ``"<layer>.<parameter>"`` to array: the layers' own arrays, not copies.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = dict(layers)
        if not self.layers:
            raise ValueError("layers is empty, want at least one layer")
        self.parameters: dict[str, Array] = {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            for key, value in layer.parameters.items()
        }

    def forward(self, x: Array) -> tuple[Array, list[Any]]:
        """Return the last layer's output and the caches of all layers."""
        caches = []
        for layer in self.layers.values():
            x, cache = layer.forward(x)
            caches.append(cache)
        return x, caches

    def backward(self, dy: Array, cache: list[Any]) -> tuple[Array, dict[str, Array]]:
        """Return ``dx`` of the first layer and the gradients of all parameters."""
        grads: dict[str, Array] = {}
        for (name, layer), layer_cache in zip(
            reversed(self.layers.items()), reversed(cache), strict=True
        ):
            dy, layer_grads = layer.backward(dy, layer_cache)
            grads |= {f"{name}.{key}": value for key, value in layer_grads.items()}
        return dy, {name: grads[name] for name in self.parameters}
