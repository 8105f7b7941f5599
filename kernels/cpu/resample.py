"""Bicubic interpolation of pictures, and what a network changed in their luma added to it.

Four pixels of four rows make one of the result, by weights that the caller has (see
:mod:`minisrcnn.imaging.resize`). Rows are combined first, into one line, then columns of the line;
every pixel is summed in the same order wherever a picture is cut.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .jit import const, kernel

_WEIGHTS, _TAKEN = const(types.float32, 2), const(types.int64, 2)


@kernel(lambda t: (const(t, 2), _WEIGHTS, _TAKEN, _WEIGHTS, _TAKEN, t[:, ::1]))
def plane(x, row_weights, rows, column_weights, columns, out):
    """out[i, j] = sum_pq row_weights[i, p] column_weights[j, q] x[rows[i, p], columns[j, q]]."""
    W = x.shape[1]
    line = np.empty(W, np.float32)
    for i in range(out.shape[0]):
        line[:] = np.float32(0)
        for p in range(rows.shape[1]):
            row, weight = rows[i, p], row_weights[i, p]
            for j in range(W):
                line[j] += weight * x[row, j]
        for j in range(out.shape[1]):
            total = np.float32(0)
            for q in range(columns.shape[1]):
                total += column_weights[j, q] * line[columns[j, q]]
            out[i, j] = total


@kernel(lambda t: (const(t, 3), _WEIGHTS, _TAKEN, _WEIGHTS, _TAKEN, _WEIGHTS, types.float32,
                   t[:, :, ::1]))
def picture(x, row_weights, rows, column_weights, columns, change, top, out):
    """Interpolate a picture and add ``change`` to its colours; round to integers from 0 to ``top``.

    Of 2 or 4 channels the last is alpha: colours are interpolated in proportion to it, so that
    those of transparent pixels do not show; where the result is transparent they are
    interpolated as they are.
    """
    W, C = x.shape[1], x.shape[2]
    clear = C == 2 or C == 4
    K = C - 1 if clear else C
    line = np.empty(W * C, np.float32)
    covered = np.empty(W * K if clear else 1, np.float32)
    half, zero = np.float32(0.5), np.float32(0)
    for i in range(out.shape[0]):
        line[:] = zero
        covered[:] = zero
        for p in range(rows.shape[1]):
            row, weight = rows[i, p], row_weights[i, p]
            for j in range(W):
                for k in range(C):
                    line[j * C + k] += weight * np.float32(x[row, j, k])
                if clear:
                    alpha = weight * np.float32(x[row, j, K])
                    for k in range(K):
                        covered[j * K + k] += alpha * np.float32(x[row, j, k])
        for j in range(out.shape[1]):
            alpha = zero
            if clear:
                for q in range(columns.shape[1]):
                    alpha += column_weights[j, q] * line[columns[j, q] * C + K]
                out[i, j, K] = int(min(max(alpha, zero), top) + half)
            visible = clear and alpha >= half
            for k in range(K):
                total = zero
                if visible:
                    for q in range(columns.shape[1]):
                        total += column_weights[j, q] * covered[columns[j, q] * K + k]
                    total = min(max(total / alpha, -top), top + top)
                else:
                    for q in range(columns.shape[1]):
                        total += column_weights[j, q] * line[columns[j, q] * C + k]
                if visible or not clear:
                    total += change[i, j] * top
                out[i, j, k] = int(min(max(total, zero), top) + half)
