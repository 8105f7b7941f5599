"""Version 5: fewer multiplications where that pays, else version 4.

Filters of 3x3 and 5x5 with at least 16 channels on both sides are computed tile by tile, a
tile's pixels at once (:mod:`.winograd`); those of 9 rows over an image of up to 4 channels, four
rows at once (:mod:`.winograd1d`). Everything around that, from the layout to the threads, is
version 4's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from . import v4_tile, workers
from .chain import input_gradient, pack
from .jit import const, kernel
from .layout import load_pixels, store_planes
from .plan import FORWARD, LDX, LDY, OH, OW, C, F, H, W, X, Y, aligned, plan_chain
from .winograd import outputs
from .workers import take_next

Array = Any


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    return v4_tile.convolve(x, w, b, winograd=True)


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    return v4_tile.conv2d_backward_weight(x, dy, winograd=True)


@kernel(lambda t: (const(t, 1), t[::1], types.int64, const(types.int64, 2),
                   types.int64[::1], t[::1], t[::1], types.int64[::1]))
def backward_input(dy, dx, N, layers, tables, packed, s, counter):
    """Fill dx from dy, both flat NCHW; the rest as for `chain.train`."""
    layer = layers[0]
    size, pixels = layer[OH] * layer[OW], layer[H] * layer[W]
    n = take_next(counter)
    while n < N:
        load_pixels(dy, n * layer[F] * size, layer[F], size, size, s, layer[Y], layer[LDY])
        input_gradient(layer, tables, packed, s, False)
        store_planes(s, layer[X], layer[LDX], layer[C], pixels, dx, n * layer[C] * pixels)
        n = take_next(counter)


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W)."""
    F_, C_, KH, KW = w.shape
    if not outputs(F_, C_, KH, KW):
        return v4_tile.conv2d_backward_input(dy, w)
    N, name = dy.shape[0], dy.dtype.name
    height, width = dy.shape[2] + KH - 1, dy.shape[3] + KW - 1
    plan = plan_chain((w.shape,), height, width, w.itemsize)
    packed, layer = aligned(1, plan.packed, w.dtype)[0], plan.layers[0].copy()
    layer[FORWARD] = -1
    pack.compile(name)(w, np.zeros(F_, w.dtype), layer, packed)
    scratch = aligned(min(workers.get_threads(), N), plan.scratch, w.dtype)
    dx = np.empty((N, C_, height, width), dy.dtype)
    function = backward_input.compile(name)
    flat_dy, flat_dx = dy.reshape(-1), dx.reshape(-1)
    workers.run(lambda i, counter: function(flat_dy, flat_dx, N, plan.layers, plan.tables, packed,
                                            scratch[i], counter), len(scratch))
    return dx
