"""Upscaling: right pixels, the same in strips as whole, and files that survive every accident."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.imaging.color import rgb2ycbcr, ycbcr2rgb
from minisrcnn.imaging.files import read_image, writing
from minisrcnn.imaging.metadata import Metadata
from minisrcnn.imaging.pages import Page
from minisrcnn.imaging.png import write_png
from minisrcnn.imaging.resize import imresize
from minisrcnn.upscale import resized_strips, upscale_image, upscale_strips
from minisrcnn.upscale.plan import Job, find_sources, make_plan
from minisrcnn.upscale.run import Options, upscale_file

needs_numba = pytest.mark.skipif(unavailable_reason("numba") is not None, reason="needs numba")


def delta_net(arch: str = "5-1-3", backend: str = "numpy") -> SRCNN:
    """A network that gives back what it is given, as long as that is not negative."""
    net = SRCNN(arch, backend=backend, filters=(1,) * arch.count("-"))
    for name, value in net.parameters.items():
        value[...] = 0
        if name.endswith("weight"):
            K = value.shape[2]
            value[0, 0, (K - 1) // 2, (K - 1) // 2] = 1
    return net


def random_net(backend: str = "numpy", arch: str = "5-1-3") -> SRCNN:
    """A network that keeps the picture's brightness and adds something of its own to it."""
    net = SRCNN(arch, (4, 2), backend=backend, init="he", seed=3)
    net.parameters["conv3.bias"][...] = 0.5
    net.parameters["conv3.weight"][...] *= 0.3
    return net


def run_job(job, net, scale, overwrite=False, progress=None, **options):
    chosen = Options(scale=scale, overwrite=overwrite, **options)
    return upscale_file(job, lambda factor: [(net, scale)], chosen, progress)


def plan(inputs, out, scale, problems, **options):
    notes: list[str] = []
    made = make_plan(find_sources(inputs, False, problems, notes), out, f"_x{scale}", **options)
    made.notes[:0] = notes
    return made


def save_png(path, H, W, strips):
    strips = list(strips)
    first = strips[0] if strips else np.zeros((1, 1), np.uint8)
    channels = first.shape[2] if first.ndim == 3 else 1
    with writing(path) as file:
        write_png(file, [Page(H, W, channels, np.dtype(np.uint8), strips)], Metadata())


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(x, 0, 1) * 255 + 0.5)


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_grayscale_through_an_identity_network_is_bicubic(scale):
    image = noise(11, 7)
    out = upscale_image(image, delta_net(), scale)
    want = rounded(imresize(image.astype(np.float64) / 255, scale))
    assert out.dtype == np.uint8 and out.shape == (11 * scale, 7 * scale)
    assert np.abs(out - want).max() <= 1 and (out == want).mean() > 0.999


def test_colour_through_an_identity_network_is_bicubic_in_float64():
    image = noise(12, 9, 3) // 2 + 64
    out = upscale_image(image, delta_net(), 3)
    ycbcr = rgb2ycbcr(image.astype(np.float64) / 255)
    want = rounded(ycbcr2rgb(imresize(ycbcr, 3)))
    assert out.shape == (36, 27, 3)
    assert np.abs(out - want).max() <= 1 and (out == want).mean() > 0.999


def test_only_luma_goes_through_the_network():
    """A network that darkens moves Y down and leaves Cb and Cr where they were."""
    net = delta_net()
    net.parameters["conv3.weight"][...] *= 0.8
    image = noise(10, 10, 3) // 4 + 96  # far from every limit: nothing is clipped
    got = rgb2ycbcr(upscale_image(image, net, 3).astype(np.float64) / 255)
    plain = imresize(rgb2ycbcr(image.astype(np.float64) / 255), 3)
    np.testing.assert_allclose(got[..., 0], 0.8 * plain[..., 0], atol=1.5 / 255)
    np.testing.assert_allclose(got[..., 1:], plain[..., 1:], atol=1.5 / 255)


