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
from ..simd import fma_rows, lanes, load_rows, store_rows, whole

Array = Any
CHUNKS = 8  # of a batch, each with a weight gradient of its own: no thread waits for another
P = 6  # rows of the tile


@inner
def tile(a, at, step, R, step_r, K, step_k, b, bt, F, c, ct):
    """C[i] += sum over r < R and k < K of a[at + i step + r step_r + k step_k] B[r K + k].

    For i < 6; rows of B and C are F apart and begin at bt and ct, and 2 V of each are taken.
    """
    V = lanes(a.itemsize)
    sums = load_rows(c, ct, F, 6, 2)
    for r in range(R):
        s = at + r * step_r
        for _ in range(K):
            sums = fma_rows(a, s, step, load_rows(b, bt, V, 1, 2), sums)
            bt += F
            s += step_k
    store_rows(c, ct, F, sums, 2)


@kernel(lambda t: (const(t, 2), const(t, 1), const(t, 1), t[:, ::1], *[types.int64] * 6),
        parallel=True)
def forward(x, w, b, y, W, C, KH, KW, OH, OW):
    """y[n, (i,j), :] = b + sum over u, (v,c) of x[n, (i+u, j+v, c)] w[u, (v,c), :]."""
    F, V = b.size, lanes(x.itemsize)
    for n in prange(x.shape[0]):
        for i in range(OH):
            for j in range(0, OW, P):  # what goes beyond the row is overwritten by the next one
                for f in range(0, F, 2 * lanes(x.itemsize)):
                    for at in range((i * OW + j) * F + f, (i * OW + j + P) * F + f, F):
                        store_rows(y[n], at, V, load_rows(b, f, V, 1, 2), 2)
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


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = H - KH + 1, W - KW + 1
    if KH * KW > 1 and lanes(w.itemsize) >= 2 * F:  # as many as there are taps fill a vector
        taps = w.transpose(2, 3, 0, 1).reshape(-1, C, 1, 1)
        z = conv2d_forward(x, taps, np.zeros(len(taps), w.dtype)).reshape(N, KH, KW, F, H, W)
        y = np.zeros((N, F, OH, OW), w.dtype) + b[:, None, None]
        for u, v in np.ndindex(KH, KW):
            y += z[:, u, v, :, u:u + OH, v:v + OW]
        return y
    weights = np.zeros((KH * KW * C, whole(F, w.itemsize)), w.dtype)
    weights[:, :F] = w.transpose(2, 3, 1, 0).reshape(-1, F)
    bias = np.pad(b, (0, whole(F, w.itemsize) - F))
    y = np.empty((N, (OH * OW + P) * bias.size), w.dtype)
    forward.compile(w.dtype)(_flat(x, C), weights.ravel(), bias, y, W, C, KH, KW, OH, OW)
    y = y[:, :OH * OW * bias.size].reshape(N, OH, OW, -1)[..., :F]
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) within zeros by the flipped w (F,C,KH,KW) to dx (N,C,H,W)."""
    _, C, KH, KW = w.shape
    padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    return conv2d_forward(padded, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), np.zeros(C, w.dtype))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    (N, C, H, W), (_, F, OH, OW) = x.shape, dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    if lanes(x.itemsize) >= 2 * F and F < C:  # dw of dy within zeros, by x
        padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
        dw = conv2d_backward_weight(padded, x)
        return np.ascontiguousarray(dw[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    columns = whole(F, x.itemsize)
    dw = np.zeros((min(N, CHUNKS), KH * (KW * C + P) * columns), x.dtype)
    backward_weight.compile(x.dtype)(
        _flat(x, C), _flat(dy, columns), dw, W, C, columns, KW, OH, OW)
    dw = dw.sum(axis=0).reshape(KH, KW * C + P, columns)[:, :KW * C, :F]
    return np.ascontiguousarray(dw.reshape(KH, KW, C, F).transpose(3, 2, 0, 1))


def _flat(x: Array, channels: int) -> Array:
    """Channels last, padded by zeros, each image flat with room for a tile beyond its end."""
    N, C, H, W = x.shape
    flat = np.zeros((N, H * W + P, channels), x.dtype)
    flat[:, :H * W, :C] = x.reshape(N, C, H * W).transpose(0, 2, 1)
    return flat.reshape(N, -1)


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64            40 / 57                           33 / 48
#   1x1, 64 -> 32           14 / 23          20 / 27          14 / 19
#   5x5, 32 -> 1            12 / 12          19 / 20          23 / 28
#   5x5, 64 -> 32           64 / 93          47 / 66          46 / 81
#   3x3, 64 -> 32           55 / 74          43 / 59          44 / 61
#
# What is slow: y goes to memory after each layer and comes back for the next, and it is transposed
# from planes to channels-last and back every time.
