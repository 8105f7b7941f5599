"""The fused forward pass over a whole image, row by row.

The image is cut into strips. Within a strip the layers run as a pipeline: each keeps only the
last few rows of its output, as many as the next layer's kernel is high, in a ring; as soon as one
row more is there, the next layer makes its own next row:

    image rows   -> [ ring of KH1 rows ] -> conv1 -> [ ring of KH2 rows ] -> conv2 -> ... -> y

So intermediate results never leave the cache, nothing is computed twice but the few columns and
rows that neighbouring strips share, and memory does not grow with the image. Each layer
replicates its own borders: a row above the first is the first, and so on.

Every pixel is summed in the same order wherever the cuts are (see :mod:`.tile`), so the result
does not depend on the strips, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import types

from . import winograd, winograd1d
from .jit import const, inner, kernel, once
from .plan import (
    BACKWARD,
    BIAS,
    FEW,
    FIELDS,
    FORWARD,
    KH,
    KW,
    LDX,
    LDY,
    OH,
    ONE_D,
    TAPS,
    TILE,
    VECTORS,
    X_POINTS,
    Y_POINTS,
    C,
    F,
    H,
    Kernel,
    Plan,
    X,
    Y,
    _Arena,
    pixel_strides,
    plan_points,
    round_up,
    ways,
)
from .tile import BITS, SLACK, dots, lanes, product
from .winograd import TILES, N
from .workers import take_next


def plan_whole(
    kernels: Sequence[Kernel], strip_width: int, itemsize: int
) -> Plan:
    """Plan the rings for strips of up to ``strip_width`` output pixels; see `plan.plan_chain`.

    X and Y are here the starts of the rings, H and OH the numbers of their rows, TAPS and VECTORS
    the lengths of those, in floats; the tables hold room for the offsets of the taps, which
    change from row to row.
    """
    V = lanes(itemsize)
    heights, few_filters, one_d = ways(kernels, V, winograd=True)
    strides = pixel_strides(kernels, few_filters, V)
    scratch, packed = _Arena(), _Arena()
    packed.take(max(strides) + SLACK)
    scratch.take(V)
    layers = np.zeros((len(kernels), FIELDS), np.int64)
    halo = sum(k[3] - 1 + 2 * height for k, height in zip(kernels, heights, strict=True))
    pixels = strip_width + halo + SLACK
    most_taps, above = 0, 1
    for i, (f, c, kh, kw) in enumerate(kernels):
        ldx, ldy = strides[i], strides[i + 1]
        row, height, few = layers[i], max(heights[i], 1), few_filters[i]
        row[[C, F, KH, KW, LDX, LDY, FEW]] = c, f, kh, kw, ldx, ldy, few
        row[TILE], row[ONE_D] = heights[i], one_d[i]
        row[H] = height + kh - 1 + above - 1
        row[TAPS] = round_up(pixels * ldx, 16)
        row[VECTORS] = round_up(pixels * ldy, 16)
        row[X] = scratch.take(row[H] * row[TAPS])
        points = N * kh // 3 * kw if one_d[i] else N * N if heights[i] else kh * kw
        row[FORWARD] = packed.take(points * (f * ldx if few else c * ldy))
        row[BIAS] = packed.take(ldy)
        row[BACKWARD] = -1  # not needed, not packed
        most_taps = max(most_taps, kh * kw * (ldx // V if few else c))
        above = height
    layers[:-1, Y], layers[:-1, OH] = layers[1:, X], layers[1:, H]
    layers[-1, OH] = above
    layers[-1, Y] = scratch.take(above * layers[-1, VECTORS])
    plan_points(layers, scratch, 1, pixels * layers[0, LDX])
    tables = np.empty(max(pixels, TILES + SLACK) + most_taps, np.int64)
    return Plan(layers, tables, scratch.size, packed.size, 0)


@inner
def needed(layers, first, last, length, axis):
    """Which rows (axis KH) or columns (KW) of each layer's output a strip needs.

    Row l of the result is (first, end) of what layer l has to compute, l = 0 being the image;
    and (first, end) of what its ring holds, which may reach over the image's border. Layers
    with tiles compute whole ones, which lie at the same places in every strip.
    """
    L = layers.shape[0]
    ranges = np.empty((L + 1, 4), np.int64)
    ranges[L, 2], ranges[L, 3] = first, last
    for i in range(L, -1, -1):
        side = max(layers[i - 1, TILE], 1) if i > 0 else 1
        if i > 0 and axis == KW and layers[i - 1, ONE_D]:
            side = 1
        ranges[i, 0] = max(ranges[i, 2], 0) // side * side
        end = (min(ranges[i, 3], length) + side - 1) // side * side
        ranges[i, 1] = min(end, length)
        ranges[i, 2], ranges[i, 3] = min(ranges[i, 2], ranges[i, 0]), max(ranges[i, 3], end)
        if i > 0:
            size = layers[i - 1, axis]
            ranges[i - 1, 2] = ranges[i, 0] - (size - 1) // 2
            ranges[i - 1, 3] = end + size // 2
    return ranges


@inner
def load_row(image, row, columns, channels, H, W, s, at, ld):
    """Copy one row of the image to s as [pixel][channel], its ends replicated."""
    for c in range(channels):
        start = (c * H + row) * W
        for j in range(columns[3] - columns[2]):
            s[at + j * ld + c] = image[start + min(max(columns[2] + j, 0), W - 1)]


@inner
def replicate_ends(s, at, columns, ld):
    """Fill what the next layer reads over the image's left and right border."""
    first = at + (columns[0] - columns[2]) * ld
    for j in range(columns[0] - columns[2]):
        for c in range(ld):
            s[at + j * ld + c] = s[first + c]
    last = at + (columns[1] - 1 - columns[2]) * ld
    for j in range(columns[3] - columns[1]):
        for c in range(ld):
            s[last + (j + 1) * ld + c] = s[last + c]


