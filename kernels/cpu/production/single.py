"""Single convolutions of NCHW batches, by whichever method is the fastest for the shape.

In a thread's scratch y and dy are ``[pixel][channel]``, for the tile reads and writes vectors of
them; they are transposed on their way (:mod:`.layout`). Of x it reads single numbers, so x stays
in planes, except for layers with few filters. Threads take images as they become free; dw is
summed in order of fixed chunks of images, so results do not depend on the number of threads.

1x1 convolutions have no taps to be found: they are computed by :mod:`.planes`.

Large images are cut into pieces that fit the cache, a fixed number at a time: beside x and y a
convolution takes some 30 MB, whatever the image, and all threads work on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ..jit import const, inner, kernel
from . import planes, workers
from .chain import (
    add_chunks,
    forward_layer,
    input_gradient,
    pack,
    pad_gradient,
    unpack,
    weight_gradient,
)
from .layout import clear, copy, load_pixels, store_planes
from .plan import LAYER, Method, aligned, plan_chain, round_up
from .winograd import outputs
from .workers import take_next

Array = Any

# Chunks of a batch with a weight gradient of their own: a constant, so that the sums do not depend
# on the number of threads. Each costs its memory, which goes from core to core.
CHUNKS = 16

# Images with more numbers than this, x and y together, are cut into pieces of about that many;
# pieces are a multiple of 4 high and wide, so that Winograd's tiles stay where they are.
_LARGE, _PIECE = 1 << 22, 1 << 18


@inner
def load_image(x, first, rows, columns, pad_rows, pad_columns, layer, s):
    """Copy an image, flat from ``first``, into scratch as the layer wants it.

    With a border, only what is within is ever written: the border stays zero.
    """
    channels, ld, plane = layer.C, layer.x_stride, rows * columns
    inside = layer.x_at + (pad_rows * layer.W + pad_columns) * ld
    step = layer.W * ld
    if ld == 1 and plane == layer.H * layer.W:
        copy(x, first, channels * plane, s, inside)
    elif ld == 1:
        for c in range(channels):
            for i in range(rows):
                copy(x, first + c * plane + i * columns, columns,
                     s, inside + c * layer.H * layer.W + i * step)
    elif plane == layer.H * layer.W:
        load_pixels(x, first, channels, plane, plane, s, inside, ld)
    else:
        for i in range(rows):
            load_pixels(x, first + i * columns, channels, columns, plane, s, inside + i * step, ld)


@kernel(lambda t: (const(t, 1), t[::1], types.int64, types.int64, types.int64,
                   const(types.int64, 1), types.int64[::1], t[::1], t[::1],
                   types.int64[::1]))
def forward(x, y, N, pad_rows, pad_columns, layers, tables, packed, s, counter):
    """Fill y from x, both flat NCHW; x within a border of zeros. Rest as `chain.train`."""
    layer = layers.view(LAYER)[0]
    rows, columns = layer.H - 2 * pad_rows, layer.W - 2 * pad_columns
    n = take_next(counter)
    if n < N:
        clear(s)
    while n < N:
        load_image(x, n * layer.C * rows * columns, rows, columns, pad_rows, pad_columns, layer, s)
        forward_layer(layer, tables, packed, s, False)
        pixels = layer.OH * layer.OW
        store_planes(s, layer.y_at, layer.y_stride, layer.F, pixels, y, n * layer.F * pixels)
        n = take_next(counter)


@kernel(lambda t: (const(t, 1), t[::1], types.int64, const(types.int64, 1),
                   types.int64[::1], t[::1], t[::1], types.int64[::1]))
def backward_input(dy, dx, N, layers, tables, packed, s, counter):
    """Fill dx from dy, both flat NCHW; the rest as for `chain.train`."""
    layer = layers.view(LAYER)[0]
    size, pixels = layer.OH * layer.OW, layer.H * layer.W
    n = take_next(counter)
    if n < N:
        clear(s)
    while n < N:
        load_pixels(dy, n * layer.F * size, layer.F, size, size, s, layer.y_at, layer.y_stride)
        input_gradient(layer, tables, packed, s, False)
        store_planes(s, layer.x_at, layer.x_stride, layer.C, pixels, dx, n * layer.C * pixels)
        n = take_next(counter)


@kernel(lambda t: (const(t, 1), const(t, 1), types.int64, const(types.int64, 1),
                   types.int64[::1], t[::1], t[:, ::1], types.int64[::1]))
def backward_weight(x, dy, N, layers, tables, s, grads, counter):
    """Fill grads (chunks, ...) with each chunk's dw and db in the layout of the tiles."""
    layer = layers.view(LAYER)[0]
    chunks = grads.shape[0]
    size = (N + chunks - 1) // chunks
    chunk = take_next(counter)
    if chunk < chunks:
        clear(s)
    while chunk < chunks:
        clear(grads[chunk])
        for n in range(chunk * size, min((chunk + 1) * size, N)):
            load_image(x, n * layer.C * layer.H * layer.W, layer.H, layer.W, 0, 0, layer, s)
            pixels = layer.OH * layer.OW
            load_pixels(dy, n * layer.F * pixels, layer.F, pixels, pixels, s, layer.y_at,
                        layer.y_stride)
            if layer.method == Method.DOTS and layer.dy_padded_at != layer.y_at:
                pad_gradient(layer, s)
            weight_gradient(layer, tables, s, grads[chunk])
        chunk = take_next(counter)


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    if planes.is_made_for(w.shape, x.shape[2] * x.shape[3], x.itemsize):
        return planes.combine_planes(x, w[:, :, 0, 0], b)
    return convolve(x, w, b)


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W)."""
    if planes.is_made_for(w.shape, dy.shape[2] * dy.shape[3], dy.itemsize):
        return planes.combine_planes(dy, np.ascontiguousarray(w[:, :, 0, 0].T), None)
    return gradient_of_input(dy, w)


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    _, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    if planes.is_made_for((F, C, H - OH + 1, W - OW + 1), H * W, x.itemsize):
        return planes.gradient_of_weights(x, dy, CHUNKS)
    return gradient_of_weights(x, dy)


def convolve(x: Array, w: Array, b: Array, pad_rows: int = 0, pad_columns: int = 0,
             winograd: bool = True) -> Array:
    """:func:`conv2d_forward` of x within a border of zeros, by the methods of :mod:`.plan`."""
    height, width = x.shape[2] + 2 * pad_rows, x.shape[3] + 2 * pad_columns
    how = convolve_pieces if is_large(w.shape, height, width) else convolve_whole
    return how(x, w, b, pad_rows, pad_columns, winograd)


def convolve_whole(x: Array, w: Array, b: Array, pad_rows: int, pad_columns: int,
                   winograd: bool) -> Array:
    """:func:`convolve`, image by image."""
    N, height, width = x.shape[0], x.shape[2] + 2 * pad_rows, x.shape[3] + 2 * pad_columns
    plan = plan_chain((w.shape,), height, width, w.itemsize, planar=True, winograd=winograd)
    packed = aligned(1, plan.packed, w.dtype, np.zeros)[0]
    pack.compile(w.dtype)(w, b, *plan.packing[0], packed)
    y = np.empty((N, w.shape[0], height - w.shape[2] + 1, width - w.shape[3] + 1), x.dtype)
    scratch = aligned(workers.share(N, y.size * w[0].size), plan.scratch, w.dtype)
    function = forward.compile(x.dtype)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    workers.run(lambda i, counter: function(flat_x, flat_y, N, pad_rows, pad_columns, plan.layers,
                                            plan.tables, packed, scratch[i], counter),
                len(scratch))
    return y


def gradient_of_input(dy: Array, w: Array, winograd: bool = True) -> Array:
    """:func:`conv2d_backward_input` by the methods of :mod:`.plan`.

    dx[c,p,q] = sum over f,u,v of dy[f,p-u,q-v] w[f,c,u,v]: with u and v counted from the other end
    a convolution of dy, within KH-1 rows and KW-1 columns of zeros, with the flipped filters. With
    Winograd convolution dx is added up tile by tile instead.
    """
    F, C, KH, KW = w.shape
    N, height, width = dy.shape[0], dy.shape[2] + KH - 1, dy.shape[3] + KW - 1
    winograd = winograd and outputs(F, C, KH, KW) > 0
    if not winograd or is_large(w.shape, height, width):
        flipped = np.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        return convolve(dy, flipped, np.zeros(C, w.dtype), KH - 1, KW - 1, winograd)
    plan = plan_chain((w.shape,), height, width, w.itemsize)
    packed = aligned(1, plan.packed, w.dtype, np.zeros)[0]
    pack.compile(w.dtype)(w, np.zeros(F, w.dtype), *plan.packing[0]._replace(forward_at=-1), packed)
    scratch = aligned(workers.share(N, dy.size * w[0].size), plan.scratch, w.dtype)
    dx = np.empty((N, C, height, width), dy.dtype)
    function = backward_input.compile(dy.dtype)
    flat_dy, flat_dx = dy.reshape(-1), dx.reshape(-1)
    workers.run(lambda i, counter: function(flat_dy, flat_dx, N, plan.layers, plan.tables, packed,
                                            scratch[i], counter), len(scratch))
    return dx


def gradient_of_weights(x: Array, dy: Array, winograd: bool = True) -> Array:
    """:func:`conv2d_backward_weight` by the methods of :mod:`.plan`."""
    _, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    shape = (F, C, H - OH + 1, W - OW + 1)
    how = sum_pieces if is_large(shape, H, W) else sum_whole
    return how(x, dy, shape, winograd)


def sum_whole(x: Array, dy: Array, shape: tuple[int, ...], winograd: bool) -> Array:
    """:func:`gradient_of_weights`, image by image; ``shape`` is that of dw."""
    (N, _, H, W), F = x.shape, shape[0]
    plan = plan_chain((shape,), H, W, x.itemsize, planar=True, winograd=winograd)
    chunks = -(-N // -(-N // CHUNKS))
    dw, db = np.empty(shape, x.dtype), np.empty(F, x.dtype)
    grads = aligned(chunks, plan.grads, x.dtype)
    scratch = aligned(workers.share(chunks, dy.size * dw[0].size), plan.scratch, x.dtype)
    function = backward_weight.compile(x.dtype)
    x, dy = x.reshape(-1), dy.reshape(-1)
    workers.run(lambda i, counter: function(x, dy, N, plan.layers, plan.tables, scratch[i], grads,
                                            counter), len(scratch))
    add_chunks.compile(dw.dtype)(grads)
    unpack.compile(dw.dtype)(grads[0], plan.layers, 0, dw, db)
    return dw


def is_large(kernel: tuple[int, ...], H: int, W: int) -> bool:
    """Whether an image of that size is cut into pieces."""
    F, C, KH, KW = kernel
    return C * H * W + F * (H - KH + 1) * (W - KW + 1) > _LARGE


def pieces(kernel: tuple[int, ...], N: int, OH: int, OW: int) -> tuple[int, int, list[Any]]:
    """Return height and width of the pieces of y, and groups of them: image, row, column."""
    F, C, KH, KW = kernel
    width = min(round_up(OW, 4), 256)
    height = _PIECE // ((C + F) * (width + KW - 1)) - KH + 1
    height = max(4, min(round_up(OH, 4), height // 4 * 4))
    places = [(n, i, j) for n in range(N)
              for i in range(0, OH, height) for j in range(0, OW, width)]
    return height, width, [places[k:k + CHUNKS] for k in range(0, len(places), CHUNKS)]


def cut(x: Array, places: list[Any], height: int, width: int) -> Array:
    """Return pieces of the images x; what lies outside of them is zero."""
    _, C, H, W = x.shape
    parts = np.zeros((len(places), C, height, width), x.dtype)
    for part, (n, i, j) in zip(parts, places, strict=True):
        top, left = max(i, 0), max(j, 0)
        inside = x[n, :, top:min(i + height, H), left:min(j + width, W)]
        part[:, top - i:top - i + inside.shape[1], left - j:left - j + inside.shape[2]] = inside
    return parts


def convolve_pieces(x: Array, w: Array, b: Array, pad_rows: int, pad_columns: int,
                    winograd: bool) -> Array:
    """:func:`convolve`, piece by piece."""
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = H + 2 * pad_rows - KH + 1, W + 2 * pad_columns - KW + 1
    y = np.empty((N, F, OH, OW), x.dtype)
    height, width, groups = pieces(w.shape, N, OH, OW)
    for group in groups:
        corners = [(n, i - pad_rows, j - pad_columns) for n, i, j in group]
        parts = convolve_whole(cut(x, corners, height + KH - 1, width + KW - 1), w, b, 0, 0,
                               winograd)
        for part, (n, i, j) in zip(parts, group, strict=True):
            place = y[n, :, i:i + height, j:j + width]
            place[:] = part[:, :place.shape[1], :place.shape[2]]
    return y


def sum_pieces(x: Array, dy: Array, shape: tuple[int, ...], winograd: bool) -> Array:
    """:func:`gradient_of_weights`, piece by piece, added up in order."""
    _, _, KH, KW = shape
    height, width, groups = pieces(shape, len(x), *dy.shape[2:])
    dw = np.zeros(shape, x.dtype)
    for group in groups:
        dw += sum_whole(cut(x, group, height + KH - 1, width + KW - 1),
                        cut(dy, group, height, width), shape, winograd)
    return dw
