"""Packed sets: what is in them, a pack that is killed, files that do harm, trainings from them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisrcnn import MinisrcnnError
from minisrcnn.arguments import check_bytes
from minisrcnn.checkpoint import load_state
from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.imaging.color import rgb2y
from minisrcnn.imaging.files import read_image, write_image
from minisrcnn.imaging.packed import PackedSet, find_sources, pack, verify
from minisrcnn.imaging.patches import PatchIndex
from minisrcnn.imaging.prepare import prepare, to_unit
from minisrcnn.imaging.resize import imresize
from minisrcnn.training import loop, order, steppers
from minisrcnn.training.kept import KeptImages
from minisrcnn.training.loop import train
from minisrcnn.training.order import Shuffle, Stream
from minisrcnn.training.pictures import load_data
from minisrcnn.training.recipes import RECIPES, Recipe
from minisrcnn.training.settings import Plan, TrainSettings

pytestmark = pytest.mark.skipif(unavailable_reason("numba") is not None,
                                reason="needs the numba backend")

FACTORS = (0.9, 0.6)
TINY = Recipe("tiny", "for tests", input_size=17, rescaled=FACTORS, augment=True, balance=1.0,
              init="identity", optimizer="adam", lr=1e-3, schedule="cosine", batch=4, epochs=2)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Give a folder of five pictures, grey and in colour, and a place of its own to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISRCNN_DATA", raising=False)
    monkeypatch.setattr(loop, "write_report", lambda result, lines: None)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    make_pictures(tmp_path / "photos")
    (tmp_path / "data" / "Set5").mkdir(parents=True)  # what is scored
    scored = np.random.default_rng(1).integers(0, 256, (50, 49)).astype(np.uint8)
    write_image(tmp_path / "data" / "Set5" / "1.png", scored)
    return tmp_path / "photos"


def make_pictures(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, shape in enumerate(((47, 61, 3), (40, 44), (33, 70, 3), (51, 38, 4), (60, 41))):
        write_image(folder / f"{i}.png", rng.integers(0, 256, shape).astype(np.uint8))


def packed(folder, out="set.luma", factors=FACTORS):
    pack(find_sources([folder]), out, factors)
    return Path(out)


def settings_for(source, **changes):
    values = {"data": str(source), "recipe": "tiny", "backend": "numba", "arch": "5-1-3",
              "out": Path("run"), "scale": 2, "threads": 1}
    return TrainSettings(**values | changes)


def quiet(text):
    pass


def log(out):
    lines = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("seconds", "data", "settings", "ranks"):
            line.pop(key, None)
    return lines


def assert_same_run(a, b):
    x, y = (load_state(Path(out) / "checkpoint.safetensors") for out in (a, b))
    assert x[0].keys() == y[0].keys()
    for name, value in x[0].items():
        np.testing.assert_array_equal(value, y[0][name], err_msg=name)
    assert x[1]["pictures"] == y[1]["pictures"]
    assert log(a) == log(b)


# --- what is in a set ---------------------------------------------------------------------------


def test_holds_the_luma_of_pictures_and_copies(pictures):
    done = pack(find_sources([pictures]), "set.luma", FACTORS)
    found = PackedSet("set.luma")
    assert (found.name, found.factors, len(found)) == ("set", FACTORS, 15)
    assert found.names == [f"photos/{i}.png" for i in range(5)]
    assert (done.pictures, done.planes, done.skipped) == (5, 15, [])
    assert done.pixels == found.shapes.prod(axis=1).sum()
    wanted = []
    for i in range(5):
        image = read_image(pictures / f"{i}.png")
        image = image[..., :3] if image.ndim == 3 else image
        H, W = image.shape[:2]
        wanted += [rgb2y(image), *(rgb2y(imresize(image, output_size=(round(f * H), round(f * W))))
                                   for f in FACTORS)]
    for number, plane in enumerate(wanted):
        np.testing.assert_array_equal(found.plane(number), plane)
        found.check(number)
    assert found.picture.tolist() == np.repeat(range(5), 3).tolist()
    assert found.size.tolist() == [0, 1, 2] * 5
    assert verify("set.luma") == []
    assert not Path("set.luma.part").exists()


def test_the_layout_is_as_it_is_documented(pictures):
    """Read by the table in the docs, not by the reader."""
    data = packed(pictures).read_bytes()
    magic, version, F, N, P, start = struct.unpack("<8sIIQQQ", data[:40])
    assert (magic, version, F, N, P) == (b"\x89LUMA\r\n\x1a", 1, 2, 5, 15)
    assert hashlib.sha256(data[:40] + data[start:]).digest() == data[40:72]
    assert struct.unpack_from("<2d", data, start) == FACTORS
    end = 72
    for i in range(P):
        offset, H, W, picture, size, digest = struct.unpack_from("<QIIII32s", data,
                                                                 start + 16 + 56 * i)
        assert (offset, picture, size) == (end, i // 3, i % 3)
        end += H * W
        assert hashlib.sha256(data[offset:end]).digest() == digest
    assert end == start
    assert data[start + 16 + 56 * P:] == b"".join(b"photos/%d.png\0" % i for i in range(5))


def test_folders_below_and_names_twice(pictures):
    """Sorted by path, each file once, though it is named twice; names need not be unique."""
    shutil.copytree(pictures, pictures / "b" / "deep")
    (pictures / "a").mkdir()
    shutil.copy(pictures / "3.png", pictures / "a" / "ä\n.png")
    (pictures / "notes.txt").write_text("no picture")
    (pictures / ".hidden.png").write_bytes(b"")
    Path("other", "photos").mkdir(parents=True)
    shutil.copy(pictures / "1.png", "other/photos/1.png")
    folders = [str(pictures), "other/photos", "photos/b", "photos/0.png"]
    pack(find_sources(folders), "set.luma")
    assert PackedSet("set.luma").names == [
        *(f"photos/{i}.png" for i in range(5)), "photos/a/ä\n.png",
        *(f"photos/b/deep/{i}.png" for i in range(5)), "photos/1.png"]
    assert verify("set.luma") == []
    with pytest.raises(MinisrcnnError, match="no such file or folder"):
        find_sources([pictures, "nowhere"])


def test_what_cannot_be_read_is_listed_and_skipped(pictures):
    (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:90])
    (pictures / "2b.jpg").write_bytes(b"no picture")
    write_image(pictures / "2c.png", np.zeros((3, 90), np.uint8))
    told = []
    done = pack(find_sources([pictures]), "set.luma", FACTORS, told.append)
    assert PackedSet("set.luma").names == [f"photos/{i}.png" for i in (0, 1, 3, 4)]
    assert [line.split(": ")[1].rsplit("/")[-1] for line in told] == ["2.png", "2b.jpg", "2c.png"]
    assert told == [f"Skipped: {line}" for line in done.skipped]
    assert "has 3x90 pixels, want at least 4x4" in told[2]
    for path in pictures.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(MinisrcnnError, match="none of the 7 pictures can be read"):
        pack(find_sources([pictures]), "none.luma")
    assert not [path for path in Path().iterdir() if path.name.startswith("none")]


def test_nothing_is_overwritten_and_two_do_not_write_at_once(pictures):
    import filelock

    sources = find_sources([pictures])
    Path("set.luma").write_text("mine")
    with pytest.raises(MinisrcnnError, match="is there already"):
        pack(sources, "set.luma")
    assert Path("set.luma").read_text() == "mine"
    Path("two.luma.part").mkdir()
    with (filelock.FileLock("two.luma.part/lock"),
          pytest.raises(MinisrcnnError, match="another process is packing it")):
        pack(sources, "two.luma")
    with pytest.raises(MinisrcnnError, match=r"nowhere/set.luma: cannot be written \(No such"):
        pack(sources, "nowhere/set.luma")


# --- killed, and gone on with -------------------------------------------------------------------

CHILD = """
import os, signal, sys
when = int(sys.argv[1])
count = 0
from minisrcnn.imaging import packed

