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

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..jit import const, inner, kernel, once
from ..simd import lanes
from . import winograd, winograd1d
from .layout import clear
from .plan import (
    Arena,
    Kernel,
    Method,
    Packing,
    choose_methods,
    pixel_strides,
    record_dtype,
    round_up,
    transformed_sizes,
    weight_floats,
)
from .tile import SLACK, dots, product
from .winograd import TILES, N
from .workers import take_next


class RingLayer(NamedTuple):
    """One layer of the pipeline, as compiled code sees it."""

    C: int
    F: int
    KH: int
    KW: int
    # A `plan.Method`, and with Winograd convolution the side of an output tile.
    method: int
    m: int
    # Input and output: floats from one pixel to the next; where the ring begins in the scratch of a
    # thread, its rows, and the floats of a row.
    x_stride: int
    x_at: int
    x_rows: int
    x_row: int
    y_stride: int
    y_at: int
    y_rows: int
    y_row: int
    # Offsets into the scratch: input and output in the transform domain.
    x_transformed_at: int
    y_transformed_at: int
    # Offsets into the packed parameters.
    forward_at: int
    bias_at: int


RING_LAYER = record_dtype(RingLayer)


class WholePlan(NamedTuple):
    """Layers (`RING_LAYER`, see `plan.Plan`), and how many numbers each kind of array needs."""

    layers: Any
    packing: tuple[Packing, ...]
    tables: int
    scratch: int
    packed: int


