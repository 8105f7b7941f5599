"""Pictures in and out of files, through imageio's Pillow. Every failure is one clear line.

Writing is imageio's. Reading asks Pillow itself, for two things that imageio has no door to: which
decoders may touch a file from a stranger, and conversion in strips, so that a large photograph
is not held four times over.

Limits. Files are decoded only from the formats in ``READABLE`` (none of which runs another
program), up to the size at which Pillow suspects a decompression bomb: twice
``PIL.Image.MAX_IMAGE_PIXELS``, 178,956,970 pixels unless a program sets it otherwise.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError, reason

READABLE = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
_SUFFIXES |= {".ppm", ".tif", ".tiff", ".webp"}

_WRITERS: dict[str, dict[str, Any]] = {
    ".bmp": {},
    ".jpeg": {"quality": 95},
    ".jpg": {"quality": 95},
    ".pgm": {},
    ".png": {},
    ".ppm": {},
    ".tif": {},
    ".tiff": {},
    ".webp": {"lossless": True},
}
_NO_ALPHA = {".bmp", ".jpeg", ".jpg", ".pgm", ".ppm"}

_STRIP = 1 << 20  # pixels converted at a time

PathLike = str | os.PathLike[str]


def read_image(path: PathLike) -> NDArray[np.uint8]:
    """Read a picture as uint8: the first frame, turned as its EXIF orientation says.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    uint8 ndarray
        (H, W) for grayscale, black and white, and 16-bit grayscale (scaled to 8 bits);
        (H, W, 3) for colour, palettes and CMYK (converted without colour profiles);
        (H, W, 4) where there is transparency (an alpha channel, a transparent colour or palette
        entry), for grayscale too.

    Raises
    ------
    MinisrcnnError
        Where the file is missing, unreadable, truncated, corrupt, too large, of a format that is
        not in ``READABLE``, or holds floating-point or 32-bit pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = os.fspath(path)
    Image.init()
    formats = [name for name in READABLE if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large photographs and of odd metadata
            with Image.open(path, formats=formats) as picture:
                picture.load()
                ImageOps.exif_transpose(picture, in_place=True)
                return _pixels(picture)
    except MinisrcnnError as error:
        raise MinisrcnnError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise MinisrcnnError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MinisrcnnError(f"{path}: a folder, not a picture") from None
    except PermissionError:
        raise MinisrcnnError(f"{path}: not allowed to read it") from None
    except UnidentifiedImageError:
        raise MinisrcnnError(f"{path}: not a picture in a format that can be read") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise MinisrcnnError(f"{path}: too large, above the limit of {limit:,} pixels") from None
    except MemoryError:
        raise MinisrcnnError(f"{path}: too large for the memory of this machine") from None
    except Exception as error:  # a damaged file can raise anything inside a decoder
        raise MinisrcnnError(f"{path}: damaged or unreadable picture ({reason(error)})") from error


def _pixels(picture: Any) -> NDArray[np.uint8]:
    mode = picture.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise MinisrcnnError("32-bit pixels, which cannot be read; save it with 8 or 16 bits")
        return ((values * 255 + 32767) // 65535).astype(np.uint8)
    if mode == "F":
        raise MinisrcnnError("floating-point pixels, which cannot be read; save it with 8 bits")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        if mode in ("La", "RGBa"):  # premultiplied
            picture = picture.convert(mode[:-1] + "A")
        return _array(picture, "RGBA")
    return _array(picture, "L" if mode in ("1", "L") else "RGB")


def _array(picture: Any, mode: str) -> NDArray[np.uint8]:
    """Convert in strips: Pillow's own way holds a large photograph four times over."""
    W, H = picture.size
    out = np.empty((H, W) if mode == "L" else (H, W, len(mode)), np.uint8)
    step = max(1, _STRIP // W)
    for y in range(0, H, step):
        strip = picture.crop((0, y, W, min(y + step, H)))
        out[y : y + step] = np.asarray(strip if strip.mode == mode else strip.convert(mode))
    return out


@contextlib.contextmanager
def atomic_open(path: PathLike) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: to a temporary name beside it, then moved into place.

    A link at `path` stays a link: what it points to is replaced.

    Raises
    ------
    OSError
        Where the folder is missing or cannot be written to, or the disk is full; nothing is left.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    file = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def check_writable_suffix(path: PathLike) -> str:
    """The lower-case suffix of a picture that can be written; MinisrcnnError for any other."""
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        known = " ".join(sorted(_WRITERS))
        raise MinisrcnnError(
            f"{os.fspath(path)}: cannot write {suffix or 'without a suffix'}; use one of {known}"
        )
    return suffix


def check_alpha(path: PathLike, image: NDArray[np.uint8]) -> None:
    """MinisrcnnError where the picture has transparency and the suffix's format has none."""
    suffix = check_writable_suffix(path)
    if image.shape[2:] == (4,) and suffix in _NO_ALPHA:
        raise MinisrcnnError(
            f"{os.fspath(path)}: {suffix} holds no transparency; use .png, .tif or .webp"
        )


def write_image(path: PathLike, image: NDArray[np.uint8]) -> None:
    """Write a picture, whole or not at all, in the format that the suffix names.

    PNG, TIFF, BMP, PPM and WebP keep every pixel as it is; JPEG is written at quality 95.

    Parameters
    ----------
    path : str or path
        In a folder that exists; a file there is replaced.
    image : uint8 ndarray, shape (H, W), (H, W, 3) or (H, W, 4)

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape.
    MinisrcnnError
        For a suffix that cannot be written, transparency in a format that has none, a folder that
        is missing or not writable, a full disk.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image: wanted a uint8 array, got {got}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ValueError(f"image: wanted shape (H, W), (H, W, 3) or (H, W, 4), got {image.shape}")
    if image.size == 0:
        raise ValueError(f"image: wanted at least one pixel, got shape {image.shape}")
    suffix = check_writable_suffix(path)
    path = os.fspath(path)
    check_alpha(path, image)
    if image.ndim == 3 and suffix == ".pgm":
        raise MinisrcnnError(f"{path}: .pgm holds no colour; use .png or .ppm")
    import imageio.v3 as iio

    try:
        with atomic_open(path) as file:
            iio.imwrite(file, np.ascontiguousarray(image), plugin="pillow", extension=suffix,
                        **_WRITERS[suffix])
    except FileNotFoundError:
        raise MinisrcnnError(f"{path}: no such folder") from None
    except IsADirectoryError:
        raise MinisrcnnError(f"{path}: a folder is in the way") from None
    except PermissionError:
        raise MinisrcnnError(f"{path}: not allowed to write there") from None
    except (OSError, ValueError) as error:
        raise MinisrcnnError(f"{path}: cannot be written ({reason(error)})") from error


def is_image(path: PathLike) -> bool:
    """Whether the suffix is that of a picture that can be read; hidden files are not."""
    path = Path(path)
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def find_images(
    paths: PathLike | Iterable[PathLike], problems: list[str] | None = None
) -> list[Path]:
    """The pictures that files, folders and patterns name.

    Parameters
    ----------
    paths : path, or several
        A file counts whatever its suffix; a folder stands for the pictures directly in it, sorted
        by name; a pattern (``*``, ``?``, ``[...]``, ``**``), where no such file exists, for the
        pictures that match it, sorted.
    problems : list of str, optional
        Where given, a name that finds nothing adds its line here instead of raising.

    Returns
    -------
    list of Path
        In the order asked for, none twice.

    Raises
    ------
    MinisrcnnError
        Where a file is missing, or a folder or pattern holds no picture.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: dict[str, Path] = {}
    for item in paths:
        try:
            for path in _expand(os.fspath(item)):
                found.setdefault(os.path.realpath(path), path)
        except MinisrcnnError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return list(found.values())


def _expand(item: str) -> list[Path]:
    path = Path(item)
    try:
        if path.is_dir():
            images = sorted(p for p in path.iterdir() if is_image(p) and p.is_file())
            if not images:
                raise MinisrcnnError(f"{item}: a folder without pictures")
            return images
        if path.exists():
            return [path]
    except OSError as error:
        raise MinisrcnnError(f"{item}: {reason(error)}") from None
    if glob.has_magic(item):
        matches = (Path(p) for p in glob.glob(item, recursive=True))
        images = sorted(p for p in matches if is_image(p) and p.is_file())
        if not images:
            raise MinisrcnnError(f"{item}: no picture matches")
        return images
    raise MinisrcnnError(f"{item}: no such file or folder")