def dies(call):
    def counted(*args, **kwargs):
        global count
        count += 1
        if count == when:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        count += 1
        if count == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

packed._pack_one = dies(packed._pack_one)
os.fsync, os.replace = dies(os.fsync), dies(os.replace)
packed.pack(packed.find_sources(["photos"]), "set.luma", (0.9, 0.6))
"""


@pytest.mark.parametrize("when", [
    pytest.param(n, marks=[] if n in (3, 12, 14) else [pytest.mark.slow]) for n in range(1, 15)])
def test_a_killed_pack_goes_on_and_gives_the_same_bytes(pictures, when):
    whole = packed(pictures, "whole.luma").read_bytes()
    done = subprocess.run([sys.executable, "-c", CHILD, str(when)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if when < 14:
        assert not Path("set.luma").exists()
        assert packed(pictures, "set.luma").read_bytes() == whole
    else:
        with pytest.raises(MinisrcnnError, match="is there already"):
            packed(pictures, "set.luma")
    assert Path("set.luma").read_bytes() == whole
    assert not Path("set.luma.part").exists()


def broken_off(pictures, after, monkeypatch):
    """Pack, and stop before picture number ``after``."""
    def stop(done, total):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(find_sources([pictures]), "set.luma", FACTORS, progress=stop)


def test_goes_on_where_it_was(pictures, monkeypatch):
    """What is packed is not read again; what changed meanwhile is, with all that follows."""
    whole = packed(pictures, "whole.luma").read_bytes()
    broken_off(pictures, 3, monkeypatch)
    read = []
    monkeypatch.setattr("minisrcnn.imaging.packed.read_image",
                        lambda path: read.append(Path(path).name) or read_image(path))
    broken_off(pictures, 4, monkeypatch)
    assert read == ["3.png"]
    assert packed(pictures).read_bytes() == whole
    assert read == ["3.png", "4.png"]
    Path("set.luma").unlink()
    broken_off(pictures, 4, monkeypatch)
    write_image(pictures / "1.png", np.full((40, 44), 7, np.uint8))
    del read[:]
    changed = packed(pictures)
    assert read == ["1.png", "2.png", "3.png", "4.png"]
    assert changed.read_bytes() == packed(pictures, "fresh.luma").read_bytes() != whole


@pytest.mark.parametrize("what", ["pixels", "journal.jsonl", "all"])
def test_a_damaged_part_is_packed_anew(pictures, what, monkeypatch):
    """What was on the disk and what not when the power went: any of it may be wrong."""
    whole = packed(pictures, "whole.luma").read_bytes()
    rng = random.Random(0)
    for trial in range(12):
        broken_off(pictures, 4, monkeypatch)
        for name in ("pixels", "journal.jsonl") if what == "all" else (what,):
            path = Path("set.luma.part", name)
            data = bytearray(path.read_bytes())
            at = rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)
            path.write_bytes(data[:rng.choice((at, at + 1, len(data)))] + b"\n" * (trial % 2))
        assert packed(pictures).read_bytes() == whole
        Path("set.luma").unlink()


def test_other_copies_begin_anew(pictures, monkeypatch):
    broken_off(pictures, 4, monkeypatch)
    pack(find_sources([pictures]), "set.luma", (0.5,))
    assert PackedSet("set.luma").factors == (0.5,)
    assert verify("set.luma") == []


# --- files that do harm -------------------------------------------------------------------------


def rewritten(data, index=None, **fields):
    """Change header fields or the index, with a checksum that fits."""
    names = ("magic", "version", "F", "N", "P", "start")
    values = dict(zip(names, struct.unpack("<8sIIQQQ", data[:40]), strict=True))
    body, old = data[72:values["start"]], data[values["start"]:]
    head = struct.pack("<8sIIQQQ", *(values | fields).values())
    index = old if index is None else index
    return head + hashlib.sha256(head + index).digest() + body + index


def record(data, number, **changes):
    """Return the index with one record changed."""
    start = struct.unpack_from("<Q", data, 32)[0]
    at = start + 16 + 56 * number
    names = ("offset", "H", "W", "picture", "size")
    values = dict(zip(names, struct.unpack_from("<QIIII", data, at), strict=True)) | changes
    return (data[start:at] + struct.pack("<QIIII", *values.values()) + data[at + 24:])


@pytest.mark.parametrize("change, says", [
    (lambda d: b"", "cannot be read|not a packed set"),
    (lambda d: b"P5 1 1 255 x", "not a packed set"),
    (lambda d: d[:50], "damaged, it is cut short"),
    (lambda d: d[:-1], "damaged, header or index is not as it was"),
    (lambda d: d + b"x", "damaged, header or index is not as it was"),
    (lambda d: d[:72], "damaged, it is cut short"),
    (lambda d: rewritten(d, version=2), "version is 2, want 1"),
    (lambda d: rewritten(d, start=1 << 62), "it is cut short"),
    (lambda d: rewritten(d, start=0), "it is cut short"),
    (lambda d: rewritten(d, P=(1 << 64) - 1), "it is cut short"),
    (lambda d: rewritten(d, F=(1 << 32) - 1), "it is cut short"),
    (lambda d: rewritten(d, N=6), "want 6 names"),
    (lambda d: rewritten(d, P=14), "want 5 names"),
    (lambda d: rewritten(d, d[-90:] * 30), "names|factors|planes"),
    (lambda d: rewritten(d, record(d, 0, offset=73)), "overlap or leave a gap"),
    (lambda d: rewritten(d, record(d, 1, offset=72)), "overlap or leave a gap"),
    (lambda d: rewritten(d, record(d, 1, offset=(1 << 64) - 5)), "overlap or leave a gap"),
    (lambda d: rewritten(d, record(d, 14, H=59)), "overlap or leave a gap"),
    (lambda d: rewritten(d, record(d, 2, H=0)), "a plane's size is out of range"),
    (lambda d: rewritten(d, record(d, 2, H=(1 << 32) - 1, W=(1 << 32) - 1)), "out of range"),
    (lambda d: rewritten(d, record(d, 3, picture=0)), "not in the order of its pictures"),
    (lambda d: rewritten(d, record(d, 3, picture=7)), "not in the order of its pictures"),
    (lambda d: rewritten(d, record(d, 4, size=2)), "not in the order of its pictures"),
    (lambda d: rewritten(d, record(d, 4, size=0)), "not in the order of its pictures"),
    (lambda d: rewritten(d, record(d, 4, size=3)), "not in the order of its pictures"),
    (lambda d: rewritten(d, record(d, 0, size=1)), "not in the order of its pictures"),
    (lambda d: rewritten(d, struct.pack("<2d", 0.9, float("nan"))
                         + d[struct.unpack_from("<Q", d, 32)[0] + 16:]), "factors are not above 0"),
    (lambda d: rewritten(d[:72], b"\0" * 16, N=0, P=0, start=72), "planes of 0 pictures"),
])
def test_a_file_that_does_harm_is_one_line(pictures, change, says):
    path = packed(pictures)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(MinisrcnnError, match=says) as found:
        PackedSet(path)
    assert "\n" not in str(found.value) and str(found.value).startswith("set.luma: ")


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_pictures(folder / "photos")
    pack(find_sources([folder / "photos"]), folder / "set.luma", FACTORS)
    return (folder / "set.luma").read_bytes(), folder / "changed.luma"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_changed_byte_is_found(whole_set, data):
    """When the set is opened, or by verify; nothing but MinisrcnnError is raised."""
    whole, path = whole_set
    start = struct.unpack_from("<Q", whole, 32)[0]
    at = data.draw(st.one_of(st.integers(0, 71), st.integers(start, len(whole) - 1),
                             st.integers(72, start - 1)))
    value = data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ value]) + whole[at + 1:])
    if 72 <= at < start:
        assert len(verify(path)) == 1
    else:
        with pytest.raises(MinisrcnnError):
            PackedSet(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_index_of_anything_opens_or_is_refused(whole_set, data):
    """With a checksum that fits: what opens has all its planes inside the file, apart."""
    whole, path = whole_set
    start = struct.unpack_from("<Q", whole, 32)[0]
    index = bytearray(whole[start:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(index) - 1))
        index[at] = data.draw(st.integers(0, 255))
    fields = data.draw(st.dictionaries(st.sampled_from(["F", "N", "P", "start"]),
                                       st.integers(0, (1 << 32) - 1), max_size=1))
    path.write_bytes(rewritten(whole, bytes(index), **fields))
    try:
        found = PackedSet(path)
    except MinisrcnnError:
        return
    assert sum(found.plane(i).size for i in range(len(found))) == start - 72
    verify(path)


def test_a_damaged_picture_is_not_trained_on(pictures):
    path = packed(pictures)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert verify(path) == ["photos/0.png"]
    with pytest.raises(MinisrcnnError, match=r"damaged, photos/0.png is not as it was packed"):
        train(settings_for(path), quiet)


# --- the order of patches -----------------------------------------------------------------------


def test_a_small_set_is_shuffled_whole():
    """As the shipped models' were: their cards promise that they can be trained again."""
    index = PatchIndex([(75, 61)] * 7, 17, 14)
    (window,) = Shuffle(index, 3).epoch(5)
    rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1, 5)))
    np.testing.assert_array_equal(window.numbers, rng.permutation(7 * 5 * 4))
    np.testing.assert_array_equal(window.codes, rng.integers(8, size=140))
    assert window.images.tolist() == list(range(7))
    (other,) = Shuffle(index, 4).epoch(5)
    assert not np.array_equal(window.numbers, other.numbers)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(order, "WINDOW", 9000)
    monkeypatch.setattr(order, "BLOCK", 3000)


