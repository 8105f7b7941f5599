"""Pictures in and out of files: every kind of pixel, and every way that a file can be bad."""

from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from minisrcnn.errors import MinisrcnnError
from minisrcnn.imaging.files import (
    atomic_open,
    find_images,
    is_image,
    read_image,
    write_image,
)


def picture(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(H=48, W=64):
    y, x = np.mgrid[:H, :W]
    return np.stack([y * 5, x * 3, (x + y) * 2], axis=2).astype(np.uint8)


def one_line(error):
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


LOSSLESS = [".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"]


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("shape", [(13, 7, 3), (1, 1, 3)])
def test_colour_comes_back_as_it_was(tmp_path, suffix, shape):
    image = picture(shape)
    path = tmp_path / f"a{suffix}"
    write_image(path, image)
    np.testing.assert_array_equal(read_image(path), image)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm"])
def test_grayscale_stays_two_dimensional(tmp_path, suffix):
    image = picture((9, 14))
    write_image(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), image)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_kept(tmp_path, suffix):
    image = picture((9, 14, 4))
    image[..., 3] |= 1  # WebP may forget the colour of what is fully transparent
    write_image(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), image)


def test_jpeg_is_close(tmp_path):
    for name, image in (("a.jpg", smooth()), ("b.JPEG", smooth()[..., 0])):
        write_image(tmp_path / name, image)
        back = read_image(tmp_path / name)
        assert back.shape == image.shape
        assert np.abs(back.astype(int) - image).mean() < 3


def test_views_are_written_as_they_look(tmp_path):
    image = picture((20, 30, 4))[::-1, ::2, :3]
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_every_mode_of_pillow(tmp_path):
    rgba = Image.fromarray(picture((8, 9, 4)))
    path = tmp_path / "a.png"

    rgba.convert("LA").save(path)
    got = read_image(path)
    assert got.shape == (8, 9, 4)
    np.testing.assert_array_equal(got[..., 0], np.array(rgba.convert("LA"))[..., 0])
    np.testing.assert_array_equal(got[..., 3], np.array(rgba)[..., 3])

    rgba.convert("1").save(path)
    assert set(np.unique(read_image(path))) <= {0, 255}
    assert read_image(path).shape == (8, 9)

    palette = rgba.convert("RGB").quantize(16)
    palette.save(path)
    np.testing.assert_array_equal(read_image(path), np.array(palette.convert("RGB")))

    palette.save(path, transparency=3)
    got = read_image(path)
    np.testing.assert_array_equal(got[..., 3] == 0, np.array(palette) == 3)

    Image.fromarray(np.array([[7, 8]], np.uint8)).save(path, transparency=8)
    np.testing.assert_array_equal(read_image(path), [[[7, 7, 7, 255], [8, 8, 8, 0]]])

    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(rgb).save(path, transparency=(4, 5, 6))
    np.testing.assert_array_equal(read_image(path), [[[1, 2, 3, 255], [4, 5, 6, 0]]])

    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth()).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535 - 129, 65535 - 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(
        read_image(tmp_path / f"a{suffix}"), np.round(values / 257).astype(np.uint8)
    )


