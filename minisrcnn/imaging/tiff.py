"""A TIFF writer that takes pictures strip by strip and keeps EXIF, which needs its own directory.

Pillow wants whole pictures; tifffile takes strips, but writes no EXIF. (TIFF 6.0; compression 8,
deflate, and predictor 2, differences along a row, of the Technical Note of 2002.)
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import IO, Any

from numpy.typing import NDArray

from .ifd import BYTE, LONG, LONG8, RATIONAL, SHORT, UNDEFINED, Entry, directory_bytes, entry
from .metadata import Metadata, tiff_entries
from .pages import Page, bands, in_order

_STRIP = 1 << 18  # bytes of a strip before it is compressed
_LEVEL = 4
_OWN = {0x0112, 0x011A, 0x011B, 0x0128}  # written from the metadata, not copied from EXIF


def write_tiff(file: IO[bytes], pages: Iterable[Page], metadata: Metadata) -> None:
    """Write the pages; the metadata go with the first one.

    Parameters
    ----------
    file : binary file, seekable
    pages : iterable of Page
        1 to 4 channels of uint8 or uint16.
    metadata : Metadata
    """
    order, described = tiff_entries(metadata.exif) if metadata.exif else ("<", [])
    described = [item for item in described if item.tag not in _OWN]
    big, link = False, 4
    for number, page in enumerate(pages):
        if number == 0:
            big = page.H * page.W * page.channels * page.dtype.itemsize > 0xF000_0000
            mark = b"II" if order == "<" else b"MM"
            file.write(mark + (struct.pack(order + "HHHQ", 43, 8, 0, 0) if big
                               else struct.pack(order + "HI", 42, 0)))
            link = 8 if big else 4
        entries = _stored(file, page, order, big)
        if number == 0:
            entries += described + _kept(metadata, order)
        else:
            entries += _resolution(metadata, order)
        at = file.tell() + file.tell() % 2
        if not big and at > 0xFFFF_0000:
            raise OSError("a TIFF of several pages holds 4 GB")
        body, next_link = directory_bytes(entries, at, order, big)
        file.write(b"\0" * (at - file.tell()) + body)
        file.seek(link)
        file.write(struct.pack(order + ("Q" if big else "I"), at))
        file.seek(0, 2)
        link = at + next_link


def _stored(file: IO[bytes], page: Page, order: str, big: bool) -> list[Entry]:
    """Write the pixels and return the entries that say how they are stored."""
    C, bits = page.channels, 8 * page.dtype.itemsize
    rows = max(1, _STRIP // (page.W * C * page.dtype.itemsize))
    offsets, counts = [], []

    def packed(band: NDArray[Any]) -> bytes:
        band = band.reshape(len(band), page.W, C)
        delta = band.copy()
        delta[:, 1:] -= band[:, :-1]
        if page.dtype.itemsize == 2 and (order == "<") != (sys.byteorder == "little"):
            delta.byteswap(inplace=True)
        return zlib.compress(delta.tobytes(), _LEVEL)

    with ThreadPoolExecutor() as pool:
        for data in in_order(pool, packed, bands(page, rows)):
            offsets.append(file.tell())
            counts.append(len(data))
            file.write(data)
    where = LONG8 if big else LONG
    entries = [
        entry(order, 0x0100, LONG, [page.W]),
        entry(order, 0x0101, LONG, [page.H]),
        entry(order, 0x0102, SHORT, [bits] * C),
        entry(order, 0x0103, SHORT, [8]),
        entry(order, 0x0106, SHORT, [1 if C < 3 else 2]),
        entry(order, 0x0111, where, offsets),
        entry(order, 0x0115, SHORT, [C]),
        entry(order, 0x0116, LONG, [rows]),
        entry(order, 0x0117, where, counts),
        entry(order, 0x013D, SHORT, [2]),
    ]
    if C in (2, 4):
        entries.append(entry(order, 0x0152, SHORT, [2]))  # unassociated alpha
    return entries


def _resolution(metadata: Metadata, order: str) -> list[Entry]:
    if metadata.dpi is None:
        return []
    found = [entry(order, 0x0128, SHORT, [2])]
    for tag, value in zip((0x011A, 0x011B), metadata.dpi, strict=True):
        ratio = Fraction(value).limit_denominator(10_000)
        raw = struct.pack(order + "II", ratio.numerator, ratio.denominator)
        found.append(Entry(tag, RATIONAL, 1, raw))
    return found


def _kept(metadata: Metadata, order: str) -> list[Entry]:
    found = _resolution(metadata, order)
    if metadata.xmp:
        found.append(entry(order, 0x02BC, BYTE, metadata.xmp))
    if metadata.iptc:
        found.append(entry(order, 0x8649, BYTE, metadata.iptc))
    if metadata.profile:
        found.append(entry(order, 0x8773, UNDEFINED, metadata.profile))
    return found


