"""Directories of TIFF structures: what TIFF files and EXIF blocks both consist of.

TIFF 6.0, section 2; BigTIFF is the same with 8-byte counts and offsets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}
_LETTERS = {SHORT: "H", LONG: "I", LONG8: "Q"}


@dataclass(frozen=True)
class Entry:
    """One entry: its values as bytes in the order of the structure, or a directory of its own."""

    tag: int
    kind: int
    count: int
    raw: bytes
    inner: tuple[Entry, ...] = ()

    def numbers(self, order: str) -> tuple[int, ...]:
        """Return the values of integers."""
        letter = {BYTE: "B", **_LETTERS, 13: "I", 18: "Q"}.get(self.kind)
        return () if letter is None else struct.unpack(f"{order}{self.count}{letter}", self.raw)


def entry(order: str, tag: int, kind: int, values: Sequence[int] | bytes) -> Entry:
    """Return an entry of integers, or of bytes unchanged."""
    if isinstance(values, bytes):
        return Entry(tag, kind, len(values), values)
    return Entry(tag, kind, len(values), struct.pack(f"{order}{len(values)}{_LETTERS[kind]}",
                                                     *values))


def byte_order(data: Any) -> tuple[str, bool] | None:
    """Return ("<" or ">", whether it is BigTIFF), or None for anything else."""
    kinds = {b"II*\0": ("<", False), b"MM\0*": (">", False),
             b"II+\0": ("<", True), b"MM\0+": (">", True)}
    return kinds.get(bytes(data[:4]))


def first_directory(data: Any, order: str, big: bool = False) -> int:
    """Return where the first directory is; 0 if the structure ends before it says so."""
    where = (order + "Q", 8) if big else (order + "I", 4)
    return struct.unpack_from(where[0], data, where[1])[0] if len(data) >= 16 else 0


def read_directory(data: Any, at: int, order: str, big: bool = False) -> list[Entry]:
    """Return the entries of a directory that are whole; none of a damaged one is guessed."""
    head, size, inline = (order + "Q", 20, 8) if big else (order + "H", 12, 4)
    start = at + struct.calcsize(head)
    if at < 8 or start > len(data):
        return []
    (count,) = struct.unpack_from(head, data, at)
    found = []
    for place in range(start, min(start + count * size, len(data) - size + 1), size):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, place)
        length = _SIZES.get(kind, 0) * number
        value = place + size - inline
        if length > inline:
            (value,) = struct.unpack_from(order + ("Q" if big else "I"), data, value)
        if length and value + length <= len(data):
            found.append(Entry(tag, kind, number, bytes(data[value : value + length])))
    return found


def directory_bytes(
    entries: Sequence[Entry], at: int, order: str, big: bool = False
) -> tuple[bytes, int]:
    """Return a directory that is to start at offset ``at``, and where its link to the next is.

    The link is relative to ``at`` and holds 0: the last directory.
    """
    number, size, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    head = struct.pack(order + ("Q" if big else "H"), len(entries))
    link = len(head) + size * len(entries)
    extra = bytearray()
    table = bytearray(head)
    for item in sorted(entries, key=lambda item: item.tag):
        kind, count, raw = item.kind, item.count, item.raw
        place = at + link + inline + len(extra)
        if item.inner:
            kind, count = (LONG8 if big else LONG), 1
            raw = struct.pack(order + number, place)
            body = directory_bytes(item.inner, place, order, big)[0]
        elif len(raw) > inline:
            body, raw = raw, struct.pack(order + number, place)
        else:
            body = b""
        extra += body + b"\0" * (len(body) % 2)
        table += struct.pack(order + "HH" + number, item.tag, kind, count)
        table += raw.ljust(inline, b"\0")
    return bytes(table + b"\0" * inline + extra), link
