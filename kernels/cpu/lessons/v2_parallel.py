"""Version 2: all threads (``prange``), and loops in an order that memory likes.

The same sums as version 1, turned inside out: the innermost loop runs along a row of the
image, so that consecutive numbers are read and written and LLVM can use vectors; what it adds
to, one row of the output, stays in the L1 cache. Every thread has results of its own (an image, or
a filter of dw), so no two of them ever write to one place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .jit import const, kernel

Array = Any


@kernel(lambda t: (const(t, 4), const(t, 4), const(t, 1), t[:, :, :, ::1]), parallel=True)
def forward(x, w, b, y):
    """Rows of y gather shifted rows of x: y[n,f,i,:] += x[n,c,i+u,v:v+OW] w[f,c,u,v]."""
    N, C, _, _ = x.shape
    F, _, KH, KW = w.shape
    _, _, OH, OW = y.shape
    for n in prange(N):
        for f in range(F):
            for i in range(OH):
                for j in range(OW):
                    y[n, f, i, j] = b[f]
                for c in range(C):
                    for u in range(KH):
                        for v in range(KW):
                            weight = w[f, c, u, v]
                            for j in range(OW):
                                y[n, f, i, j] += x[n, c, i + u, j + v] * weight


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), parallel=True)
def backward_input(dy, w, dx):
    """Rows of dx gather shifted rows of dy: dx[n,c,i+u,v:v+OW] += dy[n,f,i,:] w[f,c,u,v]."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    for n in prange(N):
        dx[n] = 0
        for c in range(C):
            for f in range(F):
                for i in range(OH):
                    for u in range(KH):
                        for v in range(KW):
                            weight = w[f, c, u, v]
                            for j in range(OW):
                                dx[n, c, i + u, j + v] += dy[n, f, i, j] * weight


@kernel(lambda t: (const(t, 4), const(t, 4), t[:, :, :, ::1]), parallel=True)
def backward_weight(x, dy, dw):
    """Rows of taps gather rows of x: dw[f,c,u,:] += x[n,c,i+u,j:j+KW] dy[n,f,i,j]."""
    N, _, OH, OW = dy.shape
    F, C, KH, KW = dw.shape
    for f in prange(F):
        dw[f] = 0
        for n in range(N):
            for c in range(C):
                for u in range(KH):
                    for i in range(OH):
                        for j in range(OW):
                            gradient = dy[n, f, i, j]
                            for v in range(KW):
                                dw[f, c, u, v] += x[n, c, i + u, j + v] * gradient


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    y = np.empty((N, F, H - KH + 1, W - KW + 1), x.dtype)
    forward.compile(x.dtype.name)(x, w, b, y)
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W)."""
    N, _, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx = np.empty((N, C, OH + KH - 1, OW + KW - 1), dy.dtype)
    backward_input.compile(dy.dtype.name)(dy, w, dx)
    return dx


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    _, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    dw = np.empty((F, C, H - OH + 1, W - OW + 1), x.dtype)
    backward_weight.compile(x.dtype.name)(x, dy, dw)
    return dw
