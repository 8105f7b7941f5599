"""MATLAB's ``imresize(..., 'bicubic')``, in NumPy, with bounded memory.

Along one axis of `size_in` pixels, output pixel i (from 0) has its centre at

    u_i = (i + 1/2) / s - 1/2                  s = scale: pixel centres lie at half-integers

and takes the input pixels j around it with the weights

    w_ij = k(u_i - j) / sum_j k(u_i - j)              where the image grows (s >= 1)
    w_ij = k(s (u_i - j)) / sum_j k(s (u_i - j))      where it shrinks: the kernel, stretched
                                                      by 1/s, is its own antialiasing filter

with Keys' cubic kernel, a = -1/2:

    k(t) = 3/2 |t|^3 - 5/2 |t|^2 + 1                     |t| <= 1
         = -1/2 |t|^3 + 5/2 |t|^2 - 4 |t| + 2        1 < |t| <= 2

Beyond the border there are two conventions, by the argument ``border``:

    "mirror"    ... 2 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...     MATLAB since R2014: the default
    "clamp"     ... 0 0 0 | 0 1 2 ... n-1 | n-1 n-1 ...     MATLAB before, which the SRCNN
                                                            authors used

Their published figures are met to the last digit with "clamp" alone; the difference is at most
0.006 dB. The axis with the smaller scale goes first, rows before columns where they are equal.

Every pixel of the result is a sum of a few products, always taken in the same order by plain
elementwise operations. So the bits do not depend on how the image is cut into strips, and
`resize_region` gives any window of the result as the whole would have it. Planes of float32, as
trained on, are worked through by compiled code with the same bits (`kernels/cpu/resample.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]

BORDERS = ("mirror", "clamp")

_STRIP = 1 << 20  # elements of a strip of the result
_BLOCK = 1 << 15  # elements of a block that is worked on within the cache
_LARGE = 1 << 12  # elements of a result that is worth compiled code


class Axis(NamedTuple):
    """What the output pixels of one axis take: weights and input indices, both (size_out, taps)."""

    weights: NDArray[np.float64]
    taken: NDArray[np.intp]

    def window(self, start: int, stop: int) -> tuple[Axis, int, int]:
        """Return the output pixels start..stop, and the input range that they need."""
        taken = self.taken[start:stop]
        low, high = int(taken.min()), int(taken.max()) + 1
        return Axis(self.weights[start:stop], taken - low), low, high

    def compiled(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return weights and indices as compiled code takes them."""
        return (np.ascontiguousarray(self.weights, np.float32),
                np.ascontiguousarray(self.taken, np.int64))


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    t = np.abs(t)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))


