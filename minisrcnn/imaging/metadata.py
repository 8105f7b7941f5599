"""What a picture file carries beside its pixels: EXIF, XMP, IPTC, colour profile, DPI, text.

EXIF blocks are edited in place, value by value: rewriting one would move the offsets inside maker
notes, which only their maker knows, and drop the thumbnail.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .ifd import (
    LONG,
    RATIONAL,
    SHORT,
    Entry,
    byte_order,
    directory_bytes,
    first_directory,
    read_directory,
)

_ORIENTATION = 0x0112
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 0x011A, 0x011B, 0x0128
_EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_WIDTH, _HEIGHT = 0xA002, 0xA003

# Of a TIFF file's own directory, what describes the picture rather than how it is stored:
# document, description, maker, model, orientation, resolution, page, software, date, artist,
# host, copyright, EXIF, GPS, and the titles, comments, authors and keywords of Windows.
DESCRIBING = {0x010D, 0x010E, 0x010F, 0x0110, _ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, 0x011D,
               _UNIT, 0x0129, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, _EXIF, _GPS,
               0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F}  # fmt: skip

# What says how a TIFF stores its pixels, and what is kept of it by other names: XMP, IPTC,
# Photoshop resources, colour profile.
STORING = {*range(0x00FE, 0x0104), 0x0106, 0x0107, 0x0108, 0x0109, 0x010A, *range(0x0111, 0x011D),
           0x0120, 0x0121, 0x0122, 0x0123, 0x0124, 0x0125, 0x012D, *range(0x013D, 0x0149), 0x014A,
           0x014C, 0x014D, 0x014E, 0x0150, 0x0151, 0x0152, 0x0153, 0x0154, 0x0155, 0x0156, 0x015A,
           0x015B, *range(0x0200, 0x0216), 0x02BC, 0x83BB, 0x8649, 0x8773}  # fmt: skip

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>))([1-8])")

_FIELDS = {"colour profile": "profile", "EXIF": "exif", "XMP": "xmp", "IPTC": "iptc",
           "DPI": "dpi", "text": "text", "PNG gamma": "gamma"}


@dataclass(frozen=True)
class Metadata:
    """What is kept of a file beside its pixels.

    Attributes
    ----------
    profile : bytes or None
        ICC colour profile.
    exif : bytes or None
        A TIFF structure, as EXIF defines it, without the prefix ``Exif``.
    xmp : bytes or None
        An XML packet.
    iptc : bytes or None
        Photoshop image resources (``8BIM`` blocks), where IPTC captions are.
    dpi : (float, float) or None
        Pixels per inch, across and down.
    text : dict
        Keyword and text: those of a PNG, comments of JPEG and GIF.
    gamma : dict
        A PNG's chunks ``gAMA``, ``cHRM``, ``sRGB`` and ``cICP``: what its colours mean.
    """

    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    gamma: dict[bytes, bytes] = field(default_factory=dict)

    def names(self) -> set[str]:
        """Return what is there, by the names used in messages."""
        return {name for name, attribute in _FIELDS.items() if getattr(self, attribute)}

    def without(self, names: set[str]) -> Metadata:
        """Return a copy that lacks what is named."""
        empty: dict[str, Any] = {"text": {}, "gamma": {}}
        changes: dict[str, Any] = {_FIELDS[name]: empty.get(_FIELDS[name]) for name in names}
        return replace(self, **changes)

    def resized(self, W: int, H: int, dpi_factor: float = 1) -> Metadata:
        """Return what belongs to an upright picture of another size."""
        exif = self.exif and edit_exif(self.exif, W, H, dpi_factor)
        xmp = self.xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp)
        dpi = self.dpi and (self.dpi[0] * dpi_factor, self.dpi[1] * dpi_factor)
        return replace(self, dpi=dpi, exif=exif, xmp=xmp)


def exif_orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """Return the orientation, 1 to 8, that EXIF states, or else XMP; 1 where none does."""
    for place in _places(exif or b""):
        if place.tag == _ORIENTATION and place.count == 1:
            return place.value if 1 <= place.value <= 8 else 1
    match = _XMP_ORIENTATION.search(xmp) if xmp else None
    return int(match[2]) if match else 1


def edit_exif(exif: bytes, W: int, H: int, dpi_factor: float = 1) -> bytes:
    """Return an EXIF block with the orientation 1, the size given, the resolution multiplied.

    What is not there is not added; what is damaged stays as it is.
    """
    data = bytearray(exif)
    for place in _places(exif):
        order = place.order
        number = {_ORIENTATION: 1, _WIDTH: W, _HEIGHT: H}.get(place.tag)
        if number is not None and place.kind in (SHORT, LONG) and (
                place.count == 1 or place.tag == _ORIENTATION):
            kind = LONG if number > 0xFFFF else place.kind
            struct.pack_into(order + "H", data, place.at + 2, kind)
            data[place.at + 8 : place.at + 12] = struct.pack(
                order + ("I" if kind == LONG else "HH"), *((number,) if kind == LONG
                                                           else (number, 0)))
        elif (place.tag in (_X_RESOLUTION, _Y_RESOLUTION) and place.kind == RATIONAL
              and dpi_factor != 1 and place.value + 8 <= len(data)):
            above, below = struct.unpack_from(order + "II", data, place.value)
            if below and above * dpi_factor / below < 4e6:
                struct.pack_into(order + "II", data, place.value,
                                 round(above * dpi_factor / below * 1000), 1000)
    return bytes(data)


def without_orientation(exif: bytes) -> bytes:
    """Return an EXIF block that states no orientation; all else stays where it is."""
    for place in _places(exif):
        if place.tag != _ORIENTATION:
            continue
        start = first_directory(exif, place.order)
        (count,) = struct.unpack_from(place.order + "H", exif, start)
        end = start + 2 + 12 * count + 4  # with the offset of the next directory
        if not start < place.at < end <= len(exif):
            break
        fewer = struct.pack(place.order + "H", count - 1)
        return (exif[:start] + fewer + exif[start + 2 : place.at] + exif[place.at + 12 : end]
                + bytes(12) + exif[end:])
    return exif


@dataclass(frozen=True)
class _Place:
    """Where the twelve bytes of an entry are, and what they say."""

    at: int
    order: str
    tag: int
    kind: int
    count: int
    value: int


def _places(exif: bytes) -> Iterator[_Place]:
    """Yield the entries of the main directory, and of the EXIF one, where they lie in the block."""
    order = (byte_order(exif) or ("", False))[0]
    waiting = [first_directory(exif, order)] if order else []
    seen: set[int] = set()
    while waiting:
        start = waiting.pop()
        if start in seen or not 8 <= start <= len(exif) - 2:
            continue
        seen.add(start)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
            tag, kind, number = struct.unpack_from(order + "HHI", exif, at)
            (value,) = struct.unpack_from(order + ("H" if kind == SHORT else "I"), exif, at + 8)
            if tag == _EXIF and len(seen) == 1:
                waiting.append(value)
            yield _Place(at, order, tag, kind, number, value)


def tiff_entries(exif: bytes) -> tuple[str, list[Entry]]:
    """Return the byte order and the entries of an EXIF block, to be put into a TIFF file."""
    order, big = byte_order(exif) or ("<", False)
    return order, _describing(exif, first_directory(exif, order, big), order, big)


def exif_of_tiff(data: Any) -> bytes | None:
    """Return, as an EXIF block, what the first directory of a TIFF file says of the picture."""
    order, big = byte_order(data) or ("", False)
    if not order:
        return None
    entries = _describing(data, first_directory(data, order, big), order, big)
    if not {item.tag for item in entries} - {_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _UNIT}:
        return None
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory_bytes(entries, 8, order)[0]


def _describing(data: Any, at: int, order: str, big: bool) -> list[Entry]:
    found = []
    for item in read_directory(data, at, order, big):
        if item.tag not in DESCRIBING:
            continue
        if item.tag in (_EXIF, _GPS):
            inner = _inner(data, item, order, big)
            if not inner:
                continue
            item = Entry(item.tag, LONG, 1, b"", tuple(inner))
        found.append(item)
    return found


def _inner(data: Any, pointer: Entry, order: str, big: bool) -> list[Entry]:
    places = pointer.numbers(order)
    entries = read_directory(data, places[0], order, big) if places else []
    return [item for item in entries if item.tag != _INTEROPERABILITY]