@once
def convolve_row(layer, row, H_, n, at, shift, packed, s, tables, low):
    """Make n pixels of one row of a layer's output at ``at``, from the rows in its ring."""
    kh, kw, ld, channels = layer[KH], layer[KW], layer[LDX], layer[C]
    for p in range(n + SLACK):
        tables[p] = p * ld
    rows, cols = tables[:n + SLACK], tables[n + SLACK:]
    V = BITS // (8 * s.itemsize)
    k = 0
    for u in range(kh):
        slot = min(max(row + u - (kh - 1) // 2, 0), H_ - 1) % layer[H]
        for v in range(kw):
            start = slot * layer[TAPS] + (shift + v) * ld
            for c in range(0, ld if layer[FEW] else channels, V if layer[FEW] else 1):
                cols[k] = start + c
                k += 1
    if layer[FEW]:
        for f in range(layer[F]):
            dots(s[layer[X]:], rows, n, cols, k, packed, layer[FORWARD] + f * k * V,
                 packed[layer[BIAS] + f], s, at + f, layer[LDY], low)
    else:
        product(s[layer[X]:], rows, n, cols, 0, k, packed, layer[FORWARD], layer[LDY],
                packed, layer[BIAS], 0, s, at, layer[LDY], low, False)


@once
def convolve_tiles(layer, row, end, H_, n, start, shift, packed, s, tables, low):
    """Make the tiles of rows ``row`` to ``end`` of a layer's output; else as `convolve_row`."""
    m, ld = layer[TILE], layer[LDX]
    tiles, line = tables[:TILES + SLACK], tables[TILES + SLACK:]
    for t in range(tiles.size):
        tiles[t] = t * ld
    for c in range(layer[C]):
        line[c] = c
    x = winograd.Maps(layer[X] + shift * ld, ld, layer[TAPS], layer[H], H_, n + 2 * N)
    y = winograd.Maps(start, layer[LDY], layer[VECTORS], layer[OH], end, n)
    across = (n + m - 1) // m
    first = row // m * across
    winograd.convolve(s, x, y, m, (layer[KH] - 1) // 2, first, first + across, across,
                      tiles, line, layer[C], packed, layer[FORWARD], layer[BIAS],
                      layer[X_POINTS], layer[Y_POINTS], low)


@once
def convolve_columns(layer, row, end, H_, n, start, shift, packed, s, tables, low):
    """Make rows ``row`` to ``end``, one group, by tiles in one dimension; as `convolve_row`."""
    ld, channels, A = layer[LDX], layer[C], layer[KH] // 3
    width = (n + layer[KW] - 1) * ld
    for p in range(n + SLACK):
        tables[p] = p * ld
    pixels, taps = tables[:n + SLACK], tables[n + SLACK:]
    k = 0
    for a in range(A):
        for v in range(layer[KW]):
            for c in range(channels):
                taps[k] = a * width + v * ld + c
                k += 1
    x = winograd.Maps(layer[X] + shift * ld, ld, layer[TAPS], layer[H], H_, n + layer[KW] - 1)
    y = winograd.Maps(start, layer[LDY], layer[VECTORS], layer[OH], end, n)
    winograd1d.convolve(s, x, y, (layer[KH] - 1) // 2, row // winograd1d.M, 1, A, width,
                        pixels, taps, k, packed, layer[FORWARD], layer[BIAS],
                        layer[X_POINTS], layer[Y_POINTS], low)


@once
def convolve_next(layer, row, rows, before, reach, H_, packed, s, tables, relu):
    """Make the next row or row of tiles of a layer; return the row after it.

    ``before`` and ``reach`` are the columns of its input and output, see `needed`.
    """
    low = s.dtype.type(0.0) if relu else s.dtype.type(-np.inf)
    n, ld = reach[1] - reach[0], layer[LDY]
    shift = reach[0] - (layer[KW] - 1) // 2 - before[2]
    start = layer[Y] + (reach[0] - reach[2]) * ld
    end = min(row + max(layer[TILE], 1), rows[1])
    if layer[ONE_D]:
        convolve_columns(layer, row, end, H_, n, start, shift, packed, s, tables, low)
    elif layer[TILE]:
        convolve_tiles(layer, row, end, H_, n, start, shift, packed, s, tables, low)
    else:
        convolve_row(layer, row, H_, n, start + row % layer[OH] * layer[VECTORS], shift,
                     packed, s, tables, low)
    for i in range(row, end):
        replicate_ends(s, layer[Y] + i % layer[OH] * layer[VECTORS], reach, ld)
    return end


@once
def predict_strip(image, y, H_, W_, top, bottom, left, right, layers, packed, s, tables):
    """Fill the pixels [top, bottom) x [left, right) of y (F,H,W), flat."""
    L = layers.shape[0]
    rows = needed(layers, top, bottom, H_, KH)
    columns = needed(layers, left, right, W_, KW)
    ready = rows[:, 0].copy()  # the first row of the image and of each layer that is not there yet
    last = layers[L - 1]
    while ready[L] < rows[L, 1]:
        # The first layer, from the last one back, that has all it reads; else the image's turn.
        i = L
        while i > 0:
            reads = ready[i] + max(layers[i - 1, TILE], 1) + layers[i - 1, KH] // 2
            if ready[i - 1] >= min(reads, rows[i - 1, 1]):
                break
            i -= 1
        if i == 0:
            at = layers[0, X] + ready[0] % layers[0, H] * layers[0, TAPS]
            load_row(image, ready[0], columns[0], layers[0, C], H_, W_, s, at, layers[0, LDX])
            ready[0] += 1
            continue
        row = ready[i]
        ready[i] = convolve_next(layers[i - 1], row, rows[i], columns[i - 1], columns[i], H_,
                                 packed, s, tables, i < L)
        if i == L:
            for r in range(max(row, top), min(ready[L], bottom)):
                at = last[Y] + r % last[OH] * last[VECTORS] + (left - columns[L, 2]) * last[LDY]
                for f in range(last[F]):
                    start = (f * H_ + r) * W_ + left
                    for j in range(right - left):
                        y[start + j] = s[at + j * last[LDY] + f]


@kernel(
    lambda t: (const(t, 1), t[::1], types.int64, types.int64, types.int64, types.int64,
               const(types.int64, 2), t[::1], t[::1], types.int64[::1], types.int64[::1])
)
def predict(image, y, H, W, strip_height, strip_width, layers, packed, scratch, tables, counter):
    """Work of one thread: run the chain over the strips it gets hold of.

    Parameters
    ----------
    image, y : flat arrays
        (C, H, W) in and (F, H, W) out.
    H, W : int
        Size of the image.
    strip_height, strip_width : int
        Output pixels of a strip, which is what one thread does at a time.
    layers : int64 array
        From :func:`plan_whole`, for this ``strip_width``.
    packed : array
        Parameters, see `chain.pack`.
    scratch, tables : arrays
        The thread's own: zeros, and room for the index tables.
    counter : (1,) int64 array
        The next strip to be taken, by whichever thread comes first; zero at first.
    """
    across = (W + strip_width - 1) // strip_width
    strips = across * ((H + strip_height - 1) // strip_height)
    strip = take_next(counter)
    while strip < strips:
        top, left = strip // across * strip_height, strip % across * strip_width
        predict_strip(image, y, H, W, top, min(top + strip_height, H),
                      left, min(left + strip_width, W),
                      layers, packed, scratch, tables)
        strip = take_next(counter)


def strip_size(image: tuple[int, int], threads: int) -> tuple[int, int]:
    """Choose the strips of an image: narrow enough for the cache, enough for all threads."""
    H, W = image
    width = round_up(-(-W // -(-W // 152)), 4)  # whole tiles
    across = -(-W // width)
    down = max(1, min(-(-4 * threads // across), H // 64))
    return round_up(-(-H // down), 4), width