@lru_cache(maxsize=64)
def plan_whole(kernels: tuple[Kernel, ...], strip_width: int, itemsize: int) -> WholePlan:
    """Plan the rings for strips of up to ``strip_width`` output pixels; see `plan.plan_chain`.

    The tables have room for the offsets of the taps, which change from row to row.
    """
    V = lanes(itemsize)
    chosen = choose_methods(kernels, V, winograd=True)
    strides = pixel_strides(kernels, [method for method, _ in chosen], V)
    scratch, packed = Arena(), Arena()
    packed.take(max(strides) + SLACK)
    scratch.take(V)
    halo = sum(k[3] - 1 + 2 * m for k, (_, m) in zip(kernels, chosen, strict=True))
    pixels = strip_width + halo + SLACK
    row_sizes = [round_up(pixels * stride, 16) for stride in strides]
    steps = [1, *(max(m, 1) for _, m in chosen)]  # rows that are made at a time
    rows = [step + kernel[2] - 1 + before - 1
            for kernel, before, step in zip(kernels, steps, steps[1:], strict=False)]
    rows.append(steps[-1])
    rings = [scratch.take(n * size) for n, size in zip(rows, row_sizes, strict=True)]

    layers, most_taps, most_x, most_y = [], 0, 0, 0
    for i, ((F, C, KH, KW), (method, m)) in enumerate(zip(kernels, chosen, strict=True)):
        x_stride, y_stride = strides[i], strides[i + 1]
        x_size, y_size = transformed_sizes(method, KH, x_stride, y_stride, 1, pixels * strides[0])
        most_x, most_y = max(most_x, x_size), max(most_y, y_size)
        forward, _ = weight_floats((F, C, KH, KW), method, x_stride, y_stride)
        layers.append(RingLayer(
            C, F, KH, KW, method, m,
            x_stride, rings[i], rows[i], row_sizes[i],
            y_stride, rings[i + 1], rows[i + 1], row_sizes[i + 1], 0, 0,
            packed.take(forward), packed.take(y_stride)))
        most_taps = max(most_taps, KH * KW * (x_stride // V if method == Method.DOTS else C))
    room = {"x_transformed_at": scratch.take(most_x), "y_transformed_at": scratch.take(most_y)}
    layers = [layer._replace(**room) for layer in layers]
    packing = tuple(Packing(int(layer.method), layer.x_stride, layer.y_stride, layer.forward_at,
                            -1, layer.bias_at) for layer in layers)
    return WholePlan(np.array(layers, np.int64).ravel(), packing,
                     max(pixels, TILES + SLACK) + most_taps, scratch.size, packed.size)


@inner
def needed(layers, first, last, length, vertical):
    """Which rows, if ``vertical``, or columns of each layer's output a strip needs.

    Row l of the result is (first, end) of what layer l has to compute, l = 0 being the image;
    and (first, end) of what its ring holds, which may reach over the image's border. Layers
    with tiles compute whole ones, which lie at the same places in every strip.
    """
    L = layers.shape[0]
    ranges = np.empty((L + 1, 4), np.int64)
    ranges[L, 2], ranges[L, 3] = first, last
    for i in range(L, -1, -1):
        side = max(layers[i - 1].m, 1) if i > 0 else 1
        if i > 0 and not vertical and layers[i - 1].method == Method.WINOGRAD_ROWS:
            side = 1
        ranges[i, 0] = max(ranges[i, 2], 0) // side * side
        end = (min(ranges[i, 3], length) + side - 1) // side * side
        ranges[i, 1] = min(end, length)
        ranges[i, 2], ranges[i, 3] = min(ranges[i, 2], ranges[i, 0]), max(ranges[i, 3], end)
        if i > 0:
            size = layers[i - 1].KH if vertical else layers[i - 1].KW
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
def convolve_row(layer, row, H, n, at, shift, packed, s, tables, low):
    """Make n pixels of one row of a layer's output at ``at``, from the rows in its ring."""
    kh, kw, ld, channels = layer.KH, layer.KW, layer.x_stride, layer.C
    for p in range(n + SLACK):
        tables[p] = p * ld
    rows, cols = tables[:n + SLACK], tables[n + SLACK:]
    V = lanes(s.itemsize)
    few = layer.method == Method.DOTS
    k = 0
    for u in range(kh):
        slot = min(max(row + u - (kh - 1) // 2, 0), H - 1) % layer.x_rows
        for v in range(kw):
            start = slot * layer.x_row + (shift + v) * ld
            for c in range(0, ld if few else channels, V if few else 1):
                cols[k] = start + c
                k += 1
    if few:
        for f in range(layer.F):
            dots(s[layer.x_at:], rows, n, cols, k, packed, layer.forward_at + f * k * V,
                 packed[layer.bias_at + f], s, at + f, layer.y_stride, low)
    else:
        product(s[layer.x_at:], rows, n, cols, 0, k, packed, layer.forward_at, layer.y_stride,
                packed, layer.bias_at, 0, s, at, layer.y_stride, low, False)


@once
def convolve_tiles(layer, row, end, H, n, start, shift, packed, s, tables, low):
    """Make the tiles of rows ``row`` to ``end`` of a layer's output; else as `convolve_row`."""
    m, ld = layer.m, layer.x_stride
    tiles, line = tables[:TILES + SLACK], tables[TILES + SLACK:]
    for t in range(tiles.size):
        tiles[t] = t * ld
    for c in range(layer.C):
        line[c] = c
    x = winograd.Maps(layer.x_at + shift * ld, ld, layer.x_row, layer.x_rows, H, n + 2 * N)
    y = winograd.Maps(start, layer.y_stride, layer.y_row, layer.y_rows, end, n)
    across = (n + m - 1) // m
    first = row // m * across
    winograd.convolve(s, x, y, m, (layer.KH - 1) // 2, first, first + across, across,
                      tiles, line, layer.C, packed, layer.forward_at, layer.bias_at,
                      layer.x_transformed_at, layer.y_transformed_at, low)


@once
def convolve_columns(layer, row, end, H, n, start, shift, packed, s, tables, low):
    """Make rows ``row`` to ``end``, one group, by tiles in one dimension; as `convolve_row`."""
    ld, channels, A = layer.x_stride, layer.C, layer.KH // 3
    width = (n + layer.KW - 1) * ld
    for p in range(n + SLACK):
        tables[p] = p * ld
    pixels, taps = tables[:n + SLACK], tables[n + SLACK:]
    k = 0
    for a in range(A):
        for v in range(layer.KW):
            for c in range(channels):
                taps[k] = a * width + v * ld + c
                k += 1
    x = winograd.Maps(layer.x_at + shift * ld, ld, layer.x_row, layer.x_rows, H, n + layer.KW - 1)
    y = winograd.Maps(start, layer.y_stride, layer.y_row, layer.y_rows, end, n)
    winograd1d.convolve(s, x, y, (layer.KH - 1) // 2, row // winograd1d.M, 1, A, width,
                        pixels, taps, k, packed, layer.forward_at, layer.bias_at,
                        layer.x_transformed_at, layer.y_transformed_at, low)


@once
def convolve_next(layer, row, rows, before, reach, H, packed, s, tables, relu):
    """Make the next row or row of tiles of a layer; return the row after it.

    ``before`` and ``reach`` are the columns of its input and output, see `needed`.
    """
    low = s.dtype.type(0.0) if relu else s.dtype.type(-np.inf)
    n, ld = reach[1] - reach[0], layer.y_stride
    shift = reach[0] - (layer.KW - 1) // 2 - before[2]
    start = layer.y_at + (reach[0] - reach[2]) * ld
    end = min(row + max(layer.m, 1), rows[1])
    if layer.method == Method.WINOGRAD_ROWS:
        convolve_columns(layer, row, end, H, n, start, shift, packed, s, tables, low)
    elif layer.method == Method.WINOGRAD:
        convolve_tiles(layer, row, end, H, n, start, shift, packed, s, tables, low)
    else:
        convolve_row(layer, row, H, n, start + row % layer.y_rows * layer.y_row, shift,
                     packed, s, tables, low)
    for i in range(row, end):
        replicate_ends(s, layer.y_at + i % layer.y_rows * layer.y_row, reach, ld)
    return end


@once
def predict_strip(image, y, H, W, top, bottom, left, right, layers, packed, s, tables):
    """Fill the pixels [top, bottom) x [left, right) of y (F,H,W), flat."""
    L = layers.shape[0]
    rows = needed(layers, top, bottom, H, True)
    columns = needed(layers, left, right, W, False)
    ready = rows[:, 0].copy()  # the first row of the image and of each layer that is not there yet
    last = layers[L - 1]
    while ready[L] < rows[L, 1]:
        # The first layer, from the last one back, that has all it reads; else the image's turn.
        i = L
        while i > 0:
            reads = ready[i] + max(layers[i - 1].m, 1) + layers[i - 1].KH // 2
            if ready[i - 1] >= min(reads, rows[i - 1, 1]):
                break
            i -= 1
        if i == 0:
            at = layers[0].x_at + ready[0] % layers[0].x_rows * layers[0].x_row
            load_row(image, ready[0], columns[0], layers[0].C, H, W, s, at, layers[0].x_stride)
            ready[0] += 1
            continue
        row = ready[i]
        ready[i] = convolve_next(layers[i - 1], row, rows[i], columns[i - 1], columns[i], H,
                                 packed, s, tables, i < L)
        if i == L:
            for r in range(max(row, top), min(ready[L], bottom)):
                at = (last.y_at + r % last.y_rows * last.y_row
                      + (left - columns[L, 2]) * last.y_stride)
                for f in range(last.F):
                    start = (f * H + r) * W + left
                    for j in range(right - left):
                        y[start + j] = s[at + j * last.y_stride + f]


@kernel(
    lambda t: (const(t, 1), t[::1], types.int64, types.int64, types.int64, types.int64,
               const(types.int64, 1), t[::1], t[::1], types.int64[::1], types.int64[::1])
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
        The thread's own: room for the activations, and for the index tables.
    counter : (1,) int64 array
        The next strip to be taken, by whichever thread comes first; zero at first.
    """
    records, across = layers.view(RING_LAYER), (W + strip_width - 1) // strip_width
    strips = across * ((H + strip_height - 1) // strip_height)
    strip = take_next(counter)
    if strip < strips:
        clear(scratch)
    while strip < strips:
        top, left = strip // across * strip_height, strip % across * strip_width
        predict_strip(image, y, H, W, top, min(top + strip_height, H),
                      left, min(left + strip_width, W),
                      records, packed, scratch, tables)
        strip = take_next(counter)


def strip_size(image: tuple[int, int], threads: int) -> tuple[int, int]:
    """Choose the strips of an image: narrow enough for the cache, enough for all threads."""
    H, W = image
    width = round_up(-(-W // -(-W // 152)), 4)  # whole tiles
    across = -(-W // width)
    down = max(1, min(-(-4 * threads // across), H // 64))
    return round_up(-(-H // down), 4), width