def test_a_large_set_is_shuffled_in_blocks_then_patches(small_windows):
    shapes = np.random.default_rng(0).integers(10, 90, (60, 2))
    index = PatchIndex(shapes, 17, 14)
    pixels = shapes.prod(axis=1)
    epochs = []
    for epoch in (0, 1, 0):
        windows = list(Shuffle(index, 3).epoch(epoch))
        taken = np.concatenate([window.numbers for window in windows])
        assert sorted(taken) == list(range(len(index)))
        assert {c for window in windows for c in window.codes} == set(range(8))
        for window in windows:
            assert pixels[window.images].sum() <= 9000
            assert set(index.images(window.numbers)) <= set(window.images)
            assert len(window.numbers) < 8 or not (np.diff(window.numbers) > 0).all()
        assert len(windows) >= pixels.sum() / 9000
        epochs.append(taken)
    np.testing.assert_array_equal(epochs[0], epochs[2])
    assert not np.array_equal(epochs[0], epochs[1])
    # neighbours in the list of pictures do not stay together
    first = [next(Shuffle(index, seed).epoch(0)).images for seed in range(8)]
    assert len({tuple(sorted(images)) for images in first}) > 4


def test_patches_are_drawn_in_proportion_to_their_weights(monkeypatch):
    """In one window by the formula of the shipped models; in several with the same proportions."""
    index = PatchIndex([(45, 45), (45, 17), (16, 45), (31, 45)], 17, 14)  # 9, 3, 0 and 6 patches
    weights = np.array([1.0, 6.0, 0.0, 2.0])
    chances = np.repeat(weights, [9, 3, 0, 6])
    (window,) = Shuffle(index, 3, weights).epoch(5)
    rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1, 5)))
    np.testing.assert_array_equal(window.numbers, rng.choice(18, 18, p=chances / chances.sum()))
    np.testing.assert_array_equal(window.codes, rng.integers(8, size=18))
    monkeypatch.setattr(order, "WINDOW", 1)
    monkeypatch.setattr(order, "BLOCK", 1)
    many = [list(Shuffle(index, 3, weights).epoch(epoch)) for epoch in range(400)]
    assert {len(windows) for windows in many} == {3}  # one has no patches
    drawn = [np.concatenate([window.numbers for window in windows]) for windows in many]
    assert {len(numbers) for numbers in drawn} == {18}
    share = np.bincount(np.concatenate(drawn), minlength=18) / (18 * 400)
    np.testing.assert_allclose(share, chances / chances.sum(), atol=0.015)


