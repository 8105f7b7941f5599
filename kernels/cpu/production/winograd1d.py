"""Winograd convolution in one direction only: the 9x9 filters of the first layer.

With one channel (or three) there is nothing to sum over between the transforms of
:mod:`.winograd`, so in two dimensions the transforms would be all the work. In one
dimension there is: the columns of the filter, and its rows in groups of three. For tap
u = 3a + b and output row 4i + r, with n = 6 points p,

    y[4i+r, j, f]  =  sum_{a,b,v,c} w[f, c, 3a+b, v] x[4i+3a+r+b, j+v, c]

                   =  sum_p A^T[r, p]  sum_{a,v,c} w~[p, a, v, c, f] x~[p, a, i, j+v, c]

    w~[p, a, v, c, f]  =  sum_b  G[p, b]    w[f, c, 3a+b, v]          b < 3
    x~[p, a, i, j, c]  =  sum_k  B^T[p, k]  x[4i+3a+k, j, c]          k < 6

with the matrices that :func:`.winograd.matrices` gives for 3 taps. The inner sum is
`tile.product` as ever, six of them with 27 taps, for four rows of y, instead of four with
81: half of the multiplications. And there is hardly anything to transform, since x has one
channel and y~ is transformed once after all 27. The gradient of w follows, as there:

    dw[f, c, 3a+b, v]  =  sum_p  G[p, b]  sum_{i,j} x~[p, a, i, j+v, c] dy~[p, i, j, f]
    dy~[p, i, j, f]    =  sum_r  A[p, r]  dy[4i+r, j, f]

The gradient of x is never asked for: x is the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import SIMD, inner, once
from ..simd import Emit, lanes
from .tile import SLACK, product
from .winograd import A_3, SIGNS, B, N, combine, dg_transform_3, g_transform_3, whole

M = 4  # rows of y in a group
# Pixels of y whose points are in the cache at a time: whole tiles, whether of 6 or 8.
BLOCK = 96


def is_made_for(F: int, C: int, KH: int) -> bool:
    """Whether a layer of these sizes, the first of a chain, is better computed in this way."""
    return SIMD != "plain" and KH % 3 == 0 and KH >= 9 and C <= 4 and F >= 16


def _make_transform(first: Any, second: Any, finish: bool) -> Any:
    """Make ``transform(...)``: second @ first @ rows, vector by vector along the rows.

    ``at`` holds where in ``a`` the rows start, those that are read and those that are
    written. Rows that are read count as zero from ``height`` on if there are as many as M, and
    rows that are written are left alone from ``height`` on likewise. ``count`` vectors are
    done, ``stride`` apart. If ``finish``, the result is max(result + init, low), with one
    vector of ``init`` at ``i0`` for all.
    """
    reads, writes = first.shape[1], second.shape[0]

    @intrinsic
    def transform(typingctx: Any, a: Any, at: Any, offset: Any, height: Any, count: Any,
                  stride: Any, init: Any, i0: Any, low: Any) -> Any:
        n = types.intp
        sig = types.void(a, at, n, n, n, n, init, n, a.dtype)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, sig.args[0].dtype)
            a, at, offset, height, count, stride, init, i0, low = args
            a, at = e.at(e.data(sig.args[0], a), offset), e.data(sig.args[1], at)
            places = [e.at(a, builder.load(e.at(at, k))) for k in range(reads + writes)]
            exists = [builder.icmp_signed(">", height, ir.Constant(height.type, r))
                      for r in range(M)]
            zero, lows = ir.Constant(e.vector, [0.0] * e.V), e.broadcast(low)
            init = e.load(e.at(e.data(sig.args[6], init), i0))
            with cgutils.for_range(builder, count) as loop:
                at_v = builder.mul(loop.index, stride)
                rows = [e.load(e.at(place, at_v)) for place in places[:reads]]
                if reads == M:
                    rows = [builder.select(here, row, zero)
                            for here, row in zip(exists, rows, strict=True)]
                results = combine(e, second, combine(e, first, rows))
                for r, (result, place) in enumerate(zip(results, places[reads:], strict=True)):
                    if finish:
                        result = e.at_least(builder.fadd(result, init), lows)
                    if writes == M:
                        with builder.if_then(exists[r]):
                            e.store(result, e.at(place, at_v))
                    else:
                        e.store(result, e.at(place, at_v))
            return context.get_dummy_value()

        return sig, codegen

    return transform


_x_transform = _make_transform(B, SIGNS, False)
_dy_transform = _make_transform(A_3, SIGNS, False)
_y_transform = _make_transform(SIGNS, A_3.T, True)


def sizes(groups: int, A: int, width: int, ldy: int) -> tuple[int, int]:
    """Return the floats that the points of x and of y take; ``width`` is a row of x."""
    return N * x_step(groups, A, width) + 64, N * y_step(ldy) + SLACK * ldy


def x_step(groups: int, A: int, width: int) -> int:
    """Return the floats from point to point of x; no power of two, which would strain the cache."""
    return A * groups * width + 16


def y_step(ldy: int) -> int:
    """Return the floats from point to point of a block of y."""
    return BLOCK * ldy + 16


_x_step, _y_step = inner(x_step), inner(y_step)


@inner
def transform_x(s, x, top, first, groups, A, width, at, at_x):
    """Transform x for groups of rows of y, from group ``first`` on, to [point][a][group][width].

    Row 0 of y is made from the rows of x from ``-top`` on.
    """
    V = lanes(s.itemsize)
    step = _x_step(groups, A, width)
    for a in range(A):
        for i in range(groups):
            row = M * (first + i) + 3 * a - top
            for k in range(N):
                at[k] = x.start + min(max(row + k, 0), x.rows - 1) % x.ring * x.step
                at[N + k] = at_x + k * step + (a * groups + i) * width
            # What goes beyond the row is overwritten by the next one.
            _x_transform(s, at, 0, M, (width + V - 1) // V, V, s, 0, s.dtype.type(0.0))


@inner
def convolve(s, x, y, top, first, groups, A, width, pixels, taps, K, packed, weights, bias,
             at_x, at_y, low):
    """Fill the rows of y of ``groups`` groups, from group ``first`` on, with max(w x + b, low).

    ``x`` and ``y`` are as for `winograd.convolve`; ``width`` is the length of a row of x in
    floats, ``pixels`` and ``taps`` (K of them) hold offsets into the points of x.
    """
    V = lanes(s.itemsize)
    at = np.empty(2 * N, np.int64)
    transform_x(s, x, top, first, groups, A, width, at, at_x)
    step_x, step_y = _x_step(groups, A, width), _y_step(y.ld)
    for start in range(0, groups * y.columns, BLOCK):
        end = min(start + BLOCK, groups * y.columns)
        for p in range(N):
            # What goes beyond the last pixel is overwritten by the next point.
            product(s[at_x + p * step_x:], pixels[start:], end - start, taps, 0, K,
                    packed, weights + p * K * y.ld, y.ld, packed, 0, 0,
                    s, at_y + p * step_y, y.ld, s.dtype.type(-np.inf), False)
        m = start
        while m < end:  # the pixels of one group
            i, j = m // y.columns, m % y.columns
            n, row = min(y.columns - j, end - m), M * (first + i)
            for p in range(N):
                at[p] = at_y + p * step_y + (m - start) * y.ld
            for r in range(M):
                at[N + r] = y.start + (row + r) % y.ring * y.step + j * y.ld
            for v in range(0, y.ld, V):
                _y_transform(s, at, v, y.rows - row, n, y.ld, packed, bias + v, low)
            m += n


@inner
def weight_gradient(s, x, dy, groups, A, width, pixels, taps, K, at_x, at_dy, grads, dw):
    """Add to the gradient at every point, [point][tap][f]; the rest as for :func:`convolve`."""
    V = lanes(s.itemsize)
    at = np.empty(2 * N, np.int64)
    transform_x(s, x, 0, 0, groups, A, width, at, at_x)
    step_x, step_y = _x_step(groups, A, width), _y_step(dy.ld)
    for start in range(0, groups * dy.columns, BLOCK):
        end = min(start + BLOCK, groups * dy.columns)
        m = start
        while m < end:
            i, j = m // dy.columns, m % dy.columns
            n, row = min(dy.columns - j, end - m), M * i
            for r in range(M):
                at[r] = dy.start + min(row + r, dy.rows - 1) * dy.step + j * dy.ld
            for p in range(N):
                at[M + p] = at_dy + p * step_y + (m - start) * dy.ld
            _dy_transform(s, at, 0, dy.rows - row, n * dy.ld // V, V, s, 0, s.dtype.type(0.0))
            m += n
        for p in range(N):
            c = dw + p * (K + SLACK) * dy.ld
            product(s[at_x + p * step_x:], taps, K, pixels[start:], 0, end - start,
                    s, at_dy + p * step_y, dy.ld, grads, c, dy.ld, grads, c, dy.ld,
                    s.dtype.type(-np.inf), False)


@once
def transform_weights(w, packed, at, ld):
    """Store G w as [point][a, v, c][f]; rows are ld apart."""
    F, C, KH, KW = w.shape
    n, step = whole(F), KH // 3 * KW * C * ld
    x = np.zeros(3 * n)
    for c in range(C):
        for a in range(KH // 3):
            for v in range(KW):
                for b in range(3):
                    for f in range(F):
                        x[b * n + f] = w[f, c, 3 * a + b, v]
                g_transform_3(x, 0, n, packed, at + ((a * KW + v) * C + c) * ld, step, n)


@once
def transform_gradient(grads, at, ld, dw):
    """Fill dw (F,C,KH,KW) with G^T X, X the gradient in the transform domain."""
    F, C, KH, KW = dw.shape
    n, step = whole(F), (KH // 3 * KW * C + SLACK) * ld
    x = np.zeros(3 * n)
    for c in range(C):
        for a in range(KH // 3):
            for v in range(KW):
                dg_transform_3(grads, at + ((a * KW + v) * C + c) * ld, step, x, 0, n, n)
                for f in range(F):
                    for b in range(3):
                        dw[f, c, 3 * a + b, v] = x[b * n + f]
