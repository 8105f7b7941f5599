"""Scores against the published figures, and the refusal to score what is not the data set."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.evaluate import PUBLISHED, Published, evaluate, explain_protocol
from minisrcnn.imaging.datasets import Dataset, load_dataset
from minisrcnn.imaging.files import read_image
from minisrcnn.imaging.metrics import psnr
from minisrcnn.imaging.prepare import prepare

ROOT = Path(__file__).parent.parent


def _data() -> Path | None:
    for place in (os.environ.get("MINISRCNN_DATA"), ROOT / "data", ROOT / "../shared/data"):
        if place and Path(place, "Set5").is_dir() and Path(place, "Set14").is_dir():
            return Path(place).resolve()
    return None


DATA = _data()
needs_data = pytest.mark.skipif(DATA is None, reason="needs Set5 and Set14 (MINISRCNN_DATA)")
needs_authors = pytest.mark.skipif(
    DATA is None or not (DATA / "authors/9-1-5_91_x3.mat").exists(),
    reason="needs the authors' model, authors/9-1-5_91_x3.mat, beside Set5 and Set14",
)


@pytest.fixture(scope="module")
def authors() -> SRCNN:
    return SRCNN.load(DATA / "authors/9-1-5_91_x3.mat")


def picture_set(folder: Path, count: int = 2, shape: tuple = (40, 50), name: str = "mine"):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for i in range(count):
        smooth = np.kron(rng.integers(0, 256, (shape[0] // 5, shape[1] // 5, *shape[2:])),
                         np.ones((5, 5, *[1] * len(shape[2:]))))
        Image.fromarray(smooth.astype(np.uint8)).save(folder / f"p{i}.png")
    return Dataset(name, tuple(sorted(folder.iterdir())))


def test_grayscale_is_rgb_of_equal_channels_but_in_published_sets(tmp_path):
    gray = picture_set(tmp_path / "gray")
    (tmp_path / "rgb").mkdir()
    for path in gray.paths:
        Image.open(path).convert("RGB").save(tmp_path / "rgb" / path.name)
    rgb = Dataset("mine", tuple(sorted((tmp_path / "rgb").iterdir())))
    assert evaluate(gray, 2, Identity()).rows == evaluate(rgb, 2, Identity()).rows
    first = explain_protocol(gray, 2)[0]
    assert first.bicubic == explain_protocol(rgb, 2)[0].bicubic
    authors = Dataset("Set14", gray.paths)  # no figure is published for scale 5
    x, label = prepare(read_image(gray.paths[0]), 5)
    assert evaluate(authors, 5).rows[0].bicubic.psnr == psnr(x, label, 5)
    assert evaluate(gray, 5).rows[0].bicubic.psnr != psnr(x, label, 5)


class Identity:
    """A network that gives back what it is given."""

    channels, dtype = 1, np.dtype(np.float32)

    def predict(self, image):
        return image


# --- the published figures ----------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name, scale", [
    ("Set5", 2), ("Set5", 3), ("Set5", 4), ("Set14", 3),
    pytest.param("Set14", 2, marks=pytest.mark.slow),
    pytest.param("Set14", 4, marks=pytest.mark.slow),
])
def test_bicubic_reads_the_known_figure(name, scale):
    result = evaluate(load_dataset(name, DATA), scale)
    assert result.mean.bicubic.psnr == pytest.approx(
        PUBLISHED[name, scale].bicubic, abs=0.001)
    assert result.mean.model is None


@needs_authors
@pytest.mark.parametrize("name, figure", [("Set5", 32.39), ("Set14", 29.00)])
def test_the_authors_model_reads_its_figure(authors, name, figure):
    """The paper's figures, to the last digit that it prints."""
    result = evaluate(load_dataset(name, DATA), 3, authors)
    assert round(result.mean.model.psnr, 2) == figure


@needs_authors
def test_image_by_image(authors):
    """Another implementation's figures, with its mirrored borders."""
    known = {"baby": (33.910, 35.011), "bird": (32.572, 34.903), "butterfly": (24.036, 27.576),
             "head": (32.879, 33.548), "woman": (28.563, 30.911)}
    dataset = load_dataset("Set5", DATA)
    for title, path in zip(dataset.titles, dataset.paths, strict=True):
        x, label = prepare(read_image(path), 3, "bicubic-mirror")
        pair = psnr(x, label, 3), psnr(authors.predict(x), label, 3)
        assert pair == pytest.approx(known[title], abs=0.001)


