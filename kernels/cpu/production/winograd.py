"""Winograd's minimal filtering: a 5x5 convolution with 9 multiplications a pixel, not 25.

Once a tile runs at the machine's limit, only a cheaper algorithm is faster. m outputs of a filter
g with K taps, y_i = sum_k g_k d_{i+k}, can be had with n = m + K - 1 multiplications instead
of m K. The product of two polynomials with K and m coefficients has n coefficients, so its values
at n points determine it. With V_j[p, i] = (point p)^i, i < j, the Vandermonde matrix,

    coefficients of g(z) y(z)  =  V_n^-1 [ (V_K g) * (V_m y) ]           * : number by number

and a correlation is the transpose of that product with respect to y, for a given g:

    y  =  V_m^T [ (V_K g) * (V_n^-T d) ]  =  A^T [ (G g) * (B^T d) ]

In two dimensions the matrices act from both sides (Lavin and Gray, arXiv:1509.09308; Winograd,
Arithmetic Complexity of Computations, 1980):

    Y  =  A^T [ (G g G^T) * (B^T d B) ] A          d: n x n pixels,  Y: m x m pixels

Between the transforms, each of the n^2 points is a matrix product of its own, over the channels:
``Y~[tile, f] = sum_c D~[tile, c] G~[c, f]``. Both gradients follow, for Y is bilinear:

    dg  =  G^T [ (B^T d B) * (A dY A^T) ] G        summed over tiles before G^T and G are applied
    dd  =  B [ (G g G^T) * (A dY A^T) ] B^T        added up where input tiles overlap

Here n = 6: for K = 5, m = 2, 36 multiplications for 4 pixels instead of 100; for K = 3, m = 4,
36 for 16 instead of 144. The transforms take back about a third of what is saved.

The points decide the rounding errors. With the usual 0, 1, -1, 2, -2 and infinity they are
up to eight times those of a plain sum. With 0, +-5/8, +-3/2 and infinity, powers do
not grow as fast, all of A and B is exact in binary, and errors are 0.6 to 2.3 times those of a
plain sum: a point sums 64 products where the plain sum has 1600. docs/performance.md has the
figures.

What this costs: an infinity or NaN in a pixel reaches all m x m pixels of a tile.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import SIMD, inner, once
from ..simd import Emit, lanes
from .tile import SLACK, product

N = 6  # points, and pixels on a side of an input tile
_FINITE = [Fraction(p) for p in ("0", "5/8", "-5/8", "3/2", "-3/2")]

# Tiles whose transforms are in the cache at a time. A multiple of every P of `tile.product`
# with 2 or 4 vectors of AVX-512, so that no row of a product is wasted.
TILES = 24


def outputs(F: int, C: int, KH: int, KW: int) -> int:
    """Return m, the side of an output tile; 0 where the plain sum is the better way."""
    if KH != KW or KH not in (3, 5) or min(F, C) < 16 or SIMD == "plain":
        return 0
    return N + 1 - KH


def _vandermonde(columns: int) -> list[list[Fraction]]:
    """V[p, i] = p^i; at infinity only the highest power counts."""
    return [[p**i for i in range(columns)] for p in _FINITE] + [
        [Fraction(0)] * (columns - 1) + [Fraction(1)]]


def _solve(a: list[list[Fraction]], b: list[list[Fraction]]) -> list[list[Fraction]]:
    """Solve a x = b exactly, by elimination."""
    rows = [[*left, *right] for left, right in zip(a, b, strict=True)]
    for i in range(len(rows)):
        pivot = next(j for j in range(i, len(rows)) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[len(a):] for row in rows]


def _transposed(a: list[list[Fraction]]) -> list[list[Fraction]]:
    return [list(column) for column in zip(*a, strict=True)]


def matrices(K: int) -> tuple[Any, Any, Any]:
    """Return A^T (m,6), G (6,K) and B^T (6,6) for filters with K taps, as float64 arrays.

    Each row of B^T is scaled to end in 1, and that of G the other way.
    """
    V = _vandermonde(N)
    identity = [[Fraction(int(i == j)) for j in range(N)] for i in range(N)]
    BT, G = _solve(_transposed(V), identity), _vandermonde(K)
    for i in range(N):
        last = next(value for value in reversed(BT[i]) if value)
        BT[i] = [value / last for value in BT[i]]
        G[i] = [value * last for value in G[i]]
    AT = _transposed(_vandermonde(N + 1 - K))
    return np.array(AT, float), np.array(G, float), np.array(BT, float)


G_3, G_5 = matrices(3)[1], matrices(5)[1]

# Rows +p and -p of a Vandermonde matrix differ in the sign of the odd powers only, so sums over
# even and over odd powers serve both: B^T = S B', A = S A', A^T = A'^T S with this S = S^T.
SIGNS = np.eye(N)
SIGNS[1:3, 1:3] = SIGNS[3:5, 3:5] = [[1, 1], [1, -1]]
B = np.linalg.inv(SIGNS) @ matrices(5)[2]
A_5, A_3 = (np.linalg.inv(SIGNS) @ matrices(K)[0].T for K in (5, 3))


def combine(e: Emit, matrix: Any, x: list[Any]) -> list[Any]:
    """Emit matrix @ x, x a list of vectors, without multiplications by 0 and 1."""
    result = []
    for row in matrix:
        terms = sorted(((c, v) for c, v in zip(row, x, strict=True) if c), key=lambda t: t[0] != 1)
        total = None
        for c, v in terms:
            factor = ir.Constant(e.vector, [float(c)] * e.V)
            if total is None:
                total = v if c == 1 else e.b.fmul(factor, v)
            else:
                total = e.b.fadd(total, v) if c == 1 else e.fma(factor, v, total)
        result.append(total)
    return result


def _both_sides(one_side: Any, block: list[list[Any]]) -> list[list[Any]]:
    """Apply a transform to all columns of a block, then to all rows."""
    columns = [one_side(list(column)) for column in zip(*block, strict=True)]
    return [one_side(list(row)) for row in zip(*columns, strict=True)]


def _make_transform(matrix: Any, limited: bool) -> Any:
    """Make ``transform(...)``: S matrix X (S matrix)^T of one vector of channels of a tile X.

    If ``limited``, X is zero from row ``height`` and column ``width`` on.
    """

    @intrinsic
    def transform(typingctx: Any, a: Any, a0: Any, at: Any, height: Any, width: Any,
                  b: Any, b0: Any, step: Any) -> Any:
        n = types.intp
        sig = types.void(a, n, at, n, n, b, n, n)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, sig.args[0].dtype)
            a, a0, at, height, width, b, b0, step = args
            a, b = e.at(e.data(sig.args[0], a), a0), e.at(e.data(sig.args[5], b), b0)
            at = e.data(sig.args[2], at)
            side = matrix.shape[1]
            rows = [e.at(a, builder.load(e.at(at, i))) for i in range(side)]
            columns = [builder.load(e.at(at, N + j)) for j in range(side)]
            block = [[e.load(e.at(row, column)) for column in columns] for row in rows]
            if limited:
                zero = ir.Constant(e.vector, [0.0] * e.V)
                for i in range(side):
                    for j in range(side):
                        inside = _inside(builder, i, j, height, width)
                        block[i][j] = builder.select(inside, block[i][j], zero)
            result = _both_sides(lambda x: combine(e, SIGNS, combine(e, matrix, x)), block)
            for i in range(N):
                for j in range(N):
                    place = builder.mul(step, ir.Constant(ir.IntType(64), N * i + j))
                    e.store(result[i][j], e.at(b, place))
            return context.get_dummy_value()

        return sig, codegen

    return transform


def _make_inverse(matrix: Any, add: bool) -> Any:
    """Make ``inverse(...)``: X = matrix^T S Y~ S matrix of one vector of channels of a tile Y~.

    If ``add``, X is added to c; else c becomes max(X + init, low). Rows from ``height`` and
    columns from ``width`` on are put at the start of c instead.
    """

    @intrinsic
    def inverse(typingctx: Any, a: Any, a0: Any, step: Any, c: Any, c0: Any, at: Any,
                  height: Any, width: Any, init: Any, i0: Any, low: Any) -> Any:
        n = types.intp
        sig = types.void(a, n, n, c, n, at, n, n, init, n, c.dtype)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, sig.args[0].dtype)
            a, a0, step, c, c0, at, height, width, init, i0, low = args
            a, c = e.at(e.data(sig.args[0], a), a0), e.data(sig.args[3], c)
            at = e.data(sig.args[5], at)
            init, lows = e.load(e.at(e.data(sig.args[8], init), i0)), e.broadcast(low)
            nowhere = ir.Constant(ir.IntType(64), 0)
            block = [[e.load(e.at(a, builder.mul(step, ir.Constant(ir.IntType(64), N * i + j))))
                      for j in range(N)] for i in range(N)]
            pixels = _both_sides(lambda x: combine(e, matrix.T, combine(e, SIGNS, x)), block)
            for i, row in enumerate(pixels):
                row_at = builder.add(c0, builder.load(e.at(at, i)))
                for j, value in enumerate(row):
                    place = builder.add(row_at, builder.load(e.at(at, N + j)))
                    inside = _inside(builder, i, j, height, width)
                    place = e.at(c, builder.select(inside, place, nowhere))
                    if add:
                        value = builder.fadd(e.load(place), value)
                    else:
                        value = e.at_least(builder.fadd(value, init), lows)
                    e.store(value, place)
            return context.get_dummy_value()

        return sig, codegen

    return inverse


def _inside(builder: ir.IRBuilder, i: int, j: int, height: Any, width: Any) -> Any:
    return builder.and_(builder.icmp_signed(">", height, ir.Constant(ir.IntType(64), i)),
                        builder.icmp_signed(">", width, ir.Constant(ir.IntType(64), j)))


_x_transform = _make_transform(B, False)
_dy_transform_2 = _make_transform(A_5, True)
_dy_transform_4 = _make_transform(A_3, True)
_y_transform_2 = _make_inverse(A_5, False)
_y_transform_4 = _make_inverse(A_3, False)
_dx_transform = _make_inverse(B, True)


class Maps(NamedTuple):
    """Feature maps in scratch: pixel (i, j) at ``start + (i % ring) * step + j * ld``.

    What is read beyond the first and last of ``rows`` or the last of ``columns`` is that one.
    """

    start: int
    ld: int
    step: int
    ring: int
    rows: int
    columns: int


def step_of(ld: int) -> int:
    """Return the floats from point to point; no power of two, which would strain the cache."""
    return TILES * ld + 16


_step_of = inner(step_of)


@inner
def transform_x(s, x, m, top, across, first, n, at, at_x):
    """Transform n tiles of x, from ``first`` on, to [point][tile][channel]; see `convolve`."""
    V = lanes(s.itemsize)
    for t in range(n):
        row, column = m * ((first + t) // across) - top, m * ((first + t) % across)
        for i in range(N):
            at[i] = min(max(row + i, 0), x.rows - 1) % x.ring * x.step
            at[N + i] = min(column + i, x.columns - 1) * x.ld
        for v in range(0, x.ld, V):
            _x_transform(s, x.start + v, at, N, N, s, at_x + t * x.ld + v, _step_of(x.ld))


@inner
def transform_dy(s, dy, m, across, first, n, at, at_dy):
    """Transform n tiles of dy, from ``first`` on, to [point][tile][channel]."""
    V = lanes(s.itemsize)
    for t in range(n):
        row, column = m * ((first + t) // across), m * ((first + t) % across)
        height, width = dy.rows - row, dy.columns - column
        for i in range(m):
            at[i] = min(row + i, dy.rows - 1) * dy.step
            at[N + i] = min(column + i, dy.columns - 1) * dy.ld
        for v in range(0, dy.ld, V):
            to = at_dy + t * dy.ld + v
            if m == 2:
                _dy_transform_2(s, dy.start + v, at, height, width, s, to, _step_of(dy.ld))
            else:
                _dy_transform_4(s, dy.start + v, at, height, width, s, to, _step_of(dy.ld))


@inner
def products(s, a, lda, n, tiles, line, K, packed, weights, c, ldc):
    """C~[t, j] = sum over k < K of A~[t, k] weights[k, j] at every point, for n tiles t."""
    for p in range(N * N):
        # What goes beyond n rows is overwritten by the next point.
        product(s[a + p * _step_of(lda):], tiles, n, line, 0, K, packed, weights + p * K * ldc, ldc,
                packed, 0, 0, s, c + p * _step_of(ldc), ldc, s.dtype.type(-np.inf), False)


@inner
def convolve(s, x, y, m, top, first, last, across, tiles, line, C, packed, weights, bias,
             at_x, at_y, low):
    """Fill tiles first <= t < last of y, ``across`` of them in a row, with max(w x + b, low).

    Row 0 of y is made from the rows of x from ``-top`` on. ``tiles`` and ``line`` hold
    multiples of ``x.ld`` and of 1; ``at_x`` and ``at_y`` are where transformed tiles go.
    """
    V = lanes(s.itemsize)
    at = np.empty(2 * N, np.int64)
    for t0 in range(first, last, TILES):
        n = min(TILES, last - t0)
        transform_x(s, x, m, top, across, t0, n, at, at_x)
        products(s, at_x, x.ld, n, tiles, line, C, packed, weights, at_y, y.ld)
        for t in range(n):
            row, column = m * ((t0 + t) // across), m * ((t0 + t) % across)
            height, width = y.rows - row, y.columns - column
            for i in range(m):
                at[i] = (row + i) % y.ring * y.step
                at[N + i] = (column + i) * y.ld
            for v in range(0, y.ld, V):
                a, c = at_y + t * y.ld + v, y.start + v
                if m == 2:
                    _y_transform_2(s, a, _step_of(y.ld), s, c, at, height, width,
                                   packed, bias + v, low)
                else:
                    _y_transform_4(s, a, _step_of(y.ld), s, c, at, height, width,
                                   packed, bias + v, low)


@inner
def input_gradient(s, dy, dx, m, last, across, tiles, line, F, packed, weights, at_dy, at_dx):
    """Add to dx, tile by tile; ``tiles`` holds multiples of ``dy.ld``; else as `convolve`."""
    V = lanes(s.itemsize)
    at = np.empty(2 * N, np.int64)
    for t0 in range(0, last, TILES):
        n = min(TILES, last - t0)
        transform_dy(s, dy, m, across, t0, n, at, at_dy)
        products(s, at_dy, dy.ld, n, tiles, line, F, packed, weights, at_dx, dx.ld)
        for t in range(n):
            row, column = m * ((t0 + t) // across), m * ((t0 + t) % across)
            height, width = dx.rows - row, dx.columns - column
            for i in range(N):
                at[i] = (row + i) * dx.step
                at[N + i] = (column + i) * dx.ld
            for v in range(0, dx.ld, V):
                _dx_transform(s, at_dx + t * dx.ld + v, _step_of(dx.ld), s, dx.start + v, at,
                              height, width, packed, 0, s.dtype.type(0.0))


@inner
def weight_gradient(s, x, dy, m, last, across, tiles, line, C, at_x, at_dy, grads, dw):
    """Add to the gradient at every point, [point][c][f]: sum over tiles of x~[c] dy~[f]."""
    at = np.empty(2 * N, np.int64)
    for t0 in range(0, last, TILES):
        n = min(TILES, last - t0)
        transform_x(s, x, m, 0, across, t0, n, at, at_x)
        transform_dy(s, dy, m, across, t0, n, at, at_dy)
        for p in range(N * N):
            c = dw + p * (C + SLACK) * dy.ld
            product(s[at_x + p * _step_of(x.ld):], line, C, tiles, 0, n,
                    s, at_dy + p * _step_of(dy.ld), dy.ld, grads, c, dy.ld, grads, c, dy.ld,
                    s.dtype.type(-np.inf), False)


def make_line_transform(matrix: Any) -> Any:
    """Make ``transform(...)``: y[to + p y_step + j] = sum_u matrix[p, u] x[at + u x_step + j].

    It is done for j < n, in whole vectors and in float64, whatever x and y are: weights and
    their gradients are few, and are summed over many tiles. Loops that LLVM is to turn into
    vector code take longer, to run and to compile.
    """

    @intrinsic
    def transform_vector(typingctx: Any, x: Any, at: Any, x_step: Any,
                         y: Any, to: Any, y_step: Any) -> Any:
        n = types.intp
        sig = types.void(x, n, n, y, n, n)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e = Emit(context, builder, types.float64)
            x_type, y_type = sig.args[0], sig.args[3]
            x, at, x_step, y, to, y_step = args
            x, y = e.at(e.data(x_type, x), at), e.at(e.data(y_type, y), to)

            def place(array: Any, step: Any, i: int, dtype: Any) -> Any:
                start = e.at(array, builder.mul(step, ir.Constant(ir.IntType(64), i)))
                vector = ir.VectorType(context.get_value_type(dtype), e.V)
                return builder.bitcast(start, vector.as_pointer()), dtype.bitwidth // 8

            vectors = []
            for u in range(matrix.shape[1]):
                start, align = place(x, x_step, u, x_type.dtype)
                value = builder.load(start, align=align)
                vectors.append(value if align == 8 else builder.fpext(value, e.vector))
            for p, factors in enumerate(matrix):
                total = e.zero()
                for factor, value in zip(factors, vectors, strict=True):
                    if factor:
                        total = builder.fadd(total, builder.fmul(e.constant(factor), value))
                start, align = place(y, y_step, p, y_type.dtype)
                if align != 8:
                    total = builder.fptrunc(total, start.type.pointee)
                builder.store(total, start, align=align)
            return context.get_dummy_value()

        return sig, codegen

    @inner
    def transform(x, at, x_step, y, to, y_step, n):
        for j in range(0, n, lanes(8)):
            transform_vector(x, at + j, x_step, y, to + j, y_step)

    return transform


g_transform_3, _g_transform_5 = make_line_transform(G_3), make_line_transform(G_5)
dg_transform_3, _dg_transform_5 = make_line_transform(G_3.T), make_line_transform(G_5.T)


@inner
def whole(n):
    """Return n numbers rounded up to whole vectors of float64."""
    return (n + lanes(8) - 1) // lanes(8) * lanes(8)


@once
def transform_weights(w, f_first, packed, at, ld):
    """Store G w G^T as [point][f][c] if ``f_first``, else as [point][c][f]; rows are ld apart."""
    F, C, K = w.shape[:3]
    rows, columns = (F, C) if f_first else (C, F)
    n = whole(columns)
    half, step = K * K * n, rows * ld
    x = np.zeros((K * K + N * K) * n)
    for r in range(rows):
        for u in range(K):
            for v in range(K):
                for j in range(columns):
                    x[(u * K + v) * n + j] = w[r, j, u, v] if f_first else w[j, r, u, v]
        if K == 5:
            _g_transform_5(x, 0, K * n, x, half, K * n, K * n)
        else:
            g_transform_3(x, 0, K * n, x, half, K * n, K * n)
        for p in range(N):
            start, to = half + p * K * n, at + p * N * step + r * ld
            if K == 5:
                _g_transform_5(x, start, n, packed, to, step, n)
            else:
                g_transform_3(x, start, n, packed, to, step, n)


@once
def transform_gradient(grads, at, ld, dw):
    """Fill dw (F,C,K,K) with G^T X G, X the gradient in the transform domain."""
    F, C, K = dw.shape[:3]
    n, step = whole(F), (C + SLACK) * ld
    y = K * N * n
    x = np.zeros((K * N + K * K) * n)
    for c in range(C):
        for q in range(N):
            start = at + q * step + c * ld
            if K == 5:
                _dg_transform_5(grads, start, N * step, x, q * n, N * n, n)
            else:
                dg_transform_3(grads, start, N * step, x, q * n, N * n, n)
        for u in range(K):
            if K == 5:
                _dg_transform_5(x, u * N * n, n, x, y + u * K * n, n, n)
            else:
                dg_transform_3(x, u * N * n, n, x, y + u * K * n, n, n)
        for f in range(F):
            for u in range(K):
                for v in range(K):
                    dw[f, c, u, v] = x[y + (u * K + v) * n + f]
