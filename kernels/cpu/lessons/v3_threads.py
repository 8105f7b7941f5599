"""Lesson 3: all cores, by ``prange``.

The loops of lesson 2 use one core. Which of them may be shared out? Those whose turns write to
different places: then no thread ever waits for another, and none overwrites another's sum.

    forward            y[n, :]     the images                 thread 1 | thread 2 | thread 1 | ...
    input gradient     dx[n, :]    the images                    n = 0 |    n = 1 |    n = 2 | ...
    weight gradient    dw[f, c]    pairs of filter and channel; NOT the images: all add to one dw

``prange`` in the place of ``range`` is all it takes. Each result is summed by one thread, in the
same order as before, so it is the same for any number of threads, bit for bit.
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
    """y[n,f,i,:] = b[f] + sum_{c,u,v} x[n,c,i+u,v:v+OW] w[f,c,u,v]."""
    N, F, OH, OW = y.shape
    _, C, KH, KW = w.shape
    for n in prange(N):
        for f in range(F):
            for i in range(OH):
                sums = y[n, f, i]
                sums[:] = b[f]
                for c in range(C):
                    for u in range(KH):
                        for v in range(KW):
                            weight, row = w[f, c, u, v], x[n, c, i + u, v:v + OW]
                            for j in range(OW):
                                sums[j] += row[j] * weight


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), parallel=True, optimize=3)
def backward_input(dy, w, dx):
    """dx[n,c,i+u,v:v+OW] += dy[n,f,i,:] w[f,c,u,v]."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    for n in prange(N):
        dx[n] = 0
        for c in range(C):
            for f in range(F):
                for i in range(OH):
                    row = dy[n, f, i]
                    for u in range(KH):
                        for v in range(KW):
                            weight, sums = w[f, c, u, v], dx[n, c, i + u, v:v + OW]
                            for j in range(OW):
                                sums[j] += row[j] * weight


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), parallel=True, optimize=3)
def backward_weight(x, dy, dw):
    """Sum x[n,c,i+u,v:v+OW] dy[n,f,i,:] over n and i into sums; dw[f,c,u,v] is their sum."""
    N, _, OH, OW = dy.shape
    F, C, KH, KW = dw.shape
    for pair in prange(F * C):
        f, c = pair // C, pair % C
        sums = np.empty(OW, dw.dtype)  # each thread needs its own
        for u in range(KH):
            for v in range(KW):
                sums[:] = 0
                for n in range(N):
                    for i in range(OH):
                        row, gradient = x[n, c, i + u, v:v + OW], dy[n, f, i]
                        for j in range(OW):
                            sums[j] += row[j] * gradient[j]
                dw[f, c, u, v] = sums.sum()


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
#   9x9, 1 -> 64          6.2 / 9.9                          9.0 / 10
#   1x1, 64 -> 32         5.1 / 6.0        5.7 / 6.1         8.6 / 17
#   5x5, 32 -> 1           7.7 / 15        4.9 / 8.1         8.8 / 16
#   5x5, 64 -> 32          8.2 / 11        5.2 / 9.9         5.9 / 11
#   3x3, 64 -> 32         4.5 / 6.9        6.1 / 7.8         6.6 / 11
#
# What is slow: what was slow in lesson 2, on every core. ``prange`` also compiles for some seconds,
# and its threads do not survive a fork; production uses threads of its own.
