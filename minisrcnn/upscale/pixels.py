"""Pictures as arrays: bicubic colours, and what the network changes in their luma.

The network restores the bicubic Y. Y, Cb and Cr are linear in R, G and B, and white moves Y alone,
so replacing Y is adding the same to the three colours:

    R' = R + (Y' - Y) / 219 * 255        (G, B alike; grayscale is R = G = B)

A network of three channels restores the bicubic R, G and B themselves; of its result for a
grayscale picture, the luma is kept.

A strip of the result needs a few more rows of the bicubic planes above and below, as many as the
kernels reach. With these at hand a strip has the very pixels that the whole would have, so
memory does not grow with the result; nor with what is between, where two networks are applied one
after the other or the result is made smaller again: of that a few strips are held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import check_integer
from ..imaging.pages import ahead
from ..imaging.resize import Axis, axis_weights, resize_by_weights

if TYPE_CHECKING:
    from ..srcnn import SRCNN

    Networks = Callable[[float], Sequence[tuple[SRCNN, int]]]

Image = NDArray[Any]
Take = Callable[[Image, int], Image]

# Pixels of the result that are worked on at once; with its planes a strip takes about 25 bytes
# a pixel, and two are under way.
_STRIP = 1 << 21

_LUMA = np.array([65.481, 128.553, 24.966], np.float32) / np.float32(255)  # of R, G, B; BT.601
_BLACK, _SPAN = np.float32(16 / 255), np.float32(219 / 255)

_BLEED = 2  # pixels over which visible colours are carried into transparent ones


def upscale_image(image: Image, net: SRCNN, scale: int = 3) -> Image:
    """Upscale one picture.

    Parameters
    ----------
    image : uint8 or uint16 array, shape (H, W), (H, W, 2), (H, W, 3) or (H, W, 4)
        Grayscale, RGB; of 2 and 4 channels the last is alpha, which is resized, bicubic.
        Grayscale is taken as RGB of equal channels.
    net : SRCNN
        A network of one channel, for Y, or of three, for RGB.
    scale : int

    Returns
    -------
    array, shape (scale * H, scale * W) and the channels and dtype of ``image``
        Worked out in strips, and the same bit for bit however these are cut on backends whose
        sums do not depend on the size of what they are given: ``numba`` and ``reference``. The
        BLAS library behind ``numpy`` may round a last bit otherwise in another strip.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, dtype or shape.
    """
    strips = upscale_strips(image, net, scale)
    first = next(strips)
    out = np.empty((image.shape[0] * scale, *first.shape[1:]), image.dtype)
    out[: len(first)] = first
    row = len(first)
    for strip in strips:
        out[row : row + len(strip)] = strip
        row += len(strip)
    return out


def upscale_strips(
    image: Image, net: SRCNN, scale: int = 3, pixels: int = _STRIP
) -> Iterator[Image]:
    """Yield the upscaled picture strip by strip, top to bottom.

    Parameters
    ----------
    image, net, scale
        As for :func:`upscale_image`.
    pixels : int
        About how many pixels a strip has; never less than one row.
    """
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.uint16):
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is {got}, want a uint8 or uint16 array")
    if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (2,), (3,), (4,)):
        raise ValueError(f"image has shape {image.shape}, "
                         "want (H, W), (H, W, 2), (H, W, 3) or (H, W, 4)")
    scale = check_integer("scale", scale)
    if net.channels not in (1, 3):
        raise ValueError(f"net has {net.channels} channels, want 1, for Y, or 3, for RGB")
    strips = _strips(np.ascontiguousarray(_planes(image)), net, scale, pixels)
    return (strip.reshape(*strip.shape[:2], *image.shape[2:]) for strip in strips)


def _planes(image: Image) -> Image:
    """Return (H, W, C) of a picture."""
    return image if image.ndim == 3 else image[..., None]


def resized_strips(
    image: Image, networks: Networks, H: int, W: int, pixels: int = _STRIP
) -> Iterator[Image]:
    """Yield the picture at any larger size: by the next larger network, then down, bicubic.

    Parameters
    ----------
    image
        As for :func:`upscale_image`.
    networks : callable
        Given a factor, returns networks and their scales, to be applied one after the other, that
        enlarge at least so much.
    H, W : int
        Size of the result.
    pixels : int
        As for :func:`upscale_strips`.
    """
    steps = networks(max(H / image.shape[0], W / image.shape[1]))
    net, scale = steps[0]
    strips = upscale_strips(image, net, scale, pixels)
    shape, dtype = _planes(image).shape, image.dtype
    for net, after in steps[1:]:
        shape = shape[0] * scale, shape[1] * scale, shape[2]
        strips, scale = _strips(_Arriving(strips, shape, dtype), net, after, pixels), after
    shape = shape[0] * scale, shape[1] * scale, shape[2]
    if shape[:2] != (H, W):
        strips = _shrunk(_Arriving(strips, shape, dtype), H, W, pixels)
    return (strip.reshape(*strip.shape[:2], *image.shape[2:]) for strip in strips)


class _Arriving:
    """A picture (H, W, C) whose rows come in strips; slices of rows are taken as of an array.

    Parameters
    ----------
    strips : iterator of arrays, shape (h, W) or (h, W, C)
    shape : (int, int, int)
    dtype : dtype
    """

    def __init__(self, strips: Iterator[Image], shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype
        self._strips = strips
        self._held: list[Image] = []
        self._first = self._end = 0  # rows that are held
        self._change = threading.Lock()  # one thread makes planes, another takes colours

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Image:
        """Return a few rows, none of them above the last that were let go."""
        with self._change:
            while self._end < rows.stop:
                strip = next(self._strips)
                self._held.append(strip.reshape(len(strip), *self.shape[1:]))
                self._end += len(strip)
            row, parts = self._first, []
            for strip in self._held:
                parts.append(strip[max(rows.start - row, 0) : max(rows.stop - row, 0)])
                row += len(strip)
            parts = [part for part in parts if len(part)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def let_go(self, row: int) -> None:
        """Hold no strip that is wholly above a row."""
        with self._change:
            while self._held and self._first + len(self._held[0]) <= row:
                self._first += len(self._held.pop(0))


def _strips(x: Image | _Arriving, net: SRCNN, scale: int, pixels: int) -> Iterator[Image]:
    """Yield strips (h, W, C) of a picture (H, W, C), of which each row is needed for a while."""
    from minisrcnn.kernels.cpu import resample

    H, W = x.shape[0] * scale, x.shape[1] * scale
    top = np.float32(np.iinfo(x.dtype).max)
    finish = resample.picture.compile(x.dtype.name)
    across = axis_weights(x.shape[1], W, float(scale)).compiled()
    down = axis_weights(x.shape[0], H, float(scale))
    above, below = _reach(net)
    # A strip much lower than what it needs beside itself would be mostly repeated work.
    rows = max(pixels // W, above + below, 1)
    cuts = [(i, min(i + rows, H)) for i in range(0, H, rows)]

    def planes() -> Iterator[Image]:
        for start, stop in cuts:
            window = max(start - above, 0), min(stop + below, H)
            yield (bicubic_luma(x, scale, *window) if net.channels == 1
                   else bicubic_rgb(x, scale, *window))

    for (start, stop), y in zip(cuts, ahead(planes(), len(cuts) > 1), strict=True):
        restored = np.clip(net.predict(y), 0, 1)
        inner = start - max(start - above, 0)
        inside = slice(inner, inner + stop - start)
        if net.channels == 1:
            change = restored[inside].astype(np.float32, copy=False)
            change -= y[inside]
            change /= _SPAN
        else:
            change = np.zeros((stop - start, W), np.float32)
        weights, low, high = down.window(start, stop)
        out = np.empty((stop - start, W, x.shape[2]), x.dtype)
        finish(x[low:high], *weights.compiled(), *across, change, top, out)
        if net.channels == 3:
            _put_colours(out, restored[:, inside], top)
        if isinstance(x, _Arriving):
            x.let_go(down.window(max(stop - above - 1, 0), stop)[1] - _BLEED)
        yield out


def _put_colours(out: Image, rgb: Image, top: np.float32) -> None:
    """Write R, G and B (3, H, W), in [0, 1], into a strip (H, W, C); of grayscale, their luma."""
    planes = rgb if out.shape[2] > 2 else [np.tensordot(_LUMA / _LUMA.sum(), rgb, 1)]
    for c, plane in enumerate(planes):
        out[..., c] = plane * top + np.float32(0.5)  # truncates: with the 1/2, rounds half up


def _reach(net: SRCNN) -> tuple[int, int]:
    """Rows above and below that an output row depends on, one 'same' layer after another."""
    sizes = [value.shape[2] for name, value in net.parameters.items() if value.ndim == 4]
    return sum((K - 1) // 2 for K in sizes), sum(K // 2 for K in sizes)


def bicubic_luma(
    image: Image | _Arriving, scale: int, first: int, last: int
) -> NDArray[np.float32]:
    """Return rows of the bicubic Y, in [0, 1], of a picture (H, W, C): what the network is given.

    The weights are those of the whole picture; only the rows that these take are looked at.
    """
    return _bicubic(image, _y, scale, first, last)


def bicubic_rgb(
    image: Image | _Arriving, scale: int, first: int, last: int
) -> NDArray[np.float32]:
    """Return rows of the bicubic R, G and B (3, h, W): what a network of three channels is given.

    As :func:`bicubic_luma`; grayscale is RGB of equal channels.
    """
    def plane(c: int) -> NDArray[np.float32]:
        def take(part: Image, colours: int) -> Image:
            top = np.float32(np.iinfo(part.dtype).max)
            return part[..., c].astype(np.float32) / top

        return _bicubic(image, take, scale, first, last)

    if image.shape[2] < 3:
        return np.stack([plane(0)] * 3)
    return np.stack([plane(c) for c in range(3)])


def _bicubic(
    image: Image | _Arriving, take: Take, scale: int, first: int, last: int
) -> NDArray[np.float32]:
    """Return rows of a bicubic plane, which ``take`` makes of the pixels and their colours."""
    from minisrcnn.kernels.cpu import resample

    H, W = image.shape[:2]
    rows, low, high = axis_weights(H, H * scale, float(scale)).window(first, last)
    columns = axis_weights(W, W * scale, float(scale))
    out = np.empty((last - first, W * scale), np.float32)
    resample.plane.compile("float32")(
        _plane(image, take, low, high), *rows.compiled(), *columns.compiled(), out)
    return out


def _plane(image: Image | _Arriving, take: Take, low: int, high: int) -> NDArray[np.float32]:
    """Take some rows; under transparent pixels what the visible ones beside them have."""
    C = image.shape[2]
    if C in (1, 3):
        return take(image[low:high], C)
    bottom = len(image)
    start, stop = max(low - _BLEED, 0), min(high + _BLEED, bottom)
    part = image[start:stop]
    y, alpha = take(part, C - 1), part[..., -1]
    top = np.iinfo(image.dtype).max
    if (alpha != top).any():
        y = _bled(y, alpha.astype(np.float32) / np.float32(top))
    return np.ascontiguousarray(y[low - start : len(y) - (stop - high)])


def _y(part: Image, colours: int) -> NDArray[np.float32]:
    top = np.float32(np.iinfo(part.dtype).max)
    if colours == 1:
        y = part[..., 0].astype(np.float32)
        y *= _SPAN / top
    else:
        weights = _LUMA / top
        y = part[..., 0] * weights[0]
        y += part[..., 1] * weights[1]
        y += part[..., 2] * weights[2]
    y += _BLACK
    return y


def _bled(y: Image, alpha: Image) -> Image:
    """Carry visible luma into pixels that are more transparent than their neighbours.

    A pixel keeps its own in proportion to its alpha over the largest alpha around it, so a
    picture that is half transparent everywhere stays as it is.
    """
    from scipy import ndimage

    taps = np.ones(2 * _BLEED + 1, np.float32)

    def around(plane: Image) -> Image:
        rows = ndimage.correlate1d(plane, taps, axis=0, mode="nearest")
        return ndimage.correlate1d(rows, taps, axis=1, mode="nearest")

    weight = around(alpha)
    most = ndimage.maximum_filter(alpha, len(taps), mode="nearest")
    visible = weight > 1e-4
    mean = np.divide(around(alpha * y), weight, out=y.copy(), where=visible)
    own = np.divide(alpha, most, out=np.ones_like(alpha), where=most > 0)
    return own * y + (1 - own) * mean


def _shrunk(x: _Arriving, h: int, w: int, pixels: int) -> Iterator[Image]:
    """Shrink a picture by ``imresize``, strip by strip."""
    H, W, _ = x.shape
    down, across = axis_weights(H, h, h / H), axis_weights(W, w, w / W)
    rows = max(pixels // W * h // H, 1)
    for start in range(0, h, rows):
        part, low, high = down.window(start, min(start + rows, h))
        x.let_go(low)
        yield _resampled(x[low:high], part, across, rows_first=h / H <= w / W)


def _resampled(window: Image, down: Axis, across: Axis, rows_first: bool) -> Image:
    """Rows and columns of a picture combined; colours in proportion to alpha, if any."""
    top = np.iinfo(window.dtype).max
    C = window.shape[2]
    values = window.astype(np.float32)
    if C in (2, 4):
        values[..., :-1] *= values[..., -1:] / top
    out = resize_by_weights(values, down, across, rows_first)
    if C in (2, 4):
        out[..., :-1] /= np.maximum(out[..., -1:], 0.5) / top
        plain = resize_by_weights(window.astype(np.float32), down, across, rows_first)
        out[..., :-1] = np.where(out[..., -1:] < 0.5, plain[..., :-1], out[..., :-1])
    return np.floor(np.clip(out, 0, top) + np.float32(0.5)).astype(window.dtype)
