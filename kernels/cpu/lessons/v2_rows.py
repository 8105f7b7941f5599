"""Lesson 2: the innermost loop runs along a row of the image.

In lesson 1 all the processor does is wait: each addition needs the result of the last. Here the
same loops are exchanged. The innermost one takes a weight, and adds it times a row of
the image to a row of the output:

    x[c, i+u]     . . [x x x x x x x x x x] . .        v further to the right
                        *w[f,c,u,v], the same for all
    y[f, i]           [+ + + + + + + + + +]            OW sums, none waiting for another

Now all additions of the loop are independent, and neighbours in memory: the compiler turns them
into vector instructions, 8 or 16 numbers at a time. The row of sums stays in the L1 cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import const, kernel

Array = Any


@kernel(lambda t: (const(t, 4), const(t, 4), const(t, 1), t[:, :, :, ::1]), optimize=3)
def forward(x, w, b, y):
    """y[n,f,i,:] = b[f] + sum_{c,u,v} x[n,c,i+u,v:v+OW] w[f,c,u,v]."""
    N, F, OH, OW = y.shape
    _, C, KH, KW = w.shape
    for n in range(N):
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


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), optimize=3)
def backward_input(dy, w, dx):
    """dx[n,c,i+u,v:v+OW] += dy[n,f,i,:] w[f,c,u,v]."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx[:] = 0
    for n in range(N):
        for c in range(C):
            for f in range(F):
                for i in range(OH):
                    row = dy[n, f, i]
                    for u in range(KH):
                        for v in range(KW):
                            weight, sums = w[f, c, u, v], dx[n, c, i + u, v:v + OW]
                            for j in range(OW):
                                sums[j] += row[j] * weight


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1], t[::1]), optimize=3)
def backward_weight(x, dy, dw, sums):
    """Sum x[n,c,i+u,v:v+OW] dy[n,f,i,:] over n and i into sums; dw[f,c,u,v] is their sum."""
    N, _, OH, OW = dy.shape
    F, C, KH, KW = dw.shape
    for f in range(F):
        for c in range(C):
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
    backward_weight.compile(x.dtype)(x, dy, dw, np.empty(OW, x.dtype))
    return dw


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64          4.8 / 9.5                         8.0 / 8.0
#   1x1, 64 -> 32         5.7 / 5.7        5.0 / 5.0        7.2 / 7.2
#   5x5, 32 -> 1          7.7 / 8.2        4.5 / 3.2        5.3 / 7.5
#   5x5, 64 -> 32         8.3 / 8.5        5.1 / 5.5        7.1 / 7.0
#   3x3, 64 -> 32         7.8 / 7.7        6.0 / 5.9        5.9 / 6.5
#
# What is slow: each multiplication still loads two numbers and stores one, where the processor
# can do two multiplications for two loads. A row of 25 is one and a half vectors. And one core
# does all the work.