@pytest.mark.parametrize("start", [0, 1, 37, 150])
def test_a_part_of_an_epoch_is_that_part(small_windows, start):
    index = PatchIndex([(61, 61)] * 12, 17, 14)
    whole = [np.concatenate([getattr(w, name) for w in Shuffle(index, 0).epoch(2)])
             for name in ("numbers", "codes")]
    stream = Stream(Shuffle(index, 0).epoch(2, start, 190), lambda now, soon: None)
    parts = [stream.take(n) for n in (1, 60, 7, 200, 5)]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(got), want[start:190])


def test_a_window_is_told_before_it_is_taken_but_for_what_is_left(small_windows):
    index = PatchIndex([(61, 61)] * 12, 17, 14)
    windows = list(Shuffle(index, 0).epoch(0))
    told = []
    stream = Stream(iter(windows), lambda now, soon: told.append((list(now), list(soon))))
    for _ in range(len(index) // 5):
        stream.take(5)
    want = [list(window.images) for window in windows]
    assert told == list(zip(want, [*want[1:], []], strict=True))


# --- what is kept -------------------------------------------------------------------------------


def kept_images(memory, count=10):
    made = []

    def make(number):
        made.append(number)
        return np.full((5, 5), number, np.float32)

    return KeptImages(make, np.full(count, 100), memory), made


@pytest.mark.parametrize("memory", [0, 100, 350, 10000])
def test_kept_images_are_a_sequence_within_its_memory(memory):
    images, _ = kept_images(memory)
    assert len(images) == 10
    for number in (0, 5, 3, 5, 5, 9, 0, 0, 3, 5):
        np.testing.assert_array_equal(images[number], number)
        assert images.held <= max(memory, 100)
    assert [int(image[0, 0]) for image in images] == list(range(10))
    assert [int(image[0, 0]) for image in images[2:8:3]] == [2, 5]
    assert images[-1][0, 0] == 9
    with pytest.raises(IndexError, match="image is 10, want one of 10"):
        images[10]


def test_what_is_expected_is_made_ahead_and_stays():
    images, made = kept_images(600)
    for window, after in (((0, 1, 2), (3, 4, 5)), ((3, 4, 5), (6, 7, 8)), ((6, 7, 8), (0, 1, 2))):
        images.expect(np.array(window), np.array(after))
        images._thread.join()
        before = len(made)
        for number in (*window, *window):
            images[number]
        assert len(made) == before, "made again, though it was expected"
    # of three windows two have room: each was made once a round
    assert sorted(made) == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]
    images.close()


