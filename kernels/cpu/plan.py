"""Where everything lies: sizes, offsets and offset tables of a conv-ReLU chain.

A compiled chain is given one flat scratch array a thread and one table of integers a layer; all
that depends on shapes alone is worked out here, once, in ordinary Python.

Inside the chain pixels come first and channels last, ``[pixel][channel]``, with the channels
of a pixel padded by zeros to a whole number of vectors: then a row of the products in
:mod:`.tile` is a pixel and its columns are channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import winograd1d
from .tile import SLACK, lanes
from .winograd import TILES, N, outputs, step_of

# Columns of the table of layers. Sizes of the convolution:
C, F, KH, KW, H, W, OH, OW = range(8)
# Floats from one pixel to the next in the layer's input and output, and whether the layer has so
# few filters that the sum, not the filters, is cut into vectors (`tile.dots`):
LDX, LDY, FEW = range(8, 11)
# Offsets into the scratch of a thread: input, output (overwritten by its gradient), and the
# output gradient within a border of zeros (the output itself for a 1x1 kernel; with tiles, see
# below, where the input gradient is summed):
X, Y, PADDED = range(11, 14)
# Offsets into the index tables: output pixels and taps in the input; the few-filter taps, a
# vector each; input pixels and taps in the padded output gradient:
PIXELS, TAPS, VECTORS, BACK_PIXELS, BACK_TAPS = range(14, 19)
# Offsets into the packed parameters: weights for forward and for the input gradient, bias:
FORWARD, BACKWARD, BIAS = range(19, 22)
# Offsets into the gradients of a chunk:
DW, DB = range(22, 24)
# For layers convolved by Winograd's way, see :mod:`.winograd`: the side of an output tile (0 for
# the plain sum); offsets into the scratch: input and output at the points; into the index
# tables: multiples of LDX, of LDY and of 1.
TILE, X_POINTS, Y_POINTS, X_TILES, Y_TILES, LINE = range(24, 30)
# Whether the tiles are columns of pixels, TILE high and one wide, see :mod:`.winograd1d`: then
# PIXELS and TAPS are offsets into the points of the input.
ONE_D = 30
FIELDS = 31


Kernel = tuple[int, int, int, int]  # F, C, KH, KW


class Plan(NamedTuple):
    """Layers (one row each), index tables, and how many floats each kind of array needs."""

    layers: Any
    tables: Any
    scratch: int
    packed: int
    grads: int


def round_up(n: int, multiple: int) -> int:
    """Return the least multiple that is not less than ``n``."""
    return -(-n // multiple) * multiple


def has_few_filters(C: int, F: int, V: int) -> bool:
    """Whether vectors along the channels do less work than vectors along the filters."""
    return 5 * F * round_up(C, V) < 4 * round_up(F, V) * C


def ways(
    kernels: Sequence[Kernel], V: int, winograd: bool
) -> tuple[list[int], list[bool], list[bool]]:
    """Return how each layer is computed: TILE, FEW and ONE_D."""
    heights = [outputs(*k) if winograd else 0 for k in kernels]
    one_d = [False] * len(kernels)
    if winograd and winograd1d.is_made_for(*kernels[0][:3]):
        heights[0], one_d[0] = winograd1d.M, True
    few = [not height and has_few_filters(c, f, V)
           for height, (f, c, _, _) in zip(heights, kernels, strict=True)]
    return heights, few, one_d


def pixel_strides(kernels: Sequence[Kernel], few: list[bool], V: int) -> list[int]:
    """Return the floats from pixel to pixel after 0, 1, ... layers of a chain.

    Only an image of which single numbers are read and the output of a last layer with few
    filters go without padding.
    """
    strides = [round_up(c, V) for c in (kernels[0][1], *(k[0] for k in kernels))]
    if kernels[0][1] < V and not few[0]:
        strides[0] = kernels[0][1]
    if few[-1]:
        strides[-1] = kernels[-1][0]
    return strides


class _Arena:
    """Hands out consecutive, vector-aligned pieces of a flat array."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, n: int) -> int:
        start = self.size
        self.size += round_up(n, 16)
        return start


