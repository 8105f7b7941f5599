"""Where everything lies: sizes, offsets and offset tables of a conv-ReLU chain.

A compiled chain is given one flat scratch array a thread and one record a layer; all that
depends on shapes alone is worked out here, once, in ordinary Python.

Inside the chain pixels come first and channels last, ``[pixel][channel]``, with the channels
of a pixel padded by zeros to a whole number of vectors: then a row of the products in
:mod:`.tile` is a pixel and its columns are channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_char
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..simd import lanes
from . import winograd1d
from .tile import SLACK
from .winograd import TILES, N, outputs, step_of

Kernel = tuple[int, int, int, int]  # F, C, KH, KW


class Method(IntEnum):
    """How a layer is computed."""

    SUM = 0  # all taps, vectors along the filters: `tile.product`
    DOTS = 1  # all taps, vectors along the channels, for few filters: `tile.dots`
    WINOGRAD = 2  # tiles of m x m pixels, see :mod:`.winograd`
    WINOGRAD_ROWS = 3  # tiles of m pixels of a column, see :mod:`.winograd1d`


class Layer(NamedTuple):
    """One layer of a chain, as compiled code sees it; what a method has no use for is 0."""

    # Sizes of the convolution.
    C: int
    F: int
    KH: int
    KW: int
    H: int
    W: int
    OH: int
    OW: int
    # A `Method`, and with Winograd convolution the side of an output tile.
    method: int
    m: int
    # Floats from one pixel to the next in the layer's input and output.
    x_stride: int
    y_stride: int
    # Offsets into the scratch of a thread: the input; the output, overwritten by its gradient;
    # that gradient within a border of zeros (``y_at`` where no border is needed).
    x_at: int
    y_at: int
    dy_padded_at: int
    # Winograd: where the input gradient is summed, and input and output in the transform domain.
    dx_sum_at: int
    x_transformed_at: int
    y_transformed_at: int
    # Offsets into the index tables. Forward and weight gradient: output pixels and taps as offsets
    # into the input (WINOGRAD_ROWS: into its transform); the taps of DOTS, a vector each.
    pixel_table: int
    tap_table: int
    vector_table: int
    # Input gradient: input pixels and taps as offsets into the padded output gradient.
    back_pixel_table: int
    back_tap_table: int
    # WINOGRAD: multiples of ``x_stride``, of ``y_stride`` and of 1.
    x_tile_table: int
    y_tile_table: int
    line_table: int
    # Offsets into the packed parameters: weights for forward and for the input gradient (-1 where
    # that is not asked for), bias.
    forward_at: int
    backward_at: int
    bias_at: int
    # Offsets into the gradients of a chunk.
    dw_at: int
    db_at: int


def record_dtype(fields: type[NamedTuple]) -> np.dtype[Any]:
    """Return the record dtype of a named tuple of integers."""
    return np.dtype([(name, np.int64) for name in fields._fields])


LAYER = record_dtype(Layer)


class Packing(NamedTuple):
    """How one layer's parameters are laid out for a method, see `chain.pack`."""

    method: int
    x_stride: int
    y_stride: int
    forward_at: int
    backward_at: int
    bias_at: int


class Plan(NamedTuple):
    """Layers, index tables, and how many floats each kind of array needs.

    ``layers`` is one `LAYER` record each, as a flat array of int64: Numba takes 20 microseconds to
    find out the type of an array of records, so it is viewed as such in compiled code only.
    """

    layers: Any
    packing: tuple[Packing, ...]
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


def choose_methods(
    kernels: Sequence[Kernel], V: int, winograd: bool
) -> list[tuple[Method, int]]:
    """Return each layer's method and, with Winograd convolution, the side of its output tiles."""
    methods = []
    for i, (F, C, KH, KW) in enumerate(kernels):
        m = outputs(F, C, KH, KW)
        if winograd and i == 0 and winograd1d.is_made_for(F, C, KH):
            methods.append((Method.WINOGRAD_ROWS, winograd1d.M))
        elif winograd and m:
            methods.append((Method.WINOGRAD, m))
        else:
            few = has_few_filters(C, F, V)
            methods.append((Method.DOTS if few else Method.SUM, 0))
    return methods


