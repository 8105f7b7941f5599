"""Version 3: im2col, then one product of matrices a group of images, done by BLAS.

The columns of a patch, all KH*KW*C numbers that an output pixel is made of, are copied out by all
threads; BLAS, outside of the parallel region and with threads of its own, multiplies. (BLAS
called from within ``prange`` is a trap: the matrices of one patch are too small for it, and
its threads and ours fight for the cores.) Groups bound the memory: the columns of 128 patches of
33x33 would take 26 MB for conv1 alone, and a terabyte for a large photograph.

    y_n = w cols(x_n)        dx_n = col2im(w^T dy_n)        dw = sum_n dy_n cols(x_n)^T
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import prange

from .jit import const, kernel

Array = Any

# Floats of columns that are held at once.
_GROUP = 1 << 20


@kernel(lambda t: (const(t, 4), t[:, :, :, :, :, ::1]), parallel=True)
def im2col(x, cols):
    """cols[n,c,u,v,i,j] = x[n,c,i+u,j+v]."""
    N, C, KH, KW, OH, OW = cols.shape
    for n in prange(N):
        for c in range(C):
            for u in range(KH):
                for v in range(KW):
                    for i in range(OH):
                        for j in range(OW):
                            cols[n, c, u, v, i, j] = x[n, c, i + u, j + v]


@kernel(lambda t: (const(t, 6), t[:, :, :, ::1]), parallel=True)
def col2im(cols, x):
    """x[n,c,p,q] = sum of cols[n,c,u,v,p-u,q-v]: the transpose of :func:`im2col`."""
    N, C, KH, KW, OH, OW = cols.shape
    for n in prange(N):
        x[n] = 0
        for c in range(C):
            for u in range(KH):
                for v in range(KW):
                    for i in range(OH):
                        for j in range(OW):
                            x[n, c, i + u, j + v] += cols[n, c, u, v, i, j]


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    N, C, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = H - KH + 1, W - KW + 1
    y = np.empty((N, F, OH, OW), x.dtype)
    for group in _groups(N, C * KH * KW * OH * OW):
        cols = _columns(x[group], KH, KW)
        np.matmul(w.reshape(F, -1), cols, out=y[group].reshape(-1, F, OH * OW))
    y += b[:, None, None]
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) and w (F,C,KH,KW) to dx (N,C,H,W)."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx = np.empty((N, C, OH + KH - 1, OW + KW - 1), dy.dtype)
    for group in _groups(N, C * KH * KW * OH * OW):
        cols = np.matmul(w.reshape(F, -1).T, dy[group].reshape(-1, F, OH * OW))
        col2im.compile(dy.dtype.name)(cols.reshape(-1, C, KH, KW, OH, OW), dx[group])
    return dx


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    dw = np.zeros((F, C * KH * KW), x.dtype)
    for group in _groups(N, C * KH * KW * OH * OW):
        cols = _columns(x[group], KH, KW)
        dw += np.matmul(dy[group].reshape(-1, F, OH * OW), cols.transpose(0, 2, 1)).sum(axis=0)
    return dw.reshape(F, C, KH, KW)


def _groups(N: int, floats: int) -> Iterator[slice]:
    size = max(1, _GROUP // floats)
    return (slice(n, n + size) for n in range(0, N, size))


def _columns(x: Array, KH: int, KW: int) -> Array:
    N, C, H, W = x.shape
    OH, OW = H - KH + 1, W - KW + 1
    cols = np.empty((N, C, KH, KW, OH, OW), x.dtype)
    im2col.compile(x.dtype.name)(x, cols)
    return cols.reshape(N, C * KH * KW, OH * OW)
