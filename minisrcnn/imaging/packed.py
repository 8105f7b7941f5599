r"""Packed sets: the luma of many pictures in one file that is mapped into memory, not read.

All numbers are little-endian. The file has three parts, with nothing between them::

    header   0  8   89 4C 55 4D 41 0D 0A 1A: "\x89LUMA\r\n\x1a"
             8  u32 version, 1
            12  u32 F, how many factors
            16  u64 N, how many pictures
            24  u64 P, how many planes
            32  u64 where the index begins
            40  32  SHA-256 of bytes 0 to 39 and of the whole index
    pixels  72      plane after plane, row after row, a byte a pixel
    index       F f64    factors: how many times a picture's size its copies have
                P x 56   records, one for each plane, in order:
                         u64 where its pixels begin, u32 height, u32 width,
                         u32 number of its picture (from 0), u32 which size: 0 the picture
                         itself, k the copy of factor k (from 1)
                         32  SHA-256 of its pixels
                N names  of the pictures, UTF-8, each ended by a zero byte

Every byte is checked by something: header and index when a set is opened, each plane before it is
first used, all of it by ``minisrcnn data verify``.

A set is written in a folder beside it, ``SET.part``: the pixels, and a journal of what has been
packed. A pack that is killed is gone on with from there, after a check of what is there, and ends
with the same bytes; the set appears under its name when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError, reason
from .datasets import dataset_name, load_dataset
from .files import PathLike, find_images, locked, read_image
from .prepare import planes

_MAGIC = b"\x89LUMA\r\n\x1a"
_VERSION = 1
_FIELDS = struct.Struct("<8sIIQQQ")
_HEADER = _FIELDS.size + 32
_RECORD = np.dtype([("offset", "<u8"), ("H", "<u4"), ("W", "<u4"), ("picture", "<u4"),
                    ("size", "<u4"), ("sha256", "V32")])
_LEAST = 4  # rows and columns of the smallest copy that any training takes

Plane = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A picture to pack: where it is, and its name in the set."""

    path: Path
    name: str


@dataclass
class Packed:
    """What :func:`pack` did: pictures, planes and pixels that the set holds, and what it lacks."""

    pictures: int = 0
    planes: int = 0
    pixels: int = 0
    skipped: list[str] = field(default_factory=list)


# --- reading ------------------------------------------------------------------------------------


