"""Lesson 5: im2col, then one product of matrices, done by BLAS.

In lesson 4 each multiplication still loads a sum and stores it again. A product of large
matrices need not: BLAS, which NumPy calls for ``@``, loads each number once for many uses. So the
convolution is made one. Every window of the image becomes a column, all C*KH*KW numbers that an
output pixel is made of; its row of weights is the filter:

      x (3 x 4), window 2 x 2            columns (4 taps x 6 pixels)       w (F x 4 taps)

       a  b  c  d                          a  b  c  e  f  g   <- tap (0,0)
       e  f  g  h            ->            b  c  d  f  g  h   <- tap (0,1)     y = w @ columns
       i  j  k  l                          e  f  g  i  j  k   <- tap (1,0)
                                           f  g  h  j  k  l   <- tap (1,1)

    y = w columns(x)        dx = col2im(w^T dy)        dw = dy columns(x)^T

A 1x1 convolution has nothing to copy: x is its own columns. Else groups of images bound the
memory: the columns of 128 patches of 33x33 would take 26 MB for conv1 alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..jit import const, kernel

Array = Any

_GROUP = 1 << 18  # floats of columns that are held at once


@kernel(lambda t: (const(t, 4), t[:, :, :, :, :, ::1]), optimize=3)
def im2col(x, columns):
    """columns[n,c,u,v,i,j] = x[n,c,i+u,j+v]."""
    N, C, KH, KW, OH, OW = columns.shape
    for n in range(N):
        for c in range(C):
            for u in range(KH):
                for v in range(KW):
                    for i in range(OH):
                        for j in range(OW):
                            columns[n, c, u, v, i, j] = x[n, c, i + u, j + v]


@kernel(lambda t: (const(t, 6), t[:, :, :, ::1]), optimize=3)
def col2im(columns, x):
    """x[n,c,i+u,j+v] = sum of columns[n,c,u,v,i,j]: each column gives back to its window."""
    N, C, KH, KW, OH, OW = columns.shape
    x[:] = 0
    for n in range(N):
        for c in range(C):
            for u in range(KH):
                for v in range(KW):
                    for i in range(OH):
                        for j in range(OW):
                            x[n, c, i + u, j + v] += columns[n, c, u, v, i, j]


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    N, C, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = H - KH + 1, W - KW + 1
    y = np.empty((N, F, OH, OW), x.dtype)
    for group in _groups(N, C * KH * KW * OH * OW):
        columns = _columns(x[group], KH, KW)
        np.matmul(w.reshape(F, -1), columns, out=y[group].reshape(-1, F, OH * OW))
        y[group] += b[:, None, None]
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W)."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx = np.empty((N, C, OH + KH - 1, OW + KW - 1), dy.dtype)
    for group in _groups(N, C * KH * KW * OH * OW):
        columns = np.matmul(w.reshape(F, -1).T, dy[group].reshape(-1, F, OH * OW))
        if KH == KW == 1:
            dx[group] = columns.reshape(dx[group].shape)
        else:
            columns = columns.reshape(-1, C, KH, KW, OH, OW)
            col2im.compile(dy.dtype)(columns, dx[group])
    return dx


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    dw = np.zeros((F, C * KH * KW), x.dtype)
    for group in _groups(N, C * KH * KW * OH * OW):
        columns = _columns(x[group], KH, KW)
        for dy_n, columns_n in zip(dy[group], columns, strict=True):
            dw += dy_n.reshape(F, -1) @ columns_n.T
    return dw.reshape(F, C, KH, KW)


def _groups(N: int, floats: int) -> Iterator[slice]:
    size = max(1, _GROUP // floats)
    return (slice(n, n + size) for n in range(0, N, size))


def _columns(x: Array, KH: int, KW: int) -> Array:
    N, C, H, W = x.shape
    if KH == KW == 1:
        return x.reshape(N, C, H * W)
    OH, OW = H - KH + 1, W - KW + 1
    columns = np.empty((N, C, KH, KW, OH, OW), x.dtype)
    im2col.compile(x.dtype)(x, columns)
    return columns.reshape(N, C * KH * KW, OH * OW)


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64            57 / 79                           56 / 86
#   1x1, 64 -> 32           55 / 82          49 / 73          50 / 83
#   5x5, 32 -> 1          6.5 / 6.5        1.2 / 1.2        5.6 / 6.2
#   5x5, 64 -> 32           55 / 67          38 / 66          37 / 64
#   3x3, 64 -> 32           55 / 61          52 / 71          52 / 58
#
# What is slow: every number of the image is copied KH*KW times, written and read again, which
# for 9x9 takes longer than the product; these copies are made by one thread. (With ``prange`` for
# them it is slower still: BLAS's threads spin for a while after each product, on the cores that
# ours then need.)