def test_grey_stays_grey():
    grey = np.repeat(noise(9, 9)[..., None], 3, axis=2)
    out = upscale_image(grey, random_net(), 3)
    assert np.ptp(out.astype(int), axis=2).max() <= 1


def test_grayscale_is_colour_of_equal_channels():
    gray = noise(12, 10)
    for net in (random_net(), delta_net()):
        colour = upscale_image(np.repeat(gray[..., None], 3, axis=2), net, 3)
        difference = upscale_image(gray, net, 3).astype(int)[..., None] - colour
        assert np.abs(difference).max() <= 1
    for level in (0, 5, 128, 253, 255):
        assert (upscale_image(np.full((9, 9), level, np.uint8), delta_net(), 2) == level).all()


def disc(size=24):
    """A white disc, its rim half transparent, on transparent black: RGBA."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.clip(size / 3 - np.hypot(x, y) + 0.5, 0, 1)
    image = np.zeros((size, size, 4), np.uint8)
    image[..., 3] = np.floor(alpha * 255 + 0.5)
    image[image[..., 3] > 0, :3] = (250, 240, 200)
    return image


def premultiplied(image: np.ndarray, scale: int) -> np.ndarray:
    """The picture over black, resized as it should be: bicubic of colour times alpha."""
    x = image.astype(np.float64) / 255
    alpha = imresize(x[..., -1:], scale)
    colour = imresize(x[..., :-1] * x[..., -1:], scale) / np.maximum(alpha, 1e-3)
    return np.clip(colour, 0, 1) * np.clip(alpha, 0, 1)


@pytest.mark.parametrize("scale", [2, 3])
def test_no_rim_of_the_hidden_colour(scale):
    out = upscale_image(disc(), delta_net(), scale).astype(np.float64) / 255
    over_black = out[..., :3] * out[..., 3:]
    assert np.abs(over_black - premultiplied(disc(), scale)).max() < 3 / 255
    # a real network sees no dark rim either: colours stay what they are everywhere
    visible = out[..., 3] > 0.05
    assert np.abs(out[visible][:, :3] * 255 - (250, 240, 200)).max() < 8


def test_transparency_of_photographs_is_premultiplied():
    image = noise(14, 11, 4)
    image[..., 3] |= 32
    for picture in (image, image[..., [0, 3]].copy()):
        out = upscale_image(picture, delta_net(), 3).astype(np.float64) / 255
        over_black = out[..., :-1] * out[..., -1:]
        assert np.abs(over_black - premultiplied(picture, 3)).max() < 3 / 255


def test_hidden_colours_stay():
    image = np.full((12, 12, 4), (200, 10, 30, 0), np.uint8)
    image[4:8, 4:8] = 90, 90, 90, 255
    out = upscale_image(image, random_net(), 3)
    assert (out[0, 0] == (200, 10, 30, 0)).all()
    assert (out[..., 3] == 0).sum() > 500


def test_alpha_is_resized_and_opaque_is_rgb():
    image = noise(9, 13, 4)
    out = upscale_image(image, random_net(), 3)
    want = rounded(imresize(image[..., 3].astype(np.float64) / 255, 3))
    assert out.shape == (27, 39, 4) and np.abs(out[..., 3] - want).max() <= 1
    image[..., 3] = 255
    out = upscale_image(image, random_net(), 3)
    assert (out[..., 3] == 255).all()
    colour = upscale_image(image[..., :3].copy(), random_net(), 3)
    assert np.abs(out[..., :3].astype(int) - colour).max() <= 1


def test_16_bits():
    image = np.random.default_rng(0).integers(0, 65536, (12, 9, 3)).astype(np.uint16)
    for picture in (image, image[..., 0].copy(), np.dstack([image, image[..., :1] | 1])):
        out = upscale_image(picture, delta_net(), 2)
        assert out.dtype == np.uint16
        if picture.shape[2:] != (4,):
            want = np.clip(imresize(picture.astype(np.float64), 2), 0, 65535)
            assert np.abs(out - want).max() < 8  # float32 in the network's range


@pytest.mark.parametrize("colour", [(), (3,)])
def test_any_size_is_the_next_larger_network_then_down(colour):
    image = noise(20, 16, *colour) // 2 + 60
    seen = []

    def networks(factor):
        seen.append(factor)
        return [(delta_net(), 2), (delta_net(), 2)]

    whole = np.concatenate(list(resized_strips(image, networks, 50, 40)))
    assert seen == [2.5] and whole.shape == (50, 40, *colour)
    larger = upscale_image(upscale_image(image, delta_net(), 2), delta_net(), 2)
    want = rounded(imresize(larger.astype(np.float64) / 255, output_size=(50, 40)))
    assert np.abs(whole - want).max() <= 1
    strips = np.concatenate(list(resized_strips(image, networks, 50, 40, pixels=200)))
    np.testing.assert_array_equal(strips, whole)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 1, 4), (1, 400, 3), (400, 1), (2, 3)])
def test_the_smallest_and_the_narrowest(shape):
    out = upscale_image(np.full(shape, 90, np.uint8), delta_net("9-1-5"), 3)
    assert out.shape == (3 * shape[0], 3 * shape[1], *shape[2:])
    assert (out == 90).all()


def test_scale_one_only_restores():
    image = noise(8, 8)
    np.testing.assert_array_equal(upscale_image(image, delta_net(), 1), image)


@pytest.mark.parametrize("bad, error", [
    (np.zeros((4, 4), np.float32), TypeError),
    (np.zeros((4, 4, 5), np.uint8), ValueError),
    (np.zeros((0, 4), np.uint8), ValueError),
    (np.zeros(4, np.uint8), ValueError),
    ([[1, 2]], TypeError),
])
def test_wrong_pictures(bad, error):
    with pytest.raises(error, match="image"):
        upscale_image(bad, delta_net(), 3)


@pytest.mark.parametrize("scale, error", [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_wrong_scales(scale, error):
    with pytest.raises(error, match="scale"):
        upscale_image(noise(4, 4), delta_net(), scale)


def test_a_network_of_two_channels():
    with pytest.raises(ValueError, match="2 channels, want 1"):
        upscale_image(noise(4, 4, 3), SRCNN("3-3", (2,), channels=2, backend="numpy"), 3)


# --- strips -------------------------------------------------------------------------------------


@needs_numba
@settings(max_examples=25, deadline=None)
@given(H=st.integers(1, 40), W=st.integers(1, 30), scale=st.integers(1, 4),
       pixels=st.integers(1, 3000), colour=st.sampled_from([(), (3,), (4,)]),
       arch=st.sampled_from(["9-1-5", "5-1-3", "4-2-3"]))
def test_strips_equal_whole_bit_for_bit(H, W, scale, pixels, colour, arch):
    net = random_net("numba", arch)
    image = noise(H, W, *colour, seed=H)
    whole = list(upscale_strips(image, net, scale, pixels=1 << 40))
    assert len(whole) == 1
    strips = list(upscale_strips(image, net, scale, pixels))
    np.testing.assert_array_equal(np.concatenate(strips), whole[0])


@pytest.mark.parametrize("backend", [
    "reference", "numpy", pytest.param("numba", marks=needs_numba)])
def test_strips_equal_predict_on_the_whole(backend):
    """Before rounding to 8 bits: the float planes, against one predict of one imresize."""
    from minisrcnn.upscale.pixels import _reach, bicubic_luma

    net = random_net(backend, "9-1-5" if backend != "reference" else "4-2-3")
    image = noise(30, 11)
    x = image[..., None]
    whole = net.predict(bicubic_luma(x, 2, 0, 60))
    above, below = _reach(net)
    for top in range(0, 60, 7):
        bottom = min(top + 7, 60)
        first, last = max(top - above, 0), min(bottom + below, 60)
        y = net.predict(bicubic_luma(x, 2, first, last))
        got = y[top - first : bottom - first]
        if backend == "numpy":  # the BLAS library may sum in another order
            np.testing.assert_allclose(got, whole[top:bottom], rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, whole[top:bottom])


def test_one_row_less_of_context_is_seen():
    """The halo is as small as can be: with less, the strips would differ. So the tests can fail."""
    from minisrcnn.upscale.pixels import _reach

    net = random_net()
    assert _reach(net) == (3, 3)
    image = np.random.default_rng(0).random((40, 8), dtype=np.float32)
    whole = net.predict(image)[20]
    np.testing.assert_allclose(net.predict(image[17:24])[3], whole, atol=1e-6)
    assert np.abs(net.predict(image[18:24])[2] - whole).max() > 1e-4


@needs_numba
@pytest.mark.parametrize("colour", [(), (3,), (4,)])
def test_networks_one_after_the_other_in_strips(colour):
    """What is between arrives strip by strip, and the result is that of whole pictures."""
    image = noise(37, 21, *colour)
    first, second = random_net("numba", "9-1-5"), random_net("numba", "4-2-3")
    want = upscale_image(upscale_image(image, first, 3), second, 2)
    for pixels in (1, 700, 5000):
        got = resized_strips(image, lambda f: [(first, 3), (second, 2)], 6 * 37, 6 * 21, pixels)
        np.testing.assert_array_equal(np.concatenate(list(got)), want)


@needs_numba
@pytest.mark.parametrize("H, most", [(2400, 5e6), (2000, 11e6)], ids=["as large", "then smaller"])
def test_memory_does_not_grow_with_what_is_between(H, most):
    import tracemalloc

    image, net = noise(600, 600, 3), random_net("numba")
    assert sum(len(s) for s in resized_strips(image[:9, :9].copy(), lambda f: [(net, 2)], 13, 13))
    tracemalloc.start()
    try:
        strips = resized_strips(image, lambda f: [(net, 2), (net, 2)], H, H, 1 << 16)
        assert sum(len(strip) for strip in strips) == H
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most  # the picture between is 4 MB more, the larger one 17 MB more


@needs_numba
def test_memory_does_not_grow_with_the_result(tmp_path):
    """Peak of what NumPy holds while a result of 27 MB is written: a few strips."""
    import tracemalloc

    image = noise(1000, 1000, 3)
    net = random_net("numba")
    next(upscale_strips(image[:9, :9].copy(), net, 3))  # compiled and imported
    tracemalloc.start()
    try:
        page = Page(3000, 3000, 3, image.dtype, upscale_strips(image, net, 3, 1 << 17))
        with writing(tmp_path / "x.png") as file:
            write_png(file, [page], Metadata())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 14e6  # the result is 27 MB, its float planes would be 144 MB
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), upscale_image(image, net, 3))


# --- PNG ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 4), (1, 1), (1, 1, 4), (50, 1, 3)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_png_is_read_back_by_pillow(tmp_path, shape, rows):
    image = noise(*shape)
    strips = [image[i : i + rows] for i in range(0, shape[0], rows)]
    save_png(tmp_path / "x.png", *shape[:2], iter(strips))
    with Image.open(tmp_path / "x.png") as picture:
        picture.load()
        assert picture.mode == {2: "L", 3: "RGB", 4: "RGBA"}[shape[2] if len(shape) > 2 else 2]
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_png_of_many_compressed_pieces(tmp_path):
    """Above a megabyte a strip is compressed in parallel pieces: some repetitive, some noise."""
    image = noise(1500, 700, 3)
    image[200:900] = image[200:207].repeat(100, axis=0)
    image[1000:1300, 100:] = 77
    save_png(tmp_path / "x.png", 1500, 700, [image[:3], image[3:1400], image[1400:]])
    with Image.open(tmp_path / "x.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_png_checksums_and_order_of_chunks(tmp_path):
    save_png(tmp_path / "x.png", 30, 40, [noise(30, 40)])
    data = (tmp_path / "x.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, kinds = 8, []
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + size]
        (crc,) = struct.unpack_from(">I", data, position + 8 + size)
        assert zlib.crc32(body) == crc
        kinds.append(body[:4])
        position += 12 + size
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND" and set(kinds[1:-1]) == {b"IDAT"}


@pytest.mark.parametrize("strips", [
    [], [np.zeros((3, 5), np.uint8)], [np.zeros((5, 5), np.uint8)],
    [np.zeros((2, 5), np.uint8), np.zeros((2, 5, 3), np.uint8)],
    [np.zeros((4, 6), np.uint8)], [np.zeros((4, 5), np.float32)],
])
def test_png_of_wrong_strips_leaves_nothing(tmp_path, strips):
    with pytest.raises(ValueError, match="strip"):
        save_png(tmp_path / "x.png", 4, 5, strips)
    assert not list(tmp_path.iterdir())


def profile_of(colours: bytes) -> bytes:
    """A colour profile that says what it is for; sRGB itself for RGB."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = colours
    return bytes(profile)


