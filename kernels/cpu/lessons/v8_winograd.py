"""Lesson 8: Winograd convolution, F(4, 3): 36 multiplications in the place of 144.

Lesson 7 multiplies at the rate of the machine; only an algorithm with fewer multiplications is
faster. Two polynomials with K and m coefficients have a product with m + K - 1, so its values at
n = m + K - 1 points determine it: n multiplications, not m K. A correlation of n pixels d with K
taps g is the transpose of such a product, for m results y (n = 6 here: m = 4 for K = 3):

    y  =  A^T [ (G g) * (B^T d) ]                  * : number by number
    A[p, i] = p^i,  G[p, k] = p^k,  B^T = inverse transpose of the n x n matrix p^i

with powers of the points p = 0, 1, -1, 2, -2 and infinity, where only the highest power counts.
In two dimensions, and with channels, each of the 36 points (p, q) is a product of matrices:

     d: 6 x 6 pixels, overlapping            y: 4 x 4 pixels, side by side
    +-----------+                            +-------+
    |   +-------|---+                        | tile  |       Y = A^T [ (G g G^T)(B^T d B) ] A
    |   |       |   |   B^T d B   A^T . A    |   0   |
    |   |   1   |   |  -------->  ------->   +-------+
    +---|-------+   |  36 products           | tile  |
        +-----------+  x~[t,c] w~[c,f]       |   1   |

    dw = G^T [ sum over tiles of (B^T d B)(A dY A^T) ] G

The transforms are small products along rows of channels. What they cost must be less than what is
saved: that takes many channels. Filters beyond 5x5 are cut into blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from ..jit import const, inner, kernel
from ..simd import broadcast, fma, lanes, load, store

Array = Any
N_POINTS = 6
POINTS = (0, 1, -1, 2, -2)  # and infinity
GROUP = 1 << 18  # floats of x in the transform domain that are held at once


def matrices(K: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Return A^T (m,6), G (6,K) and B^T (6,6) for filters of K taps."""
    def powers(count: int) -> Array:
        at_infinity = np.eye(count)[-1:]
        return np.vstack([np.vander(POINTS, count, increasing=True), at_infinity])

    BT = np.linalg.inv(powers(N_POINTS).T)
    AT, G = powers(N_POINTS + 1 - K).T, powers(K)
    return tuple(np.ascontiguousarray(a, dtype) for a in (AT, G, BT))


@inner
def apply(matrix, a, at, step, b, bt, step_b, n):
    """Row i of b = sum over k of matrix[i, k] times row k of a; rows of n numbers, steps apart."""
    for v in range(0, n, lanes(a.itemsize)):
        for i in range(matrix.shape[0]):
            total = broadcast(a.dtype.type(0))
            for k in range(matrix.shape[1]):
                total = fma(broadcast(matrix[i, k]), load(a, at + k * step + v), total)
            store(b, bt + i * step_b + v, total)


