"""Lesson 8: Winograd convolution, F(4, 3): 36 multiplications in the place of 144.

Lesson 7 does every multiplication of the sum; beyond it only an algorithm with fewer of them is
faster. Two polynomials with 3 and 4 coefficients have a product with 6, so its values at 6 points
determine it: 6 multiplications, not 12. A correlation of 6 pixels d with 3 taps g is the transpose
of such a product, for 4 results y:

    y  =  A^T [ (G g) * (B^T d) ]                  * : number by number

A and G hold powers of the points 0, 1, -1, 2, -2 and infinity, B^T is the inverse of such a matrix:
:func:`matrices` is that in NumPy. In two dimensions, and with channels, each of the 36 pairs of
points is a product of matrices:

     d: 6 x 6 pixels, overlapping            y: 4 x 4 pixels, side by side
    +-----------+                            +-------+
    |   +-------|---+                        | tile  |       Y = A^T [ (G g G^T)(B^T d B) ] A
    |   |       |   |   B^T d B   A^T . A    |   0   |
    |   |   1   |   |  -------->  ------->   +-------+
    +---|-------+   |  36 products           | tile  |
        +-----------+  x~[t,c] w~[c,f]       |   1   |

    dw = G^T [ sum over tiles of (B^T d B)(A dY A^T) ] G

The transforms are some twenty additions of vectors of channels. Other filters than 3x3 are padded
by zeros and cut into such blocks, which is right, but fast only for many channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from ..jit import const, inner, kernel
from ..simd import add, broadcast, fma, lanes, load, store

Array = Any
CHUNKS = 16  # of a batch, for the threads; each with a weight gradient of its own
P = 6  # rows of the tile of products; and, by chance, points


def matrices() -> tuple[Array, Array, Array]:
    """Return A^T (4,6), G (6,3) and B^T (6,6), the rows of B^T scaled to integers."""
    def powers(count: int) -> Array:  # at infinity only the highest power counts
        return np.vstack([np.vander((0, 1, -1, 2, -2), count, increasing=True),
                          np.eye(count)[-1:]])

    scale = np.array([4, -6, -6, 24, 24, 1])[:, None]
    return powers(4).T, powers(3) / scale, np.linalg.inv(powers(6).T) * scale


@inner
def times_bt(d):
    """B^T d, for six vectors."""
    a, b = fma(-4, d[2], d[4]), fma(-4, d[1], d[3])
    c, e = fma(-1, d[2], d[4]), fma(-1, d[1], d[3])
    return (fma(4, d[0], fma(-5, d[2], d[4])), add(a, b), fma(-1, b, a),
            fma(2, e, c), fma(-2, e, c), fma(4, d[1], fma(-5, d[3], d[5])))


@inner
def times_at(m):
    """A^T m, for six vectors."""
    a, b, c, d = add(m[1], m[2]), fma(-1, m[2], m[1]), add(m[3], m[4]), fma(-1, m[4], m[3])
    return add(add(m[0], a), c), fma(2, d, b), fma(4, c, a), fma(8, d, add(b, m[5]))


@inner
def times_a(y):
    """Multiply A and y, for four vectors."""
    a, b, c, d = add(y[0], y[2]), add(y[1], y[3]), fma(4, y[2], y[0]), fma(4, y[3], y[1])
    return y[0], add(a, b), fma(-1, b, a), fma(2, d, c), fma(-2, d, c), y[3]


@inner
def load4(a, at, step):
    """Return four vectors, ``step`` apart; the next ones six, and they store them."""
    return load(a, at), load(a, at + step), load(a, at + 2 * step), load(a, at + 3 * step)


@inner
def load6(a, at, step):  # noqa: D103
    return (*load4(a, at, step), load(a, at + 4 * step), load(a, at + 5 * step))


@inner
def store4(a, at, step, x):  # noqa: D103
    store(a, at, x[0]), store(a, at + step, x[1])
    store(a, at + 2 * step, x[2]), store(a, at + 3 * step, x[3])


@inner
def store6(a, at, step, x):  # noqa: D103
    store4(a, at, step, x), store(a, at + 4 * step, x[4]), store(a, at + 5 * step, x[5])


@inner
def transform(x, W, C, TW, T, is_x, half, points):
    """points[p, q, t, :] = B^T x_t B, or A x_t A^T if not ``is_x``; x is [pixel][C], W wide."""
    V, side = lanes(x.itemsize), 6 if is_x else 4
    for t in range(T):
        at = (t // TW * 4 * W + t % TW * 4) * C
        for v in range(0, side * C, V):
            store6(half, v, side * C, times_bt(load6(x, at + v, W * C)) if is_x
                   else times_a(load4(x, at + v, W * C)))
        for p in range(6):
            for v in range(0, C, V):
                at = p * side * C + v
                store6(points, (p * 6 * T + t) * C + v, T * C, times_bt(load6(half, at, C))
                       if is_x else times_a(load4(half, at, C)))


@inner
def transform_back(points, F, TW, T, half, y):
    """y_t = A^T points[:, :, t] A, to an image of whole tiles, [pixel][F]."""
    V = lanes(y.itemsize)
    for t in range(T):
        for q in range(6):
            for v in range(0, F, V):
                m = load6(points, (q * T + t) * F + v, 6 * T * F)
                store4(half, q * F + v, 6 * F, times_at(m))
        for i in range(4):
            for v in range(0, F, V):
                to = ((t // TW * 4 + i) * TW + t % TW) * 4 * F + v
                store4(y, to, F, times_at(load6(half, i * 6 * F + v, F)))


@inner
def tile(a, at, step, K, step_k, b, bt, F, c, ct):
    """C[i] += sum over k < K of a[at + i step + k step_k] B[k], two vectors of six rows of C."""
    V = lanes(a.itemsize)
    c0, c1, c2, c3, c4, c5 = load6(c, ct, F)
    d0, d1, d2, d3, d4, d5 = load6(c, ct + V, F)
    for k in range(K):
        b0, b1, s = load(b, bt + k * F), load(b, bt + k * F + V), at + k * step_k
        x, z = broadcast(a[s]), broadcast(a[s + step])
        c0, d0, c1, d1 = fma(x, b0, c0), fma(x, b1, d0), fma(z, b0, c1), fma(z, b1, d1)
        x, z = broadcast(a[s + 2 * step]), broadcast(a[s + 3 * step])
        c2, d2, c3, d3 = fma(x, b0, c2), fma(x, b1, d2), fma(z, b0, c3), fma(z, b1, d3)
        x, z = broadcast(a[s + 4 * step]), broadcast(a[s + 5 * step])
        c4, d4, c5, d5 = fma(x, b0, c4), fma(x, b1, d4), fma(z, b0, c5), fma(z, b1, d5)
    store6(c, ct, F, (c0, c1, c2, c3, c4, c5)), store6(c, ct + V, F, (d0, d1, d2, d3, d4, d5))


@kernel(lambda t: (const(t, 2), const(t, 1), t[:, ::1], *[types.int64] * 5), parallel=True)
def forward(x, w, y, W, C, F, TW, T):
    """y[n] = A^T [ sum over c of w[p, q, c, :] (B^T x[n] B)[p, q, :, c] ] A."""
    for chunk in prange(min(CHUNKS, len(x))):
        x_points = np.zeros((36 * T + P) * C, x.dtype)
        y_points = np.zeros((36 * T + P) * F, x.dtype)
        half = np.empty(36 * max(C, F), x.dtype)
        for n in range(chunk, x.shape[0], CHUNKS):
            transform(x[n], W, C, TW, T, True, half, x_points)
            y_points[:] = 0
            for p in range(36):
                y_points[p * T * F:(p * T + P) * F] = 0  # what went beyond the last point
                for t in range(0, T, P):
                    for f in range(0, F, 2 * lanes(x.itemsize)):
                        tile(x_points, (p * T + t) * C, C, C, 1, w, p * C * F + f, F,
                             y_points, (p * T + t) * F + f)
            transform_back(y_points, F, TW, T, half, y[n])


@kernel(lambda t: (const(t, 2), const(t, 2), t[:, ::1], *[types.int64] * 6), parallel=True)
def backward_weight(x, dy, dw, W, OW, C, F, TW, T):
    """dw[p, q, c, :] += sum over tiles of (B^T x B)[p, q, :, c] (A dy A^T)[p, q, :, :]."""
    for chunk in prange(dw.shape[0]):
        x_points, dy_points = np.zeros((36 * T + P) * C, x.dtype), np.zeros(36 * T * F, x.dtype)
        half = np.empty(36 * max(C, F), x.dtype)
        for n in range(chunk, x.shape[0], dw.shape[0]):
            transform(x[n], W, C, TW, T, True, half, x_points)
            transform(dy[n], OW, F, TW, T, False, half, dy_points)
            for p in range(36):
                for c in range(0, C, P):
                    for f in range(0, F, 2 * lanes(x.itemsize)):
                        tile(x_points, p * T * C + c, 1, T, C, dy_points, p * T * F + f, F,
                             dw[chunk], (p * (C + P) + c) * F + f)


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW, TH, TW = H - KH + 1, W - KW + 1, -(-(H - KH + 1) // 4), -(-(W - KW + 1) // 4)
    _, G, _ = matrices()
    y = np.zeros((N, F, OH, OW), x.dtype) + b[:, None, None]
    for u in range(0, KH, 3):
        for v in range(0, KW, 3):
            pixels = _pixels(x[:, :, u:, v:], 4 * TH + 2, 4 * TW + 2)
            block = w[:, :, u:u + 3, v:v + 3]
            weights = np.zeros((6, 6, pixels.shape[-1], _whole(F, x)), x.dtype)
            weights[:, :, :C, :F] = np.einsum("pu,fcuv,qv->pqcf", G[:, :block.shape[2]], block,
                                              G[:, :block.shape[3]], optimize=True)
            result = np.empty((N, 4 * TH, 4 * TW, weights.shape[-1]), x.dtype)
            forward.compile(x.dtype.name)(pixels.reshape(N, -1), weights.ravel(),
                                          result.reshape(N, -1), *pixels.shape[2:],
                                          weights.shape[-1], TW, TH * TW)
            y += result[:, :OH, :OW, :F].transpose(0, 3, 1, 2)
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) within zeros by the flipped w (F,C,KH,KW) to dx (N,C,H,W)."""
    _, C, KH, KW = w.shape
    padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return conv2d_forward(padded, flipped, np.zeros(C, w.dtype))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    (N, C, H, W), (_, F, OH, OW) = x.shape, dy.shape
    TH, TW, (_, G, _) = -(-OH // 4), -(-OW // 4), matrices()
    dw = np.empty((F, C, H - OH + 1, W - OW + 1), x.dtype)
    gradient = _pixels(dy, 4 * TH, 4 * TW)
    for u in range(0, dw.shape[2], 3):
        for v in range(0, dw.shape[3], 3):
            pixels = _pixels(x[:, :, u:, v:], 4 * TH + 2, 4 * TW + 2)
            CP, FP, block = pixels.shape[-1], gradient.shape[-1], dw[:, :, u:u + 3, v:v + 3]
            points = np.zeros((min(N, CHUNKS), 36 * (CP + P) * FP), x.dtype)
            backward_weight.compile(x.dtype.name)(
                pixels.reshape(N, -1), gradient.reshape(N, -1), points, pixels.shape[2], 4 * TW,
                CP, FP, TW, TH * TW)
            points = points.sum(axis=0).reshape(6, 6, CP + P, FP)[:, :, :C, :F]
            block[:] = np.einsum("pu,pqcf,qv->fcuv", G[:, :block.shape[2]], points,
                                 G[:, :block.shape[3]], optimize=True)
    return dw


def _pixels(x: Array, rows: int, columns: int) -> Array:
    """Channels last, cut or within zeros: whole tiles of pixels, whole vectors of channels."""
    pixels = np.zeros((len(x), rows, columns, _whole(x.shape[1], x)), x.dtype)
    x = x[:, :, :rows, :columns].transpose(0, 2, 3, 1)
    pixels[:, :x.shape[1], :x.shape[2], :x.shape[3]] = x
    return pixels


def _whole(channels: int, a: Array) -> int:
    return -(-channels // (2 * lanes(a.itemsize))) * 2 * lanes(a.itemsize)


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#   9x9, 1 -> 64, forward:            6.8 /   11
#   9x9, 1 -> 64, weight gradient:    9.6 /   17
#   1x1, 64 -> 32, forward:            28 /   40
#   1x1, 64 -> 32, input gradient:     23 /   33
#   1x1, 64 -> 32, weight gradient:    26 /   38
#   5x5, 32 -> 1, forward:            5.6 /  9.1
#   5x5, 32 -> 1, input gradient:     3.6 /  5.4
#   5x5, 32 -> 1, weight gradient:    5.2 /  8.1
#   5x5, 64 -> 32, forward:           156 /  220
#   5x5, 64 -> 32, input gradient:     93 /  133
#   5x5, 64 -> 32, weight gradient:   154 /  224
#   3x3, 64 -> 32, forward:           276 /  394
#   3x3, 64 -> 32, input gradient:    160 /  221
#   3x3, 64 -> 32, weight gradient:   254 /  358
#
# What is slow: the other layers of SRCNN: one channel, one filter or a 1x1 kernel leave nothing
# to save between the transforms. And rounding errors grow with the powers of the points.
# Production takes other points, has tiles for 5x5 and, in one direction only, for 9x9, keeps a
# few tiles in the cache from the first transform to the last, and elsewhere sums plainly.