def test_exif_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    got = read_image(tmp_path / "a.jpg")
    assert got.shape == (64, 48, 3)
    assert np.abs(got.astype(int) - np.rot90(smooth(), -1)).mean() < 3


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.fromarray(np.full((5, 6), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif")[..., 0] == 10).all()


def test_the_result_is_ours_to_write_to(tmp_path):
    write_image(tmp_path / "a.png", picture((4, 4)))
    read_image(tmp_path / "a.png")[0, 0] = 1


# --- what cannot be read


def test_missing_folder_and_not_a_picture(tmp_path):
    with pytest.raises(MinisrcnnError, match="no such file") as error:
        read_image(tmp_path / "none.png")
    assert str(tmp_path / "none.png") in one_line(error)
    with pytest.raises(MinisrcnnError, match="a folder"):
        read_image(tmp_path)
    for name, content in (("a.png", b""), ("b.png", b"hello"), ("c.jpg", b"\xff\xd8\xff\xe0")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MinisrcnnError, match=name) as error:
            read_image(tmp_path / name)
        one_line(error)


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(MinisrcnnError, match="format"):
        read_image(tmp_path / "a.eps")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_not_allowed(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(MinisrcnnError, match="not allowed"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm", ".gif"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture((40, 40, 3))).save(path)
    whole = path.read_bytes()
    for part in (0.02, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(MinisrcnnError, match=path.name) as error:
            read_image(path)
        one_line(error)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm", ".gif"])
def test_damaged_files_give_a_picture_or_one_line(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth(16, 20)).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(7)
    for _ in range(60):
        damaged = whole.copy()
        places = rng.integers(0, min(len(whole), 200), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            got = read_image(path)
        except MinisrcnnError as error:
            assert "\n" not in str(error)
        else:
            assert got.dtype == np.uint8


def png(width, height, data=b""):
    def chunk(kind, body):
        crc = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + crc

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path):
    (tmp_path / "a.png").write_bytes(png(100_000, 100_000))
    with pytest.raises(MinisrcnnError, match=r"limit of 250,000,000 pixels"):
        read_image(tmp_path / "a.png")


def test_photographs_that_pillow_only_warns_of_are_read(tmp_path):
    # 100 megapixels: above Pillow's warning, below its error
    rows = zlib.compress(bytes(10_001) * 10_000, 1)
    (tmp_path / "a.png").write_bytes(png(10_000, 10_000, rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (10_000, 10_000)


def test_floating_point_and_32_bits_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), [[0, 128, 255]])
    Image.fromarray(np.array([[70_000, 140_000]], np.int32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), [[0, 255]])


def test_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(MinisrcnnError, match="not a regular file"):
        read_image(tmp_path / "a.png")


# --- what cannot be written


@pytest.mark.parametrize(
    ("name", "image", "error", "words"),
    [
        ("a.xyz", picture((4, 4)), MinisrcnnError, r"cannot write \.xyz; use one of .*\.png"),
        ("a", picture((4, 4)), MinisrcnnError, "without a suffix"),
        ("a.jpg", picture((4, 4, 4)), MinisrcnnError, r"no transparency; use \.png"),
        ("a.bmp", picture((4, 4, 4)), MinisrcnnError, "no transparency"),
        ("a.pgm", picture((4, 4, 3)), MinisrcnnError, "no colour"),
        ("no/a.png", picture((4, 4)), MinisrcnnError, "no such folder"),
        ("a.png", np.zeros((4, 4)), TypeError, "float64"),
        ("a.png", [[1]], TypeError, "list"),
        ("a.png", picture((4, 4, 2)), ValueError, r"\(4, 4, 2\)"),
        ("a.png", picture((4,)), ValueError, r"\(4,\)"),
        ("a.png", picture((0, 4)), ValueError, "at least one pixel"),
        ("a.webp", picture((1, 20_000)), MinisrcnnError, "WEBP holds 16,383 a side"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, image, error, words):
    with pytest.raises(error, match=words) as info:
        write_image(tmp_path / name, image)
    one_line(info)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(MinisrcnnError, match="folder is in the way"):
        write_image(tmp_path / "a.png", picture((4, 4)))
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, picture((4, 4)))
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MinisrcnnError, match="No space left"):
        write_image(path, picture((5, 5)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_atomic_open_is_all_or_nothing(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt), atomic_open(path) as file:
        file.write(b"half")
        assert not path.exists()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with atomic_open(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

def test_atomic_open_interrupted_before_any_of_its_lines(tmp_path):
    path = tmp_path / "a.bin"
    lines = -1  # before the interrupt

    def trace(frame, event, arg):
        nonlocal lines
        if frame.f_code is not atomic_open.__wrapped__.__code__:
            return None
        if event == "line":
            lines -= 1
            if lines < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    for count in range(100):
        path.write_bytes(b"old")
        lines = count
        sys.settrace(trace)
        try:
            with atomic_open(path) as file:
                file.write(b"new")
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(before)
        assert path.read_bytes() in (b"old", b"new") and list(tmp_path.iterdir()) == [path], count
    assert 8 < count < 100 and path.read_bytes() == b"new"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "there" / "b.png")
    write_image(link, picture((4, 4)))
    assert link.is_symlink()
    assert os.listdir(tmp_path / "there") == ["b.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on this system")
def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    """A pipe, or a device: `ln -s /dev/null out.png` would be the end of /dev/null."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(MinisrcnnError, match=r"cannot be written \(not a plain file\)"):
            write_image(tmp_path / name, np.zeros((4, 4), np.uint8))
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link.png", "pipe.png"]


def test_long_names_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250 + ".png")
    write_image(path, picture((4, 4)))
    assert path.exists()


# --- what is a picture, and where


def test_is_image():
    for name in ("a.png", "A.JPG", "x/b.jpeg", "c.bmp", "d.tif", "e.webp", "f.gif"):
        assert is_image(name)
    for name in ("a", "a.txt", "png", ".png", "._a.png", "a.png.part", "a.mat"):
        assert not is_image(name)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "b.png",
        "a.jpg",
        "notes.txt",
        "c[1].png",
        "sub/d.bmp",
        "sub/e.PNG",
        ".hidden.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found):
    return [path.as_posix() for path in found]


def test_find_images(tree):
    assert names(find_images(".")) == ["a.jpg", "b.png", "c[1].png"]
    assert names(find_images(["b.png", "."])) == ["b.png", "a.jpg", "c[1].png"]  # none twice
    assert names(find_images(["b.png", "./b.png", tree / "b.png"])) == ["b.png"]
    assert names(find_images("*.png")) == ["b.png", "c[1].png"]
    assert names(find_images("**/*.bmp")) == ["sub/d.bmp"]
    assert names(find_images("c[1].png")) == ["c[1].png"]  # a file before a pattern
    assert names(find_images("notes.txt")) == ["notes.txt"]  # asked for by name: read_image judges
    assert names(find_images([])) == []


@pytest.mark.parametrize(
    ("item", "words"),
    [("none.png", "no such file"), ("*.tif", "no picture matches"), ("folder.png", "without pict")],
)
def test_what_finds_nothing(tree, item, words):
    with pytest.raises(MinisrcnnError, match=words) as error:
        find_images(["b.png", item])
    assert item in one_line(error)
    problems: list[str] = []
    assert names(find_images(["b.png", item, "a.jpg"], problems)) == ["b.png", "a.jpg"]
    assert len(problems) == 1
    assert words in problems[0]