@functools.lru_cache(16)  # the pictures of a set often have one size
def axis_weights(size_in: int, size_out: int, scale: float, border: str = "mirror") -> Axis:
    """Return the weights w_ij of one axis and the pixels j that they take (see above)."""
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    u = (np.arange(size_out) + 0.5) / scale - 0.5
    left = np.floor(u - width / 2).astype(np.intp)
    index = left[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(stretch * (u[:, None] - index))
    weights /= weights.sum(axis=1, keepdims=True)
    if border == "clamp":
        index = np.clip(index, 0, size_in - 1)
    else:
        index %= 2 * size_in
        index = np.where(index < size_in, index, 2 * size_in - 1 - index)
    used = weights.any(axis=0)
    axis = Axis(weights[:, used], index[:, used])
    for array in axis:
        array.flags.writeable = False
    return axis


def _combine(x: Image, axis: Axis, out: Image) -> None:
    """out[i, :] = sum_p weights[i, p] x[taken[i, p], :], tap after tap; x, out 2-D."""
    weights = axis.weights.astype(np.float64 if x.dtype == np.uint8 else x.dtype)
    columns = x.shape[1]
    step = max(1, _BLOCK // max(1, columns))
    pixels = np.empty((step, columns), x.dtype)
    product = np.empty((step, columns), weights.dtype)
    total = np.empty((step, columns), weights.dtype)
    for start in range(0, len(out), step):
        rows = slice(start, min(start + step, len(out)))
        n = rows.stop - rows.start
        for p in range(weights.shape[1]):
            w = weights[rows, p, None]
            # mode="clip" (no index is out of range) lets `take` write straight into `out=`
            np.take(x, axis.taken[rows, p], axis=0, out=pixels[:n], mode="clip")
            if p == 0:
                np.multiply(pixels[:n], w, out=total[:n])
            else:
                np.multiply(pixels[:n], w, out=product[:n])
                np.add(total[:n], product[:n], out=total[:n])
        if out.dtype == np.uint8:  # MATLAB's class rule: round and saturate after each axis
            np.add(total[:n], 0.5, out=total[:n])
            np.floor(total[:n], out=total[:n])
            np.clip(total[:n], 0, 255, out=total[:n])
        out[rows] = total[:n]


def _down(x: Image, axis: Axis) -> Image:
    """Combine the rows of x (H, W, C) -> (len(axis), W, C)."""
    out = np.empty((len(axis.taken), *x.shape[1:]), x.dtype)
    _combine(x.reshape(len(x), -1), axis, out.reshape(len(out), -1))
    return out


def _across(x: Image, axis: Axis, out: Image) -> None:
    """Combine the columns of x (H, W, C) into out (H, len(axis), C).

    Done on the transpose: taking rows is a run of memory copies, taking columns is not.
    """
    H, W, C = x.shape
    transposed = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(W, H * C)
    result = np.empty((len(axis.taken), H * C), x.dtype)
    _combine(transposed, axis, result)
    out[...] = result.reshape(-1, H, C).transpose(1, 0, 2)


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """Return the same sums of a float32 plane, rows first, in compiled code, where Numba is."""
    try:
        from minisrcnn.kernels.cpu import resample
    except ImportError:
        return None
    return resample.plane.compile("float32")


def resize_by_weights(image: Image, rows: Axis, columns: Axis, rows_first: bool) -> Image:
    """Combine rows and columns of ``image`` (H, W, C) by two sets of weights.

    Strip after strip of the result, so that little beyond the result is held.
    """
    out = np.empty((len(rows.taken), len(columns.taken), image.shape[2]), image.dtype)
    if rows_first and image.dtype == np.float32 and image.shape[2] == 1 and out.size >= _LARGE:
        combine = _compiled()
        if combine is not None:
            combine(np.ascontiguousarray(image[..., 0]), *rows.compiled(), *columns.compiled(),
                    out.reshape(out.shape[:2]))
            return out
    taps = rows.taken.shape[1]
    step = max(8, _STRIP // max(1, max(image.shape[1], out.shape[1]) * image.shape[2]))
    if not rows_first:  # the rows shared by two strips are combined twice: keep them few
        step = max(step, 4 * taps)
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        strip, low, high = rows.window(start, stop)
        if rows_first:
            _across(_down(image[low:high], strip), columns, out[start:stop])
        else:
            narrow = np.empty((high - low, out.shape[1], image.shape[2]), image.dtype)
            for y in range(0, high - low, step):
                _across(image[low:high][y : y + step], columns, narrow[y : y + step])
            out[start:stop] = _down(narrow, strip)
    return out


def _sizes(
    image: Image, scale: float | None, output_size: Sequence[int] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the output size and the scale of each axis, all arguments checked."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image is a {type(image).__name__}, want a NumPy array")
    if image.dtype not in (np.uint8, np.float32, np.float64):
        raise TypeError(f"image has dtype {image.dtype}, want uint8, float32 or float64")
    if image.ndim not in (2, 3):
        raise ValueError(f"image has shape {image.shape}, want (H, W) or (H, W, C)")
    if image.size == 0:
        raise ValueError(f"image has shape {image.shape}, want at least one pixel")
    if scale is None and output_size is None:
        raise TypeError("scale and output_size are None, want one of them")
    H, W = image.shape[:2]
    if scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, (int, float, np.integer, np.floating)):
            raise TypeError(f"scale is a {type(scale).__name__}, want a number")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale}, want a finite number above 0")
    if output_size is None:
        assert scale is not None
        scale = float(scale)
        return (math.ceil(scale * H), math.ceil(scale * W)), (scale, scale)
    try:
        size = tuple(output_size)
    except TypeError:
        raise TypeError(f"output_size is {output_size!r}, want (rows, columns)") from None
    if len(size) != 2 or not all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in size
    ):
        raise ValueError(f"output_size is {output_size!r}, want two integers above 0")
    h, w = int(size[0]), int(size[1])
    if scale is not None:
        return (h, w), (float(scale), float(scale))
    return (h, w), (h / H, w / W)


