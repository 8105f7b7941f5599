"""Lesson 1: the definition of the convolution, loop by loop.

An output pixel of filter f is a sum of products over a window of all C planes of the image:

             x[n, c]                 w[f, c]           y[n, f]
        +----------------+          +------+         +------------+
        |     v          |          |      |         |    j       |
        |   +------+     |    *     |  KH  |   ->    |  i #       |
        | u | i,j  |     |          |  KW  |         |            |
        |   +------+     |          +------+         +------------+
        +----------------+

One thread, one number at a time. Compiled by Numba this is some hundred times faster than the same
loops in Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import const, kernel

Array = Any


@kernel(lambda t: (const(t, 4), const(t, 4), const(t, 1), t[:, :, :, ::1]), optimize=3)
def forward(x, w, b, y):
    """y[n,f,i,j] = b[f] + sum_{c,u,v} x[n,c,i+u,j+v] w[f,c,u,v]."""
    N, F, OH, OW = y.shape
    _, C, KH, KW = w.shape
    for n in range(N):
        for f in range(F):
            for i in range(OH):
                for j in range(OW):
                    total = b[f]
                    for c in range(C):
                        for u in range(KH):
                            for v in range(KW):
                                total += x[n, c, i + u, j + v] * w[f, c, u, v]
                    y[n, f, i, j] = total


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), optimize=3)
def backward_input(dy, w, dx):
    """dx[n,c,i+u,j+v] += dy[n,f,i,j] w[f,c,u,v]: each output gives to what it was made of."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx[:] = 0
    for n in range(N):
        for f in range(F):
            for i in range(OH):
                for j in range(OW):
                    for c in range(C):
                        for u in range(KH):
                            for v in range(KW):
                                dx[n, c, i + u, j + v] += dy[n, f, i, j] * w[f, c, u, v]


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), optimize=3)
def backward_weight(x, dy, dw):
    """dw[f,c,u,v] = sum_{n,i,j} x[n,c,i+u,j+v] dy[n,f,i,j]."""
    N, _, OH, OW = dy.shape
    F, C, KH, KW = dw.shape
    for f in range(F):
        for c in range(C):
            for u in range(KH):
                for v in range(KW):
                    total = x.dtype.type(0)
                    for n in range(N):
                        for i in range(OH):
                            for j in range(OW):
                                total += x[n, c, i + u, j + v] * dy[n, f, i, j]
                    dw[f, c, u, v] = total


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    y = np.empty((N, F, H - KH + 1, W - KW + 1), x.dtype)
    forward.compile(x.dtype)(x, w, b, y)
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W)."""
    N, _, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx = np.empty((N, C, OH + KH - 1, OW + KW - 1), dy.dtype)
    backward_input.compile(dy.dtype)(dy, w, dx)
    return dx


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    _, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    dw = np.empty((F, C, H - OH + 1, W - OW + 1), x.dtype)
    backward_weight.compile(x.dtype)(x, dy, dw)
    return dw


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64          2.9 / 3.0                         2.0 / 2.0
#   1x1, 64 -> 32         0.7 / 0.6        0.4 / 0.4        2.0 / 2.0
#   5x5, 32 -> 1          1.9 / 1.9        2.7 / 2.7        2.0 / 2.0
#   5x5, 64 -> 32         2.0 / 1.9        2.8 / 2.5        1.9 / 2.0
#   3x3, 64 -> 32         2.0 / 2.0        1.6 / 1.6        2.0 / 2.0
#
# What is slow: every multiplication waits for the addition before it, four cycles, because
# sums of floating-point numbers may not be taken in another order without being asked for; and
# a vector of 8 or 16 numbers is never used.