@pytest.mark.parametrize("mode, colours, kept", [
    ("RGB", b"RGB ", True), ("L", b"GRAY", True), ("RGBA", b"RGB ", True),
    ("CMYK", b"CMYK", False), ("L", b"RGB ", False), ("LA", b"GRAY", True),
])
def test_a_colour_profile_that_fits_is_kept_and_any_other_is_named(tmp_path, mode, colours, kept):
    suffix = "tif" if mode == "CMYK" else "png"
    source = tmp_path / f"a.{suffix}"
    profile = profile_of(colours)
    Image.fromarray(noise(6, 5, 3)).convert(mode).save(source, icc_profile=profile)
    result = run_job(Job(source, tmp_path / "o.png"), random_net(), 3)
    assert bool(result.notes) != kept
    with Image.open(tmp_path / "o.png") as picture:
        picture.load()
        assert picture.info.get("icc_profile") == (profile if kept else None)


def test_too_large_for_its_format_or_into_no_folder(tmp_path):
    Image.fromarray(noise(1, 6000)).save(tmp_path / "a.png")
    with pytest.raises(MinisrcnnError, match=r"WEBP holds 16,383 a side"):
        run_job(Job(tmp_path / "a.png", tmp_path / "x.webp"), random_net(), 3)
    with pytest.raises(MinisrcnnError, match="no such folder"):
        save_png(tmp_path / "no/x.png", 4, 5, [np.zeros((4, 5), np.uint8)])