class PackedSet:
    """A packed set, open for reading; nothing of it is in memory but the index.

    Parameters
    ----------
    path : str or path

    Attributes
    ----------
    path : Path
    name : str
        Of the file, without its suffix.
    names : list of str
        Of the pictures: the folder's name and the path in it. Two can be the same.
    factors : tuple of float
        Which copies of each picture are there, those with four rows and columns at least.
    shapes : ndarray of int, shape (P, 2)
        Height and width of each plane.
    picture, size : ndarray of int, shape (P,)
        Which picture a plane is of, and 0 for the picture itself, k for its copy by
        ``factors[k - 1]``. In this order.

    Raises
    ------
    MinisrcnnError
        If it cannot be read, is no packed set, or header or index are not as they were written.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        try:
            with open(path, "rb") as file:
                length = os.fstat(file.fileno()).st_size
                counts, index = self._read(file, length)
                self._map = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise MinisrcnnError(f"{self.path}: cannot be read ({reason(error)})") from None
        self._pixels = np.frombuffer(self._map, np.uint8)
        self._parse(index, *counts)
        self._checked = np.zeros(len(self.picture), bool)

    def _damaged(self, what: str) -> MinisrcnnError:
        return MinisrcnnError(f"{self.path}: damaged, {what}: pack it again")

    def _read(self, file: IO[bytes], length: int) -> tuple[tuple[int, int, int, int], bytes]:
        """Check the header; return F, N, P and where the index begins, and the index."""
        header = file.read(_HEADER)
        if header[:8] != _MAGIC:
            raise MinisrcnnError(f"{self.path}: not a packed set (minisrcnn data pack makes them)")
        if len(header) < _HEADER:
            raise self._damaged("it is cut short")
        fields = header[:_FIELDS.size]
        _, version, F, N, P, start = _FIELDS.unpack(fields)
        if version != _VERSION:
            raise MinisrcnnError(f"{self.path}: version is {version}, want {_VERSION}")
        if not _HEADER <= start <= length - (8 * F + _RECORD.itemsize * P + N):
            raise self._damaged("it is cut short")
        file.seek(start)
        index = file.read(length - start)
        if hashlib.sha256(fields + index).digest() != header[_FIELDS.size:]:
            raise self._damaged("header or index is not as it was written")
        return (F, N, P, start), index

    def _parse(self, index: bytes, F: int, N: int, P: int, start: int) -> None:
        """Take the index apart; refuse what a program that means harm could put there."""
        end = 8 * F + P * _RECORD.itemsize
        factors = np.frombuffer(index, "<f8", F)
        records = np.frombuffer(index, _RECORD, P, 8 * F)
        names = index[end:].split(b"\0")
        if len(names) != N + 1 or names[-1]:
            raise self._damaged(f"want {N} names")
        if not N <= P <= N * (F + 1) or not N:
            raise self._damaged(f"it has {P} planes of {N} pictures in up to {F + 1} sizes")
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise self._damaged("its factors are not above 0")
        H, W = records["H"].astype(np.uint64), records["W"].astype(np.uint64)
        # No sum overflows: a plane that is larger than the file is refused before.
        pixels, room = H * W, np.uint64(start - _HEADER)
        ends = np.cumsum(np.minimum(pixels, room), dtype=np.float64)
        if not pixels.all() or (pixels > room).any() or ends[-1] > 2.0**62:
            raise self._damaged("a plane's size is out of range")
        offsets = _HEADER + np.concatenate([[0], np.cumsum(pixels.astype(np.int64))])
        if offsets[-1] != start or (records["offset"] != offsets[:-1]).any():
            raise self._damaged("its planes overlap or leave a gap")
        picture, size = records["picture"].astype(np.int64), records["size"].astype(np.int64)
        step = np.diff(picture, prepend=-1, append=N)
        first = step[:-1] > 0
        if (not np.isin(step, (0, 1)).all() or step[-1] != 1 or (size > F).any()
                or ((size == 0) != first).any() or (np.diff(size) <= 0)[~first[1:]].any()):
            raise self._damaged("its planes are not in the order of its pictures")
        self.names = [name.decode("utf-8", "surrogateescape") for name in names[:-1]]
        self.factors = tuple(map(float, factors))
        self.shapes = np.stack([records["H"], records["W"]], axis=1).astype(np.int64)
        self.picture, self.size = picture, size
        self._offsets, self._digests = offsets, records["sha256"]

    def __len__(self) -> int:
        """How many planes there are."""
        return len(self.picture)

    def plane(self, number: int) -> Plane:
        """Return the pixels of a plane, (H, W): a view of the file."""
        H, W = self.shapes[number]
        return self._pixels[self._offsets[number]:self._offsets[number + 1]].reshape(H, W)

    def digest(self, number: int) -> bytes:
        """Return the SHA-256 of a plane's pixels, as the index has it."""
        return self._digests[number].tobytes()

    def check(self, number: int) -> None:
        """Compare the pixels of a plane with their SHA-256, once.

        Raises
        ------
        MinisrcnnError
            If they are not as they were written.
        """
        if not self._checked[number]:
            if hashlib.sha256(self.plane(number)).digest() != self.digest(number):
                raise self._damaged(f"{self.names[self.picture[number]]} is not as it was packed")
            self._checked[number] = True

    def release(self) -> None:
        """Let the system forget which parts of the file were looked at; they can be again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def verify(path: PathLike, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Check a packed set whole; return the names of the pictures that are damaged.

    Raises
    ------
    MinisrcnnError
        As :class:`PackedSet`.
    """
    packed = PackedSet(path)
    damaged: dict[int, str] = {}
    for number in range(len(packed)):
        try:
            packed.check(number)
        except MinisrcnnError:
            picture = int(packed.picture[number])
            damaged[picture] = packed.names[picture]
        if number % 256 == 255:
            packed.release()
        if progress is not None:
            progress(number + 1, len(packed))
    return list(damaged.values())


