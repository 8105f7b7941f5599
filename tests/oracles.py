"""What convolutions are checked against: SciPy's, in float64; and the arrays to check with."""

from __future__ import annotations

import numpy as np
from scipy.signal import convolve, correlate

# N, C, H, W, F, KH, KW: the layers of SRCNN, one-pixel outputs, odd everything.
SHAPES = [
    (2, 1, 33, 33, 64, 9, 9),
    (2, 64, 13, 11, 32, 1, 1),
    (2, 32, 12, 13, 1, 5, 5),
    (1, 64, 9, 9, 32, 5, 5),
    (1, 1, 1, 1, 1, 1, 1),
    (3, 3, 5, 7, 5, 5, 7),
    (33, 2, 4, 6, 3, 2, 3),
    (2, 17, 6, 5, 33, 3, 2),
    (1, 40, 7, 4, 2, 4, 3),
    (1, 16, 10, 9, 19, 3, 3),
    (3, 21, 5, 6, 17, 5, 5),
    (3, 3, 14, 17, 18, 9, 9),
    (2, 1, 9, 12, 21, 9, 4),
    (35, 6, 8, 9, 9, 1, 1),
    (1, 5, 25, 131, 70, 1, 1),
]


def draw(shape, dtype, seed=0):
    """Return x, w, b and dy for a shape (N, C, H, W, F, KH, KW)."""
    N, C, H, W, F, KH, KW = shape
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(s) for s in (
        (N, C, H, W), (F, C, KH, KW), (F,), (N, F, H - KH + 1, W - KW + 1)))
    return [a.astype(dtype) for a in arrays]


def conv2d_forward(x, w, b):
    """y by SciPy, in float64, one image and pair of channels at a time."""
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    return np.array([[b[f] + sum(correlate(x_c, w_c, "valid", "direct")
                                 for x_c, w_c in zip(x_n, w[f], strict=True))
                      for f in range(len(w))] for x_n in x])


def conv2d_backward_input(dy, w):
    """dx by SciPy, in float64."""
    dy, w = (a.astype(np.float64) for a in (dy, w))
    return np.array([[sum(convolve(dy_f, w_f[c], "full", "direct")
                          for dy_f, w_f in zip(dy_n, w, strict=True))
                      for c in range(w.shape[1])] for dy_n in dy])


def conv2d_backward_weight(x, dy):
    """dw by SciPy, in float64."""
    x, dy = (a.astype(np.float64) for a in (x, dy))
    return np.array([[sum(correlate(x_n[c], dy_n[f], "valid", "direct")
                          for x_n, dy_n in zip(x, dy, strict=True))
                      for c in range(x.shape[1])] for f in range(dy.shape[1])])


def all_three(x, w, b, dy):
    """y, dx and dw."""
    return conv2d_forward(x, w, b), conv2d_backward_input(dy, w), conv2d_backward_weight(x, dy)
