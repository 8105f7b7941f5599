"""Read arrays of numbers from a MATLAB 5 file, and nothing else: every size checked before use.

SciPy's reader takes a damaged file's tags for true, and one wrong byte ends the process. What
the authors' models hold is a small part of the format ("MAT-File Format", The MathWorks, section
1, Level 5), and this is that part:

- a header of 128 bytes, whose last two give the byte order;
- then elements, each a tag of type and size, and its data, padded to 8 bytes; a small element
  has its size in the upper half of the tag's first word and up to 4 bytes in its second;
- an array is an element of elements: flags (with the class), dimensions, name, numbers, whose
  type may be smaller than the class; or a compressed element that holds one such element.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["little", "big"]

_HEADER = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15

# The types that numbers are stored as, and the classes of arrays of floats.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
           13: "u8"}
_FLOATS = {6: "f8", 7: "f4"}
_CLASSES = {1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 5: "sparse",
            8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32",
            14: "int64", 15: "uint64", 16: "a function", 17: "an object"}
_WITHOUT_NAME = (16, 17)  # laid out in another way


def read_arrays(
    data: bytes, wanted: Collection[str], limit: int = 1 << 28
) -> tuple[dict[str, NDArray[np.floating]], list[str]]:
    """Return the wanted arrays of floats, and the names of all that the file holds.

    Parameters
    ----------
    data : bytes
        A whole file.
    wanted : names
        What is not wanted is skipped; a wanted name may be missing in the result.
    limit : int
        Most bytes that compressed elements may unpack to, all together.

    Raises
    ------
    ValueError
        If the file is damaged, or what is wanted is not a full real array of floats.
    """
    marker = data[126:_HEADER]
    if len(data) < _HEADER or marker not in (b"IM", b"MI"):
        raise ValueError("no MATLAB 5 header")
    order: Order = "little" if marker == b"IM" else "big"
    arrays: dict[str, NDArray[np.floating]] = {}
    names: list[str] = []
    for body in _matrices(data, order, limit):
        found = _array(body, order, wanted)
        if found is None:
            continue
        name, array = found
        names.append(name)
        if array is not None:
            arrays[name] = array
    return arrays, names


def _matrices(data: bytes, order: Order, limit: int) -> Iterator[bytes]:
    """Yield the body of every array of a file."""
    view = memoryview(data)
    at, unpacked = _HEADER, 0
    while at < len(data):
        kind, body, at = _element(view, at, order, aligned=False)
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                plain = unpacker.decompress(body, limit - unpacked + 1)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            unpacked += len(plain)
            if unpacked > limit:
                raise ValueError(f"unpacks to more than {limit:,} bytes")
            if not unpacker.eof:
                raise ValueError("truncated")
            kind, body, _ = _element(memoryview(plain), 0, order)
        else:
            at = -(-at // 8) * 8
        if kind == _MATRIX:
            yield bytes(body)


def _element(
    view: memoryview, at: int, order: Order, aligned: bool = True
) -> tuple[int, memoryview, int]:
    """Return the type and the data of the element at a place, and where the next one is."""
    tag = view[at : at + 8]
    if len(tag) < 8:
        raise ValueError("truncated")
    kind, size = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
    if kind >> 16:  # a small element
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError(f"a small element of {size} bytes, want at most 4")
        return kind, tag[4 : 4 + size], at + 8
    body = view[at + 8 : at + 8 + size]
    if len(body) < size:
        raise ValueError("truncated")
    end = at + 8 + size
    return kind, body, -(-end // 8) * 8 if aligned else end


def _array(
    body: bytes, order: Order, wanted: Collection[str]
) -> tuple[str, NDArray[np.floating] | None] | None:
    """Read one array: its name, and its numbers if it is wanted; None where it has no name."""
    view = memoryview(body)
    kind, flags, at = _element(view, 0, order)
    if kind != _UINT32 or len(flags) != 8:
        raise ValueError("an array without flags")
    word = int.from_bytes(flags[:4], order)
    matlab_class, is_complex = word & 0xFF, bool(word & 0x800)
    if matlab_class in _WITHOUT_NAME:
        return None
    kind, dimensions, at = _element(view, at, order)
    if kind != _INT32 or len(dimensions) % 4 or not 2 <= len(dimensions) // 4 <= 32:
        raise ValueError("an array without dimensions")
    shape = tuple(int.from_bytes(dimensions[i : i + 4], order, signed=True)
                  for i in range(0, len(dimensions), 4))
    kind, label, at = _element(view, at, order)
    if kind != _INT8 or len(label) > 63:  # the longest name that MATLAB has
        raise ValueError("an array without a name")
    name = bytes(label).decode("ascii", "backslashreplace")
    if name not in wanted:
        return name, None
    dtype = _FLOATS.get(matlab_class)
    if dtype is None or is_complex:
        what = "complex" if is_complex else _CLASSES.get(matlab_class, f"of class {matlab_class}")
        raise ValueError(f"{name} is {what}, want an array of floats")
    if min(shape) < 1:
        raise ValueError(f"{name} has shape {shape}, want at least one number")
    kind, numbers, _ = _element(view, at, order)
    stored = _STORED.get(kind)
    if stored is None:
        raise ValueError(f"{name} is stored as type {kind}, want numbers")
    if len(numbers) != math.prod(shape) * np.dtype(stored).itemsize:
        raise ValueError(f"{name} has {len(numbers):,} bytes, which its shape {shape} does not fit")
    flat = np.frombuffer(numbers, np.dtype(stored).newbyteorder("<" if order == "little" else ">"))
    return name, flat.astype(dtype).reshape(shape, order="F")
