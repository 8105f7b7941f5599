"""PSNR and SSIM as the authors score (protocol step 5).

Both images times 255, clipped, rounded to integers, `border` pixels cut off every side; from
there PSNR sums integers, exactly, and SSIM works in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import check_integer

_STRIP = 1 << 18  # pixels converted at a time


def to_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats in [0, 1] to uint8 as MATLAB does: times 255, clipped, rounded half up.

    Parameters
    ----------
    image : ndarray, any shape
        float32 or float64; uint8 is returned as it is.

    Raises
    ------
    TypeError
        For another type or dtype.
    ValueError
        Where a value is NaN or infinite: it has no brightness.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image is a {type(image).__name__}, want a NumPy array")
    if image.dtype == np.uint8:
        return image
    if image.dtype not in (np.float32, np.float64):
        raise TypeError(f"image has dtype {image.dtype}, want uint8, float32 or float64")
    out = np.empty(image.shape, np.uint8)
    flat_in, flat_out = image.reshape(-1), out.reshape(-1)
    for start in range(0, image.size, _STRIP):
        scaled = flat_in[start : start + _STRIP] * image.dtype.type(255)
        if not np.isfinite(scaled).all():
            raise ValueError("image has NaN or infinity, want finite values")
        np.clip(scaled, 0, 255, out=scaled)
        scaled += image.dtype.type(0.5)
        flat_out[start : start + _STRIP] = scaled  # truncates: with the 1/2, rounds half up
    return out


def _shaved(
    output: NDArray[Any], truth: NDArray[Any], border: int, channels: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    border = check_integer("border", border, 0)
    for name, image in (("output", output), ("truth", truth)):
        if not isinstance(image, np.ndarray):
            raise TypeError(f"{name} is a {type(image).__name__}, want a NumPy array")
        if image.ndim != 2 and not (image.ndim == 3 and len(image) == channels > 1):
            want = "(H, W)" if channels == 1 else f"(H, W) or ({channels}, H, W)"
            raise ValueError(f"{name} has shape {image.shape}, want {want}")
    if output.shape != truth.shape:
        raise ValueError(f"output has shape {output.shape}, want the shape of truth, {truth.shape}")
    H, W = truth.shape[-2:]
    if not 0 <= 2 * border < min(H, W):
        raise ValueError(f"border is {border}, want 0 or more and under half of {H}x{W}")
    inside = (..., slice(border, H - border), slice(border, W - border))
    return to_uint8(output[inside]), to_uint8(truth[inside])


def psnr(output: NDArray[Any], truth: NDArray[Any], border: int = 0) -> float:
    """Peak signal to noise ratio, 20 log10(255 / RMSE), in dB.

    Parameters
    ----------
    output, truth : ndarray, shape (H, W) or (3, H, W)
        Floats in [0, 1] (clipped and rounded to 1/255), or uint8. Of three channels the mean
        square is over all.
    border : int
        Pixels shaved from every side; the authors shave `scale`.

    Returns
    -------
    float
        Infinite where the two agree in every pixel.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype, shape or range.
    """
    a, b = _shaved(output, truth, border, 3)
    total = 0  # of integers: exact
    rows = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    for row_a, row_b in zip(*rows, strict=True):
        difference = row_a.astype(np.int64) - row_b
        total += int(difference @ difference)
    return math.inf if total == 0 else 10 * math.log10(255**2 * a.size / total)


def ssim(output: NDArray[Any], truth: NDArray[Any], border: int = 0) -> float:
    """Structural similarity with the settings of Wang et al. (2004), by scikit-image.

    An 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, covariances divided by N, on
    0..255; averaged where the window lies inside the image.

    Parameters
    ----------
    output, truth, border
        As for `psnr`, of one channel; at least 11x11 pixels must be left within the border.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype, shape or range.
    """
    a, b = _shaved(output, truth, border)
    if min(a.shape) < 11:
        raise ValueError(f"image has shape {a.shape} within the border, want at least 11x11")
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
