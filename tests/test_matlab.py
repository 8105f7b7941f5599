"""The reader of MATLAB 5 files: against SciPy's writer, and against damage of every kind."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from minisrcnn.matlab import read_arrays

ROOT = Path(__file__).resolve().parent.parent


def saved(arrays, compress=False):
    buffer = io.BytesIO()
    savemat(buffer, arrays, do_compression=compress)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (81, 64), (64, 25, 32), (2, 3, 4, 5)])
def test_what_scipy_writes(shape, dtype, compress):
    a = np.random.default_rng(0).normal(size=shape).astype(dtype)
    b = np.arange(12.0).reshape(3, 4)
    arrays, names = read_arrays(saved({"a": a, "other": "text", "b": b}, compress), ("a", "b"))
    assert names == ["a", "other", "b"] and arrays.keys() == {"a", "b"}
    assert arrays["a"].dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(arrays["a"], a)
    np.testing.assert_array_equal(arrays["b"], b)


def element(kind, data, order="<"):
    return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)


def file_of(stored, numbers, shape, order="<", matlab_class=6, flags=0, name=b"a"):
    """Build a file by hand from the specification."""
    body = (element(6, struct.pack(order + "II", matlab_class | flags, 0), order)
            + element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
            + element(1, name, order) + element(stored, numbers, order))
    marker = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + marker + element(14, body, order)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stored, dtype", [
    (1, "i1"), (2, "u1"), (3, "i2"), (4, "u2"), (5, "i4"), (6, "u4"), (7, "f4"), (9, "f8"),
    (12, "i8"), (13, "u8")])
def test_numbers_stored_small_and_in_either_byte_order(stored, dtype, order):
    """MATLAB stores a double array of small whole numbers as bytes; SciPy's writer never does."""
    numbers = np.arange(6).astype(order + dtype)
    arrays, _ = read_arrays(file_of(stored, numbers.tobytes(), (2, 3), order), ["a"])
    np.testing.assert_array_equal(arrays["a"], [[0, 2, 4], [1, 3, 5]])
    assert arrays["a"].dtype == np.float64


NUMBERS = np.zeros(6).tobytes()


@pytest.mark.parametrize("data, says", [
    (b"", "header"),
    (bytes(200), "header"),
    (file_of(9, NUMBERS, (2, 4)), "does not fit"),
    (file_of(9, NUMBERS, (2, -3)), "at least one"),
    (file_of(9, NUMBERS, (0, 3)), "at least one"),
    (file_of(9, NUMBERS, (1 << 30, 1 << 30)), "does not fit"),
    (file_of(9, NUMBERS, (6,)), "dimensions"),
    (file_of(9, NUMBERS, (1,) * 33), "dimensions"),
    (file_of(9, NUMBERS, (2, 3), flags=0x800), "complex"),
    (file_of(9, NUMBERS, (2, 3), matlab_class=2), "a structure"),
    (file_of(9, NUMBERS, (2, 3), matlab_class=200), "class 200"),
    (file_of(99, NUMBERS, (2, 3)), "type 99"),
    (file_of(9, NUMBERS, (2, 3))[:-9], "truncated"),
    (file_of(9, NUMBERS, (2, 3)) + b"\x0e\0\0", "truncated"),
    (file_of(9, NUMBERS, (2, 3), name=b"a" * 64), "without a name"),
])
def test_damage_is_named(data, says):
    with pytest.raises(ValueError, match=says):
        read_arrays(data, ["a"])


def test_a_compressed_element_cannot_ask_for_gigabytes():
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(8)) + packer.flush()
    data = file_of(9, NUMBERS, (2, 3)) + struct.pack("<II", 15, len(bomb)) + bomb
    with pytest.raises(ValueError, match="unpacks to more than 1,048,576"):
        read_arrays(data, ["a"], limit=1 << 20)


def mutate(data, rng):
    """Change a file as disks, editors and attackers do; most often one byte, often in a tag."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(min(len(data), 400)) if rng.random() < 0.7 else rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            word = rng.choice([0, 1, 7, 1 << 16, 1 << 31, 2**32 - 1])
            data[at : at + 4] = struct.pack("<I", word)
        elif kind == 3:
            del data[at : at + rng.randrange(1, 20)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        if not data:
            return b""
    return bytes(data)


FUZZ = """
import random, sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_matlab import mutate, saved
import numpy as np
from minisrcnn.matlab import read_arrays
rng = random.Random({seed})
arrays = {{"a": np.ones((9, 4)), "b": np.ones((4, 1)), "c": np.ones((4, 1, 2), np.float32),
          "d": "text", "e": np.ones((2, 2), np.int8)}}
files = [saved(arrays, compress) for compress in (False, True)]
read = refused = 0
for i in range({count}):
    try:
        read_arrays(mutate(files[i % 2], rng), ("a", "b", "c"))
        read += 1
    except ValueError as error:
        assert len(str(error).splitlines()) == 1, error
        refused += 1
print(read, refused)
"""


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused_and_never_end_the_process(count):
    """In a process of its own: what a bad reader does to it is a crash, not an exception."""
    code = FUZZ.format(root=str(ROOT), tests=str(ROOT / "tests"), seed=1, count=count)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read, refused = map(int, done.stdout.split())
    assert read + refused == count and read > 0 and refused > count // 10


def test_every_value_of_every_byte_of_the_tags():
    """Where one byte of a tag ended the process: all 256 values of each byte of one array."""
    data = file_of(9, NUMBERS, (2, 3))
    for at in range(124, len(data) - len(NUMBERS)):
        for value in range(256):
            changed = bytearray(data)
            changed[at] = value
            try:
                arrays, _ = read_arrays(bytes(changed), ["a"])
            except ValueError:
                continue
            for array in arrays.values():
                assert array.size <= 48