def test_nothing_is_made_ahead_where_it_would_drive_out_what_is_needed():
    images, made = kept_images(500)
    images.expect(np.arange(3), np.arange(3, 6))
    assert images._thread is None and made == []
    everything, made = kept_images(1000)
    everything.expect(np.arange(5), np.arange(5, 10))
    everything._thread.join()
    assert sorted(made) == list(range(10))
    everything.expect(np.arange(5, 10), np.arange(0))
    list(everything)
    assert len(made) == 10


def test_a_failure_ahead_is_raised_where_the_image_is_asked_for():
    def make(number):
        raise MinisrcnnError("damaged")

    images = KeptImages(make, np.full(4, 100), 400)
    images.expect(np.arange(4), np.arange(0))
    images._thread.join()
    with pytest.raises(MinisrcnnError, match="damaged"):
        images[2]


def test_close_waits_for_no_more_than_one_image():
    begun, go = threading.Event(), threading.Event()

    def make(number):
        begun.set()
        go.wait(30)
        return np.zeros((5, 5), np.float32)

    images = KeptImages(make, np.full(1000, 100), 100000)
    images.expect(np.arange(1000), np.arange(0))
    assert begun.wait(30)
    threading.Timer(0.1, go.set).start()
    images.close()
    assert images.held <= 200


