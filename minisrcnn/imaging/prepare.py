"""From a picture to (input, label): one function for training and evaluation.

The authors' protocol (Dong et al., TPAMI 2016, arXiv:1501.00092, sections 3.3 and 4.2, and the
test code that they published), steps 1 to 3:

1. the Y of MATLAB's ``rgb2ycbcr``, rounded to an integer; a grayscale image is its own Y;
2. height and width cropped to multiples of the scale, divided by 255: the label;
3. bicubic down by 1/scale and up by scale, not rounded on the way: the input. Beyond the border
   their MATLAB repeated the border pixel; MATLAB since R2014 mirrors ("bicubic-mirror").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..arguments import check_integer
from .color import pillow_luma, rgb2y
from .resize import imresize

DEGRADATIONS = ("bicubic", "bicubic-mirror", "zoom")


def modcrop(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Cut rows off the bottom and columns off the right until both are multiples of `scale`.

    Parameters
    ----------
    image : ndarray, shape (H, W, ...)
    scale : int

    Returns
    -------
    ndarray
        A view, shape (H - H % scale, W - W % scale, ...).

    Raises
    ------
    TypeError, ValueError
        For a scale that is not a positive integer, or above H or W.
    """
    scale = check_integer("scale", scale)
    if np.ndim(image) < 2:
        raise ValueError(f"image has shape {np.shape(image)}, want (H, W, ...)")
    H, W = image.shape[:2]
    if min(H, W) < scale:
        raise ValueError(
            f"image has {H}x{W} pixels, want at least {scale}x{scale} for scale {scale}"
        )
    return image[: H - H % scale, : W - W % scale]


def _zoom(label: NDArray[Any], scale: int) -> NDArray[Any]:
    """Degrade as the design notes do: cubic B-splines without their prefilter, so also a blur.

    SciPy's rounding of coordinates leaves the last row or column of some lengths (150, 303, 366 at
    scale 3) all zero: a property of this degradation, kept as the notes have it.
    """
    from scipy.ndimage import zoom

    return zoom(zoom(label, 1 / scale, prefilter=False), scale, prefilter=False)


def luma_of(degradation: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what makes the luma of a picture that is to be degraded in this way."""
    return pillow_luma if degradation == "zoom" else rgb2y


def rgb_planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return R, G and B of a picture, shape (3, H, W): a view; grayscale has equal channels."""
    if image.ndim == 2:
        return np.broadcast_to(image, (3, *image.shape))
    return image.transpose(2, 0, 1)


def planes(
    image: NDArray[np.uint8],
    factors: Sequence[float] = (),
    least: int = 1,
    convert: Callable[[NDArray[Any]], NDArray[Any]] = rgb2y,
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield what training takes of a picture: its luma or RGB, and those of rescaled copies.

    Parameters
    ----------
    image : uint8 ndarray, shape (H, W) or (H, W, 3 or 4)
        Transparency is left out.
    factors : sequence of float
        How many times the picture's size the copies are. They are made of the picture in colour:
        the luma of a copy is not the copy of its luma, which would be rounded before.
    least : int
        Copies with fewer rows or columns are left out.
    convert : callable
        :func:`~minisrcnn.imaging.color.rgb2y`, :func:`~minisrcnn.imaging.color.pillow_luma` or
        :func:`rgb_planes`.

    Yields
    ------
    factor : float
        1.0 for the picture itself, which comes first.
    plane : uint8 ndarray, shape (round(factor * H), round(factor * W)), of RGB (3, ...)
    """
    image = image[..., :3] if image.ndim == 3 else image
    yield 1.0, convert(image)
    H, W = image.shape[:2]
    for factor in factors:
        size = round(factor * H), round(factor * W)
        if min(size) >= max(least, 1):
            yield factor, convert(imresize(image, output_size=size))


def to_unit(pixels: NDArray[np.uint8], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return 8-bit pixels as floats from 0 to 1."""
    dtype = np.dtype(dtype)
    return pixels.astype(dtype) / dtype.type(255)


def degrade(label: NDArray[Any], scale: int, degradation: str = "bicubic") -> NDArray[Any]:
    """Return the input that belongs to a label, of the same shape and dtype: step 3.

    Parameters
    ----------
    label : float ndarray, shape (H, W) or (3, H, W), both multiples of the scale
    scale, degradation
        As for :func:`prepare`.
    """
    if label.ndim == 3:
        return np.stack([degrade(colour, scale, degradation) for colour in label])
    if degradation == "zoom":
        return _zoom(label, scale)
    H, W = label.shape
    border = "mirror" if degradation == "bicubic-mirror" else "clamp"
    small = imresize(label, output_size=(H // scale, W // scale), border=border)
    return imresize(small, output_size=(H, W), border=border)


def prepare(
    image: NDArray[np.uint8],
    scale: int,
    degradation: str = "bicubic",
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what the network is given, and what it should give back.

    Parameters
    ----------
    image : uint8 ndarray, shape (H, W) or (H, W, 3)
    scale : int
        The factor by which the image is made smaller and larger again.
    degradation : {"bicubic", "bicubic-mirror", "zoom"}
        "bicubic": the authors' protocol, the border pixel repeated beyond the border.
        "bicubic-mirror": the same with a mirrored border, as in MATLAB since R2014.
        "zoom": the design notes' own, on the luma that Pillow's YCbCr gives,
        ``scipy.ndimage.zoom(label, 1/scale, prefilter=False)`` and back up; its scores compare
        with nothing published.
    dtype : float32 or float64

    Returns
    -------
    input, label : ndarray, both shape (H - H % scale, W - W % scale)
        The label lies in [0, 1]; the bicubic input can overshoot it a little.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype, shape or range.
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(
            f"degradation is {degradation!r}, want one of {', '.join(DEGRADATIONS)}"
        )
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype is {dtype}, want float32 or float64")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is {got}, want a uint8 array")
    label = to_unit(modcrop(luma_of(degradation)(image), scale), dtype)
    return degrade(label, scale, degradation), label


def prepare_rgb(
    image: NDArray[np.uint8],
    scale: int,
    degradation: str = "bicubic",
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what a network of three channels is given, and what it should give back.

    Each colour is degraded as :func:`prepare` degrades Y.

    Parameters
    ----------
    image : uint8 ndarray, shape (H, W) or (H, W, 3)
        Grayscale is taken as RGB of equal channels.
    scale, degradation, dtype
        As for :func:`prepare`.

    Returns
    -------
    input, label : ndarray, both shape (3, H - H % scale, W - W % scale)

    Raises
    ------
    TypeError, ValueError
        As :func:`prepare`.
    """
    pairs = [prepare(colour, scale, degradation, dtype) for colour in rgb_planes(image)]
    return np.stack([x for x, _ in pairs]), np.stack([t for _, t in pairs])
