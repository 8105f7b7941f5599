"""Lesson 8: Winograd convolution, F(4, 3): 36 multiplications in the place of 144.

Lesson 7 does every multiplication of the sum; beyond it only an algorithm with fewer of them is
faster. Two polynomials with 3 and 4 coefficients have a product with 6, so its values at 6 points
determine it: 6 multiplications, not 12. A correlation of 6 pixels d with 3 taps g is the transpose
of such a product, for 4 results y:

    y  =  A^T [ (G g) * (B^T d) ]                  * : number by number

A and G hold powers of the points 0, 1, -1, 2, -2 and infinity, B^T is the inverse of such a matrix.
In two dimensions, and with channels, each of the 36 pairs of points is a product of matrices:

     d: 6 x 6 pixels, overlapping            y: 4 x 4 pixels, side by side
    +-----------+                            +-------+
    |   +-------|---+                        | tile  |       Y = A^T [ (G g G^T)(B^T d B) ] A
    |   |       |   |   B^T d B   A^T . A    |   0   |
    |   |   1   |   |  -------->  ------->   +-------+
    +---|-------+   |  36 products           | tile  |
        +-----------+  w~[f,c] x~[c,tile]    |   1   |

    dw = G^T [ sum over tiles of (A dY A^T)(B^T d B) ] G

Here in NumPy, to be understood, not to be fast. Other filters than 3x3 are padded by zeros and cut
into such blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = Any


def matrices(dtype: Any) -> tuple[Array, Array, Array]:
    """Return A^T (4,6), G (6,3) and B^T (6,6), the rows of B^T scaled to integers."""
    def powers(count: int) -> Array:  # at infinity only the highest power counts
        return np.vstack([np.vander((0, 1, -1, 2, -2), count, increasing=True),
                          np.eye(count)[-1:]])

    scale = np.array([4, -6, -6, 24, 24, 1])[:, None]
    both = powers(4).T, powers(3) / scale, np.rint(np.linalg.inv(powers(6).T) * scale)
    return tuple(matrix.astype(dtype) for matrix in both)


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution: x (N,C,H,W), w (F,C,KH,KW), b (F,) to y (N,F,OH,OW)."""
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = H - KH + 1, W - KW + 1
    w = np.pad(w, ((0, 0), (0, 0), (0, -KH % 3), (0, -KW % 3)))
    AT, G, _ = matrices(x.dtype)
    y = np.zeros((N, F, OH, OW), x.dtype) + b[:, None, None]
    for u in range(0, KH, 3):
        for v in range(0, KW, 3):
            pixels = to_domain(x[:, :, u:, v:], OH, OW)
            weights = np.einsum("pu,qv,fcuv->pqfc", G, G, w[:, :, u:u + 3, v:v + 3], optimize=True)
            products = (weights @ pixels.reshape(6, 6, C, -1)).reshape(6, 6, F, *pixels.shape[3:])
            tiles = np.einsum("ip,jq,pqfnkl->nfkilj", AT, AT, products, optimize=True)
            TH, TW = pixels.shape[4:]
            y += tiles.reshape(N, F, 4 * TH, 4 * TW)[:, :, :OH, :OW]
    return y


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Input gradient: dy (N,F,OH,OW) within zeros by the flipped w (F,C,KH,KW) to dx (N,C,H,W)."""
    _, C, KH, KW = w.shape
    padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    return conv2d_forward(padded, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), np.zeros(C, w.dtype))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Weight gradient: x (N,C,H,W) and dy (N,F,OH,OW) to dw (F,C,KH,KW)."""
    (N, C, H, W), (_, F, OH, OW) = x.shape, dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    AT, G, _ = matrices(x.dtype)
    tiles = np.pad(dy, ((0, 0), (0, 0), (0, -OH % 4), (0, -OW % 4)))
    tiles = tiles.reshape(N, F, tiles.shape[2] // 4, 4, tiles.shape[3] // 4, 4)
    gradient = np.einsum("ip,jq,nfkilj->pqfnkl", AT, AT, tiles, optimize=True)
    dw = np.empty((F, C, KH - KH % -3, KW - KW % -3), x.dtype)
    for u in range(0, KH, 3):
        for v in range(0, KW, 3):
            pixels = to_domain(x[:, :, u:, v:], OH, OW).reshape(6, 6, C, -1)
            sums = gradient.reshape(6, 6, F, -1) @ pixels.transpose(0, 1, 3, 2)
            dw[:, :, u:u + 3, v:v + 3] = np.einsum("pu,qv,pqfc->fcuv", G, G, sums, optimize=True)
    return np.ascontiguousarray(dw[:, :, :KH, :KW])


def to_domain(x: Array, OH: int, OW: int) -> Array:
    """Return B^T d B (6,6,C,N,TH,TW) for the tiles d that OH x OW results are made of."""
    _, _, BT = matrices(x.dtype)
    rows, columns = OH - OH % -4 + 2, OW - OW % -4 + 2
    x = x[:, :, :rows, :columns]
    x = np.pad(x, ((0, 0), (0, 0), (0, rows - x.shape[2]), (0, columns - x.shape[3])))
    tiles = sliding_window_view(x, (6, 6), axis=(2, 3))[:, :, ::4, ::4]
    return np.einsum("pi,qj,ncklij->pqcnkl", BT, BT, tiles, optimize=True)


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#                           forward   input gradient  weight gradient
#   9x9, 1 -> 64          0.8 / 0.7                         1.0 / 1.1
#   1x1, 64 -> 32         1.2 / 1.3        1.4 / 1.6        1.1 / 1.2
#   5x5, 32 -> 1          0.4 / 0.4        0.4 / 0.5        0.4 / 0.4
#   5x5, 64 -> 32         8.7 / 8.7        6.3 / 5.1        6.0 / 8.5
#   3x3, 64 -> 32           13 / 16          10 / 12          12 / 13
#
# What is slow: the transforms, which go through memory for every step, and rearrange the numbers.
# And rounding errors grow with the powers of the points.
