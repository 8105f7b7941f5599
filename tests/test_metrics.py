"""PSNR and SSIM against figures worked out by hand and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minisrcnn.imaging.metrics import psnr, ssim, to_uint8


def pair(shape=(40, 50), dtype="float64"):
    rng = np.random.default_rng(0)
    truth = rng.random(shape)
    return (truth + rng.normal(0, 0.05, shape)).astype(dtype), truth.astype(dtype)


def test_psnr_by_hand():
    truth = np.full((10, 10), 100, np.uint8)
    assert psnr(truth + np.uint8(1), truth) == pytest.approx(48.1308, abs=1e-4)  # 20 log10 255
    assert psnr(truth + np.uint8(10), truth) == pytest.approx(28.1308, abs=1e-4)
    one = truth.copy()
    one[5, 5] += 10  # mean squared error 100 / 100
    assert psnr(one, truth) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(truth, truth) == math.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("border", [0, 3])
def test_against_scikit_image(dtype, border):
    metrics = pytest.importorskip("skimage.metrics")
    output, truth = pair(dtype=dtype)
    a, b = (
        np.floor(np.clip(v.astype(float) * 255, 0, 255) + 0.5).astype(np.uint8)[
            border : 40 - border, border : 50 - border
        ]
        for v in (output, truth)
    )
    expected = metrics.peak_signal_noise_ratio(b, a, data_range=255)
    assert psnr(output, truth, border) == pytest.approx(expected, abs=1e-9)
    expected = metrics.structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(output, truth, border) == pytest.approx(expected, abs=1e-6)


def test_ssim_from_the_formula():
    output, truth = (to_uint8(v).astype(float) for v in pair((11, 11)))
    t = np.arange(-5, 6)
    g = np.exp(-(t**2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    mx, my = (w * output).sum(), (w * truth).sum()
    vx, vy = (w * output**2).sum() - mx**2, (w * truth**2).sum() - my**2
    vxy = (w * output * truth).sum() - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    # 11x11 pixels leave one place for the window
    assert ssim(output.astype(np.uint8), truth.astype(np.uint8)) == pytest.approx(
        expected, rel=1e-9
    )


def test_the_border_is_not_looked_at():
    output, truth = pair()
    clean = psnr(output, truth, 4)
    output[:4], output[-4:], output[:, :4], output[:, -4:] = 9, 9, 9, 9
    assert psnr(output, truth, 4) == clean
    assert psnr(output, truth, 3) < clean - 3


def test_to_uint8_clips_and_rounds_half_up():
    values = np.array([-1, -0.001, 0, 0.499 / 255, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1, 1.2])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 0, 0, 1, 2, 3, 255, 255])
    np.testing.assert_array_equal(to_uint8(np.arange(256) / 255), np.arange(256))
    np.testing.assert_array_equal(to_uint8((np.arange(256) / 255).astype("f4")), np.arange(256))


def test_arguments_are_left_alone():
    output, truth = pair()
    before = output.copy(), truth.copy()
    psnr(output, truth, 2)
    ssim(output, truth, 2)
    np.testing.assert_array_equal(output, before[0])
    np.testing.assert_array_equal(truth, before[1])


@pytest.mark.parametrize("score", [psnr, ssim])
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1]], np.zeros((20, 20))), TypeError, "output .*list"),
        ((np.zeros((20, 20)), None), TypeError, "truth .*NoneType"),
        ((np.zeros((20, 20, 3)), np.zeros((20, 20, 3))), ValueError, r"output .*\(20, 20, 3\)"),
        ((np.zeros((20, 21)), np.zeros((20, 20))), ValueError, r"output .*\(20, 21\)"),
        ((np.zeros((20, 20), int), np.zeros((20, 20))), TypeError, "int64"),
        ((np.zeros((20, 20)), np.zeros((20, 20)), 10), ValueError, "border .*10"),
        ((np.zeros((20, 20)), np.zeros((20, 20)), -1), ValueError, "border .*-1"),
        ((np.zeros((20, 20)), np.zeros((20, 20)), 1.5), TypeError, "border is .*, want an integer"),
        ((np.full((20, 20), np.nan), np.zeros((20, 20))), ValueError, "NaN"),
        ((np.full((20, 20), np.inf), np.zeros((20, 20))), ValueError, "infinity"),
    ],
)
def test_wrong_arguments(score, arguments, error, words):
    with pytest.raises(error, match=words):
        score(*arguments)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="11x11"):
        ssim(np.zeros((14, 14)), np.zeros((14, 14)), 2)


def test_to_uint8_wants_an_array():
    with pytest.raises(TypeError, match="float"):
        to_uint8(0.5)