# --- the control --------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("named", ["folder", "registered"])
def test_another_set5_gets_no_score(own_set5, named):
    path = own_set5 / "Set5/baby_GT.bmp"
    image = Image.open(path)
    half = (image.width // 2, image.height // 2)
    image.resize(half).resize(image.size).save(path)  # what a careless copy does
    asked = load_dataset(own_set5 / "Set5") if named == "folder" else load_dataset("Set5", own_set5)
    with pytest.raises(MinisrcnnError, match=r"30\.394 is known, \+\d\.\d{3} dB off") as error:
        evaluate(asked, 3, Identity())
    assert "\n" not in str(error.value)
    assert ("baby_GT.bmp differ" in str(error.value)) == (named == "registered")


@needs_data
def test_a_faint_change_passes_the_control_and_a_stronger_one_does_not(tmp_path, monkeypatch):
    dataset = load_dataset("Set5", DATA)
    figure = evaluate(dataset, 3).mean.bicubic.psnr
    for off, passes in ((0.0099, True), (-0.0099, True), (0.0101, False), (-0.0101, False)):
        monkeypatch.setitem(PUBLISHED, ("Set5", 3), Published(figure + off, {}))
        if passes:
            evaluate(dataset, 3)
        else:
            with pytest.raises(MinisrcnnError, match="dB off"):
                evaluate(dataset, 3)


# --- any folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (41, 53, 3), (40, 50, 4)])
@pytest.mark.parametrize("scale", [2, 3, 5])
def test_identity_scores_as_bicubic(tmp_path, shape, scale):
    dataset = picture_set(tmp_path / "set", shape=shape)
    result = evaluate(dataset, scale, Identity())
    assert result.published is None
    for row in [*result.rows, result.mean]:
        assert row.model == row.bicubic and math.isfinite(row.bicubic.psnr)


def test_psnr_by_the_formula(tmp_path):
    """A constant error of 3 grey levels is 20 log10(255 / 3) dB, whatever the picture."""
    class OffByThree(Identity):
        def predict(self, image):
            return label + np.float32(3 / 255)

    path = tmp_path / "grey.png"
    grey = np.random.default_rng(0).integers(20, 230, (30, 30)).astype(np.uint8)
    Image.fromarray(grey).save(path)
    luma = np.floor(16 + grey * (219 / 255) + 0.5)  # the Y of R = G = B
    label = (luma / 255).astype(np.float32)
    result = evaluate(Dataset("one", (path,)), 3, OffByThree())
    assert result.mean.model.psnr == pytest.approx(20 * math.log10(255 / 3), abs=1e-9)


def test_a_picture_too_small_for_ssim_has_none(tmp_path):
    dataset = picture_set(tmp_path / "set", count=1, shape=(15, 15))
    row = evaluate(dataset, 3).rows[0]
    assert math.isnan(row.bicubic.ssim) and math.isfinite(row.bicubic.psnr)


def test_bad_pictures_are_one_clear_error(tmp_path):
    dataset = picture_set(tmp_path / "set")
    dataset.paths[1].write_bytes(b"")
    with pytest.raises(MinisrcnnError, match=r"p1\.png"):
        evaluate(dataset, 3)
    Image.new("L", (8, 8)).save(dataset.paths[1])
    with pytest.raises(MinisrcnnError, match=r"p1\.png: too small to score at scale 3"):
        evaluate(dataset, 3)
    with pytest.raises(MinisrcnnError, match=r"p1\.png: too small"):
        explain_protocol(dataset, 3)


def test_a_model_of_two_channels_is_refused(tmp_path):
    net = SRCNN("3-1-3", (2, 2), channels=2, backend="numpy")
    with pytest.raises(MinisrcnnError, match="2 channels, want 1 or 3"):
        evaluate(picture_set(tmp_path / "set"), 3, net)


def test_progress_counts_pictures(tmp_path):
    seen: list = []
    evaluate(picture_set(tmp_path / "set"), 3, progress=lambda *pair: seen.append(pair))
    assert seen == [(0, 2), (1, 2), (2, 2)]


# --- the waterfall ------------------------------------------------------------------------------


@needs_data
def test_what_the_choices_cost_bicubic():
    """The first row is the protocol; the known traps cost what others have measured too."""
    choices = explain_protocol(load_dataset("Set5", DATA), 3)
    assert choices[0].bicubic == pytest.approx(30.394, abs=0.001)
    change = {choice.choice: choice.bicubic_change for choice in choices}
    assert all(choice.model is None for choice in choices)
    mirrored = change["borders mirrored (MATLAB since R2014), not clamped"]
    assert choices[0].bicubic + mirrored == pytest.approx(30.392, abs=0.001)
    assert change["full range 0..255 (JFIF, Pillow) for 16..235"] == pytest.approx(-1.3, abs=0.05)
    assert change["scipy.ndimage.zoom, prefilter=False"] == pytest.approx(-2.2, abs=0.1)
    assert abs(change["Pillow, bicubic"]) < 0.005
    assert {choice.step for choice in choices} == {"", "Y range", "resizer", "rounding", "border"}


def test_the_opencv_like_resizer_by_its_formula():
    """Rows of a = -0.75 cubic weights, against a direct sum in plain Python."""
    from minisrcnn.evaluate import _cubic_without_antialiasing

    def kernel(t, a=-0.75):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    image = np.random.default_rng(0).random((6, 9))
    got = _cubic_without_antialiasing(image, (9, 3))
    want = np.zeros((9, 3))
    for i in range(9):
        for j in range(3):
            u, v = (i + 0.5) * 6 / 9 - 0.5, (j + 0.5) * 9 / 3 - 0.5
            for p in range(-4, 12):
                for q in range(-4, 14):
                    want[i, j] += (kernel(u - p) * kernel(v - q)
                                   * image[min(max(p, 0), 5), min(max(q, 0), 8)])
    np.testing.assert_allclose(got, want, rtol=1e-12)
