"""Lesson 4: channels last, so that the innermost loop takes whole vectors.

Lesson 3 ran along rows of 21 or 25 pixels: one and a half vectors of 16. Filters come in 64 and
32. So the arrays are laid out anew, the filters of a pixel side by side:

    planes, NCHW                            channels last, NHWC
    x[c, i, j]:  c0 c0 c0 c0 ...            x[i, j, c]:   c0 c1 c2 ...  c0 c1 c2 ...
                 c1 c1 c1 c1 ...                          (pixel 0)     (pixel 1)

    y[p, 0:F]  =  b[0:F]  +  sum_{u,v,c}  x[p + (u,v), c]  *  w[u, v, c, 0:F]
                                          one number          a row of F numbers

Where there are fewer filters than channels (conv3 has one) the roles change: C partial sums,
y[p] = sum of the row x[p + (u,v), 0:C] * w[u, v, 0:C], are added up at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from ..jit import const, kernel

Array = Any


@kernel(lambda t: (const(t, 4), const(t, 4), const(t, 1), t[:, :, :, ::1]), parallel=True,
        optimize=3)
def forward(x, w, b, y):
    """y[n,i,j,:] = b[:] + sum_{u,v,c} x[n,i+u,j+v,c] w[u,v,c,:]."""
    N, OH, OW, _ = y.shape
    KH, KW, C, F = w.shape
    for n in prange(N):
        for i in range(OH):
            for j in range(OW):
                sums = y[n, i, j]
                sums[:] = b
                for u in range(KH):
                    for v in range(KW):
                        for c in range(C):
                            number, row = x[n, i + u, j + v, c], w[u, v, c]
                            for f in range(F):
                                sums[f] += number * row[f]


@kernel(lambda t: (const(t, 4), const(t, 4), const(t, 1), t[:, :, :, ::1]), parallel=True,
        optimize=3)
def forward_few_filters(x, w, b, y):
    """y[n,i,j,f] = b[f] + sum_c sums[c], sums[:] = sum_{u,v} x[n,i+u,j+v,:] w[f,u,v,:]."""
    N, OH, OW, F = y.shape
    _, KH, KW, C = w.shape
    for n in prange(N):
        sums = np.empty(C, y.dtype)
        for i in range(OH):
            for j in range(OW):
                for f in range(F):
                    sums[:] = 0
                    for u in range(KH):
                        for v in range(KW):
                            pixel, row = x[n, i + u, j + v], w[f, u, v]
                            for c in range(C):
                                sums[c] += pixel[c] * row[c]
                    y[n, i, j, f] = b[f] + sums.sum()


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, :, ::1]), parallel=True, optimize=3)
def backward_weight(x, dy, dw):
    """dw[n,u,v,c,:] = sum_{i,j} x[n,i+u,j+v,c] dy[n,i,j,:], image by image."""
    N, OH, OW, F = dy.shape
    _, KH, KW, C, _ = dw.shape
    for n in prange(N):
        dw[n] = 0
        for i in range(OH):
            for u in range(KH):
                for v in range(KW):
                    for j in range(OW):
                        gradient = dy[n, i, j]
                        for c in range(C):
                            number, sums = x[n, i + u, j + v, c], dw[n, u, v, c]
                            for f in range(F):
                                sums[f] += number * gradient[f]


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    return _to_planes(_forward(_channels_last(x), w, b))


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W).

    dx[p,q] = sum_{f,u,v} dy[f,p-u,q-v] w[f,c,u,v]: with u and v counted from the other end a
    convolution of dy, within KH-1 rows and KW-1 columns of zeros.
    """
    _, C, KH, KW = w.shape
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    border = ((0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1), (0, 0))
    padded = np.pad(_channels_last(dy), border)
    return _to_planes(_forward(padded, flipped, np.zeros(C, w.dtype)))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW).

    With few filters as a gradient of dy within zeros, by x: that runs along the channels.
    """
    (N, C, H, W), (_, F, OH, OW) = x.shape, dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    if F < C:
        border = ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1))
        dw = np.empty((N, KH, KW, F, C), x.dtype)
        backward_weight.compile(x.dtype)(
            _channels_last(np.pad(dy, border)), _channels_last(x), dw)
        return np.ascontiguousarray(dw.sum(axis=0)[::-1, ::-1].transpose(2, 3, 0, 1))
    dw = np.empty((N, KH, KW, C, F), x.dtype)
    backward_weight.compile(x.dtype)(_channels_last(x), _channels_last(dy), dw)
    return np.ascontiguousarray(dw.sum(axis=0).transpose(3, 2, 0, 1))


def _forward(x: Array, w: Array, b: Array) -> Array:
    N, H, W, C = x.shape
    F, _, KH, KW = w.shape
    y = np.empty((N, H - KH + 1, W - KW + 1, F), x.dtype)
    function, order = (forward_few_filters, (0, 2, 3, 1)) if F < C else (forward, (2, 3, 1, 0))
    function.compile(x.dtype)(x, np.ascontiguousarray(w.transpose(order)), b, y)
    return y


def _channels_last(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _to_planes(y: Array) -> Array:
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64           9.0 / 18                           16 / 20
#   1x1, 64 -> 32         2.7 / 2.9          11 / 14         9.8 / 16
#   5x5, 32 -> 1           8.9 / 14         6.9 / 11        5.3 / 7.8
#   5x5, 64 -> 32           15 / 22          13 / 23          18 / 31
#   3x3, 64 -> 32          9.9 / 15          15 / 23          21 / 31
#
# What is slow: each vector of sums is loaded and stored again for every single multiplication. It
# would have to stay in a register.
