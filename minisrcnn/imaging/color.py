"""RGB and YCbCr as MATLAB has them (ITU-R BT.601, Y in 16..235), and the luma that Pillow gives.

    Y  =  16 + ( 65.481 R + 128.553 G +  24.966 B) / 255
    Cb = 128 + (-37.797 R -  74.203 G + 112.000 B) / 255         R, G, B in 0..255
    Cr = 128 + (112.000 R -  93.786 G -  18.214 B) / 255

SRCNN is trained and scored on this Y. The other common luma, JFIF's full range
(Y = 0.299 R + 0.587 G + 0.114 B in 0..255), is not the same thing: a score taken on it is
off by more than 1 dB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]

# The coefficients times 1000: as integers, the conversion of uint8 is exact.
_MATRIX = np.array([[65481, 128553, 24966], [-37797, -74203, 112000], [112000, -93786, -18214]])
_OFFSET = np.array([16, 128, 128])
_INVERSE = np.linalg.inv(_MATRIX / 255000.0)

_STRIP = 1 << 18  # pixels converted at a time: what is held beyond the result stays in the cache


def _check(image: Image, name: str) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name}: wanted a NumPy array, got {type(image).__name__}")
    if image.dtype not in (np.uint8, np.float32, np.float64):
        raise TypeError(f"{name}: wanted uint8, float32 or float64, got {image.dtype}")


def _check_colour(image: Image, name: str) -> None:
    _check(image, name)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name}: wanted shape (H, W, 3), got {image.shape}")


def _strips(shape: tuple[int, ...]) -> list[slice]:
    H, W = shape[:2]
    step = max(1, _STRIP // max(1, W))
    return [slice(y, min(y + step, H)) for y in range(0, H, step)]


def _encode(rgb: Image, channel: int) -> Image:
    """One channel (0 Y, 1 Cb, 2 Cr) of a strip, in the dtype of the strip."""
    a, b, c = (int(v) for v in _MATRIX[channel])
    offset = int(_OFFSET[channel])
    if rgb.dtype == np.uint8:
        R, G, B = (rgb[..., k].astype(np.int32) for k in range(3))
        # round half up: floor(v + 1/2), over the common denominator 255000
        total = a * R + b * G + c * B + (offset * 255000 + 127500)
        return (total // 255000).astype(np.uint8)
    R, G, B = (rgb[..., k] for k in range(3))
    weights = [rgb.dtype.type(v / 255000.0) for v in (a, b, c)]
    return weights[0] * R + weights[1] * G + weights[2] * B + rgb.dtype.type(offset / 255.0)


def rgb2ycbcr(rgb: Image) -> Image:
    """RGB to YCbCr, as MATLAB's ``rgb2ycbcr``.

    Parameters
    ----------
    rgb : ndarray, shape (H, W, 3)
        uint8 in 0..255, or float32/float64 in [0, 1].

    Returns
    -------
    ndarray, shape (H, W, 3), dtype of `rgb`
        uint8: rounded to the nearest integer (computed exactly, in integers). Float: Y in
        [16/255, 235/255], Cb and Cr in [16/255, 240/255].

    Raises
    ------
    TypeError, ValueError
        For another type, dtype or shape.
    """
    _check_colour(rgb, "rgb")
    out = np.empty_like(rgb, order="C")
    for s in _strips(rgb.shape):
        for channel in range(3):
            out[s, :, channel] = _encode(rgb[s], channel)
    return out


def rgb2y(image: Image) -> Image:
    """Return the Y of an image; a grayscale image is its own Y (the authors' protocol, step 1).

    Parameters
    ----------
    image : ndarray, shape (H, W, 3) or (H, W)
        uint8 in 0..255, or float32/float64 in [0, 1].

    Returns
    -------
    ndarray, shape (H, W), dtype of `image`
        ``rgb2ycbcr(image)[..., 0]``; for a grayscale image, `image` itself.

    Raises
    ------
    TypeError, ValueError
        For another type, dtype or shape.
    """
    _check(image, "image")
    if image.ndim == 2:
        return image
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: wanted shape (H, W) or (H, W, 3), got {image.shape}")
    out = np.empty(image.shape[:2], image.dtype)
    for s in _strips(out.shape):
        out[s] = _encode(image[s], 0)
    return out


def ycbcr2rgb(ycbcr: Image) -> Image:
    """YCbCr to RGB, as MATLAB's ``ycbcr2rgb``: the inverse matrix, then clipped to RGB's range.

    Parameters
    ----------
    ycbcr : ndarray, shape (H, W, 3)
        uint8, or float32/float64 where 1 stands for 255.

    Returns
    -------
    ndarray, shape (H, W, 3), dtype of `ycbcr`
        uint8: rounded to the nearest integer, saturated at 0 and 255. Float: clipped to [0, 1].

    Raises
    ------
    TypeError, ValueError
        For another type, dtype or shape.
    """
    _check_colour(ycbcr, "ycbcr")
    whole = ycbcr.dtype == np.uint8
    dtype = np.dtype(np.float64) if whole else ycbcr.dtype
    top = 255.0 if whole else 1.0
    out = np.empty_like(ycbcr, order="C")
    for s in _strips(ycbcr.shape):
        Y, Cb, Cr = (
            ycbcr[s, :, k].astype(dtype) - dtype.type(_OFFSET[k] * top / 255.0) for k in range(3)
        )
        for channel in range(3):
            a, b, c = (dtype.type(v) for v in _INVERSE[channel])
            value = np.clip(a * Y + b * Cb + c * Cr, 0, top)
            out[s, :, channel] = np.floor(value + 0.5) if whole else value
    return out


def pillow_luma(image: Image) -> Image:
    """Return the Y of Pillow's YCbCr: JFIF, full range 0..255, by Pillow's own integer tables.

    The design notes read their images so (``imread(..., mode="YCbCr")`` of the libraries of
    the time goes through Pillow); only the ``notes`` recipe uses it.

    Parameters
    ----------
    image : uint8 ndarray, shape (H, W, 3) or (H, W)

    Returns
    -------
    uint8 ndarray, shape (H, W); a grayscale image is its own luma.

    Raises
    ------
    TypeError, ValueError
        For another type, dtype or shape.
    """
    _check(image, "image")
    if image.dtype != np.uint8:
        raise TypeError(f"image: wanted uint8, got {image.dtype}")
    if image.ndim == 2:
        return image
    _check_colour(image, "image")
    from PIL import Image as pillow

    return np.array(pillow.fromarray(np.ascontiguousarray(image)).convert("YCbCr").getchannel(0))
