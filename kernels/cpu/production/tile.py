"""The register tile: the one small loop in which nearly all the time is spent.

Every product of this network, forward and backward, is a sum of the form

    C[i, j]  =  init[i, j]  +  sum_k  A[ rows[i] + cols[k] ]  *  B[k, j]

where ``rows`` and ``cols`` are tables of offsets into a flat array:

    ================  ======================  ======================  =====================
    operation         rows (i)                cols (k)                B (k, j)
    ================  ======================  ======================  =====================
    forward           output pixels           taps (u, v, c)          w, j = filter
    weight gradient   taps (u, v, c)          output pixels           dy, j = filter
    input gradient    input pixels            taps (u, v, f) of dy    w, j = channel
    ================  ======================  ======================  =====================

Because an offset table says where to look, A is read straight from the image: no im2col copy is
ever made, and the same loop serves any kernel size, any number of channels, any row length.

A processor with fused multiply-add does two vectors of them per cycle, but can load only two
vectors per cycle as well, so a number that is loaded must be used several times. The tile keeps
P x NV vectors of C in registers while k runs; each step loads NV vectors of B and P single
numbers of A, and does P*NV multiply-adds with them. AVX-512, P = 6 pixels, NV = 4 vectors of 16:

                  b0     b1     b2     b3        4 loads of B[k, 0:64], used 6 times each
               +------+------+------+------+
      a0 bcast | acc  | acc  | acc  | acc  |     each a: one number, loaded once, copied to
      a1 bcast | acc  | acc  | acc  | acc  |     all 16 lanes, used 4 times
      a2 bcast | acc  | acc  | acc  | acc  |
      a3 bcast | acc  | acc  | acc  | acc  |     24 accumulators + 4 b + 1..4 a: the whole
      a4 bcast | acc  | acc  | acc  | acc  |     file of 32 registers; 24 multiply-adds for
      a5 bcast | acc  | acc  | acc  | acc  |     11 loads
               +------+------+------+------+

Numba has no way to keep an array in registers, so the tile is emitted as LLVM vector
instructions by an ``@intrinsic``, :func:`make_tile`. P and NV are constants there; the vector's
length follows from the array's dtype and the processor (:mod:`..simd`).

Each C[i, j] is summed in the order of k whatever its place in a tile, by the same instruction:
a pixel's value does not depend on how the image was cut into tiles, bit for bit.

When B has only a few columns (conv3: one), vectors along j would be nearly empty. There the sum
itself is cut into vectors, along the channels, :func:`make_dot`:

    c[i]  =  init  +  sum_t  < A[ rows[i] + cols[t] : + V ],  B[t, 0:V] >
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import SIMD, inner
from ..simd import Emit, lanes

# (P, NV) of the wide, middle and narrow tile: as many accumulators as the registers hold,
# and P offsets that fit the address registers.
(WIDE_P, WIDE_NV), (MIDDLE_P, MIDDLE_NV), (NARROW_P, NARROW_NV) = {
    "avx512": ((6, 4), (8, 2), (8, 1)),
    "avx2": ((6, 2), (6, 2), (10, 1)),
    "neon": ((6, 4), (8, 2), (8, 1)),
    "sse": ((6, 2), (6, 2), (8, 1)),
    "plain": ((1, 4), (1, 2), (1, 1)),  # not used
}[SIMD]
DOT_P = {"avx512": 8, "avx2": 8, "neon": 8, "sse": 8, "plain": 1}[SIMD]

# Tables of rows, and the rows of C, need this many entries beyond the last: a tile is always whole.
SLACK = 12


def make_tile(P: int, NV: int) -> Any:
    """Make ``tile(...)``: P rows and NV vectors of columns of C; see the head of this file."""

    @intrinsic
    def tile(typingctx: Any, a: Any, rows: Any, row: Any, cols: Any, k0: Any, k1: Any,
             b: Any, b0: Any, ldb: Any, init: Any, i0: Any, ldi: Any,
             c: Any, c0: Any, ldc: Any, low: Any, masked: Any) -> Any:
        n = types.intp
        sig = types.void(a, rows, n, cols, n, n, b, n, n, init, n, n, c, n, n, c.dtype,
                         types.boolean)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, sig.args[0].dtype)
            (a, rows, row, cols, k0, k1, b, b0, ldb, init, i0, ldi,
             c, c0, ldc, low, masked) = args
            rows = e.at(e.data(sig.args[1], rows), row)
            cols = e.data(sig.args[3], cols)
            b = e.at(e.data(sig.args[6], b), b0)
            init = e.at(e.data(sig.args[9], init), i0)
            c = e.at(e.data(sig.args[12], c), c0)
            a = e.data(sig.args[0], a)
            places = [e.at(a, builder.load(e.at(rows, i))) for i in range(P)]
            tile = [(i, j) for i in range(P) for j in range(NV)]

            def element(matrix: Any, ld: Any, i: int, j: int) -> Any:
                start = builder.mul(ld, ir.Constant(ir.IntType(64), i))
                return e.at(e.at(matrix, start), j * e.V)

            acc = {}
            for i, j in tile:
                acc[i, j] = cgutils.alloca_once(builder, e.vector)
                builder.store(e.load(element(init, ldi, i, j)), acc[i, j])
            with cgutils.for_range_slice(builder, k0, k1, ir.Constant(k0.type, 1)) as (k, _):
                tap = builder.load(e.at(cols, k))
                b_row = e.at(b, builder.mul(k, ldb))
                b_k = [e.load(e.at(b_row, j * e.V)) for j in range(NV)]
                for i in range(P):
                    a_ik = e.broadcast(builder.load(e.at(places[i], tap)))
                    for j in range(NV):
                        total = e.fma(a_ik, b_k[j], builder.load(acc[i, j]))
                        builder.store(total, acc[i, j])
            with builder.if_else(masked) as (through_relu, plain):
                with through_relu:  # C holds the ReLU's output y: keep the sum where y > 0
                    zero = ir.Constant(e.vector, [0.0] * e.V)
                    for i, j in tile:
                        place = element(c, ldc, i, j)
                        alive = builder.fcmp_ordered(">", e.load(place), zero)
                        e.store(builder.select(alive, builder.load(acc[i, j]), zero), place)
                with plain:
                    lows = e.broadcast(low)
                    for i, j in tile:
                        value = e.at_least(builder.load(acc[i, j]), lows)
                        e.store(value, element(c, ldc, i, j))
            return context.get_dummy_value()

        return sig, codegen

    return tile


def make_dot(P: int) -> Any:
    """Make ``dot(...)``: P rows of one column of C, the sum cut into vectors."""

    @intrinsic
    def dot(typingctx: Any, a: Any, rows: Any, row: Any, cols: Any, T: Any, b: Any, b0: Any,
            init: Any, c: Any, c0: Any, ldc: Any, low: Any) -> Any:
        n = types.intp
        sig = types.void(a, rows, n, cols, n, b, n, c.dtype, c, n, n, c.dtype)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, sig.args[0].dtype)
            a, rows, row, cols, T, b, b0, init, c, c0, ldc, low = args
            rows = e.at(e.data(sig.args[1], rows), row)
            cols = e.data(sig.args[3], cols)
            b = e.at(e.data(sig.args[5], b), b0)
            c = e.at(e.data(sig.args[8], c), c0)
            a = e.data(sig.args[0], a)
            places = [e.at(a, builder.load(e.at(rows, i))) for i in range(P)]
            acc = [cgutils.alloca_once(builder, e.vector) for _ in range(P)]
            for i in range(P):
                builder.store(ir.Constant(e.vector, [0.0] * e.V), acc[i])
            with cgutils.for_range(builder, T) as loop:
                tap = builder.load(e.at(cols, loop.index))
                step = ir.Constant(ir.IntType(64), e.V)
                b_t = e.load(e.at(b, builder.mul(loop.index, step)))
                for i in range(P):
                    a_it = e.load(e.at(places[i], tap))
                    builder.store(e.fma(a_it, b_t, builder.load(acc[i])), acc[i])
            for i in range(P):
                value = builder.fadd(e.sum_lanes(builder.load(acc[i])), init)
                place = e.at(c, builder.mul(ldc, ir.Constant(ir.IntType(64), i)))
                builder.store(e.at_least(value, low), place)
            return context.get_dummy_value()

        return sig, codegen

    return dot


_wide = make_tile(WIDE_P, WIDE_NV)
_middle = make_tile(MIDDLE_P, MIDDLE_NV)
_narrow = make_tile(NARROW_P, NARROW_NV)
_dot = make_dot(DOT_P)


@inner
def _tiled_product(a, rows, M, cols, k0, k1, b, b0, ldb, init, i0, ldi, c, c0, ldc, low, masked):
    """C[i, j] = init[i, j] + sum_{k0 <= k < k1} A[rows[i] + cols[k]] B[k, j], for i < M.

    ``a``, ``b``, ``init`` and ``c`` are flat; the matrices B, init and C start at ``b0``,
    ``i0`` and ``c0``, and their rows are ``ldb``, ``ldi`` and ``ldc`` apart (``ldi`` 0: the same
    row for all). All ``ldc`` columns of C are computed: a whole number of vectors. Where
    ``masked``, C is set to 0 where it was not positive; else to ``max(C, low)``.
    """
    V = lanes(a.itemsize)
    vectors = ldc // V
    j = 0
    while j < vectors:
        left = vectors - j
        if left >= WIDE_NV:
            for i in range(0, M, WIDE_P):
                _wide(a, rows, i, cols, k0, k1, b, b0 + j * V, ldb,
                      init, i0 + i * ldi + j * V, ldi, c, c0 + i * ldc + j * V, ldc, low, masked)
            j += WIDE_NV
        elif left >= MIDDLE_NV:
            for i in range(0, M, MIDDLE_P):
                _middle(a, rows, i, cols, k0, k1, b, b0 + j * V, ldb,
                        init, i0 + i * ldi + j * V, ldi, c, c0 + i * ldc + j * V, ldc, low, masked)
            j += MIDDLE_NV
        else:
            for i in range(0, M, NARROW_P):
                _narrow(a, rows, i, cols, k0, k1, b, b0 + j * V, ldb,
                        init, i0 + i * ldi + j * V, ldi, c, c0 + i * ldc + j * V, ldc, low, masked)
            j += NARROW_NV


@inner
def _tiled_dots(a, rows, M, cols, T, b, b0, init, c, c0, ldc, low):
    """c[i] = max(init + sum_t <A[rows[i] + cols[t] : + V], B[t]>, low), for i < M, ldc apart."""
    for i in range(0, M, DOT_P):
        _dot(a, rows, i, cols, T, b, b0, init, c, c0 + i * ldc, ldc, low)


@inner
def _plain_product(a, rows, M, cols, k0, k1, b, b0, ldb, init, i0, ldi, c, c0, ldc, low, masked):
    """:func:`_tiled_product` in ordinary loops."""
    total = np.empty(ldc, c.dtype)
    zero = c.dtype.type(0)
    for i in range(M):
        total[:] = init[i0 + i * ldi:i0 + i * ldi + ldc]
        for k in range(k0, k1):
            a_ik = a[rows[i] + cols[k]]
            b_k = b[b0 + k * ldb:b0 + k * ldb + ldc]
            for j in range(ldc):
                total[j] += a_ik * b_k[j]
        c_i = c[c0 + i * ldc:c0 + (i + 1) * ldc]
        for j in range(ldc):
            if masked:
                c_i[j] = total[j] if c_i[j] > zero else zero
            else:
                c_i[j] = low if total[j] < low else total[j]


@inner
def _plain_dots(a, rows, M, cols, T, b, b0, init, c, c0, ldc, low):
    """:func:`_tiled_dots` in ordinary loops."""
    V = lanes(a.itemsize)
    for i in range(M):
        total = init
        for t in range(T):
            start = rows[i] + cols[t]
            for j in range(V):
                total += a[start + j] * b[b0 + t * V + j]
        c[c0 + i * ldc] = low if total < low else total


product = _plain_product if SIMD == "plain" else _tiled_product
dots = _plain_dots if SIMD == "plain" else _tiled_dots
