"""A JPEG writer that takes a picture strip by strip, and compresses on all cores.

Each band of rows is a JPEG of its own by Pillow, with the same tables and a restart marker after
every row of blocks. Prediction starts anew at such markers, so the compressed data of the bands,
joined by one more marker, are those of the whole (ITU-T T.81, sections E.1.4 and F.2.1.3.1).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from numpy.typing import NDArray

from .metadata import Metadata
from .pages import Page, bands, in_order

_SIDE = 8  # pixels of a block: colours are not subsampled
# Restart markers are numbered 0 to 7 in turn: bands of a multiple of eight rows of blocks begin
# with 0, and marker 7 comes between them.
_BAND = 8 * _SIDE
_LARGEST = 65_533  # bytes of a segment


def jpeg_cannot_hold(metadata: Metadata) -> set[str]:
    """Return the names of what is too long for JPEG's segments."""
    limits = {"EXIF": (metadata.exif, _LARGEST - 6), "XMP": (metadata.xmp, _LARGEST - 29),
              "IPTC": (metadata.iptc, _LARGEST - 14)}
    return {name for name, (value, most) in limits.items() if value and len(value) > most}


def write_jpeg(file: IO[bytes], page: Page, metadata: Metadata, quality: int) -> None:
    """Write one picture, grayscale or RGB, of uint8.

    Parameters
    ----------
    file : binary file
    page : Page
    metadata : Metadata
        As far as :func:`jpeg_cannot_hold` names none of it.
    quality : int
        1 to 100, as libjpeg has it.
    """
    from PIL import Image

    def compressed(band: NDArray[Any]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(band).save(buffer, "JPEG", quality=quality, subsampling=0,
                                   restart_marker_rows=1)
        return buffer.getvalue()

    rows = _BAND * max(1, (1 << 19) // (_BAND * page.W))
    with ThreadPoolExecutor() as pool:
        for number, data in enumerate(in_order(pool, compressed, bands(page, rows))):
            start = _scan_start(data)
            if number == 0:
                file.write(b"\xff\xd8" + _density(metadata))
                for segment in _segments(metadata):
                    file.write(segment)
                file.write(_header(data[2:start], page.H))
            else:
                file.write(b"\xff\xd7")
            file.write(data[start:-2])
    file.write(b"\xff\xd9")


def _walk(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the segments before the scan: marker, first byte, one after the last."""
    at = 2
    while True:
        (size,) = struct.unpack_from(">H", data, at + 2)
        yield data[at + 1], at, at + 2 + size
        if data[at + 1] == 0xDA:
            return
        at += 2 + size


def _scan_start(data: bytes) -> int:
    return max(end for _, _, end in _walk(data))


def _header(data: bytes, H: int) -> bytes:
    """Return the tables of the first band with the height of the whole, no application data."""
    out = bytearray()
    data = b"\xff\xd8" + data
    for marker, start, end in _walk(data):
        segment = bytearray(data[start:end])
        if marker == 0xC0:  # start of frame: size, precision, height, width
            struct.pack_into(">H", segment, 5, H)
        if not 0xE0 <= marker <= 0xEF:
            out += segment
    return bytes(out)


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _density(metadata: Metadata) -> bytes:
    unit, x, y = 0, 1, 1
    if metadata.dpi:
        unit = 1
        x, y = (min(max(round(value), 1), 0xFFFF) for value in metadata.dpi)
    return _segment(0xE0, b"JFIF\0\x01\x01" + struct.pack(">BHHBB", unit, x, y, 0, 0))


def _segments(metadata: Metadata) -> Iterator[bytes]:
    if metadata.exif:
        yield _segment(0xE1, b"Exif\0\0" + metadata.exif)
    if metadata.xmp:
        yield _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + metadata.xmp)
    if metadata.profile:
        most = _LARGEST - 14
        parts = [metadata.profile[i : i + most] for i in range(0, len(metadata.profile), most)]
        for i, part in enumerate(parts):
            yield _segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(parts)]) + part)
    if metadata.iptc:
        yield _segment(0xED, b"Photoshop 3.0\0" + metadata.iptc)
    comment = metadata.text.get("Comment", "").encode()[:_LARGEST]
    if comment:
        yield _segment(0xFE, comment)
