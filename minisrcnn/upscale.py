"""Upscale pictures: Y through the network, chroma and transparency bicubic, in strips.

A strip of the result needs a few more rows of the bicubic picture above and below, as many as the
kernels reach. With these at hand a strip has the very pixels that the whole would have, so
memory does not grow with the result: beside the picture itself, only one strip of a PNG is held.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import check_integer
from .errors import MinisrcnnError
from .imaging.color import rgb2ycbcr, ycbcr2rgb
from .imaging.files import (
    check_alpha,
    check_writable_suffix,
    find_images,
    read_image,
    write_image,
)
from .imaging.metrics import to_uint8
from .imaging.png import read_icc_profile, write_png
from .imaging.resize import axis_weights, resize_by_weights

if TYPE_CHECKING:
    from .srcnn import SRCNN

Image = NDArray[Any]

# Pixels of the result that are worked on at once. With its float planes a strip takes about
# 40 bytes a pixel.
_STRIP = 1 << 22


def upscale_image(image: NDArray[np.uint8], net: SRCNN, scale: int = 3) -> NDArray[np.uint8]:
    """Upscale one picture.

    Parameters
    ----------
    image : uint8 array, shape (H, W), (H, W, 3) or (H, W, 4)
        Grayscale, RGB or RGBA. The alpha channel is resized, bicubic.
    net : SRCNN
        A network of one channel.
    scale : int

    Returns
    -------
    uint8 array, shape (scale * H, scale * W) and the channels of ``image``
        Worked out in strips, and the same bit for bit however these are cut on backends whose
        sums do not depend on the size of what they are given: ``numba`` and ``reference``. The
        BLAS library behind ``numpy`` may round a last bit otherwise in another strip.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, dtype or shape.
    """
    return _together(image, scale, upscale_strips(image, net, scale))


def _together(
    image: NDArray[np.uint8], scale: int, strips: Iterator[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] | None = None
    row = 0
    for strip in strips:
        if out is None:  # not before the arguments have been checked
            out = np.empty((image.shape[0] * scale, *strip.shape[1:]), np.uint8)
        out[row : row + len(strip)] = strip
        row += len(strip)
    assert out is not None
    return out


def upscale_strips(
    image: NDArray[np.uint8],
    net: SRCNN,
    scale: int = 3,
    pixels: int = _STRIP,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the upscaled picture strip by strip, top to bottom.

    Parameters
    ----------
    image, net, scale
        As for :func:`upscale_image`.
    pixels : int
        About how many pixels a strip has; never less than one row.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is {got}, want a uint8 array")
    if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(f"image has shape {image.shape}, want (H, W), (H, W, 3) or (H, W, 4)")
    scale = check_integer("scale", scale)
    if net.channels != 1:
        raise ValueError(f"net has {net.channels} channels, want 1: the network restores Y alone")
    return _strips(image, net, scale, pixels)


def _strips(
    image: NDArray[np.uint8], net: SRCNN, scale: int, pixels: int
) -> Iterator[NDArray[np.uint8]]:
    H, W = image.shape[0] * scale, image.shape[1] * scale
    above, below = _reach(net)
    # A strip much lower than what it needs beside itself would be mostly repeated work.
    rows = max(pixels // W, above + below, 1)
    for top in range(0, H, rows):
        bottom = min(top + rows, H)
        first, last = max(top - above, 0), min(bottom + below, H)
        planes = _bicubic_rows(image, scale, first, last)
        y = net.predict(np.ascontiguousarray(planes[..., 0]))
        inside = slice(top - first, bottom - first)
        yield _assemble(y[inside], planes[inside])


def _reach(net: SRCNN) -> tuple[int, int]:
    """Rows above and below that an output row depends on, one 'same' layer after another."""
    sizes = [value.shape[2] for name, value in net.parameters.items() if value.ndim == 4]
    return sum((K - 1) // 2 for K in sizes), sum(K // 2 for K in sizes)


def _bicubic_rows(image: NDArray[np.uint8], scale: int, first: int, last: int) -> Image:
    """Rows of ``imresize`` of the picture as float32 planes: Y, or Y Cb Cr, and alpha if any.

    The weights are those of the whole picture; only the rows that these take are made floats.
    """
    H, W = image.shape[:2]
    rows, low, high = axis_weights(H, H * scale, float(scale)).window(first, last)
    part = image[low:high].astype(np.float32) / np.float32(255)
    if part.ndim == 2:
        part = part[..., None]
    else:
        part[..., :3] = rgb2ycbcr(part[..., :3])
    columns = axis_weights(W, W * scale, float(scale))
    return resize_by_weights(part, rows, columns, rows_first=True)


def _assemble(y: Image, planes: Image) -> NDArray[np.uint8]:
    """Put the restored Y in the place of the bicubic one and go back to 8 bits."""
    y = np.clip(y, 0, 1)
    if planes.shape[2] == 1:
        return to_uint8(y)
    out = np.empty(planes.shape, np.uint8)
    out[..., :3] = to_uint8(ycbcr2rgb(np.concatenate([y[..., None], planes[..., 1:3]], axis=2)))
    out[..., 3:] = to_uint8(planes[..., 3:])
    return out


# --- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One picture to read and where its result goes; ``named`` if the user named that file."""

    source: Path
    target: Path
    named: bool = False


