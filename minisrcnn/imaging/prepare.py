"""From a picture to (input, label): one function for training and evaluation.

The authors' protocol (Dong et al., TPAMI 2016, arXiv:1501.00092, sections 3.3 and 4.2, and the
test code that they published), steps 1 to 3:

1. the Y of MATLAB's ``rgb2ycbcr``, rounded to an integer; a grayscale image is its own Y;
2. height and width cropped to multiples of the scale, divided by 255: the label;
3. bicubic down by 1/scale and up by scale, not rounded on the way: the input. Beyond the border
   their MATLAB repeated the border pixel; MATLAB since R2014 mirrors ("bicubic-mirror").
"""

from __future__ import annotations

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
    luma = pillow_luma(image) if degradation == "zoom" else rgb2y(image)
    label = modcrop(luma, scale).astype(dtype) / dtype.type(255)
    if degradation == "zoom":
        return _zoom(label, scale), label
    H, W = label.shape
    border = "mirror" if degradation == "bicubic-mirror" else "clamp"
    small = imresize(label, output_size=(H // scale, W // scale), border=border)
    return imresize(small, output_size=(H, W), border=border), label


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
    colours = [image[..., c] for c in range(3)] if np.ndim(image) == 3 else [image] * 3
    pairs = [prepare(colour, scale, degradation, dtype) for colour in colours]
    return np.stack([x for x, _ in pairs]), np.stack([t for _, t in pairs])