# --- trainings ----------------------------------------------------------------------------------


def test_packed_pictures_are_the_folders_pictures(pictures):
    plan = Plan(str(pictures), 2, "5-1-3", 0, "numpy", TINY)
    folder, _, _ = load_data(plan, quiet)
    path = packed(pictures, factors=(0.6, 0.3, 0.9))  # more of them, and in another order
    found, _, _ = load_data(replace(plan, data=str(path)), quiet, memory=10**4)
    assert found.name == "set" and len(found.inputs) == len(folder.inputs) == 15
    assert found.checksum == folder.checksum
    rgb, _, _ = load_data(replace(plan, channels=3), quiet)
    for i in range(15):
        np.testing.assert_array_equal(found.inputs[i], folder.inputs[i])
        assert rgb.inputs[i].shape == rgb.labels[i].shape == (3, *folder.inputs[i].shape)
        np.testing.assert_array_equal(found.labels[i], folder.labels[i])
    x, t = prepare(read_image(pictures / "1.png"), 2)  # the grey one
    np.testing.assert_array_equal(found.inputs[3], x)
    np.testing.assert_array_equal(to_unit(found.labels[3]), t)
    np.testing.assert_array_equal(found.index[:], folder.index[:])


@pytest.mark.parametrize("windows", ["one", "many"])
@pytest.mark.parametrize("recipe", ["tiny", "tiny sgd"])
def test_the_same_bits_packed_and_unpacked_for_any_memory(pictures, windows, recipe, monkeypatch):
    if windows == "many":
        monkeypatch.setattr(order, "WINDOW", 6000)
        monkeypatch.setattr(order, "BLOCK", 2500)
    monkeypatch.setitem(RECIPES, "tiny sgd", replace(
        TINY, name="tiny sgd", optimizer="sgd", lr=1e-3, rescaled=(), augment=False,
        balance=0.0))
    train(settings_for(pictures, recipe=recipe, out=Path("folder")), quiet)
    path = packed(pictures)
    for memory in (1, 40000, 60000, 10**9):
        out = Path(f"packed{memory}")
        train(settings_for(path, recipe=recipe, out=out, memory=memory), quiet)
        assert_same_run(out, "folder")
    train(settings_for(pictures, recipe=recipe, out=Path("little"), memory=20000), quiet)
    assert_same_run("little", "folder")


def test_shuffling_in_windows_gives_other_bits(pictures, monkeypatch):
    train(settings_for(pictures, out=Path("one"), epochs=1), quiet)
    monkeypatch.setattr(order, "WINDOW", 6000)
    monkeypatch.setattr(order, "BLOCK", 2500)
    train(settings_for(pictures, out=Path("many"), epochs=1), quiet)
    assert log("one")[-1]["loss"] != log("many")[-1]["loss"]


