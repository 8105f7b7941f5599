"""The fused training step: a patch goes through the whole chain without leaving the cache.

Layer by layer, a batch of 128 patches writes 20 MB after conv1 and reads it back from memory four
times. One patch's activations are 160 KB there: with forward, loss and backward of one patch
done before the next begins, all of it stays in a core's L2 cache, and the ReLU and its
gradient cost nothing beyond the products they are part of.

Threads take chunks of patches as they become free. Each chunk has gradients of its own, and
the chunks depend on the number of patches only; they are added in order of the chunks. So the
result does not depend on the number of threads, nor on who was faster, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numba import types

from ..jit import const, inner, kernel, once
from ..simd import lanes
from . import winograd, winograd1d
from .layout import clear, load_pixels
from .plan import LAYER, Method
from .tile import SLACK, dots, product
from .workers import take_next

# Pixels whose dy the weight gradient takes at a time: they stay in L1 for all taps.
_BLOCK = 64


@inner
def scatter(w, packed, at, step_f, step_c, step_tap):
    """packed[at + f step_f + c step_c + tap step_tap] = w[f, c, u, v], tap = u KW + v."""
    F, C, KH, KW = w.shape
    for f in range(F):
        for c in range(C):
            to = at + f * step_f + c * step_c
            for u in range(KH):
                for v in range(KW):
                    packed[to] = w[f, c, u, v]
                    to += step_tap


@inner
def gather(grads, at, step_f, step_c, step_tap, dw):
    """Undo :func:`scatter`: dw[f, c, u, v] = grads[at + f step_f + c step_c + tap step_tap]."""
    F, C, KH, KW = dw.shape
    for f in range(F):
        for c in range(C):
            start = at + f * step_f + c * step_c
            for u in range(KH):
                for v in range(KW):
                    dw[f, c, u, v] = grads[start]
                    start += step_tap


@kernel(lambda t: (const(t, 4), const(t, 1), *[types.int64] * 6, t[::1]), optimize=2)
def pack(w, b, method, x_stride, y_stride, forward, backward, bias, packed):
    """Lay one layer's weights w (F,C,KH,KW) and biases out as the tiles read them.

    See `tile.product` and `plan.Packing`; ``packed`` starts as zeros. With Winograd convolution,
    what is to go to -1 is left out.
    """
    F, C, KH, KW = w.shape
    for f in range(F):
        packed[bias + f] = b[f]
    if method == Method.WINOGRAD_ROWS:
        winograd1d.transform_weights(w, packed, forward, y_stride)
    elif method == Method.WINOGRAD:
        for at, f_first, ld in ((forward, False, y_stride), (backward, True, x_stride)):
            if at >= 0:
                winograd.transform_weights(w, f_first, packed, at, ld)
    else:
        if method == Method.DOTS:
            scatter(w, packed, forward, KH * KW * x_stride, 1, x_stride)
        else:
            scatter(w, packed, forward, 1, y_stride, C * y_stride)
        if backward >= 0:
            scatter(w, packed, backward, x_stride, 1, F * x_stride)


@inner
def maps(layer):
    """Where the layer's input and output lie, and its output's tiles: in a row, and in a column."""
    x = winograd.Maps(layer.x_at, layer.x_stride, layer.W * layer.x_stride,
                      layer.H, layer.H, layer.W)
    y = winograd.Maps(layer.y_at, layer.y_stride, layer.OW * layer.y_stride,
                      layer.OH, layer.OH, layer.OW)
    m = layer.m
    return x, y, (layer.OW + m - 1) // m, (layer.OH + m - 1) // m


@once
def forward_layer(layer, tables, packed, s, relu):
    """Y = x * w + b, then ReLU if ``relu``: the input and output of one patch in scratch."""
    low = s.dtype.type(0.0) if relu else s.dtype.type(-np.inf)
    if layer.method == Method.WINOGRAD_ROWS:
        x, y, _, groups = maps(layer)
        winograd1d.convolve(s, x, y, 0, 0, groups, layer.KH // 3, x.step,
                            tables[layer.pixel_table:], tables[layer.tap_table:],
                            layer.KH // 3 * layer.KW * layer.C,
                            packed, layer.forward_at, layer.bias_at,
                            layer.x_transformed_at, layer.y_transformed_at, low)
        return
    if layer.method == Method.WINOGRAD:
        x, y, across, down = maps(layer)
        winograd.convolve(s, x, y, layer.m, 0, 0, across * down, across,
                          tables[layer.x_tile_table:], tables[layer.line_table:], layer.C,
                          packed, layer.forward_at, layer.bias_at,
                          layer.x_transformed_at, layer.y_transformed_at, low)
        return
    M = layer.OH * layer.OW
    rows = tables[layer.pixel_table:layer.pixel_table + M + SLACK]
    if layer.method == Method.DOTS:
        T = layer.KH * layer.KW * layer.x_stride // lanes(s.itemsize)
        cols = tables[layer.vector_table:layer.vector_table + T]
        size = layer.KH * layer.KW * layer.x_stride
        for f in range(layer.F):
            dots(s[layer.x_at:], rows, M, cols, T, packed, layer.forward_at + f * size,
                 packed[layer.bias_at + f], s, layer.y_at + f, layer.y_stride, low)
    else:
        K = layer.KH * layer.KW * layer.C
        cols = tables[layer.tap_table:layer.tap_table + K]
        product(s[layer.x_at:], rows, M, cols, 0, K, packed, layer.forward_at, layer.y_stride,
                packed, layer.bias_at, 0, s, layer.y_at, layer.y_stride, low, False)


@inner
def pad_gradient(layer, s):
    """Copy dy, (OH,OW) pixels, into a border of KH-1 rows and KW-1 columns of zeros.

    The border was zero before and stays so: only this writes there.
    """
    oh, ow, ld = layer.OH, layer.OW, layer.y_stride
    wp = ow + 2 * (layer.KW - 1)
    for i in range(oh):
        to = layer.dy_padded_at + ((i + layer.KH - 1) * wp + layer.KW - 1) * ld
        start = layer.y_at + i * ow * ld
        for j in range(ow * ld):
            s[to + j] = s[start + j]


@inner
def add_rows(s, at, M, ld, total):
    """total[j] += sum over i < M of s[at + i ld + j]: eight rows to one visit of the total."""
    whole = M // 8 * 8
    for i in range(0, whole, 8):
        y = s[at + i * ld:at + (i + 8) * ld]
        for j in range(ld):
            total[j] += ((y[j] + y[j + ld]) + (y[j + 2 * ld] + y[j + 3 * ld])) + (
                (y[j + 4 * ld] + y[j + 5 * ld]) + (y[j + 6 * ld] + y[j + 7 * ld]))
    for i in range(whole, M):
        for j in range(ld):
            total[j] += s[at + i * ld + j]


@once
def weight_gradient(layer, tables, s, grads):
    """Add one patch's dw and db to the chunk's.

    dw[(u,v,c), f] = sum over pixels p of x[p + (u,v), c] dy[p, f]; with few filters the other
    way round, dw[(u,v,f), c] = sum over input pixels q of dy[q - (u,v), f] x[q, c], which
    needs dy with its border of zeros.
    """
    M = layer.OH * layer.OW
    add_rows(s, layer.y_at, M, layer.y_stride, grads[layer.db_at:layer.db_at + layer.y_stride])
    low = s.dtype.type(-np.inf)
    if layer.method == Method.WINOGRAD_ROWS:
        x, dy, _, groups = maps(layer)
        winograd1d.weight_gradient(s, x, dy, groups, layer.KH // 3, x.step,
                                   tables[layer.pixel_table:], tables[layer.tap_table:],
                                   layer.KH // 3 * layer.KW * layer.C,
                                   layer.x_transformed_at, layer.y_transformed_at, grads,
                                   layer.dw_at)
        return
    if layer.method == Method.WINOGRAD:
        x, dy, across, down = maps(layer)
        winograd.weight_gradient(s, x, dy, layer.m, across * down, across,
                                 tables[layer.x_tile_table:], tables[layer.line_table:], layer.C,
                                 layer.x_transformed_at, layer.y_transformed_at, grads,
                                 layer.dw_at)
        return
    taps = layer.KH * layer.KW
    if layer.method == Method.DOTS:
        a, ld, at_b = s[layer.dy_padded_at:], layer.x_stride, layer.x_at
        rows = tables[layer.back_tap_table:]
        cols = tables[layer.back_pixel_table:]
        taps *= layer.F
        M = layer.H * layer.W
    else:
        a, ld, at_b = s[layer.x_at:], layer.y_stride, layer.y_at
        rows = tables[layer.tap_table:]
        cols = tables[layer.pixel_table:]
        taps *= layer.C
    for k in range(0, M, _BLOCK):
        product(a, rows, taps, cols, k, min(k + _BLOCK, M), s, at_b, ld,
                grads, layer.dw_at, ld, grads, layer.dw_at, ld, low, False)


@once
def winograd_input_gradient(layer, tables, packed, s, relu):
    """:func:`input_gradient` by Winograd convolution: summed apart from x, then put there."""
    x, dy, across, down = maps(layer)
    total = winograd.Maps(layer.dx_sum_at, x.ld, x.step, x.ring, x.rows, x.columns)
    dx = s[total.start:total.start + x.rows * x.step]
    dx[:] = 0
    winograd.input_gradient(s, dy, total, layer.m, across * down, across,
                            tables[layer.y_tile_table:], tables[layer.line_table:], layer.F,
                            packed, layer.backward_at, layer.y_transformed_at,
                            layer.x_transformed_at)
    result, zero = s[x.start:x.start + dx.size], s.dtype.type(0.0)
    for i in range(dx.size):
        result[i] = zero if relu and not result[i] > zero else dx[i]


@once
def input_gradient(layer, tables, packed, s, relu):
    """Replace x in scratch by dx; where ``relu``, by dx [x > 0], the gradient before the ReLU."""
    if layer.method == Method.WINOGRAD:
        winograd_input_gradient(layer, tables, packed, s, relu)
        return
    M = layer.H * layer.W
    K = layer.KH * layer.KW * layer.F
    rows = tables[layer.back_pixel_table:layer.back_pixel_table + M + SLACK]
    cols = tables[layer.back_tap_table:layer.back_tap_table + K]
    product(s[layer.dy_padded_at:], rows, M, cols, 0, K, packed, layer.backward_at, layer.x_stride,
            packed, 0, 0, s, layer.x_at, layer.x_stride, s.dtype.type(-np.inf), relu)


@once
def train_patch(x, t, n, scale, layers, tables, packed, s, grads):
    """Forward, loss and backward of patch n; return its sum of squared differences."""
    L = layers.shape[0]
    first, last = layers[0], layers[L - 1]
    size = first.C * first.H * first.W
    pixels = first.H * first.W
    load_pixels(x, n * size, first.C, pixels, pixels, s, first.x_at, first.x_stride)
    for i in range(L):
        forward_layer(layers[i], tables, packed, s, i < L - 1)

    M = last.OH * last.OW
    loss = 0.0
    for f in range(last.F):
        for p in range(M):
            at = last.y_at + p * last.y_stride + f
            difference = s[at] - t[(n * last.F + f) * M + p]
            loss += np.float64(difference) * np.float64(difference)
            s[at] = scale * difference

    for i in range(L - 1, -1, -1):
        layer = layers[i]
        if layer.dy_padded_at != layer.y_at:
            pad_gradient(layer, s)
        weight_gradient(layer, tables, s, grads)
        if i > 0:
            input_gradient(layer, tables, packed, s, True)
    return loss


@kernel(
    lambda t: (const(t, 1), const(t, 1), types.int64, types.int64, t, const(types.int64, 1),
               types.int64[::1], t[::1], t[::1], t[:, ::1], types.float64[::1],
               types.int64[::1])
)
def train(x, t, N, size, scale, layers, tables, packed, scratch, grads, losses, counter):
    """Work of one thread: gradients and squared differences of the chunks it gets hold of.

    Parameters
    ----------
    x, t : flat arrays
        N patches and their targets, NCHW.
    N : int
        Patches.
    size : int
        Patches of a chunk; the last one may have fewer.
    scale : float
        dy is ``scale`` times the difference.
    layers, tables : arrays
        From the :class:`~.plan.Plan`.
    packed : array
        Parameters, see :func:`pack`.
    scratch : array
        The thread's own.
    grads : (chunks, ...) array
        Filled with each chunk's gradients, in the layout of the tiles.
    losses : (chunks,) float64 array
        Each chunk's sum of squared differences.
    counter : (1,) int64 array
        The next chunk to be taken, by whichever thread comes first; zero at first.
    """
    chunks, records = grads.shape[0], layers.view(LAYER)
    chunk = take_next(counter)
    if chunk < chunks:
        clear(scratch)
    while chunk < chunks:
        clear(grads[chunk])
        loss = 0.0
        for n in range(chunk * size, min((chunk + 1) * size, N)):
            loss += train_patch(x, t, n, scale, records, tables, packed, scratch,
                                grads[chunk])
        losses[chunk] = loss
        chunk = take_next(counter)


@kernel(lambda t: (t[:, ::1],), optimize=3)
def add_chunks(grads):
    """Add all rows to the first, in order."""
    for i in range(1, grads.shape[0]):
        for j in range(grads.shape[1]):
            grads[0, j] += grads[i, j]


@kernel(lambda t: (const(t, 1), const(types.int64, 1), types.int64, t[:, :, :, ::1], t[::1]))
def unpack(grads, layers, i, dw, db):
    """Copy layer i's gradients from the layout of the tiles to dw (F,C,KH,KW) and db (F,)."""
    layer = layers.view(LAYER)[i]
    at, ldx, ldy = layer.dw_at, layer.x_stride, layer.y_stride
    for f in range(layer.F):
        db[f] = grads[layer.db_at + f]
    if layer.method == Method.WINOGRAD_ROWS:
        winograd1d.transform_gradient(grads, at, ldy, dw)
    elif layer.method == Method.WINOGRAD:
        winograd.transform_gradient(grads, at, ldy, dw)
    elif layer.method == Method.DOTS:
        gather(grads, at, ldx, 1, layer.F * ldx, dw)
    else:
        gather(grads, at, 1, ldy, layer.C * ldy, dw)