def _range(limits: Sequence[int] | None, size: int, name: str) -> tuple[int, int]:
    if limits is None:
        return 0, size
    start, stop = limits
    if not 0 <= start < stop <= size:
        raise ValueError(
            f"{name} is {limits}, want (start, stop) with 0 <= start < stop <= {size}"
        )
    return int(start), int(stop)


def imresize(
    image: Image,
    scale: float | None = None,
    output_size: Sequence[int] | None = None,
    *,
    border: str = "mirror",
) -> Image:
    """Resize as MATLAB's ``imresize(image, scale or size, 'bicubic')``.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, C)
        uint8, float32 or float64, any range.
    scale : float, optional
        For both axes; the result then has ``ceil(scale * H)`` x ``ceil(scale * W)`` pixels.
    output_size : (int, int), optional
        Rows and columns of the result; the scale of each axis is then output / input. With
        `scale` too: the size from here, the scale from there.
    border : {"mirror", "clamp"}
        What lies beyond the image: its mirror image (MATLAB since R2014), or its border pixel
        repeated (MATLAB before, and so the SRCNN authors' figures).

    Returns
    -------
    ndarray, dtype of `image`
        Not clipped where float: the cubic kernel overshoots at edges. uint8 is rounded and
        saturated after each of the two axes, as in MATLAB; give floats to round only once.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype, shape or range.

    Notes
    -----
    The weights are held per output row and column, a handful each, and the image is worked
    through in strips of about a million elements: the extra memory does not grow with it.
    """
    return resize_region(image, output_size, scale=scale, border=border)


def resize_region(
    image: Image,
    output_size: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    cols: Sequence[int] | None = None,
    *,
    scale: float | None = None,
    border: str = "mirror",
) -> Image:
    """Return one window of ``imresize(image, scale, output_size)``, without computing the rest.

    Parameters
    ----------
    image, scale, output_size, border
        As for `imresize`.
    rows, cols : (int, int), optional
        First row or column of the window, and the one after its last, in pixels of the
        result; all of them where None.

    Returns
    -------
    ndarray, dtype of `image`
        ``imresize(...)[rows[0]:rows[1], cols[0]:cols[1]]``, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As `imresize`, and for a window that is empty or outside the result.
    """
    (h, w), (scale_h, scale_w) = _sizes(image, scale, output_size)
    top, bottom = _range(rows, h, "rows")
    left, right = _range(cols, w, "cols")
    if border not in BORDERS:
        raise ValueError(f"border is {border!r}, want one of {', '.join(BORDERS)}")
    H, W = image.shape[:2]
    vertical, low_y, high_y = axis_weights(H, h, scale_h, border).window(top, bottom)
    horizontal, low_x, high_x = axis_weights(W, w, scale_w, border).window(left, right)
    part = image[low_y:high_y, low_x:high_x]
    flat = part[:, :, None] if image.ndim == 2 else part
    out = resize_by_weights(flat, vertical, horizontal, rows_first=scale_h <= scale_w)
    return out[:, :, 0] if image.ndim == 2 else out
