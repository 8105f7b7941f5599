"""A PNG and APNG writer that takes a picture strip by strip, and compresses on all cores.

Pillow wants the whole picture, and then holds it once more at four bytes a pixel; and it writes no
16-bit colour. The format needs neither: a PNG is one zlib stream of rows (W3C Recommendation, third
edition, sections 5, 9, 10 and 11).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from fractions import Fraction
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .metadata import Metadata
from .pages import Page, in_order

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels
_AVERAGE = 3  # the filter: a pixel minus the mean of those to its left and above

# Level 6 makes upscaled photographs 2 to 10 % smaller, and takes three times as long.
_LEVEL = 4
_PIECE = 1 << 20  # bytes compressed at a time
_WINDOW = 1 << 15  # how far back deflate can refer


def write_png(
    file: IO[bytes], pages: Iterable[Page], metadata: Metadata, frames: int = 1, loop: int = 0
) -> None:
    """Write a PNG, or an animated one.

    Parameters
    ----------
    file : binary file
    pages : iterable of Page
        ``frames`` of them, all of one size and kind.
    metadata : Metadata
    frames : int
        More than 1: an animation.
    loop : int
        How often it is played; 0: for ever.

    Raises
    ------
    ValueError
        If the strips of a page do not fit it, or a page does not fit the first.
    """
    sequence = 0
    first: Page | None = None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for page in pages:
            kind = (page.H, page.W, page.channels, page.dtype)
            if first is None:
                first = page
                _begin(file, page, metadata)
                if frames > 1:
                    _chunk(file, b"acTL", struct.pack(">II", frames, loop))
            elif kind != (first.H, first.W, first.channels, first.dtype):
                raise ValueError(f"page is of {kind}, want the kind of the first")
            if frames > 1:
                _chunk(file, b"fcTL", _frame(sequence, page))
                sequence += 1
            for data in _stream(page, pool):
                if page is first:
                    _chunk(file, b"IDAT", data)
                else:
                    _chunk(file, b"fdAT", struct.pack(">I", sequence) + data)
                    sequence += 1
    _chunk(file, b"IEND", b"")


def _begin(file: IO[bytes], page: Page, metadata: Metadata) -> None:
    bits = 8 * page.dtype.itemsize
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(
        ">IIBBBBB", page.W, page.H, bits, _COLOUR_TYPES[page.channels], 0, 0, 0))
    for kind, data in metadata.gamma.items():
        if not (kind == b"sRGB" and metadata.profile):  # one of the two, says the format
            _chunk(file, kind, data)
    if metadata.profile:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.profile))
    if metadata.dpi:
        x, y = (min(round(value / 0.0254), 2**31 - 1) for value in metadata.dpi)
        _chunk(file, b"pHYs", struct.pack(">IIB", x, y, 1))
    if metadata.exif:
        _chunk(file, b"eXIf", metadata.exif)
    if metadata.xmp:
        _chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    for keyword, text in metadata.text.items():
        key = keyword.encode("latin-1", "replace")[:79] or b"Comment"
        try:
            _chunk(file, b"tEXt", key + b"\0" + text.encode("latin-1"))
        except UnicodeEncodeError:
            _chunk(file, b"iTXt", key + b"\0\0\0\0\0" + text.encode())


def _frame(sequence: int, page: Page) -> bytes:
    """Return the control of a frame that covers the picture and replaces what was there."""
    delay = Fraction((page.duration or 0) / 1000).limit_denominator(10_000)
    above, below = delay.numerator, delay.denominator
    if above > 0xFFFF:
        above, below = min(round(above / below), 0xFFFF), 1
    return struct.pack(">IIIIIHHBB", sequence, page.W, page.H, 0, 0, above, below, 0, 0)


def _stream(page: Page, pool: Executor) -> Iterator[bytes]:
    """Yield the rows of a page, filtered and compressed, as one zlib stream in pieces."""
    yield b"\x78\x5e"  # zlib's header: deflate, a 32 KB window
    pixel = page.channels * page.dtype.itemsize
    above: Any = np.zeros(page.W * pixel, np.uint8)
    checksum, window = 1, b""
    for strip in page.checked():
        samples = np.ascontiguousarray(strip)
        if page.dtype == np.uint16:
            samples = samples.astype(">u2").view(np.uint8)
        rows = samples.reshape(len(strip), page.W * pixel)
        filtered = memoryview(_filtered(rows, above, pixel)).cast("B")
        yield from _deflated(filtered, window, pool)
        checksum = zlib.adler32(filtered, checksum)
        above, window = rows[-1].copy(), bytes(filtered[-_WINDOW:])
    yield b"\x03\x00" + struct.pack(">I", checksum)  # an empty last block


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], pixel: int) -> NDArray[np.uint8]:
    """Filter every row, its number first; all arithmetic is modulo 256, as the format has it."""
    up = np.concatenate([above[None], rows[:-1]])
    left = rows[:, :-pixel]
    # floor((left + up) / 2) within 8 bits: half of each, and 1 where both are odd
    mean = up >> 1
    mean[:, pixel:] += (left >> 1) + (left & up[:, pixel:] & 1)
    out = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    out[:, 0] = _AVERAGE
    np.subtract(rows, mean, out=out[:, 1:])
    return out


def _deflated(data: memoryview, window: bytes, pool: Executor) -> Iterator[bytes]:
    """Compress on all cores, in pieces that join to one stream; `window` is what went before.

    A piece may refer to the 32 KB before it, so those are its dictionary, and it ends on a
    whole byte (a sync flush).
    """
    def piece(start: int) -> bytes:
        before = bytes(data[max(start - _WINDOW, 0) : start]) if start else window
        return _compressed(data[start : start + _PIECE], before)

    if len(data) <= _PIECE:
        yield piece(0)
        return
    yield from in_order(pool, piece, range(0, len(data), _PIECE))


def _compressed(data: memoryview, window: bytes) -> bytes:
    options = (_LEVEL, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY)
    packer = zlib.compressobj(*options, window) if window else zlib.compressobj(*options)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def _chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    """Write a length, four letters, the data and their checksum."""
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