# --- which file goes where ----------------------------------------------------------------------


def pictures(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(noise(6, 5, 3)).save(folder / name)
    return [str(folder / name) for name in names]


def targets(inputs, out=None, scale=3):
    return [str(job.target) for job in plan(inputs, out, scale, []).jobs]


def test_default_names(tmp_path):
    a, b = pictures(tmp_path, "a.png", "b.jpg")
    assert targets([a, b]) == [str(tmp_path / "a_x3.png"), str(tmp_path / "b_x3.png")]
    assert targets([str(tmp_path)], scale=2) == [str(tmp_path / "a_x2.png"),
                                                 str(tmp_path / "b_x2.png")]


def test_out_is_a_file_or_a_folder(tmp_path):
    a, b = pictures(tmp_path, "a.png", "b.png")
    assert targets([a], str(tmp_path / "c.tif")) == [str(tmp_path / "c.tif")]
    for out in (tmp_path, tmp_path / "new", str(tmp_path / "new.d") + "/"):
        assert targets([a, b], str(out)) == [str(Path(out) / "a_x3.png"),
                                             str(Path(out) / "b_x3.png")]
    assert (tmp_path / "new.d").is_dir()
    with pytest.raises(MinisrcnnError, match="2 pictures, want a folder"):
        plan([a, b], str(tmp_path / "c.png"), 3, [])
    with pytest.raises(MinisrcnnError, match=r"cannot write \.xyz"):
        plan([a], str(tmp_path / "c.xyz"), 3, [])
    with pytest.raises(MinisrcnnError, match="no such folder"):
        plan([a], str(tmp_path / "missing/c.png"), 3, [])
    with pytest.raises(MinisrcnnError, match="cannot make this folder"):
        plan([a], a + "/sub", 3, [])


def test_two_pictures_are_never_written_to_one_file(tmp_path):
    a, b = pictures(tmp_path, "a.png", "a.jpg")
    made = plan([a, b], None, 3, [])
    assert [job.target.name for job in made.jobs] == ["a_x3.png", "a_jpg_x3.png"]
    assert "a.jpg: becomes a_jpg_x3.png; a_x3.png is taken" in made.notes[0]
    c = pictures(tmp_path / "other", "a.png")[0]
    assert [Path(t).name for t in targets([a, c], str(tmp_path / "out"))] == [
        "a_x3.png", "a_png_x3.png"]
    assert len(targets([a, c])) == 2  # beside each picture there is room


def test_an_input_is_never_overwritten(tmp_path):
    a, b = pictures(tmp_path, "a.png", "a_x3.png")
    with pytest.raises(MinisrcnnError, match="would be overwritten"):
        plan([a], a, 3, [])
    assert [Path(t).name for t in targets([a, b])] == ["a_png_x3.png", "a_x3_x3.png"]
    os.symlink(a, tmp_path / "link.png")
    with pytest.raises(MinisrcnnError, match="would be overwritten"):
        plan([a], str(tmp_path / "link.png"), 3, [])


def test_earlier_results_are_skipped_unless_named(tmp_path):
    a, b, c = pictures(tmp_path, "a.png", "a_x3.png", "alone_x3.png")
    made = plan([str(tmp_path)], str(tmp_path / "out"), 3, [])
    assert [str(job.source) for job in made.jobs] == [a, c] and "a_x3.png" in made.notes[0]
    made = plan([b], None, 3, [])
    assert [str(job.source) for job in made.jobs] == [b] and not made.notes


def test_a_folder_that_is_run_again_skips_what_is_there(tmp_path):
    a, b = pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "a_x3.png").write_bytes(b"precious")
    made = plan([str(tmp_path)], None, 3, [])
    assert [str(job.source) for job in made.jobs] == [b]
    assert any("Skipping 1 pictures whose result exists" in text for text in made.notes)
    assert len(plan([str(tmp_path)], None, 3, [], overwrite=True).jobs) == 2
    assert len(plan([a], None, 3, []).jobs) == 1  # refused when it is run
    assert len(plan([a], None, 3, [], skip_existing=True).jobs) == 0