@kernel(lambda t: (const(t, 1), *[const(t, 2)] * 2, t[::1], *[types.int64] * 8), parallel=True)
def to_points(x, down, right, points, N, H, W, C, TH, TW, mh, mw):
    """points[p, q, tile, :] = (down x_tile right^T)[p, q], for the tiles of N images [pixel][C]."""
    T, width = N * TH * TW, right.shape[1] * C
    for row in prange(N * TH):
        half = np.empty(N_POINTS * width + 16, x.dtype)
        for column in range(TW):
            at = ((row // TH * H + row % TH * mh) * W + column * mw) * C
            apply(down, x, at, W * C, half, 0, width, width)
            for p in range(N_POINTS):
                to = (p * N_POINTS * T + row * TW + column) * C
                apply(right, half, p * width, C, points, to, T * C, C)


@kernel(lambda t: (const(t, 1), *[const(t, 2)] * 2, t[::1], *[types.int64] * 4), parallel=True)
def from_points(points, down, right, y, N, TH, TW, F):
    """y_tile = down points[:, :, tile] right^T, to images of whole tiles, [pixel][F]."""
    T, (mh, mw) = N * TH * TW, (down.shape[0], right.shape[0])
    for row in prange(N * TH):
        half = np.empty(mh * N_POINTS * F, y.dtype)
        for column in range(TW):
            for q in range(N_POINTS):
                at = (q * T + row * TW + column) * F
                apply(down, points, at, N_POINTS * T * F, half, q * F, N_POINTS * F, F)
            for i in range(mh):
                to = ((row * mh + i) * TW + column) * mw * F
                apply(right, half, i * N_POINTS * F, F, y, to, F, F)


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = H - KH + 1, W - KW + 1
    if max(KH, KW) > 5:
        y, zero = np.zeros((N, F, OH, OW), x.dtype), np.zeros(F, x.dtype)
        for u, v, part in _blocks(w):
            window = x[:, :, u:u + OH + part.shape[2] - 1, v:v + OW + part.shape[3] - 1]
            y += conv2d_forward(window, part, zero)
        return y + b[:, None, None]
    AH, GH, BH = matrices(KH, x.dtype)
    AW, GW, BW = matrices(KW, x.dtype)
    weights = np.zeros((N_POINTS, N_POINTS, _whole(C, x), _whole(F, x)), x.dtype)
    weights[:, :, :C, :F] = np.einsum("pu,fcuv,qv->pqcf", GH, w, GW, optimize=True)
    y = np.empty((N, F, OH, OW), x.dtype)
    for group, TH, TW in _groups(N, OH, OW, AH, AW, C):
        points = _transform(x[group], BH, BW, TH, TW, len(AH), len(AW))
        points = np.ascontiguousarray(points @ weights).ravel()
        n, Fp = len(y[group]), weights.shape[-1]
        tiles = np.empty((n, TH * len(AH), TW * len(AW), Fp), x.dtype)
        from_points.compile(x.dtype.name)(points, AH, AW, tiles.reshape(-1), n, TH, TW, Fp)
        y[group] = tiles[:, :OH, :OW, :F].transpose(0, 3, 1, 2) + b[:, None, None]
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
    KH, KW = H - OH + 1, W - OW + 1
    dw = np.empty((F, C, KH, KW), x.dtype)
    if max(KH, KW) > 5:
        for u, v, part in _blocks(dw):
            window = x[:, :, u:u + OH + part.shape[2] - 1, v:v + OW + part.shape[3] - 1]
            part[:] = conv2d_backward_weight(window, dy)
        return dw
    AH, GH, BH = matrices(KH, x.dtype)
    AW, GW, BW = matrices(KW, x.dtype)
    total = 0
    for group, TH, TW in _groups(N, OH, OW, AH, AW, C):
        x_points = _transform(x[group], BH, BW, TH, TW, len(AH), len(AW))
        dy_points = _transform(dy[group], np.ascontiguousarray(AH.T), np.ascontiguousarray(AW.T),
                               TH, TW, len(AH), len(AW))
        total = total + x_points.swapaxes(2, 3) @ dy_points
    return np.einsum("pu,pqcf,qv->fcuv", GH, total[:, :, :C, :F], GW, optimize=True)


def _transform(x: Array, down: Array, right: Array, TH: int, TW: int, mh: int, mw: int) -> Array:
    """Return (6,6,tiles,C), the channels padded by zeros to whole vectors."""
    N, C, H, W = x.shape
    rows, columns = (TH - 1) * mh + down.shape[1], (TW - 1) * mw + right.shape[1]
    padded = np.zeros((N, rows, columns, _whole(C, x)), x.dtype)
    padded[:, :H, :W, :C] = x[:, :, :rows, :columns].transpose(0, 2, 3, 1)
    points = np.empty((N_POINTS, N_POINTS, N * TH * TW, padded.shape[-1]), x.dtype)
    to_points.compile(x.dtype.name)(padded.reshape(-1), down, right, points.reshape(-1),
                                    N, rows, columns, padded.shape[-1], TH, TW, mh, mw)
    return points


def _groups(N: int, OH: int, OW: int, AH: Array, AW: Array, C: int) -> Any:
    TH, TW = -(-OH // len(AH)), -(-OW // len(AW))
    size = max(1, GROUP // (N_POINTS**2 * TH * TW * C))
    return [(slice(n, n + size), TH, TW) for n in range(0, N, size)]


def _blocks(w: Array) -> Any:
    return [(u, v, w[:, :, u:u + 3, v:v + 3])
            for u in range(0, w.shape[2], 3) for v in range(0, w.shape[3], 3)]


def _whole(channels: int, a: Array) -> int:
    return -(-channels // lanes(a.itemsize)) * lanes(a.itemsize)


# MEASURED
#
# What is slow: the transforms, about as long as the products, and small filters or few channels,
# where they cost more than they save; and the points, with powers up to 2^5, make rounding
# errors larger. Production takes other points, keeps a few tiles in the cache from the first
# transform to the last, and uses Winograd convolution only where it pays.