def test_goes_on_in_the_middle_of_a_window(pictures, monkeypatch):
    """Stopped after each step, resumed from folder and set in turn."""
    monkeypatch.setattr(order, "WINDOW", 6000)
    monkeypatch.setattr(order, "BLOCK", 2500)
    path = packed(pictures)
    few = {"batch_size": 13}
    whole = train(settings_for(path, out=Path("whole"), **few), quiet)
    for step in range(whole.steps):
        done = train(settings_for((pictures, path)[step % 2], resume=step > 0, memory=15000,
                                  max_minutes=0, **few), quiet)
    assert done.finished
    assert_same_run("run", "whole")


def test_a_set_of_other_pictures_is_not_gone_on_with(pictures):
    path = packed(pictures)
    train(settings_for(path, max_minutes=0), quiet)
    write_image(pictures / "1.png", np.full((40, 44), 7, np.uint8))
    other = packed(pictures, "other.luma")
    with pytest.raises(MinisrcnnError, match="are not those that this run began with"):
        train(settings_for(other, resume=True), quiet)


@pytest.mark.parametrize("changes, says", [
    ({"recipe": "notes", "scale": 3}, "set.luma: holds the luma of MATLAB"),
    ({"rgb": True}, "set.luma: holds luma, and --rgb wants colours"),
    ({"recipe": "fast"}, "set.luma: has no copies at 0.8, 0.7 of the pictures' size, which recipe"),
    ({"scale": 16, "recipe": "adam"}, "recipe"),
    ({"data": "photos/0.png"}, "photos/0.png: not a packed set"),
    ({"data": "nowhere.luma"}, "nowhere.luma: neither a folder nor a packed set nor T91"),
    ({"data": "."}, r"\.: a folder without pictures; there are some in folders below it"),
])
def test_what_a_set_cannot_do_is_one_line(pictures, changes, says, monkeypatch):
    path = packed(pictures)
    if "16" in str(changes):
        monkeypatch.setitem(RECIPES, "adam", replace(TINY, input_size=64))
        says = "no picture has 64x64 pixels"
    with pytest.raises(MinisrcnnError, match=says) as found:
        train(settings_for(path, **changes), quiet)
    assert "\n" not in str(found.value)
    assert not Path("run").exists()


def test_pictures_too_small_for_the_scale_are_skipped_with_their_copies(pictures):
    write_image(pictures / "5.png", np.zeros((31, 90), np.uint8))
    write_image(pictures / "6.png", np.zeros((90, 20), np.uint8))
    recipe = replace(TINY, rescaled=(0.9,), balance=0.0)
    plan = Plan(str(pictures), 16, "5-1-3", 0, "numpy", recipe)
    folder, _, _ = load_data(plan, quiet)
    told = []
    found, _, _ = load_data(replace(plan, data=str(packed(pictures))), told.append)
    assert "Skipped: photos/5.png and 1 more: too small for scale 16" in told
    assert found.checksum == folder.checksum and len(found.inputs) == len(folder.inputs)


def test_too_little_memory_is_told(pictures):
    told = []
    plan = Plan(str(packed(pictures)), 2, "5-1-3", 0, "numpy", TINY)
    data, _, _ = load_data(plan, told.append, 20000)
    bytes_ = sum(4 * label.size for label in data.labels)
    assert any("--memory is 0 MB" in line for line in told)
    del told[:]
    load_data(plan, told.append, bytes_)
    assert not any("--memory" in line for line in told)


@pytest.mark.slow  # half a minute of emulated CUDA
@pytest.mark.parametrize("limit", [1 << 28, 100])
def test_a_device_takes_a_packed_set_or_its_batches(pictures, limit, monkeypatch):
    reason = unavailable_reason("cupy-emulated")
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(steppers, "_MOST_ON_DEVICE", limit)
    told = []
    small = {"backend": "cupy-emulated", "threads": None, "arch": "3-1-3", "epochs": 1,
             "max_minutes": 0}
    train(settings_for(pictures, out=Path("folder"), **small), quiet)
    train(settings_for(packed(pictures), out=Path("packed"), memory=1, **small), told.append)
    assert_same_run("packed", "folder")
    assert any("stay on the device" in line for line in told) == (limit == 100)


