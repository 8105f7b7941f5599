"""The numbers of a whole RGB upscaler, for graphs that have no ``imresize`` of ours.

Bicubic enlargement by an integer factor is a convolution: pixel (s j + p) of the result takes the
pixels j - 2 to j + 2 of the picture with weights that depend on the phase p alone. So s^2 filters
of 5x5, and their outputs interleaved, are the whole of it; borders are mirrored before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..imaging.resize import axis_weights

#: Y = BLACK + LUMA . (R, G, B), and SPAN is what white is above black.
LUMA = np.array([65.481, 128.553, 24.966]) / 255
BLACK, SPAN = 16 / 255, 219 / 255

#: Pixels of the picture on either side that a pixel of the result takes.
REACH = 2


def bicubic_filters(scale: int) -> NDArray[np.float64]:
    """Return the filters (s * s, 5, 5) of bicubic enlargement, row phase outermost."""
    size = 2 * REACH + 1
    weights, taken, *_ = axis_weights(3 * size, 3 * size * scale, float(scale))
    middle = 3 * size // 2
    phases = np.zeros((scale, size))
    for p in range(scale):
        row = middle * scale + p
        for w, j in zip(weights[row], taken[row], strict=True):
            if w:
                phases[p, j - middle + REACH] += w
    return (phases[:, None, :, None] * phases[None, :, None, :]).reshape(-1, size, size)
