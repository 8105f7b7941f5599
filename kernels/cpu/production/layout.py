"""From planes, ``[channel][pixel]``, to ``[pixel][channel]``, and back.

Number by number this costs five cycles each, more than the arithmetic of a 1x1 convolution. So
square blocks of V x V are transposed in registers: V vectors are loaded, and in log2(V) rounds the
off-diagonal halves of ever smaller blocks change places:

    a b | c d        a b | A B        a e | A E
    e f | g h   ->   e f | E F   ->   b f | B F
    ----+----        ----+----        ----+----
    A B | C D        c d | C D        c g | C G
    E F | G H        g h | G H        d h | D H
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import SIMD, inner
from ..simd import Emit, lanes


@intrinsic
def _transpose(
    typingctx: Any, a: Any, a0: Any, lda: Any, b: Any, b0: Any, ldb: Any
) -> Any:
    """b[b0 + i ldb + j] = a[a0 + j lda + i] for i, j < V."""
    n = types.intp
    sig = types.void(a, n, n, b, n, n)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, sig.args[0].dtype)
        a, a0, lda, b, b0, ldb = args
        a = e.at(e.data(sig.args[0], a), a0)
        b = e.at(e.data(sig.args[3], b), b0)

        def start(matrix: Any, ld: Any, i: int) -> Any:
            return e.at(matrix, builder.mul(ld, ir.Constant(ir.IntType(64), i)))

        rows = [e.load(start(a, lda, i)) for i in range(e.V)]
        half = e.V // 2
        while half:
            for i in range(e.V):
                if not i & half:
                    rows[i], rows[i + half] = e.exchange(rows[i], rows[i + half], half)
            half //= 2
        for i, row in enumerate(rows):
            e.store(row, start(b, ldb, i))
        return context.get_dummy_value()

    return sig, codegen


@inner
def _transpose_all(a, a0, lda, rows, columns, b, b0, ldb):
    """b[b0 + i ldb + j] = a[a0 + j lda + i] for i < columns, j < rows."""
    V = lanes(a.itemsize)
    if SIMD == "plain":
        V = rows + columns  # no block is that large
    whole_rows, whole_columns = rows // V * V, columns // V * V
    if SIMD != "plain":
        if rows < columns:  # along the longer side, which the prefetcher can follow
            for j in range(0, whole_rows, V):
                for i in range(0, whole_columns, V):
                    _transpose(a, a0 + j * lda + i, lda, b, b0 + i * ldb + j, ldb)
        else:
            for i in range(0, whole_columns, V):
                for j in range(0, whole_rows, V):
                    _transpose(a, a0 + j * lda + i, lda, b, b0 + i * ldb + j, ldb)
    for i in range(columns):
        for j in range(whole_rows if i < whole_columns else 0, rows):
            b[b0 + i * ldb + j] = a[a0 + j * lda + i]


@intrinsic
def clear(typingctx: Any, a: Any) -> Any:
    """Set a[:] = 0, a flat array."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.args[0])(context, builder, args[0])
        cgutils.memset(builder, array.data, builder.mul(array.nitems, array.itemsize), 0)
        return context.get_dummy_value()

    return types.void(a), codegen


@inner
def copy(a, a0, n, b, b0):
    """b[b0:b0 + n] = a[a0:a0 + n]."""
    source, target = a[a0:a0 + n], b[b0:b0 + n]
    for i in range(n):
        target[i] = source[i]


@inner
def load_pixels(x, first, channels, pixels, plane, s, at, ld):
    """Copy pixels of x, in planes of size ``plane``, from ``first`` on to s as [pixel][channel]."""
    if ld == 1:
        copy(x, first, pixels, s, at)
    else:
        _transpose_all(x, first, plane, channels, pixels, s, at, ld)


@inner
def store_planes(s, at, ld, channels, pixels, y, first):
    """Copy s, [pixel][channel], to planes (channels, pixels) of y, flat from ``first``."""
    if ld == 1:
        copy(s, at, pixels, y, first)
    else:
        _transpose_all(s, at, ld, pixels, channels, y, first, pixels)