def test_names_that_find_nothing_are_problems(tmp_path):
    a = pictures(tmp_path, "a.png")[0]
    problems: list[str] = []
    made = plan([a, str(tmp_path / "b.png"), str(tmp_path / "*.jpg"), ""], None, 3, problems)
    assert len(made.jobs) == 1 and len(problems) == 3 and "an input is empty" in problems[2]


# --- files --------------------------------------------------------------------------------------


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def strange_pictures(folder: Path) -> dict[str, tuple[Path, tuple]]:
    """Pictures that cameras, scanners and the web produce, and the shape of three times them."""
    rgb = Image.fromarray(noise(10, 14, 3))
    palette = rgb.quantize(8)
    clear = palette.copy()
    clear.info["transparency"] = 0
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "grey": (saved(rgb.convert("L"), folder / "grey.png"), (30, 42)),
        "black and white": (saved(rgb.convert("1"), folder / "bw.png"), (30, 42)),
        "palette": (saved(palette, folder / "p.png"), (30, 42, 3)),
        "clear palette": (saved(clear, folder / "pt.png", transparency=0), (30, 42, 4)),
        "grey and alpha": (saved(rgb.convert("LA"), folder / "la.png"), (30, 42, 2)),
        "16 bits": (saved(Image.fromarray(noise(10, 14).astype(np.uint16) * 257),
                          folder / "i16.png"), (30, 42)),
        "CMYK": (saved(rgb.convert("CMYK"), folder / "cmyk.jpg"), (30, 42, 3)),
        "turned": (saved(rgb, folder / "turned.jpg", exif=turned), (42, 30, 3)),
        "GIF": (saved(rgb.convert("P"), folder / "g.gif", save_all=True,
                      append_images=[Image.new("P", (14, 10))]), (30, 42, 4)),
        "wide": (saved(rgb.resize((3000, 1)), folder / "wide.png"), (3, 9000, 3)),
    }