MEASURE = """
import re, sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024 / 1e6

from minisrcnn.imaging.packed import find_sources, pack
from minisrcnn.training.order import Shuffle, Stream
from minisrcnn.training.pictures import load_data
from minisrcnn.training.settings import TrainSettings, new_plan
import minisrcnn.evaluate, numpy, scipy.ndimage
from minisrcnn.imaging.prepare import degrade
degrade(numpy.zeros((600, 999), numpy.float32), 3)  # loads what is compiled of it, and LLVM
before = peak()
if sys.argv[1] == "pack":
    pack(find_sources(["many"]), "many.luma")
else:
    plan = new_plan(TrainSettings(data="many.luma", recipe="adam"))
    data, _, _ = load_data(plan, print, 300_000_000)
    stream = Stream(Shuffle(data.index, 0).epoch(0), data.expect)
    for _ in range(len(data.index) // 512):
        data.patches(*stream.take(512), 33, 6)
    data.close()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_bounded(pictures):
    """180 million pixels: held as training held them, 1,440 MB."""
    Path("many").mkdir()
    rng = np.random.default_rng(0)
    for i in range(300):
        coarse = rng.integers(0, 256, (60, 100)).astype(np.uint8)
        write_image(Path("many", f"{i:03}.png"), coarse.repeat(10, axis=0).repeat(10, axis=1))
    found = {}
    for what in ("pack", "train"):
        done = subprocess.run([sys.executable, "-c", MEASURE, what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[what] = float(done.stdout.split()[-1])
    assert found["pack"] < 60
    # --memory, the mapped pixels of two windows, tables and batches
    assert found["train"] < 300 + 2 * 67 + 100, found


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("text, size", [
    ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5gb", 15 * 10**8), ("64KiB", 65536),
    (" 1 TiB ", 1 << 40), ("0.5MiB", 1 << 19)])
def test_sizes(text, size):
    assert check_bytes("memory", text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-2GB", "2 apples", "2GBs", "1e3MB", "2,5GB",
                                  "nan", "٢GB", "2 G B", "0x2GB", "infGB", "9" * 99 + "GB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"memory is .*, want a size such as 500MB or 2GB"):
        check_bytes("memory", text)
    with pytest.raises(ValueError, match="memory is 0GB, want at least 1MB"):
        check_bytes("memory", "0GB", 10**6)
    with pytest.raises(TypeError, match="memory is an int, want a size"):
        check_bytes("memory", 5)


def run(capsys, *args):
    from minisrcnn.cli import main

    with pytest.raises(SystemExit) as end:
        main(list(args))
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_pack_and_verify_as_commands(pictures, capsys):
    code, out, err = run(capsys, "data", "pack", "photos", "-o", "set.luma")
    assert (code, out, err) == (0, "set.luma: 5 pictures and 20 copies, 0.0 million pixels\n", "")
    assert PackedSet("set.luma").factors == (0.9, 0.8, 0.7, 0.6)
    assert run(capsys, "data", "verify", "set.luma") == (
        0, "set.luma: every picture is as it was packed\n", "")
    (pictures / "0.png").write_bytes(b"")
    code, out, err = run(capsys, "data", "pack", "photos", "--no-copies", "-o", "few.luma")
    assert code == 1 and out.startswith("few.luma: 4 pictures, ")
    assert "Skipped: " in err and "1 of 5 pictures are not in it" in err
    data = bytearray(Path("few.luma").read_bytes())
    data[80] ^= 1
    Path("few.luma").write_bytes(data)
    code, out, err = run(capsys, "data", "verify", "few.luma")
    assert (code, out) == (1, "")
    assert err == "minisrcnn: few.luma: photos/1.png is not as it was packed\n"
    assert run(capsys, "data", "verify", "nowhere.luma") == (
        2, "", "minisrcnn: nowhere.luma: neither a packed set nor one of T91, Set5, Set14\n")
    code, out, err = run(capsys, "data", "pack", "photos", "-o", "few.luma")
    assert code == 2 and err.startswith("minisrcnn: few.luma: is there already")


@pytest.mark.parametrize("size, says", [
    ("2", "--memory is '2', want a size such as 500MB or 2GB"),
    ("1KB", "--memory is 1KB, want at least 1MB"),
])
def test_a_wrong_memory_is_one_line(pictures, capsys, size, says):
    code, out, err = run(capsys, "train", "--data", "photos", "--memory", size)
    assert (code, out, err) == (2, "", f"minisrcnn: {says}\n")
