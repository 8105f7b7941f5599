"""Picture files by name: found, read as 8-bit arrays, written whole or not at all.

Every failure is one clear line.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError, reason
from .decode import open_picture, quiet
from .metadata import Metadata
from .pages import Page
from .save import check_size, format_of, write_picture

_SUFFIXES = {
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dib", ".gif", ".heic", ".heics", ".heif", ".heifs",
    ".hif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".pnm", ".png", ".ppm", ".qoi", ".rgb", ".rgba", ".sgi",
    ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip

PathLike = str | os.PathLike[str]

_PART = re.compile(r"\.(.+)\.(\d+)-[0-9a-f]{8}\.part", re.DOTALL)  # what atomic_open writes to
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


def read_image(path: PathLike) -> NDArray[np.uint8]:
    """Read a picture as uint8: the first frame, rotated or flipped as its orientation says.

    :func:`minisrcnn.imaging.decode.open_picture` keeps more of it: all frames, 16 bits, metadata.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    uint8 ndarray
        (H, W) for grayscale and black and white; (H, W, 3) for colour, palettes and CMYK;
        (H, W, 4) where there is transparency (an alpha channel, a transparent colour or palette
        entry), for grayscale too. 16 bits are scaled to 8.

    Raises
    ------
    MinisrcnnError
        Where the file is missing, unreadable, truncated, corrupt, too large or of a format that
        cannot be read.
    """
    with quiet(), open_picture(path) as picture:
        pixels = next(picture.frames(first_only=True)).pixels
    if pixels.shape[2:] == (2,):
        pixels = np.concatenate([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]], axis=2)
    return np.ascontiguousarray(to_8_bits(pixels))


def to_8_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale uint16 to uint8, rounded to the nearest; uint8 stays as it is."""
    if pixels.dtype == np.uint8:
        return pixels
    out = np.empty(pixels.shape, np.uint8)
    for y in range(0, len(pixels), 64):
        out[y : y + 64] = (pixels[y : y + 64].astype(np.uint32) * 255 + 32767) // 65535
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
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise OSError(errno.EINVAL, "not a plain file")  # a device or a pipe, which would be gone
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:  # around the opening too: Ctrl-C may come right after it
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def remove_leftovers(targets: Iterable[PathLike]) -> None:
    """Remove what a process that was killed in :func:`atomic_open` left beside these files.

    What a process that lives is writing stays, for two may be at work in one folder.
    """
    folders: dict[Path, set[str]] = {}
    for target in targets:
        path = Path(os.path.realpath(target))
        folders.setdefault(path.parent, set()).add(path.name[:100])
    for folder, names in folders.items():
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                part = _PART.fullmatch(path.name)
                if part and part[1] in names and not _is_alive(int(part[2])):
                    path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where no file can be removed while it is open
        return False
    with contextlib.suppress(OSError, IndexError):  # on Linux: dead, and nobody asked how it ended
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0]
        if state in (b"Z", b"X"):
            return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def locked(path: PathLike, busy: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file, which the system lets go of when the process ends, however it ends.

    Parameters
    ----------
    path : path
    busy : str
        The error's text where another process holds it.
    say : callable, optional
        Takes a line where the file system has no locks: then there is none.

    Raises
    ------
    MinisrcnnError
        If another process holds it.
    OSError
        If the file cannot be made.
    """
    import filelock

    lock = filelock.FileLock(path, timeout=0)
    try:
        with warnings.catch_warnings():  # newer versions fall back to another kind of lock
            warnings.simplefilter("ignore")
            lock.acquire()
    except filelock.Timeout:
        raise MinisrcnnError(busy) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        if say is not None:
            say(f"{os.fspath(path)}: this file system has no locks ({reason(error)}): see to it "
                "that nothing else writes there meanwhile.")
    try:
        yield
    finally:
        lock.release()


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
        For a suffix that cannot be written, transparency or colour in a format that has none, a
        folder that is missing or not writable, a full disk.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is {got}, want a uint8 array")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ValueError(f"image has shape {image.shape}, want (H, W), (H, W, 3) or (H, W, 4)")
    if image.size == 0:
        raise ValueError(f"image has shape {image.shape}, want at least one pixel")
    kind = format_of(path)
    path = os.fspath(path)
    H, W = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    check_size(kind, path, H, W)
    if channels == 4 and "transparency" not in kind.holds:
        raise no_transparency(path)
    if channels > 1 and "colour" not in kind.holds:
        raise MinisrcnnError(f"{path}: {Path(path).suffix} holds no colour; use .png or .ppm")
    page = Page(H, W, channels, image.dtype, [np.ascontiguousarray(image)])
    with writing(path) as file:
        write_picture(file, kind, Path(path).suffix.lower(), [page], Metadata())


def no_transparency(path: PathLike) -> MinisrcnnError:
    """Return the error of a picture with transparency and a format without."""
    return MinisrcnnError(f"{os.fspath(path)}: {Path(path).suffix} holds no transparency; "
                          "use .png, .tif or .webp")


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a picture to be written whole or not at all; every failure is a MinisrcnnError."""
    path = os.fspath(path)
    try:
        with atomic_open(path) as file:
            yield file
    except FileNotFoundError:
        raise MinisrcnnError(f"{path}: no such folder") from None
    except IsADirectoryError:
        raise MinisrcnnError(f"{path}: a folder is in the way") from None
    except PermissionError:
        raise MinisrcnnError(f"{path}: not allowed to write there") from None
    except OSError as error:
        raise MinisrcnnError(f"{path}: cannot be written ({reason(error)})") from error


def is_image(path: PathLike) -> bool:
    """Whether the suffix is that of a picture that can be read; hidden files are not."""
    path = Path(path)
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def find_images(
    paths: PathLike | Iterable[PathLike],
    problems: list[str] | None = None,
    *,
    recursive: bool = False,
    others: list[Path] | None = None,
) -> list[Path]:
    """Return the pictures that files, folders and patterns name.

    Parameters
    ----------
    paths : path, or several
        A file counts whatever its suffix; a folder stands for the pictures directly in it, sorted
        by name; a pattern (``*``, ``?``, ``[...]``, ``**``), where no such file exists, for the
        pictures that match it, sorted.
    problems : list of str, optional
        Where given, a name that finds nothing adds its line here instead of raising.
    recursive : bool
        Whether a folder stands for the pictures in folders below it too; hidden ones are skipped.
    others : list of Path, optional
        Files of folders that are no pictures by their names are added here.

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
            for path in _expand(os.fspath(item), recursive, others):
                found.setdefault(os.path.realpath(path), path)
        except MinisrcnnError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return list(found.values())


def _expand(item: str, recursive: bool, others: list[Path] | None) -> list[Path]:
    path = Path(item)
    try:
        if path.is_dir():
            files = sorted(_files(path, recursive))
            images = [p for p in files if is_image(p)]
            if others is not None:
                others += [p for p in files if not is_image(p)]
            if not images:
                below = not recursive and any(map(is_image, _files(path, True)))
                raise MinisrcnnError(f"{item}: a folder without pictures"
                                     f"{'; there are some in folders below it' * below}")
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


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield the files of a folder that are not hidden."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif recursive and path.is_dir() and not path.is_symlink():
            yield from _files(path, recursive)