def test_strange_pictures(tmp_path):
    for name, (path, shape) in strange_pictures(tmp_path).items():
        target = tmp_path / "out.png"
        run_job(Job(path, target, named=True), random_net(), 3)
        with Image.open(target) as picture:
            assert np.asarray(picture).shape == shape, name


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".jpg", ".ppm", ".webp", ".PNG"])
def test_other_formats(tmp_path, suffix):
    source = Path(pictures(tmp_path, "a.png")[0])
    target = tmp_path / f"out{suffix}"
    run_job(Job(source, target, named=True), random_net(), 3)
    want = upscale_image(read_image(source), random_net(), 3)
    got = read_image(target)
    assert got.shape == want.shape
    if suffix != ".jpg":
        np.testing.assert_array_equal(got, want)


def test_a_default_name_that_exists_is_kept(tmp_path):
    source = Path(pictures(tmp_path, "a.png")[0])
    target = tmp_path / "a_x3.png"
    target.write_bytes(b"precious")
    with pytest.raises(MinisrcnnError, match="exists already"):
        run_job(Job(source, target), random_net(), 3)
    assert target.read_bytes() == b"precious"
    run_job(Job(source, target), random_net(), 3, overwrite=True)
    assert read_image(target).shape == (18, 15, 3)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    source = Path(pictures(tmp_path, "a.png")[0])

    def interrupted(part):
        raise KeyboardInterrupt

    for name in ("out.png", "out.tif"):
        (tmp_path / name).write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt):
            run_job(Job(source, tmp_path / name, named=True), random_net(), 3,
                    progress=interrupted)
        assert (tmp_path / name).read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "out.png", "out.tif"]


