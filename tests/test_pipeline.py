"""The whole job on real pictures: train on T91, score on Set5, upscale; all by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.imaging.color import rgb2y
from minisrcnn.imaging.files import read_image, write_image
from minisrcnn.imaging.metrics import psnr
from minisrcnn.imaging.prepare import modcrop
from minisrcnn.imaging.resize import imresize

EPOCHS = 1


@pytest.fixture(scope="module", params=[
    "adam", pytest.param("fast", marks=pytest.mark.slow)])  # the usual recipe: three times as long
def place(request, data_root, tmp_path_factory):
    """Train where nothing else is, for what all tests here look at."""
    for name in ("T91", "Set5"):
        if not (data_root / name).is_dir():
            pytest.skip(f"{name} is not in {data_root}")
    reason = unavailable_reason("numba")
    if reason is not None:
        pytest.skip(f"backend numba, without which this would take an hour: {reason}")
    here = tmp_path_factory.mktemp("pipeline")
    os.environ["MINISRCNN_DATA"], old = str(data_root), os.environ.get("MINISRCNN_DATA")
    try:
        done = minisrcnn(here, "train", "--data", "T91", "--scale", "3", "--backend", "numba",
                         "--recipe", request.param, "--epochs", str(EPOCHS), "--out", "runs/ci")
        yield here, done
    finally:
        if old is None:
            del os.environ["MINISRCNN_DATA"]
        else:
            os.environ["MINISRCNN_DATA"] = old


def minisrcnn(here, *args):
    done = subprocess.run([sys.executable, "-m", "minisrcnn", *map(str, args)], cwd=here,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_counts_the_patches_of_t91_and_of_its_copies(place):
    here, _ = place
    first, *epochs = map(json.loads, Path(here, "runs/ci/log.jsonl").read_text().splitlines())
    # Of the pictures, or of them and their copies at 0.9, 0.8, 0.7 and 0.6.
    assert first["patches"] == {"adam": 21884, "fast": 68897}[first["settings"]["recipe"]["name"]]
    assert first["bicubic"] == pytest.approx(30.394, abs=0.002)
    assert first["comparable"]
    assert [line["epoch"] for line in epochs] == list(range(1, EPOCHS + 1))


def test_beats_bicubic_on_set5_by_0_8_db(place):
    """As the evaluate command scores it, in its own process, from the file."""
    here, said = place
    text = minisrcnn(here, "evaluate", "--model", "runs/ci", "--data", "Set5", "--json")
    (scores,) = json.loads(text)["sets"]
    mean = scores["mean"]
    assert mean["bicubic"]["psnr"] == pytest.approx(30.394, abs=0.002)
    assert mean["model"]["psnr"] >= mean["bicubic"]["psnr"] + 0.8
    for row in scores["images"]:
        assert row["model"]["psnr"] > row["bicubic"]["psnr"], row["name"]
        assert row["model"]["ssim"] > row["bicubic"]["ssim"], row["name"]
    assert f"Set5, scale 3: {mean['model']['psnr']:.2f} dB" in said


def test_upscales_a_picture_better_than_bicubic(place, data_root):
    """Its luma, compared with a larger original that the command never saw."""
    here, _ = place
    truth = modcrop(rgb2y(read_image(data_root / "Set5" / "butterfly_GT.bmp")), 3)
    H, W = truth.shape
    small = imresize(truth / 255, output_size=(H // 3, W // 3))
    small = np.uint8(np.clip(np.round(small * 255), 0, 255))
    write_image(here / "small.png", small)
    minisrcnn(here, "upscale", "small.png", "-o", "large.png", "--model", "runs/ci")
    large = read_image(here / "large.png")
    assert large.shape == truth.shape
    bicubic = imresize(small / 255, output_size=(H, W))
    assert psnr(large, truth, 3) > psnr(bicubic, truth, 3) + 0.8