def plan(
    inputs: Sequence[str], out: str | None, scale: int, problems: list[str]
) -> tuple[list[Job], list[Path]]:
    """Decide, before anything is computed, which file goes where.

    Parameters
    ----------
    inputs : sequence of str
        Files, folders and patterns.
    out : str or None
        A file (for one picture), or a folder, made if need be; by default each result goes
        beside its picture, as ``NAME_x3.png``.
    scale : int
    problems : list of str
        Inputs that name nothing add their line here.

    Returns
    -------
    jobs : list of Job
    skipped : list of Path
        Pictures in folders and patterns that look like results of an earlier run.

    Raises
    ------
    MinisrcnnError
        If two pictures would be written to one file, a picture would be overwritten by a result,
        several pictures are to go to one file, or nothing can be written to ``out``.
    """
    found = find_images(inputs, problems)
    asked = {os.path.realpath(name) for name in inputs}
    stems = {path.parent / path.stem for path in found}
    sources: list[Path] = []
    skipped: list[Path] = []
    for path in found:
        earlier = re.fullmatch(r"(.+)_x\d+", path.stem)
        is_result = earlier is not None and path.parent / earlier[1] in stems
        own = os.path.realpath(path) in asked
        (skipped if is_result and not own else sources).append(path)

    if out is None:
        jobs = [Job(path, _default_name(path, path.parent, scale)) for path in sources]
    elif _is_folder(out):
        folder = Path(out)
        jobs = [Job(path, _default_name(path, folder, scale)) for path in sources]
    elif len(sources) > 1:
        raise MinisrcnnError(f"{out}: one file for {len(sources)} pictures, want a folder")
    else:
        check_writable_suffix(out)
        jobs = [Job(path, Path(out), named=True) for path in sources]

    taken: dict[str, Path] = {}
    originals = {os.path.realpath(job.source): job.source for job in jobs}
    for job in jobs:
        key = os.path.realpath(job.target)
        if key in taken:
            raise MinisrcnnError(f"{taken[key]} and {job.source} would both be written to "
                                 f"{job.target}: upscale them in two runs, with two -o")
        if key in originals:
            raise MinisrcnnError(f"{job.target} is one of the pictures to upscale and would be "
                                 "overwritten: name another -o")
        taken[key] = job.source
    _check_folders(jobs, out)
    return jobs, skipped


def _default_name(source: Path, folder: Path, scale: int) -> Path:
    return folder / f"{source.stem}_x{scale}.png"


def _is_folder(out: str) -> bool:
    return os.path.isdir(out) or out.endswith(("/", os.sep)) or not Path(out).suffix


def _check_folders(jobs: list[Job], out: str | None) -> None:
    """Find out before the work whether the folders can be written to; make the one of ``-o``."""
    if out is not None and jobs and not jobs[0].named:
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MinisrcnnError(f"{out}: cannot make this folder ({error.strerror})") from None
    if out is None:
        return  # beside the pictures: one bad folder must not stop the others
    for folder in {job.target.parent for job in jobs}:
        if not folder.is_dir():
            raise MinisrcnnError(f"{folder}: no such folder")
        if not os.access(folder, os.W_OK):
            raise MinisrcnnError(f"{folder}: not allowed to write there")


def run_job(
    job: Job,
    net: SRCNN,
    scale: int,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Upscale one file to another, which is written whole or not at all.

    Parameters
    ----------
    job : Job
    net, scale
        As for :func:`upscale_image`.
    overwrite : bool
        Whether a file under a name that the user did not give may be replaced.
    progress : callable, optional
        Called with (rows done, rows in all).

    Raises
    ------
    MinisrcnnError
        If the picture cannot be read or the result not be written.
    """
    if job.target.exists() and not job.named and not overwrite:
        raise MinisrcnnError(f"{job.source}: {job.target} exists already "
                             "(--overwrite replaces it)")
    image = read_image(job.source)
    check_alpha(job.target, image)
    H, W = image.shape[0] * scale, image.shape[1] * scale

    def strips() -> Iterator[NDArray[np.uint8]]:
        row = 0
        for strip in upscale_strips(image, net, scale):
            row += len(strip)
            if progress is not None:
                progress(row, H)
            yield strip

    if job.target.suffix.lower() == ".png":
        write_png(job.target, H, W, strips(), read_icc_profile(job.source))
    else:
        write_image(job.target, _together(image, scale, strips()))
