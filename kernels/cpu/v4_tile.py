"""Version 4: the register tile (see :mod:`.tile`), image by image, without im2col.

In a thread's scratch y and dy are ``[pixel][channel]``, for the tile reads and writes vectors of
them; they are transposed on their way (:mod:`.layout`). Of x it reads single numbers, so x stays
in planes, except for layers with few filters. Threads take images as they become free; dw is
summed in order of fixed chunks of images, so results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from . import workers
from .chain import (
    add_chunks,
    forward_layer,
    pack,
    pad_gradient,
    unpack,
    weight_gradient,
)
from .jit import const, inner, kernel
from .layout import copy, load_pixels, store_planes
from .plan import FEW, LDX, LDY, OH, OW, PADDED, C, F, H, W, X, Y, aligned, plan_chain
from .workers import take_next

Array = Any

# Chunks of a batch with a weight gradient of their own: a constant, so that the sums do not depend
# on the number of threads. Each costs its memory, which goes from core to core.
CHUNKS = 16


@inner
def load_image(x, first, rows, columns, pad_rows, pad_columns, layer, s):
    """Copy an image, flat from ``first``, into scratch as the layer wants it.

    With a border, only what is within is ever written: the border stays zero.
    """
    channels, ld, plane = layer[C], layer[LDX], rows * columns
    inside = layer[X] + (pad_rows * layer[W] + pad_columns) * ld
    step = layer[W] * ld
    if ld == 1 and plane == layer[H] * layer[W]:
        copy(x, first, channels * plane, s, inside)
    elif ld == 1:
        for c in range(channels):
            for i in range(rows):
                copy(x, first + c * plane + i * columns, columns,
                     s, inside + c * layer[H] * layer[W] + i * step)
    elif plane == layer[H] * layer[W]:
        load_pixels(x, first, channels, plane, plane, s, inside, ld)
    else:
        for i in range(rows):
            load_pixels(x, first + i * columns, channels, columns, plane, s, inside + i * step, ld)


@kernel(lambda t: (const(t, 1), t[::1], types.int64, types.int64, types.int64,
                   const(types.int64, 2), types.int64[::1], t[::1], t[::1],
                   types.int64[::1]))
def forward(x, y, N, pad_rows, pad_columns, layers, tables, packed, s, counter):
    """Fill y from x, both flat NCHW; x within a border of zeros. Rest as `chain.train`."""
    layer = layers[0]
    rows, columns = layer[H] - 2 * pad_rows, layer[W] - 2 * pad_columns
    n = take_next(counter)
    while n < N:
        load_image(x, n * layer[C] * rows * columns, rows, columns, pad_rows, pad_columns, layer, s)
        forward_layer(layer, tables, packed, s, False)
        pixels = layer[OH] * layer[OW]
        store_planes(s, layer[Y], layer[LDY], layer[F], pixels, y, n * layer[F] * pixels)
        n = take_next(counter)


@kernel(lambda t: (const(t, 1), const(t, 1), types.int64, const(types.int64, 2),
                   types.int64[::1], t[::1], t[:, ::1], types.int64[::1]))
def backward_weight(x, dy, N, layers, tables, s, grads, counter):
    """Each chunk's dw and db in the layout of the tiles; grads (chunks, ...) starts as zeros."""
    layer = layers[0]
    chunks = grads.shape[0]
    size = (N + chunks - 1) // chunks
    chunk = take_next(counter)
    while chunk < chunks:
        for n in range(chunk * size, min((chunk + 1) * size, N)):
            load_image(x, n * layer[C] * layer[H] * layer[W], layer[H], layer[W], 0, 0, layer, s)
            pixels = layer[OH] * layer[OW]
            load_pixels(dy, n * layer[F] * pixels, layer[F], pixels, pixels, s, layer[Y],
                        layer[LDY])
            if layer[FEW] and layer[PADDED] != layer[Y]:
                pad_gradient(layer, s)
            weight_gradient(layer, tables, s, grads[chunk])
        chunk = take_next(counter)


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    return convolve(x, w, b)


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W).

    dx[c,p,q] = sum over f,u,v of dy[f,p-u,q-v] w[f,c,u,v]: with u and v counted from the other end
    a convolution of dy, within KH-1 rows and KW-1 columns of zeros, with the flipped filters.
    """
    flipped = np.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    return convolve(dy, flipped, np.zeros(w.shape[1], w.dtype), w.shape[2] - 1, w.shape[3] - 1)


def convolve(x: Array, w: Array, b: Array, pad_rows: int = 0, pad_columns: int = 0,
             winograd: bool = False) -> Array:
    """:func:`conv2d_forward` of x within a border of zeros."""
    N, name = x.shape[0], x.dtype.name
    height, width = x.shape[2] + 2 * pad_rows, x.shape[3] + 2 * pad_columns
    plan = plan_chain((w.shape,), height, width, w.itemsize, planar=True, winograd=winograd)
    packed = aligned(1, plan.packed, w.dtype)[0]
    pack.compile(name)(w, b, plan.layers[0], packed)
    scratch = aligned(min(workers.get_threads(), N), plan.scratch, w.dtype)
    y = np.empty((N, w.shape[0], height - w.shape[2] + 1, width - w.shape[3] + 1), x.dtype)
    function = forward.compile(name)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    workers.run(lambda i, counter: function(flat_x, flat_y, N, pad_rows, pad_columns, plan.layers,
                                            plan.tables, packed, scratch[i], counter),
                len(scratch))
    return y


def conv2d_backward_weight(x: Array, dy: Array, winograd: bool = False) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    N, C_, H_, W_ = x.shape
    _, F_, OH_, OW_ = dy.shape
    shape = (F_, C_, H_ - OH_ + 1, W_ - OW_ + 1)
    plan = plan_chain((shape,), H_, W_, x.itemsize, planar=True, winograd=winograd)
    chunks = -(-N // -(-N // CHUNKS))
    grads = aligned(chunks, plan.grads, x.dtype)
    scratch = aligned(min(workers.get_threads(), chunks), plan.scratch, x.dtype)
    name = x.dtype.name
    function = backward_weight.compile(name)
    x, dy = x.reshape(-1), dy.reshape(-1)
    workers.run(lambda i, counter: function(x, dy, N, plan.layers, plan.tables, scratch[i], grads,
                                            counter), len(scratch))
    add_chunks.compile(name)(grads)
    dw, db = np.empty(shape, x.dtype), np.empty(F_, x.dtype)
    unpack.compile(name)(grads[0], plan.layers[0], dw, db)
    return dw
