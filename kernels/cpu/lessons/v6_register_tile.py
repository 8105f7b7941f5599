"""Lesson 6: the register tile, what BLAS does inside, on the image itself.

Lesson 5 leaves the work to BLAS, and copies each number of the image KH*KW times for it. Here
is BLAS's own idea without the copies. A tile of sums, 6 pixels times 2 vectors of filters, stays in
registers all the time; each step loads 2 vectors of weights and 6 single numbers of the
image, and does 12 vectors of multiply-adds with them:

                  w0     w1        w[k, 0:V], w[k, V:2V], used 6 times each
               +------+------+
       x[0] -> | sums | sums |     each x: one number, copied to all V lanes, used twice
       x[1] -> | sums | sums |
        ...    | ...  | ...  |     12 vectors of sums, 2 of weights, 1 number: they fit the
       x[5] -> | sums | sums |     registers, and nothing is stored until the end
               +------+------+

Numba keeps no array in registers, but a :class:`..simd.Vector` is a variable like any other. All
three operations are this one tile, a matrix product C += A B whose A is read from the image:

    ==============  ================  ======================  =================
    operation       rows i            terms r, k              B
    ==============  ================  ======================  =================
    forward         output pixels     kernel rows u; (v, c)   w, filters
    input gradient  input pixels      kernel rows u; (v, f)   w flipped, channels
    weight gradient taps (v, c)       output rows i; j        dy, filters
    ==============  ================  ======================  =================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from ..jit import const, inner, kernel
from ..simd import broadcast, fma, lanes, load, store

Array = Any
CHUNKS = 8  # of a batch, each with a weight gradient of its own: no thread waits for another
P = 6  # rows of the tile


@inner
def load2(a, i):
    """Return two neighbouring vectors; what follows stores them, and multiplies and adds."""
    return load(a, i), load(a, i + lanes(a.itemsize))


@inner
def store2(a, i, pair):  # noqa: D103
    store(a, i, pair[0]), store(a, i + lanes(a.itemsize), pair[1])


@inner
def fma2(number, b, c):  # noqa: D103
    x = broadcast(number)
    return fma(x, b[0], c[0]), fma(x, b[1], c[1])


@inner
def tile(a, at, step, R, step_r, K, step_k, b, bt, F, c, ct):
    """C[i] += sum over r < R and k < K of a[at + i step + r step_r + k step_k] B[r K + k].

    For i < 6; rows of B and C are F apart and begin at bt and ct, and 2 V of each are taken.
    """
    c0, c1, c2 = load2(c, ct), load2(c, ct + F), load2(c, ct + 2 * F)
    c3, c4, c5 = load2(c, ct + 3 * F), load2(c, ct + 4 * F), load2(c, ct + 5 * F)
    for r in range(R):
        s = at + r * step_r
        for _ in range(K):
            row = load2(b, bt)
            c0 = fma2(a[s], row, c0)
            c1 = fma2(a[s + step], row, c1)
            c2 = fma2(a[s + 2 * step], row, c2)
            c3 = fma2(a[s + 3 * step], row, c3)
            c4 = fma2(a[s + 4 * step], row, c4)
            c5 = fma2(a[s + 5 * step], row, c5)
            bt += F
            s += step_k
    store2(c, ct, c0), store2(c, ct + F, c1), store2(c, ct + 2 * F, c2)
    store2(c, ct + 3 * F, c3), store2(c, ct + 4 * F, c4), store2(c, ct + 5 * F, c5)


@kernel(lambda t: (const(t, 2), const(t, 1), const(t, 1), t[:, ::1], *[types.int64] * 6),
        parallel=True)
def forward(x, w, b, y, W, C, KH, KW, OH, OW):
    """y[n, (i,j), :] = b + sum over u, (v,c) of x[n, (i+u, j+v, c)] w[u, (v,c), :]."""
    F = b.size
    for n in prange(x.shape[0]):
        for i in range(OH):
            for j in range(0, OW, P):  # what goes beyond the row is overwritten by the next one
                for f in range(0, F, 2 * lanes(x.itemsize)):
                    for p in range(P):
                        store2(y[n], (i * OW + j + p) * F + f, load2(b, f))
                    tile(x[n], (i * W + j) * C, C, KH, W * C, KW * C, 1, w, f, F,
                         y[n], (i * OW + j) * F + f)


@kernel(lambda t: (const(t, 2), const(t, 2), t[:, ::1], *[types.int64] * 6), parallel=True)
def backward_weight(x, dy, dw, W, C, F, KW, OH, OW):
    """dw[u, (v,c), :] += sum over i, j of x[n, (i+u, j+v, c)] dy[n, (i,j), :], for n of a chunk."""
    chunks, rows = dw.shape[0], KW * C + P
    for chunk in prange(chunks):
        for n in range(chunk, x.shape[0], chunks):
            for u in range(dw.shape[1] // (rows * F)):
                for r in range(0, KW * C, P):
                    for f in range(0, F, 2 * lanes(x.itemsize)):
                        tile(x[n], u * W * C + r, 1, OH, W * C, OW, C, dy[n], f, F,
                             dw[chunk], (u * rows + r) * F + f)


@kernel(lambda t: (t[:, :, :, :], const(t, 1), t[:, :, :, ::1], types.int64), parallel=True)
def add_taps(z, b, y, KW):
    """y[n,i,j,f] = b[f] + sum over u, v of z[n,i+u,j+v,(u,v,f)]."""
    N, OH, OW, F = y.shape
    for n in prange(N):
        for i in range(OH):
            for j in range(OW):
                y[n, i, j] = b
                for tap in range(z.shape[3] // F):
                    for f in range(F):
                        y[n, i, j, f] += z[n, i + tap // KW, j + tap % KW, tap * F + f]


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    return _to_planes(_convolve(x.transpose(0, 2, 3, 1), w, b))


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) within zeros by the flipped w (F,C,KH,KW) to dx (N,C,H,W)."""
    _, C, KH, KW = w.shape
    padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return _to_planes(_convolve(padded.transpose(0, 2, 3, 1), flipped, np.zeros(C, w.dtype)))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    (N, C, H, W), (_, F, OH, OW) = x.shape, dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    if lanes(x.itemsize) >= 2 * F and F < C:  # dw of dy within zeros, by x
        padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
        dw = conv2d_backward_weight(padded, x)
        return np.ascontiguousarray(dw[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    flat_x, flat_dy = _flat(x.transpose(0, 2, 3, 1), C), _flat(dy.transpose(0, 2, 3, 1), _pad(F, x))
    dw = np.zeros((min(N, CHUNKS), KH * (KW * C + P) * _pad(F, x)), x.dtype)
    backward_weight.compile(x.dtype.name)(flat_x, flat_dy, dw, W, C, _pad(F, x), KW, OH, OW)
    dw = dw.sum(axis=0).reshape(KH, KW * C + P, -1)[:, :KW * C, :F]
    return np.ascontiguousarray(dw.reshape(KH, KW, C, F).transpose(3, 2, 0, 1))


def _convolve(x: Array, w: Array, b: Array) -> Array:
    """Channels last: x (N,H,W,C), w (F,C,KH,KW), b (F,) to y (N,OH,OW,F)."""
    (N, H, W, C), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = H - KH + 1, W - KW + 1
    if KH * KW > 1 and lanes(w.itemsize) >= 2 * F:  # as many as there are taps fill a vector
        taps = w.transpose(2, 3, 0, 1).reshape(KH * KW * F, C, 1, 1)
        y = np.empty((N, OH, OW, F), w.dtype)
        add_taps.compile(w.dtype.name)(_convolve(x, taps, np.zeros(len(taps), w.dtype)), b, y, KW)
        return y
    weights = np.zeros((KH * KW * C, _pad(F, w)), w.dtype)
    weights[:, :F] = w.transpose(2, 3, 1, 0).reshape(-1, F)
    bias = np.pad(b, (0, _pad(F, w) - F))
    y = np.empty((N, (OH * OW + P) * bias.size), w.dtype)
    forward.compile(w.dtype.name)(_flat(x, C), weights.ravel(), bias, y, W, C, KH, KW, OH, OW)
    return y[:, :OH * OW * bias.size].reshape(N, OH, OW, -1)[..., :F]


def _pad(F: int, a: Array) -> int:
    return -(-F // (2 * lanes(a.itemsize))) * 2 * lanes(a.itemsize)


def _flat(x: Array, channels: int) -> Array:
    """Each image flat, its channels padded by zeros, and room for a tile beyond the last pixel."""
    N, H, W, C = x.shape
    flat = np.zeros((N, (H * W + P) * channels), x.dtype)
    flat[:, :H * W * channels].reshape(N, H, W, channels)[..., :C] = x
    return flat


def _to_planes(y: Array) -> Array:
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#   9x9, 1 -> 64, forward:             99 /  137
#   9x9, 1 -> 64, weight gradient:     91 /  149
#   1x1, 64 -> 32, forward:            68 /   85
#   1x1, 64 -> 32, input gradient:     57 /   69
#   1x1, 64 -> 32, weight gradient:    75 /  104
#   5x5, 32 -> 1, forward:             17 /   29
#   5x5, 32 -> 1, input gradient:      33 /   44
#   5x5, 32 -> 1, weight gradient:     50 /   69
#   5x5, 64 -> 32, forward:           209 /  365
#   5x5, 64 -> 32, input gradient:    133 /  222
#   5x5, 64 -> 32, weight gradient:   132 /  247
#   3x3, 64 -> 32, forward:           193 /  307
#   3x3, 64 -> 32, input gradient:    118 /  185
#   3x3, 64 -> 32, weight gradient:   128 /  230
#
# What is slow: y goes to memory after each layer and comes back for the next, and it is transposed
# from planes to channels-last and back every time.