@pytest.mark.parametrize("name", ["out.png", "out.tif"])
def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch, name):
    source = Path(pictures(tmp_path, "a.png")[0])

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MinisrcnnError, match=rf"{name}: cannot be written \(No space left"):
        run_job(Job(source, tmp_path / name, named=True), random_net(), 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_progress_counts_rows(tmp_path):
    source = Path(pictures(tmp_path, "a.png")[0])
    seen: list = []
    run_job(Job(source, tmp_path / "o.png"), random_net(), 3,
            progress=seen.append)
    assert seen[-1] == 1 and all(0 < part <= 1 for part in seen)


def test_a_picture_gets_better():
    """A real photograph, made smaller and restored by the authors' model: closer than bicubic."""
    from minisrcnn.imaging.metrics import psnr

    root = Path(__file__).parent.parent
    places = [os.environ.get("MINISRCNN_DATA") or root / "data", root / "../shared/data"]
    data = next((Path(p) for p in places if Path(p, "authors/9-1-5_91_x3.mat").exists()), None)
    if data is None:
        pytest.skip("needs the authors' model, authors/9-1-5_91_x3.mat, beside Set5")
    net = SRCNN.load(data / "authors/9-1-5_91_x3.mat")
    truth = read_image(data / "Set5/butterfly_GT.bmp")[:255, :255]
    small = imresize(truth, 1 / 3)
    out, plain = upscale_image(small, net, 3), imresize(small, 3)
    gains = [psnr(out[..., c], truth[..., c], 3) - psnr(plain[..., c], truth[..., c], 3)
             for c in range(3)]
    assert min(gains) > 2  # dB; the luma gains 3.5