def pixel_strides(kernels: Sequence[Kernel], methods: Sequence[Method], V: int) -> list[int]:
    """Return the floats from pixel to pixel after 0, 1, ... layers of a chain.

    Only an image of which single numbers are read and the output of a last layer with few
    filters go without padding.
    """
    strides = [round_up(c, V) for c in (kernels[0][1], *(k[0] for k in kernels))]
    if kernels[0][1] < V and methods[0] != Method.DOTS:
        strides[0] = kernels[0][1]
    if methods[-1] == Method.DOTS:
        strides[-1] = kernels[-1][0]
    return strides


def weight_floats(kernel: Kernel, method: Method, x_stride: int, y_stride: int) -> tuple[int, int]:
    """Return the floats of the weights packed for forward, and for the input gradient."""
    F, C, KH, KW = kernel
    taps = {Method.WINOGRAD: N * N, Method.WINOGRAD_ROWS: N * KH // 3 * KW}.get(method, KH * KW)
    forward = F * x_stride if method == Method.DOTS else C * y_stride
    return taps * forward, taps * F * x_stride


class Arena:
    """Hands out consecutive, vector-aligned pieces of a flat array."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, n: int) -> int:
        """Return where the next ``n`` numbers begin."""
        start = self.size
        self.size += round_up(n, 16)
        return start


def transformed_sizes(method: Method, KH: int, x_stride: int, y_stride: int,
                      groups: int, width: int) -> tuple[int, int]:
    """Return the floats that a layer's input and output take in the transform domain.

    With WINOGRAD_ROWS ``groups`` of rows are transformed at a time, from rows of the input that
    are ``width`` floats long.
    """
    if method == Method.WINOGRAD_ROWS:
        return winograd1d.sizes(groups, KH // 3, width, y_stride)
    if method == Method.WINOGRAD:
        x_size, y_size = (N * N * step_of(ld) + SLACK * ld for ld in (x_stride, y_stride))
        return x_size, y_size
    return 0, 0


class _Tables:
    """Index tables, one after the other; each ends with its last entry, SLACK times more."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.arena = Arena()

    def add(self, offsets: Any) -> int:
        flat = np.asarray(offsets, np.int64).ravel()
        flat = np.concatenate([flat, np.full(SLACK, flat[-1])])
        self.pieces.append(np.pad(flat, (0, round_up(flat.size, 16) - flat.size)))
        return self.arena.take(flat.size)


@lru_cache(maxsize=64)
def plan_chain(
    kernels: tuple[Kernel, ...], height: int, width: int, itemsize: int,
    planar: bool = False, winograd: bool = True,
) -> Plan:
    """Plan the training of a chain on patches of ``height`` x ``width``.

    ``kernels`` has the shape (F, C, KH, KW) of every layer's weights. With ``planar`` the image's
    gradient is not asked for, and the image stays in planes, [channel][pixel], where only single
    numbers of it are read: ``x_stride`` is 1 then.
    Without ``winograd`` every layer is computed as the plain sum.
    """
    V = lanes(itemsize)
    chosen = choose_methods(kernels, V, winograd)
    methods = [method for method, _ in chosen]
    strides = pixel_strides(kernels, methods, V)
    scratch, packed, grads, tables = Arena(), Arena(), Arena(), _Tables()
    packed.take(max(strides) + SLACK)  # zeros, at offset 0: the start of sums without bias

    image_gradient = not planar and methods[0] != Method.WINOGRAD_ROWS
    planar = planar and methods[0] == Method.SUM
    channel_stride = 1
    scratch.take(V)  # where tiles of the last row and column put what lies beyond the image
    if planar:
        strides[0], channel_stride = 1, height * width
    sizes = [transformed_sizes(method, kernel[2], strides[i], strides[i + 1],
                               -(-(height - kernel[2] + 1) // winograd1d.M), width * strides[0])
             for i, (kernel, method) in enumerate(zip(kernels, methods, strict=True))]

    y_at = scratch.take((height * width + SLACK) * (kernels[0][1] if planar else strides[0]))
    layers: list[dict[str, int]] = []
    H, W = height, width
    for i, ((F, C, KH, KW), (method, m)) in enumerate(zip(kernels, chosen, strict=True)):
        OH, OW = H - KH + 1, W - KW + 1
        x_stride, y_stride = strides[i], strides[i + 1]
        x_at, y_at = y_at, scratch.take((OH * OW + SLACK) * y_stride)
        layer = {"C": C, "F": F, "KH": KH, "KW": KW, "H": H, "W": W, "OH": OH, "OW": OW,
                 "method": method, "m": m, "x_stride": x_stride, "y_stride": y_stride,
                 "x_at": x_at, "y_at": y_at, "dy_padded_at": y_at}
        WP = OW + 2 * (KW - 1)  # the padded gradient's width
        if method == Method.WINOGRAD:
            layer["dx_sum_at"] = scratch.take(H * W * x_stride)
        elif method in (Method.SUM, Method.DOTS) and KH * KW > 1 and (
                i > 0 or method == Method.DOTS):
            layer["dy_padded_at"] = scratch.take((OH + 2 * (KH - 1)) * WP * y_stride + V)
        pixels = (np.arange(OH)[:, None] * W + np.arange(OW)) * x_stride
        u, v = np.arange(KH)[:, None, None], np.arange(KW)[:, None]
        if method == Method.WINOGRAD_ROWS:
            groups, a = -(-OH // m), np.arange(KH // 3)[:, None, None]
            layer["pixel_table"] = tables.add(pixels[:groups])
            layer["tap_table"] = tables.add((a * groups * W + v) * x_stride + np.arange(C))
            dw_size = (N * KH // 3 * KW * C + N * SLACK) * y_stride
        elif method == Method.WINOGRAD:
            layer["x_tile_table"] = tables.add(np.arange(TILES) * x_stride)
            layer["y_tile_table"] = tables.add(np.arange(TILES) * y_stride)
            layer["line_table"] = tables.add(np.arange(max(C, F)))
            dw_size = N * N * (C + SLACK) * y_stride
        else:
            layer["pixel_table"] = tables.add(pixels)
            layer["tap_table"] = tables.add(
                (u * W + v) * x_stride + np.arange(C) * channel_stride)
            layer["vector_table"] = tables.add((u * W + v) * x_stride + np.arange(0, x_stride, V))
            layer["back_pixel_table"] = tables.add(
                (np.arange(H)[:, None] * WP + np.arange(W)) * y_stride)
            layer["back_tap_table"] = tables.add(
                ((KH - 1 - u) * WP + KW - 1 - v) * y_stride + np.arange(F))
            dw_size = ((KH * KW * F + SLACK) * x_stride if method == Method.DOTS
                       else (KH * KW * C + SLACK) * y_stride)
        layer["dw_at"], layer["db_at"] = grads.take(dw_size), grads.take(y_stride)
        forward, backward = weight_floats((F, C, KH, KW), method, x_stride, y_stride)
        layer["forward_at"] = packed.take(forward)
        layer["backward_at"] = packed.take(backward) if i > 0 or image_gradient else -1
        layer["bias_at"] = packed.take(y_stride)
        layers.append(layer)
        H, W, channel_stride = OH, OW, 1
    # Every layer uses the same room for the transform domain, one after the other.
    room = {"x_transformed_at": scratch.take(max(x for x, _ in sizes)),
            "y_transformed_at": scratch.take(max(y for _, y in sizes))}
    rows = [Layer(**{**dict.fromkeys(Layer._fields, 0), **layer, **room}) for layer in layers]
    packing = tuple(Packing(*(int(getattr(row, name)) for name in Packing._fields))
                    for row in rows)
    return Plan(np.array(rows, np.int64).ravel(), packing, np.concatenate(tables.pieces),
                scratch.size, packed.size, grads.size)


def aligned(rows: int, columns: int, dtype: Any, allocate: Any = np.empty) -> Any:
    """Return an array (rows, columns) whose first row starts on a cache line.

    ``columns`` is a multiple of 16, so every row does. A vector that straddles two cache lines
    costs two loads. ``allocate`` may be ``np.zeros``; arrays of which each thread has its own part
    are cleared by the threads: all at once, and each finds its part in its own cache.
    """
    flat = allocate(rows * columns + 16, dtype)
    address = addressof(c_char.from_buffer(flat))  # a third of the time of flat.ctypes.data
    skip = (-address % 64) // flat.itemsize
    return flat[skip:skip + rows * columns].reshape(rows, columns)
