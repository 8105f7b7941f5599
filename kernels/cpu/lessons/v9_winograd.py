"""Lesson 9: Winograd convolution whose transforms stay in the registers and the cache.

Lesson 8 transforms the whole batch in memory. Here it goes image by image, channels last, so that a
transform is some twenty additions of vectors of channels, and the products are lesson 6's tile:

    x[n]  --- B^T d B, a vector of channels --->  x_domain[p, tile, c]    all of it in L2,
                                                    |  36 products        overwritten by the
    y[n]  <-- A^T Y A, a vector of filters ----   y_domain[p, tile, f]    next image

:func:`..simd.linear` makes straight code of a matrix of constants, without its zeros. A transform
multiplies by it twice, the columns of a tile and then, from a scratch of one tile, its rows. Pixels
and transform domain differ in their strides only, so one function serves all three directions.

Other filters than 3x3 are cut into such blocks, which is right, but fast only for many channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from ..jit import const, inner, kernel
from ..simd import TILE, lanes, linear, load_rows, store_rows, tile, whole

Array = Any
CHUNKS = 16  # of a batch, for the threads; each with a weight gradient of its own
AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
BT = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
               [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])


def on_both_sides(matrix: Array) -> Any:
    """Return a compiled function that sets y = M x M^T for TH x TW tiles of C channels."""
    times, rows, columns = linear(matrix), *matrix.shape

    @inner
    def transform(x, strides, y, y_strides, TH, TW, C, half):
        down, right, row, column = strides
        y_down, y_right, y_row, y_column = y_strides
        V = lanes(x.itemsize)
        for t in range(TH * TW):
            at, to = t // TW * down + t % TW * right, t // TW * y_down + t % TW * y_right
            for c in range(0, C, V):
                for j in range(columns):
                    x_rows = load_rows(x, at + j * column + c, row, columns, 1)
                    store_rows(half, j * V, columns * V, times(x_rows), 1)
                for p in range(rows):
                    x_columns = load_rows(half, p * columns * V, V, columns, 1)
                    store_rows(y, to + p * y_row + c, y_column, times(x_columns), 1)

    return transform


pixels_to_domain, gradient_to_domain, domain_to_pixels = map(on_both_sides, (BT, AT.T, AT))


@inner
def strides(TW, C, W, S):
    """Return two sets: for an image W pixels wide, and for a transform domain of S tiles."""
    return (4 * W * C, 4 * C, W * C, C), (TW * C, C, 6 * S * C, S * C)


@inner
def multiply(a, size, step, step_k, M, K, b, F, c):
    """C[p] += A[p] B[p] for 36 p: A (M,K) has rows ``step`` apart, columns ``step_k``."""
    for p in range(36):
        for i in range(0, M, TILE):
            for f in range(0, F, 2 * lanes(a.itemsize)):
                tile(a, p * size + i * step, step, 1, 0, K, step_k, b, p * (b.size // 36) + f, F,
                     c, p * (c.size // 36) + i * F + f)


@kernel(lambda t: (const(t, 2), const(t, 1), t[:, ::1], *[types.int64] * 4), parallel=True)
def forward(x, w, y, TH, TW, C, F):
    """y[n] = A^T [ sum over c of w[p, c, :] (B^T x[n] B)[p, :, c] ] A."""
    S = -(-TH * TW // TILE) * TILE
    for chunk in prange(min(CHUNKS, len(x))):
        x_domain, y_domain = np.zeros(36 * S * C, x.dtype), np.empty(36 * S * F, x.dtype)
        half = np.empty(36 * lanes(x.itemsize), x.dtype)
        for n in range(chunk, len(x), CHUNKS):
            pixels, domain = strides(TW, C, 4 * TW + 2, S)
            pixels_to_domain(x[n], pixels, x_domain, domain, TH, TW, C, half)
            y_domain[:] = 0
            multiply(x_domain, S * C, C, 1, TH * TW, C, w, F, y_domain)
            pixels, domain = strides(TW, F, 4 * TW, S)
            domain_to_pixels(y_domain, domain, y[n], pixels, TH, TW, F, half)


@kernel(lambda t: (const(t, 2), const(t, 2), t[:, ::1], *[types.int64] * 4), parallel=True)
def backward_weight(x, dy, dw, TH, TW, C, F):
    """dw[p, c, :] += sum over tiles of (B^T x[n] B)[p, :, c] (A dy[n] A^T)[p, :, :]."""
    S = TH * TW
    for chunk in prange(len(dw)):
        x_domain, dy_domain = np.zeros(36 * S * C + TILE, x.dtype), np.empty(36 * S * F, x.dtype)
        half = np.empty(36 * lanes(x.itemsize), x.dtype)
        for n in range(chunk, len(x), len(dw)):
            pixels, domain = strides(TW, C, 4 * TW + 2, S)
            pixels_to_domain(x[n], pixels, x_domain, domain, TH, TW, C, half)
            pixels, domain = strides(TW, F, 4 * TW, S)
            gradient_to_domain(dy[n], pixels, dy_domain, domain, TH, TW, F, half)
            multiply(x_domain, S * C, 1, C, C, S, dy_domain, F, dw[chunk])


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    TH, TW = -(-(H - KH + 1) // 4), -(-(W - KW + 1) // 4)
    w = np.pad(w, ((0, 0), (0, 0), (0, -KH % 3), (0, -KW % 3)))
    y = np.zeros((N, F, H - KH + 1, W - KW + 1), x.dtype) + b[:, None, None]
    for u in range(0, KH, 3):
        for v in range(0, KW, 3):
            pixels = _pixels(x[:, :, u:, v:], 4 * TH + 2, 4 * TW + 2)
            weights = np.zeros((6, 6, pixels.shape[3], whole(F, x.itemsize)), x.dtype)
            weights[:, :, :C, :F] = np.einsum("pu,qv,fcuv->pqcf", G, G, w[:, :, u:u + 3, v:v + 3],
                                              optimize=True)
            tiles = np.empty((N, 4 * TH, 4 * TW, weights.shape[3]), x.dtype)
            forward.compile(x.dtype)(pixels.reshape(N, -1), weights.ravel(),
                                          tiles.reshape(N, -1), TH, TW, *weights.shape[2:])
            y += tiles[:, :y.shape[2], :y.shape[3], :F].transpose(0, 3, 1, 2)
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) within zeros by the flipped w (F,C,KH,KW) to dx (N,C,H,W)."""
    _, C, KH, KW = w.shape
    padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    return conv2d_forward(padded, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), np.zeros(C, w.dtype))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    (N, C, H, W), (_, F, OH, OW) = x.shape, dy.shape
    TH, TW, KH, KW = -(-OH // 4), -(-OW // 4), H - OH + 1, W - OW + 1
    gradient = _pixels(dy, 4 * TH, 4 * TW)
    dw = np.empty((F, C, KH - KH % -3, KW - KW % -3), x.dtype)
    for u in range(0, KH, 3):
        for v in range(0, KW, 3):
            pixels = _pixels(x[:, :, u:, v:], 4 * TH + 2, 4 * TW + 2)
            CP, FP = pixels.shape[3], gradient.shape[3]
            sums = np.zeros((min(N, CHUNKS), 36 * (CP - CP % -TILE) * FP), x.dtype)
            backward_weight.compile(x.dtype)(
                pixels.reshape(N, -1), gradient.reshape(N, -1), sums, TH, TW, CP, FP)
            sums = sums.sum(axis=0).reshape(6, 6, -1, FP)[:, :, :C, :F]
            dw[:, :, u:u + 3, v:v + 3] = np.einsum("pu,qv,pqcf->fcuv", G, G, sums, optimize=True)
    return np.ascontiguousarray(dw[:, :, :KH, :KW])


def _pixels(x: Array, rows: int, columns: int) -> Array:
    """Channels last, cut or within zeros: whole tiles of pixels, whole vectors of channels."""
    pixels = np.zeros((len(x), rows, columns, whole(x.shape[1], x.itemsize)), x.dtype)
    x = x[:, :, :rows, :columns].transpose(0, 2, 3, 1)
    pixels[:, :x.shape[1], :x.shape[2], :x.shape[3]] = x
    return pixels


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64          2.5 / 3.5                         3.1 / 6.2
#   1x1, 64 -> 32         6.0 / 7.8        4.8 / 6.9        5.3 / 7.4
#   5x5, 32 -> 1          1.6 / 2.1        1.1 / 1.4        1.7 / 2.0
#   5x5, 64 -> 32           40 / 52          24 / 35          35 / 54
#   3x3, 64 -> 32           63 / 72          44 / 61          57 / 75
#
# What is slow: the other layers of SRCNN: one channel, one filter or a 1x1 kernel leave nothing
# to save between the transforms. Production takes other points, has tiles for 5x5 and, in one
# direction only, for 9x9, keeps a few tiles in the cache all the way, and elsewhere sums plainly.
