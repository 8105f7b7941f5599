"""How the CUDA kernels cut a convolution into blocks and threads: their macros, worked out here.

For ``conv_v6_fused.cu`` (forward, input gradient) and ``conv_v5_split.cu`` (weight gradient).

A plan depends on the layer and the dtype alone, never on the image, the batch or the device. So a
layer is compiled once, and gives the same bits on every device of one architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

SHARED_BYTES = 48 * 1024   # static shared memory that a block may have, on any device
_COMFORTABLE = 32 * 1024   # more than this, and too few blocks fit on a multiprocessor
_SPLIT = 4                 # threads that share a sum over the input channels, at most
_SEGMENT = 32              # SEGMENT in conv_v5_split.cu
CHUNKS = 8                 # SHARES in pointwise.cu
_MOST_PARTS = 1024         # blocks that share the sum of a weight gradient ...
_MOST_PARTIALS = 2_700_000  # ... and numbers that they may leave for the final sum


@dataclass(frozen=True)
class Share:
    """The images of a batch that one of several devices works on: those of some of its chunks.

    Image n of a batch is of chunk ``n % chunks``. The sums over a batch are made chunk by chunk,
    and then over the chunks in order, on one device as on several: so the bits are the same.

    Attributes
    ----------
    batch : int
        Images of the whole batch. One of fewer than 8 is a chunk as a whole.
    first, count : int
        The device's first chunk, and how many it has.
    """

    batch: int
    first: int
    count: int

    @classmethod
    def of_rank(cls, batch: int, rank: int = 0, ranks: int = 1) -> Share:
        """Return the share of one of several: as many chunks as the others, or fewer at the end."""
        chunks = cls(batch, 0, 0).chunks
        width = _ceil(chunks, ranks)
        first = min(rank * width, chunks)
        return cls(batch, first, min(width, chunks - first))

    @property
    def chunks(self) -> int:
        """Chunks of the whole batch."""
        return CHUNKS if self.batch >= CHUNKS else 1

    @property
    def length(self) -> int:
        """Images of a chunk; the last ones may have one less."""
        return _ceil(self.batch, self.chunks)

    @property
    def images(self) -> list[int]:
        """The numbers of the images in the batch, ascending."""
        return [n for n in range(self.batch)
                if self.first <= n % self.chunks < self.first + self.count]

    def parts(self, most: int) -> int:
        """Return how many partial sums to make, as many of each chunk: at most so many in all."""
        return self.count * max(1, most // self.chunks)


@dataclass(frozen=True)
class Tile:
    """The tile of a block of the forward or the input gradient, named as in the source."""

    outs: int
    pixels: int
    block_outs: int
    columns: int
    rows: int
    stage: int
    split: int

    @property
    def owners(self) -> int:
        """Threads that hold a result each, or several; ``split`` times as many share the sums."""
        return self.block_outs // self.outs * self.columns * self.rows

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.owners * self.split

    def shared(self, KH: int, KW: int, itemsize: int) -> int:
        """Bytes of shared memory: a patch of every staged channel and its weights, or results."""
        patch = (self.rows + KH - 1) * (self.columns * self.pixels + KW - 1)
        weights = KH * KW * _padded(self.block_outs, self.outs)
        results = self.owners * self.pixels * max(1, (self.split - 1) * self.outs)
        return max(_round_up(self.stage * patch, 4) + self.stage * weights, results) * itemsize

    def grid(self, N: int, outs: int, H: int, W: int) -> tuple[int, int]:
        """Blocks for N images of ``outs`` channels and H x W pixels."""
        tiles = _ceil(H, self.rows) * _ceil(W, self.columns * self.pixels)
        return N * tiles, _ceil(outs, self.block_outs)

    def options(self, prefix: str) -> tuple[str, ...]:
        """Return the macros."""
        return tuple(f"-D{prefix}_{name.upper()}={value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class WeightTile:
    """The tile of a block of the weight gradient, named as in the source."""

    filters: int
    rows: int
    block_filters: int
    block_rows: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block_filters // self.filters * (self.block_rows // self.rows)

    def shared(self, KW: int, itemsize: int) -> int:
        """Bytes of shared memory: a piece of every kernel row, and one of dy."""
        x = self.block_rows * ((_SEGMENT + KW + 2) // 8 * 8 + 4)  # DW_XW
        return (x + _SEGMENT * _padded(self.block_filters, self.filters)) * itemsize

    def options(self) -> tuple[str, ...]:
        """Return the macros."""
        return tuple(f"-DDW_{name.upper()}={value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class ConvPlan:
    """All that is decided about a layer ``w`` (F,C,KH,KW) before it is compiled."""

    shape: tuple[int, int, int, int]
    forward: Tile
    backward_input: Tile
    backward_weight: WeightTile

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The macros with which ``conv_v6_fused.cu`` is compiled for this layer."""
        return (*layer_options(self.shape), *self.forward.options("FWD"),
                *self.backward_input.options("DX"))

    @cached_property
    def weight_options(self) -> tuple[str, ...]:
        """The macros with which ``conv_v5_split.cu`` is compiled for this layer."""
        return (*layer_options(self.shape), *self.backward_weight.options())

    @property
    def count(self) -> int:
        """Parameters of the layer: weights and biases."""
        F, C, KH, KW = self.shape
        return F * C * KH * KW + F

    def parts(self, share: Share, OH: int, OW: int) -> int:
        """Blocks that share the sum of a weight gradient over images of OH x OW outputs."""
        jobs = share.chunks * share.length * OH * _ceil(OW, _SEGMENT)
        return share.parts(min(jobs, _MOST_PARTS, _MOST_PARTIALS // self.count))

    def weight_grid(self, parts: int) -> tuple[int, int]:
        """Blocks of the weight gradient."""
        F, C, KH, _ = self.shape
        tile = self.backward_weight
        return parts, _ceil(C * KH, tile.block_rows) * _ceil(F, tile.block_filters)


@cache
def plan_convolution(shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> ConvPlan:
    """Choose the tiles for a layer ``w`` (F,C,KH,KW).

    Raises
    ------
    ValueError
        If one channel of the kernel and its patch do not fit into 48 KB of shared memory, which
        kernels up to 78 x 78 do in float32, 55 x 55 in float64.
    """
    F, C, KH, KW = shape
    return ConvPlan(
        shape,
        _plan_tile(C, F, KH, KW, dtype.itemsize),
        _plan_tile(F, C, KH, KW, dtype.itemsize),
        _plan_weight_tile(shape, dtype.itemsize),
    )


def layer_options(shape: tuple[int, int, int, int]) -> tuple[str, ...]:
    """Return the macros that name a layer ``w`` (F,C,KH,KW)."""
    F, C, KH, KW = shape
    return f"-DCONV_C={C}", f"-DCONV_F={F}", f"-DCONV_KH={KH}", f"-DCONV_KW={KW}"


def _plan_tile(channels: int, outs: int, KH: int, KW: int, itemsize: int) -> Tile:
    if outs >= 4:  # 8 channels x 5 pixels a thread, 25 x 5 pixels and up to 64 channels a block
        each, pixels, columns, rows = (8 if outs >= 8 else 4), 5, 5, 5
        blocks = _ceil(outs, 64)
        block_outs = _round_up(_ceil(outs, blocks), each)
    else:          # few channels: fewer pixels a thread, and several threads a sum; 21 x 6 pixels
        each, pixels, columns, rows = outs, 3, 7, 6
        block_outs = outs
    tile = Tile(each, pixels, block_outs, columns, rows, 1, 1)
    # A large kernel needs much shared memory: give way in channels first, then in rows.
    while tile.shared(KH, KW, itemsize) > SHARED_BYTES:
        if tile.block_outs > tile.outs:
            block_outs = _round_up(tile.block_outs // 2, tile.outs)
            tile = _replace(tile, block_outs=block_outs)
        elif tile.outs > 1 or tile.pixels > 1:  # rows must stay a multiple of pixels
            tile = _replace(tile, outs=1, block_outs=1, pixels=1)
        elif tile.rows > 1 or tile.columns > 1:
            tile = _replace(tile, rows=max(1, tile.rows // 2), columns=max(1, tile.columns // 2))
        else:
            raise ValueError(
                f"w has a {KH}x{KW} kernel of {8 * itemsize}-bit numbers, want a smaller one: the "
                f"CUDA kernels keep one channel of it in {SHARED_BYTES // 1024} KB of shared memory"
            )
    stage = 1
    while 2 * stage <= min(channels, 32):
        larger = _replace(tile, stage=2 * stage)
        if larger.shared(KH, KW, itemsize) > _COMFORTABLE:
            break
        tile, stage = larger, 2 * stage
    if outs < 4:
        tile = _replace(tile, split=min(_SPLIT, stage))
    return tile


def _plan_weight_tile(shape: tuple[int, int, int, int], itemsize: int) -> WeightTile:
    F, C, KH, KW = shape
    kernel_rows = C * KH
    sums = 72  # accumulators of a thread: as many as leave registers for the rest, in float64 too
    filters = next(n for n in (8, 4, 2, 1) if n <= F and (n * KW <= sums or n == 1))
    block_filters = _round_up(_ceil(F, _ceil(F, 64)), filters)
    groups = block_filters // filters
    rows = next(n for n in (8, 4, 2, 1)
                if n == 1 or (n * filters * KW <= sums and groups * _ceil(kernel_rows, n) >= 128))
    row_groups = _ceil(kernel_rows, rows)
    most = max(1, 256 // groups)
    while True:
        balanced = _ceil(row_groups, _ceil(row_groups, most))  # tiles of nearly one size
        tile = WeightTile(filters, rows, block_filters, balanced * rows)
        if tile.shared(KW, itemsize) <= SHARED_BYTES:
            return tile
        most = balanced - 1  # one row always fits where a whole kernel does (_plan_tile checked)


def _padded(outs: int, each: int) -> int:
    """Length of a row of shared memory that holds a number for each output channel (WS, DW_DS)."""
    return outs + 4 if each % 4 == 0 else outs | 1


def _replace(tile: Tile, **changes: int) -> Tile:
    return Tile(**(vars(tile) | changes))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, multiple: int) -> int:
    return _ceil(a, multiple) * multiple