def plan_points(layers: Any, scratch: _Arena, groups: int, width: int) -> None:
    """Give the layers with tiles room for their points: the same, one after the other.

    A first layer with tiles in one dimension takes ``groups`` of them at a time, from rows of
    its input that are ``width`` floats long.
    """
    x_sizes, y_sizes = [0], [0]
    for layer in layers[layers[:, TILE] > 0]:
        if layer[ONE_D]:
            x_size, y_size = winograd1d.sizes(groups, layer[KH] // 3, width, layer[LDY])
        else:
            x_size, y_size = (N * N * step_of(ld) + SLACK * ld for ld in layer[[LDX, LDY]])
        x_sizes.append(int(x_size))
        y_sizes.append(int(y_size))
    layers[:, X_POINTS] = scratch.take(max(x_sizes))
    layers[:, Y_POINTS] = scratch.take(max(y_sizes))


@lru_cache(maxsize=64)
def plan_chain(
    kernels: tuple[Kernel, ...], height: int, width: int, itemsize: int,
    planar: bool = False, winograd: bool = True,
) -> Plan:
    """Plan the training of a chain on patches of ``height`` x ``width``.

    ``kernels`` has the shape (F, C, KH, KW) of every layer's weights. With ``planar`` the image's
    gradient is not asked for, and it stays in planes, [channel][pixel], where only single numbers
    of it are read: LDX is 1 then.
    Without ``winograd`` every layer is computed as the plain sum.
    """
    V = lanes(itemsize)
    heights, few_filters, one_d = ways(kernels, V, winograd)
    strides = pixel_strides(kernels, few_filters, V)
    scratch, packed, grads = _Arena(), _Arena(), _Arena()
    packed.take(max(strides) + SLACK)  # zeros, at offset 0: the start of sums without bias
    layers = np.zeros((len(kernels), FIELDS), np.int64)
    pieces: list[Any] = []
    tables = _Arena()

    def table(offsets: Any) -> int:
        flat = np.asarray(offsets, np.int64).ravel()
        flat = np.concatenate([flat, np.full(SLACK, flat[-1])])
        pieces.append(np.pad(flat, (0, round_up(flat.size, 16) - flat.size)))
        return tables.take(flat.size)

    no_gradient = planar or one_d[0]  # of the image
    planar = planar and not few_filters[0] and not heights[0]
    channel_stride = 1
    scratch.take(V)  # where tiles of the last row and column put what lies beyond the image
    if planar:
        strides[0], channel_stride = 1, height * width
    y = scratch.take((height * width + SLACK) * (kernels[0][1] if planar else strides[0]))
    H_, W_ = height, width
    for i, (F_, C_, KH_, KW_) in enumerate(kernels):
        OH_, OW_ = H_ - KH_ + 1, W_ - KW_ + 1
        ldx, ldy = strides[i], strides[i + 1]
        x, y = y, scratch.take((OH_ * OW_ + SLACK) * ldy)
        WP = OW_ + 2 * (KW_ - 1)  # with KW-1 columns of zeros on both sides
        is_1x1 = KH_ == KW_ == 1
        few = few_filters[i]
        if one_d[i] or is_1x1 or (i == 0 and not few and not heights[i]):
            padded = y  # a 1x1 kernel needs no border; an image's gradient is not asked for
        elif heights[i]:
            padded = scratch.take(H_ * W_ * ldx)
        else:
            padded = scratch.take((OH_ + 2 * (KH_ - 1)) * WP * ldy + V)
        u, v = np.arange(KH_)[:, None, None], np.arange(KW_)[:, None]
        row = layers[i]
        row[:] = 0
        row[[C, F, KH, KW, H, W, OH, OW]] = C_, F_, KH_, KW_, H_, W_, OH_, OW_
        row[[LDX, LDY, FEW, X, Y, PADDED]] = ldx, ldy, few, x, y, padded
        row[TILE], row[ONE_D] = heights[i], one_d[i]
        pixels = (np.arange(OH_)[:, None] * W_ + np.arange(OW_)) * ldx
        if one_d[i]:
            groups, a = -(-OH_ // heights[i]), np.arange(KH_ // 3)[:, None, None]
            row[PIXELS] = table(pixels[:groups])
            row[TAPS] = table((a * groups * W_ + v) * ldx + np.arange(C_))
            points = N * KH_ // 3 * KW_
            row[DW] = grads.take((points * C_ + N * SLACK) * ldy)
        elif row[TILE]:
            row[X_TILES] = table(np.arange(TILES) * ldx)
            row[Y_TILES] = table(np.arange(TILES) * ldy)
            row[LINE] = table(np.arange(max(C_, F_)))
            points = N * N
            row[DW] = grads.take(points * (C_ + SLACK) * ldy)
        else:
            row[PIXELS] = table(pixels)
            row[TAPS] = table((u * W_ + v) * ldx + np.arange(C_) * channel_stride)
            row[VECTORS] = table((u * W_ + v) * ldx + np.arange(0, ldx, V))
            row[BACK_PIXELS] = table((np.arange(H_)[:, None] * WP + np.arange(W_)) * ldy)
            row[BACK_TAPS] = table(((KH_ - 1 - u) * WP + KW_ - 1 - v) * ldy + np.arange(F_))
            points = KH_ * KW_
            row[DW] = grads.take((points * F_ + SLACK) * ldx if few
                                 else (points * C_ + SLACK) * ldy)
        row[DB] = grads.take(ldy)
        row[FORWARD] = packed.take(points * (F_ * ldx if few else C_ * ldy))
        row[BACKWARD] = -1 if i == 0 and no_gradient else packed.take(points * F_ * ldx)
        row[BIAS] = packed.take(ldy)
        H_, W_, channel_stride = OH_, OW_, 1
    plan_points(layers, scratch, -(-layers[0, OH] // winograd1d.M), width * layers[0, LDX])
    return Plan(layers, np.concatenate(pieces), scratch.size, packed.size, grads.size)


def aligned(rows: int, columns: int, dtype: Any) -> Any:
    """Return zeros (rows, columns) whose first row starts on a cache line.

    ``columns`` is a multiple of 16, so every row does. A vector that straddles two cache lines
    costs two loads.
    """
    flat = np.zeros(rows * columns + 16, dtype)
    skip = (-flat.ctypes.data % 64) // flat.itemsize
    return flat[skip:skip + rows * columns].reshape(rows, columns)
