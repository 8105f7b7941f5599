"""Inputs and labels of training and evaluation: the published bicubic figures, and the formulas."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from minisrcnn.imaging.files import find_images, read_image
from minisrcnn.imaging.metrics import psnr
from minisrcnn.imaging.patches import PatchIndex
from minisrcnn.imaging.prepare import modcrop, prepare

# Mean PSNR of bicubic in dB, from an independent implementation with mirrored borders.
BICUBIC = {
    (2, "Set5"): 33.661, (2, "Set14"): 30.232,
    (3, "Set5"): 30.392, (3, "Set14"): 27.541,
    (4, "Set5"): 28.421, (4, "Set14"): 26.000,
}  # fmt: skip
SET5_X3 = {
    "baby_GT": 33.910, "bird_GT": 32.572, "butterfly_GT": 24.036,
    "head_GT": 32.879, "woman_GT": 28.563,
}  # fmt: skip


def images_of(name):
    root = Path(__file__).parents[1]
    places = [os.environ.get("MINISRCNN_DATA"), root / "data", root / ".." / "shared" / "data"]
    for place in places:
        if place and Path(place, name).is_dir():
            return find_images(Path(place, name))
    pytest.skip(f"{name} is not there: set MINISRCNN_DATA to the folder that holds it")


@pytest.mark.parametrize(("scale", "name"), BICUBIC)
def test_bicubic_reads_the_published_mean(scale, name):
    scores = [psnr(*prepare(read_image(path), scale, "bicubic-mirror"), border=scale)
              for path in images_of(name)]
    assert np.mean(scores) == pytest.approx(BICUBIC[scale, name], abs=0.001)


@pytest.mark.parametrize(("scale", "name"), BICUBIC)
def test_clamped_borders_are_worth_a_few_thousandths(scale, name):
    scores = [psnr(*prepare(read_image(path), scale), border=scale) for path in images_of(name)]
    assert 0 < np.mean(scores) - BICUBIC[scale, name] < 0.006


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bicubic_on_set5_image_by_image(dtype):
    for path in images_of("Set5"):
        score = psnr(*prepare(read_image(path), 3, "bicubic-mirror", dtype), border=3)
        assert score == pytest.approx(SET5_X3[path.stem], abs=0.001)


def test_t91_gives_21884_pairs_at_scale_3():
    shapes = [prepare(read_image(path), 3)[0].shape for path in images_of("T91")]
    assert len(shapes) == 91
    assert len(PatchIndex(shapes, 33, 14)) == 21884


def test_one_grayscale_image_in_set14():
    shapes = {path.stem: read_image(path).ndim for path in images_of("Set14")}
    assert [name for name, ndim in shapes.items() if ndim == 2] == ["bridge"]


def random_image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("degradation", ["bicubic", "bicubic-mirror", "zoom"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_types(scale, degradation, dtype):
    image = random_image((38, 51, 3))
    input_, label = prepare(image, scale, degradation, dtype)
    assert input_.shape == label.shape == (38 - 38 % scale, 51 - 51 % scale)
    assert input_.dtype == label.dtype == dtype
    assert input_.flags.c_contiguous


def test_label_is_matlabs_y_cropped_over_255():
    image = random_image((10, 11, 3))
    label = prepare(image, 3, dtype="float64")[1]
    exact = 16 + image.astype(float) @ [65.481, 128.553, 24.966] / 255
    np.testing.assert_allclose(label * 255, np.floor(exact + 0.5)[:9, :9], atol=1e-10)
    gray = random_image((10, 11))
    np.testing.assert_allclose(prepare(gray, 3, dtype="float64")[1] * 255, gray[:9, :9], atol=1e-10)


def test_scale_1_degrades_nothing():
    input_, label = prepare(random_image((12, 13)), 1, dtype="float64")
    np.testing.assert_allclose(input_, label, atol=1e-15)


def test_nothing_is_rounded_or_clipped_between_down_and_up():
    edge = np.zeros((24, 24), np.uint8)
    edge[:, 12:] = 255
    input_, _ = prepare(edge, 3, dtype="float64")
    assert input_.max() > 1.001
    assert input_.min() < -0.001
    assert np.abs(input_ * 255 - np.round(input_ * 255)).max() > 0.1


def spline_zoom(line, size):
    """One axis of an unfiltered cubic B-spline zoom: ends on ends, mirrored about both."""

    def b3(t):
        t = abs(t)
        return 2 / 3 - t**2 + t**3 / 2 if t < 1 else (2 - t) ** 3 / 6 if t < 2 else 0.0

    n = len(line)
    result = []
    for i in range(size):
        x = i * (n - 1) / (size - 1)
        total = 0.0
        for j in range(int(x) - 2, int(x) + 4):
            k = abs(j) % (2 * n - 2)
            total += b3(x - j) * line[min(k, 2 * n - 2 - k)]
        result.append(total)
    return np.array(result)


@pytest.mark.parametrize("scale", [2, 3])
def test_zoom_from_the_formulas(scale):
    image = random_image((26, 19, 3), seed=3)
    input_, label = prepare(image, scale, "zoom", "float64")
    H, W = 26 - 26 % scale, 19 - 19 % scale
    luma = image[:H, :W].astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(label * 255 - luma).max() < 1.01  # JFIF luma, full range
    assert np.array_equal(label * 255, np.round(label * 255))
    work = label
    for h, w in ((H // scale, W // scale), (H, W)):
        work = np.stack([spline_zoom(column, h) for column in work.T], axis=1)
        work = np.stack([spline_zoom(row, w) for row in work])
    np.testing.assert_allclose(input_, work, atol=1e-12)


def test_modcrop():
    image = random_image((10, 11, 3))
    cropped = modcrop(image, 4)
    np.testing.assert_array_equal(cropped, image[:8, :8])
    assert np.shares_memory(cropped, image)
    assert modcrop(image, 1).shape == image.shape


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scale": 0}, ValueError, "scale .*0"),
        ({"scale": -3}, ValueError, "scale .*-3"),
        ({"scale": 3.0}, TypeError, "scale is .*, want an integer"),
        ({"scale": True}, TypeError, "scale is .*, want an integer"),
        ({"scale": 13}, ValueError, "image has 12x20 pixels, want at least 13x13 for scale 13"),
        ({"degradation": "linear"}, ValueError, "degradation .*'linear'"),
        ({"dtype": "int32"}, TypeError, "dtype .*int32"),
        ({"dtype": "float16"}, TypeError, "dtype .*float16"),
        ({"image": [[1]]}, TypeError, "image .*list"),
        ({"image": np.zeros((12, 12))}, TypeError, "image .*float64"),
        ({"image": np.zeros((12, 12, 4), np.uint8)}, ValueError, r"image.*\(12, 12, 4\)"),
        ({"image": np.zeros(12, np.uint8)}, ValueError, r"image.*\(12,\)"),
    ],
)
@pytest.mark.parametrize("degradation", ["bicubic", "zoom"])
def test_wrong_arguments(change, error, words, degradation):
    arguments = {"image": random_image((12, 20)), "scale": 3, "degradation": degradation} | change
    with pytest.raises(error, match=words):
        prepare(**arguments)


@pytest.mark.parametrize("length", [150, 303, 366])
def test_the_zoom_degradation_has_a_black_border_at_some_lengths(length):
    """SciPy's rounding of coordinates; documented, and kept as the design notes have it."""
    image = np.full((length, length), 255, np.uint8)
    input_, _ = prepare(image, 3, "zoom")
    assert not input_[-1].any() and not input_[:, -1].any()
    assert prepare(image, 3)[0].min() > 0.9


def test_modcrop_wants_an_image():
    with pytest.raises(ValueError, match="image"):
        modcrop(np.zeros(9), 3)
