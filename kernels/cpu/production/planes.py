"""1x1 convolutions: products of matrices whose rows are the planes of NCHW.

Where no taps have to be found nothing has to be moved. With pixels, not filters, along the
vectors, a 1x1 convolution and its gradients are products of matrices whose rows are the planes of
x, y and their gradients themselves: nothing is copied, nothing is transposed.

    y[f, p]   =  b[f] + sum_c w[f, c] x[c, p]
    dx[c, p]  =         sum_f w[f, c] dy[f, p]
    dw[f, c]  =         sum_p dy[f, p] x[c, p]

The first two are `tile.product` once more, with the weights as A and the planes as B and C. In
the third the sum runs along the vectors: a tile of F x C such sums is held in registers,
and at the end V of them at a time are summed to the V lanes of one vector.

What is left is memory. An image is used once, and its planes are more streams than the
processor's prefetcher can follow, so each tile also asks for a share of what comes next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import SIMD, const, inner, kernel
from ..simd import Emit, lanes
from . import workers
from .chain import add_chunks
from .layout import clear
from .plan import aligned
from .tile import SLACK, make_tile
from .workers import take_next

Array = Any

# Rows and vectors of the tile of a combination, and filters and channels of the tile of sums.
# More of them would need fewer loads, but 8 rows and 3 vectors spill: 31 GFLOP/s, not 110.
(P, NV), (DF, DC) = {
    "avx512": ((4, 4), (4, 4)),
    "avx2": ((4, 3), (4, 2)),
    "neon": ((4, 4), (4, 4)),
    "sse": ((4, 3), (4, 2)),
    "plain": ((1, 1), (1, 1)),  # not used
}[SIMD]

# About how many pixels of an image make an item of work. (With half of it work is shared out more
# evenly, but 10 % slower: every plane is visited twice.)
_BLOCK = 640
_LINE = 64  # bytes


@intrinsic
def _ask_for(typingctx: Any, a: Any, i: Any) -> Any:
    """Ask for the cache line of a[i], to be put into L2; no matter if i is beyond the end."""
    sig = types.void(a, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, sig.args[0].dtype)
        address, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [address], ir.FunctionType(ir.VoidType(), [address, i32, i32, i32]))
        place = builder.bitcast(e.at(e.data(sig.args[0], args[0]), args[1]), address)
        read, into_l2, data = (ir.Constant(i32, n) for n in (0, 2, 1))
        builder.call(prefetch, [place, read, into_l2, data])
        return context.get_dummy_value()

    return sig, codegen


def _make_sums(rows: int, columns: int) -> Any:
    """Make ``sums(...)``: a tile of dw, see the head of this file."""

    @intrinsic
    def sums(typingctx: Any, dy: Any, dy_rows: Any, f: Any, x: Any, x_rows: Any, c: Any,
             n: Any, dw: Any, at: Any) -> Any:
        """dw[at + i columns + j] += sum over p < n of dy[dy_rows[f + i] + p] x[x_rows[c + j] + p].

        ``dy`` and ``x`` are flat arrays that start at the first of the pixels.
        """
        i64 = types.intp
        sig = types.void(dy, dy_rows, i64, x, x_rows, i64, i64, dw, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, sig.args[0].dtype)
            dy, dy_rows, f, x, x_rows, c, n, dw, at = args
            dy_rows = e.at(e.data(sig.args[1], dy_rows), f)
            x_rows = e.at(e.data(sig.args[4], x_rows), c)
            dy, x = e.data(sig.args[0], dy), e.data(sig.args[3], x)
            dy_places = [e.at(dy, builder.load(e.at(dy_rows, i))) for i in range(rows)]
            x_places = [e.at(x, builder.load(e.at(x_rows, j))) for j in range(columns)]
            tile = [(i, j) for i in range(rows) for j in range(columns)]
            acc = {place: cgutils.alloca_once(builder, e.vector) for place in tile}
            for place in tile:
                builder.store(ir.Constant(e.vector, [0.0] * e.V), acc[place])

            def step(load: Any, p: Any) -> None:
                x_p = [load(e.at(place, p)) for place in x_places]
                for i in range(rows):
                    dy_p = load(e.at(dy_places[i], p))
                    for j in range(columns):
                        builder.store(e.fma(dy_p, x_p[j], builder.load(acc[i, j])), acc[i, j])

            V = ir.Constant(n.type, e.V)
            whole = builder.sub(n, builder.srem(n, V))
            with cgutils.for_range_slice(builder, ir.Constant(n.type, 0), whole, V) as (p, _):
                step(e.load, p)
            with builder.if_then(builder.icmp_signed("<", whole, n)):
                rest = builder.trunc(builder.sub(n, whole), ir.IntType(32))
                step(lambda place: e.load_first(rest, place), whole)

            dw = e.at(e.data(sig.args[7], dw), at)
            totals = [builder.load(acc[place]) for place in tile]
            for first in range(0, len(tile), e.V):
                total = e.sum_each(totals[first:first + e.V])
                place = e.at(dw, first)
                e.store(builder.fadd(e.load(place), total), place)
            return context.get_dummy_value()

        return sig, codegen

    return sums


_tile = make_tile(P, NV)
_narrow = make_tile(P, 1)
_sums = _make_sums(DF, DC)


@inner
def share(size, blocks, tiles):
    """Return how much of a block of planes to ask for at each of its tiles: whole cache lines."""
    return (size // (blocks * tiles) + 16) // 16 * 16


@inner
def ask_for(a, first, size):
    """Ask for the cache lines of a[first:first + size]; return the place after them."""
    last = min(first + size, a.size)
    for i in range(first, last, _LINE // a.itemsize):
        _ask_for(a, i)
    return first + size


@inner
def find_block(item, blocks, pixels):
    """Return image, first pixel and end of an item: cut between two of the largest tiles."""
    block = item % blocks
    first = (block * pixels // blocks + 32) // 64 * 64
    end = pixels if block == blocks - 1 else ((block + 1) * pixels // blocks + 32) // 64 * 64
    return item // blocks, first, end


@inner
def combine_block(x, y, item, ahead, blocks, K, M, pixels, rows, cols, a, init):
    """:func:`combine` for one item; item ``ahead`` is put into the cache."""
    V = lanes(x.itemsize)
    J, low = NV * V, x.dtype.type(-np.inf)
    n, first, end = find_block(item, blocks, pixels)
    tiles = (end - first + J - 1) // J * ((M + P - 1) // P)
    x_share, y_share = share(K * pixels, blocks, tiles), share(M * pixels, blocks, tiles)
    x_ahead, y_ahead = ahead * K * pixels // blocks, ahead * M * pixels // blocks
    for p in range(first, end, J):
        for i in range(0, M, P):
            x_ahead = ask_for(x, x_ahead, x_share)
            y_ahead = ask_for(y, y_ahead, y_share)
            # Where a tile would reach beyond the last row or pixel it is moved back, and
            # computes some results twice.
            row = min(i, M - P)
            if p + V >= pixels:
                at = pixels - V
                _narrow(a, rows, row, cols, 0, K, x, n * K * pixels + at, pixels, init, row * J,
                        J, y, (n * M + row) * pixels + at, pixels, low, False)
            else:
                at = min(p, pixels - J)
                _tile(a, rows, row, cols, 0, K, x, n * K * pixels + at, pixels, init, row * J,
                      J, y, (n * M + row) * pixels + at, pixels, low, False)


@kernel(lambda t: (const(t, 1), t[::1], types.int64, types.int64, types.int64, types.int64,
                   types.int64, const(types.int64, 1), const(types.int64, 1), const(t, 1),
                   const(t, 1), types.int64[::1]))
def combine(x, y, N, blocks, K, M, pixels, rows, cols, a, init, counter):
    """y[n, i, p] = init[i] + sum over k < K of a[i, k] x[n, k, p]; all arrays flat.

    Parameters
    ----------
    x, y : arrays
        N images of K and of M planes.
    blocks : int
        Items of work that an image is cut into.
    rows, cols : int64 arrays
        Multiples of K and of 1.
    a : array
        M x K.
    init : array
        M x NV vectors: the same number all along a row.
    counter : (1,) int64 array
        The next item to be taken; see `workers.take_next`.
    """
    following = take_next(counter)
    while following < N * blocks:
        # The next is taken before this one is done, to know what to ask for.
        item, following = following, take_next(counter)
        combine_block(x, y, item, following, blocks, K, M, pixels, rows, cols, a, init)


@kernel(lambda t: (const(t, 1), const(t, 1), types.int64, types.int64, types.int64, types.int64,
                   types.int64, const(types.int64, 1), const(types.int64, 1), t[:, ::1],
                   types.int64[::1]))
def weight_gradient(x, dy, N, blocks, C, F, pixels, x_rows, dy_rows, grads, counter):
    """Sum dw over the items of each chunk, in tiles of DF x DC.

    Parameters
    ----------
    x, dy : flat arrays
        N images of C and of F planes.
    x_rows, dy_rows : int64 arrays
        Starts of the planes in an image, the last one repeated up to a whole tile.
    grads : (chunks, ...) array
        Filled with [tile][DF][DC].
    blocks, counter
        As for :func:`combine`.
    """
    chunks, items = grads.shape[0], N * blocks
    size = (items + chunks - 1) // chunks
    tiles = ((F + DF - 1) // DF) * ((C + DC - 1) // DC)
    x_share, dy_share = share(C * pixels, blocks, tiles), share(F * pixels, blocks, tiles)
    following = take_next(counter)
    while following < chunks:
        chunk, following = following, take_next(counter)
        last = min((chunk + 1) * size, items)
        clear(grads[chunk])
        for item in range(chunk * size, last):
            ahead = item + 1 if item + 1 < last else following * size
            n, first, end = find_block(item, blocks, pixels)
            x_n, dy_n = x[n * C * pixels + first:], dy[n * F * pixels + first:]
            x_ahead, dy_ahead = ahead * C * pixels // blocks, ahead * F * pixels // blocks
            at = 0
            for f in range(0, F, DF):
                for c in range(0, C, DC):
                    x_ahead = ask_for(x, x_ahead, x_share)
                    dy_ahead = ask_for(dy, dy_ahead, dy_share)
                    _sums(dy_n, dy_rows, f, x_n, x_rows, c, end - first, grads[chunk], at)
                    at += DF * DC


def is_made_for(w_shape: tuple[int, ...], pixels: int, itemsize: int) -> bool:
    """Whether there is no tap, and enough for whole tiles."""
    F, C, KH, KW = w_shape
    return (SIMD != "plain" and KH == KW == 1 and min(F, C) >= P
            and pixels >= NV * lanes(itemsize))


def combine_planes(x: Array, a: Array, b: Array | None) -> Array:
    """y[n, i, p] = b[i] + sum over k of a[i, k] x[n, k, p]: x (N,K,H,W), a (M,K), b (M,)."""
    N, K, H, W = x.shape
    M, V, pixels = len(a), lanes(x.itemsize), H * W
    y = np.empty((N, M, H, W), x.dtype)
    init = np.zeros((M, NV * V), x.dtype)
    if b is not None:
        init += b[:, None]
    rows, cols = np.arange(M) * K, np.arange(K)
    function, blocks = combine.compile(x.dtype), max(1, round(pixels / _BLOCK))
    arrays = x.reshape(-1), y.reshape(-1)
    a, init = a.reshape(-1), init.reshape(-1)
    workers.run(lambda i, counter: function(*arrays, N, blocks, K, M, pixels, rows, cols, a, init,
                                            counter), workers.share(N * blocks, y.size * K))
    return y


def gradient_of_weights(x: Array, dy: Array, most_chunks: int) -> Array:
    """dw[f, c, 0, 0] = sum over n, p of dy[n, f, p] x[n, c, p]: x (N,C,H,W), dy (N,F,H,W)."""
    N, C, H, W = x.shape
    F, pixels = dy.shape[1], H * W
    tiles_f, tiles_c = -(-F // DF), -(-C // DC)
    blocks = max(1, round(pixels / _BLOCK))
    chunks = -(-N * blocks // -(-N * blocks // most_chunks))
    grads = aligned(chunks, tiles_f * tiles_c * DF * DC, x.dtype)
    x_rows, dy_rows = (np.minimum(np.arange(n + SLACK), n - 1) * pixels for n in (C, F))
    function, arrays = weight_gradient.compile(x.dtype), (x.reshape(-1), dy.reshape(-1))
    workers.run(lambda i, counter: function(*arrays, N, blocks, C, F, pixels, x_rows, dy_rows,
                                            grads, counter), workers.share(chunks, dy.size * C))
    add_chunks.compile(x.dtype)(grads)
    dw = grads[0].reshape(tiles_f, tiles_c, DF, DC).swapaxes(1, 2)
    return dw.reshape(tiles_f * DF, tiles_c * DC)[:F, :C].reshape(F, C, 1, 1)