# --- writing ------------------------------------------------------------------------------------


def find_sources(folders: Iterable[PathLike]) -> list[Source]:
    """Return the pictures of folders and the folders below them, each file once.

    In the order of training: as the folders are named, in each by path. T91, Set5 and Set14 are
    the data sets of those names.

    Raises
    ------
    MinisrcnnError
        Where there is no such folder, or no picture in it.
    """
    found: dict[str, Source] = {}
    for folder in folders:
        known = dataset_name(folder)
        top = Path(folder).expanduser()
        for path in (load_dataset(folder).paths if known else find_images(top, recursive=True)):
            if known:
                name = Path(known, path.name)
            elif top.is_dir():
                name = Path(top.resolve().name, path.relative_to(top))
            else:
                name = Path(path.name)
            found.setdefault(os.path.realpath(path), Source(path, name.as_posix()))
    return list(found.values())


def pack(
    sources: Sequence[Source],
    out: PathLike,
    factors: Sequence[float] = (),
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the luma of pictures into one file; one that was begun is gone on with.

    One picture at a time is in memory.

    Parameters
    ----------
    sources : sequence of Source
        What cannot be read is skipped.
    out : path
        A file that does not exist.
    factors : sequence of float
        Copies to pack with each picture, as :func:`minisrcnn.imaging.prepare.planes` makes them.
    say : callable, optional
        Takes a line for each picture that is skipped.
    progress : callable, optional
        Called with (pictures done, pictures in all).

    Raises
    ------
    MinisrcnnError
        If ``out`` exists, cannot be written, or is being packed by another process; if no picture
        can be read. What has been packed stays, to be gone on with.
    """
    out = Path(out)
    work = Path(f"{out}.part")
    try:
        _check_free(out, work)
        work.mkdir(exist_ok=True)
        with locked(work / "lock", f"{out}: another process is packing it", say):
            _check_free(out, work)  # another process may have packed it meanwhile
            done = _pack(sources, out, work, tuple(factors), say, progress)
        _remove(work)
    except OSError as error:
        raise MinisrcnnError(f"{out}: cannot be written ({reason(error)})") from None
    if not done.pictures:
        raise MinisrcnnError(f"{out}: none of the {len(sources)} pictures can be read")
    return done


def _check_free(out: Path, work: Path) -> None:
    if out.exists():
        if not (work / "pixels").exists():  # of a pack that was killed when it was whole
            _remove(work)
        raise MinisrcnnError(f"{out}: is there already, and nothing is overwritten: name another "
                             "file with -o")


def _remove(work: Path) -> None:
    with contextlib.suppress(OSError):
        for name in ("journal.jsonl", "lock"):
            (work / name).unlink(missing_ok=True)
        work.rmdir()


def _pack(
    sources: Sequence[Source], out: Path, work: Path, factors: tuple[float, ...],
    say: Callable[[str], None] | None, progress: Callable[[int, int], None] | None,
) -> Packed:
    packed, records, names = Packed(), bytearray(), bytearray()
    head = json.dumps({"version": _VERSION, "factors": factors}).encode() + b"\n"
    with open(work / "pixels", "a+b") as pixels, open(work / "journal.jsonl", "a+b") as journal:
        kept = _kept(journal, pixels, sources, head)
        for number, source in enumerate(sources):
            entry = next(kept, None)
            if entry is None:
                entry = _pack_one(source, factors, pixels)
                pixels.flush()
                journal.write(json.dumps(entry).encode() + b"\n")
                journal.flush()
            if "skipped" in entry:
                packed.skipped.append(entry["skipped"])
                if say is not None:
                    say(f"Skipped: {entry['skipped']}")
            else:
                names += source.name.encode("utf-8", "surrogateescape") + b"\0"
                for size, H, W, digest in entry["planes"]:
                    records += np.array((_HEADER + packed.pixels, H, W, packed.pictures, size,
                                         bytes.fromhex(digest)), _RECORD).tobytes()
                    packed.planes += 1
                    packed.pixels += H * W
                packed.pictures += 1
            if progress is not None:
                progress(number + 1, len(sources))
        index = np.array(factors, "<f8").tobytes() + records + names
        fields = _FIELDS.pack(_MAGIC, _VERSION, len(factors), packed.pictures, packed.planes,
                              _HEADER + packed.pixels)
        pixels.truncate(_HEADER + packed.pixels)  # an index may follow, of a pack that was killed
        pixels.write(index)
        pixels.flush()
    if not packed.pictures:  # what could not be read is tried anew the next time
        (work / "pixels").unlink()
        return packed
    with open(work / "pixels", "r+b") as file:
        file.write(fields + hashlib.sha256(fields + index).digest())
        file.flush()
        os.fsync(file.fileno())
    os.replace(work / "pixels", out)
    return packed


def _stamp(source: Source) -> dict[str, Any]:
    """Return by what a file is known again; a file that is gone has none."""
    try:
        status = os.stat(source.path)
    except OSError:
        return {"path": os.path.abspath(source.path)}
    return {"path": os.path.abspath(source.path), "bytes": status.st_size,
            "time": status.st_mtime_ns}


def _pack_one(source: Source, factors: tuple[float, ...], pixels: IO[bytes]) -> dict[str, Any]:
    """Append the planes of a picture; return its line of the journal."""
    entry = _stamp(source)
    try:
        image = read_image(source.path)
        if min(image.shape[:2]) < _LEAST:
            H, W = image.shape[:2]
            raise MinisrcnnError(f"{source.path}: has {H}x{W} pixels, want at least "
                                 f"{_LEAST}x{_LEAST}")
    except MinisrcnnError as error:
        return entry | {"skipped": str(error)}
    entry["planes"] = []
    for factor, plane in planes(image, factors, _LEAST):
        plane = np.ascontiguousarray(plane)
        pixels.write(plane)
        size = 0 if factor == 1.0 else 1 + factors.index(factor)
        entry["planes"].append([size, *plane.shape, hashlib.sha256(plane).hexdigest()])
    return entry


def _kept(
    journal: IO[bytes], pixels: IO[bytes], sources: Sequence[Source], head: bytes
) -> Iterator[dict[str, Any]]:
    """Yield the lines of the journal that hold still; then cut journal and pixels back to them.

    A line holds while it is of the same file as the source in its place, and the pixels that it
    tells of are there. So it does not matter what was on the disk, and what not yet, when a pack
    was killed.
    """
    journal.seek(0)
    pixels.seek(0)
    good, end = 0, _HEADER
    if journal.readline() == head and len(pixels.read(_HEADER)) == _HEADER:
        good = journal.tell()
        for source in sources:
            journal.seek(good)
            entry = _entry(journal.readline(), source)
            if entry is None or not _holds(entry, pixels, end):
                break
            good = journal.tell()
            end += sum(H * W for _, H, W, _ in entry.get("planes", ()))
            yield entry
    journal.truncate(good)
    pixels.truncate(end)
    if not good:
        pixels.truncate(0)
        pixels.write(bytes(_HEADER))
        journal.write(head)


def _entry(line: bytes, source: Source) -> dict[str, Any] | None:
    """Return a line of the journal if it is whole, and of this source as it is now."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        entry = json.loads(line)
        if line.endswith(b"\n") and all(
                entry.get(key) == value for key, value in _stamp(source).items()):
            if "skipped" in entry:
                return {"skipped": str(entry["skipped"])}
            return {"planes": [(int(size), int(H), int(W), str(digest))
                               for size, H, W, digest in entry["planes"]]}
    return None


def _holds(entry: dict[str, Any], pixels: IO[bytes], at: int) -> bool:
    """Whether the pixels that a line of the journal tells of are there."""
    length = os.fstat(pixels.fileno()).st_size
    pixels.seek(at)
    for _, H, W, digest in entry.get("planes", ()):
        at += H * W
        if min(H, W) < 1 or at > length:
            return False
        if hashlib.sha256(pixels.read(H * W)).hexdigest() != digest:
            return False
    return True
