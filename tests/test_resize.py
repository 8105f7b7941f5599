"""imresize against a dense implementation written from the definition, and against figures worked
out by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisrcnn.imaging import resize
from minisrcnn.imaging.resize import BORDERS, imresize, resize_region


def kernel(t):
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    if t <= 2:
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return 0.0


def dense(n_in, n_out, scale, border="mirror"):
    """The (n_out, n_in) matrix of one axis, what lies beyond the borders folded in."""
    stretch = min(scale, 1)
    reach = math.ceil(2 / stretch) + 1
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        u = (i + 0.5) / scale - 0.5
        weights = {}
        for j in range(math.floor(u) - reach, math.floor(u) + reach + 2):
            weights[j] = kernel(stretch * (u - j))
        total = sum(weights.values())
        for j, w in weights.items():
            while not 0 <= j < n_in:  # bounce off the borders until inside
                if border == "clamp":
                    j = min(max(j, 0), n_in - 1)
                else:
                    j = -1 - j if j < 0 else 2 * n_in - 1 - j
            matrix[i, j] += w / total
    return matrix


def naive(image, size, scales, border="mirror"):
    """Smaller scale first, rows first where equal; uint8 rounded after each axis."""
    whole = image.dtype == np.uint8
    result = image.astype(np.float64)
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        matrix = dense(result.shape[axis], size[axis], scales[axis], border)
        result = np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis)
        if whole:
            result = np.floor(np.clip(result, 0, 255) + 0.5).clip(0, 255)
    return result


def noise(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.random(shape).astype(dtype)


SCALES = [2, 3, 4, 1 / 2, 1 / 3, 1 / 4, 1.7, 0.63, 1.0]


@pytest.mark.parametrize("border", ["mirror", "clamp"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(17, 23), (12, 9, 3), (1, 1), (2, 31), (30, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6)])
def test_against_the_definition(scale, shape, dtype, tolerance, border):
    image = noise(shape, dtype)
    got = imresize(image, scale, border=border)
    size = tuple(math.ceil(scale * n) for n in shape[:2])
    assert got.shape == (*size, *shape[2:])
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, naive(image, size, (scale, scale), border),
                               rtol=0, atol=tolerance)


@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["float64", "uint8"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_size_to_any_size(shape, size, dtype, seed):
    image = noise(shape, dtype, seed)
    got = imresize(image, output_size=size)
    expected = naive(image, size, (size[0] / shape[0], size[1] / shape[1]))
    assert got.shape == size
    if dtype == "uint8":  # a tie may round either way, and then pass through the second axis
        assert np.abs(got - expected).max() <= 2
        assert (got != expected).mean() <= 0.25 or got.size < 40
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_impulse_at_scale_2_by_hand():
    # k(1/4), k(3/4), k(5/4), k(7/4) = 111/128, 29/128, -9/128, -3/128
    line = np.zeros((1, 9))
    line[0, 4] = 128
    expected = [0, 0, 0, 0, 0, -3, -9, 29, 111, 111, 29, -9, -3, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(imresize(line, output_size=(1, 18))[0], expected, atol=1e-12)


def test_impulse_at_scale_1_3_by_hand():
    # the centre of an output pixel is an input pixel: weights k(d / 3) / 3, in 162nds
    # 54 k = 54, 42, 18, 0, -4 + 0, ... for d = 0, 1, 2, 3, 4, 5
    line = np.zeros((1, 21))
    weights = []
    for d in range(7):
        line[:] = 0
        line[0, 10 + d] = 162
        weights.append(imresize(line, output_size=(1, 7))[0, 3])
    np.testing.assert_allclose(weights, [54, 42, 18, 0, -4, -2, 0], atol=1e-11)


def test_borders_are_mirrored_with_the_border_pixel_repeated():
    image = noise((7, 8))
    padded = np.pad(image, 14, mode="symmetric")
    for scale, crop in ((3, 42), (1 / 7, 2)):
        whole = imresize(padded[:35, :35], scale)[crop:, crop:]
        part = imresize(image, scale)
        size = min(2, *part.shape)
        np.testing.assert_allclose(part[:size, :size], whole[:size, :size], atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_flat_image_stays_flat(scale):
    assert imresize(np.full((20, 31), 0.7), scale) == pytest.approx(0.7, abs=1e-14)
    assert (imresize(np.full((20, 31, 3), 201, np.uint8), scale) == 201).all()


def test_parabolas_are_reproduced_when_growing():
    # Keys' kernel with a = -1/2 interpolates polynomials up to degree 2 (with a = -3/4 it does not)
    x = np.arange(30.0)
    u = (np.arange(90) + 0.5) / 3 - 0.5
    got = imresize((0.3 * x * x - 2 * x + 5)[None, :], output_size=(1, 90))[0]
    np.testing.assert_allclose(got[6:-6], (0.3 * u * u - 2 * u + 5)[6:-6], rtol=1e-12)


@pytest.mark.parametrize("k", range(2, 17))
def test_a_multiple_of_k_shrinks_to_exactly_its_kth(k):
    for m in range(1, 3000):
        assert math.ceil(1 / k * (k * m)) == m
    assert imresize(np.zeros((k * 7, k * 5)), 1 / k).shape == (7, 5)


def test_sizes_round_up():
    assert imresize(np.zeros((100, 101)), 1 / 3).shape == (34, 34)
    assert imresize(np.zeros((10, 3)), 0.25).shape == (3, 1)
    assert imresize(np.zeros((10, 3)), 1.05).shape == (11, 4)


def test_scale_and_size_together_take_the_scale():
    # 100 / 3 is not whole: MATLAB's scale is then 1/3, not 34 / 100
    image = noise((100, 100))
    by_scale = imresize(image, 1 / 3)
    np.testing.assert_array_equal(imresize(image, 1 / 3, (34, 34)), by_scale)
    assert np.abs(imresize(image, output_size=(34, 34)) - by_scale).max() > 1e-3


def test_uint8_is_rounded_after_each_axis_smaller_scale_first():
    image = noise((24, 24), "uint8", seed=5)
    for size in ((9, 60), (60, 9)):
        scales = (size[0] / 24, size[1] / 24)
        got = imresize(image, output_size=size)
        expected = naive(image, size, scales)
        assert (got != expected).mean() < 0.01
        turned = naive(image.T, size[::-1], scales[::-1]).T
        np.testing.assert_array_equal(turned, expected)  # the order is by scale, not by axis
        at_once = naive(image.astype(float), size, scales)
        assert (np.floor(at_once.clip(0, 255) + 0.5) != expected).mean() > 0.01  # it does matter


def test_uint8_saturates():
    edge = np.zeros((8, 8), np.uint8)
    edge[:, 4:] = 255
    got = imresize(edge, 3)
    assert got.dtype == np.uint8
    assert got.min() == 0
    assert got.max() == 255
    assert imresize(edge.astype(float), 3).max() > 255  # floats overshoot, uint8 must not wrap
    assert (got[:, -6:] == 255).all()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_is_the_whole_bit_for_bit(data):
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    size = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "uint8"]))
    channels = data.draw(st.sampled_from([(), (3,)]))
    image = noise(shape + channels, dtype)
    top, left = (data.draw(st.integers(0, n - 1)) for n in size)
    bottom = data.draw(st.integers(top + 1, size[0]))
    right = data.draw(st.integers(left + 1, size[1]))
    window = resize_region(image, size, (top, bottom), (left, right))
    whole = imresize(image, output_size=size)
    assert window.tobytes() == whole[top:bottom, left:right].tobytes()


@pytest.mark.parametrize("size", [(120, 90), (13, 10), (120, 10), (13, 90), (40, 30)])
def test_strips_and_blocks_change_no_bit(monkeypatch, size):
    image = noise((40, 30, 3), "float32")
    whole = imresize(image, output_size=size)
    monkeypatch.setattr("minisrcnn.imaging.resize._STRIP", 400)
    monkeypatch.setattr("minisrcnn.imaging.resize._BLOCK", 100)
    assert imresize(image, output_size=size).tobytes() == whole.tobytes()


def test_views_are_taken_and_left_alone():
    image = noise((30, 40, 4), "float32")
    image.flags.writeable = False
    view = image[::-1, 3:33:2, 1:]
    assert imresize(view, 3).tobytes() == imresize(view.copy(), 3).tobytes()


@pytest.mark.parametrize("dtype, most, weights", [  # compiled, whose axes are most of it; NumPy
    ("float32", 20e6, 1e6), ("float64", 40e6, 0)])
def test_memory_beyond_the_result_does_not_grow_with_it(dtype, most, weights):
    extra = []
    imresize(noise((400, 1500), dtype), 3)  # compiles
    for rows in (400, 1600):
        image = noise((rows, 1500), dtype)
        tracemalloc.start()
        result = imresize(image, 3)
        extra.append(tracemalloc.get_traced_memory()[1] - result.nbytes)
        tracemalloc.stop()
    assert extra[1] < 1.2 * extra[0] + weights  # four times the image, 43 MB more result or 86
    assert extra[1] < most


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1.0]], 2), TypeError, "image is a list, want a NumPy array"),
        ((np.zeros((4, 4), np.int32), 2), TypeError, "image .*int32"),
        ((np.zeros((4, 4), np.float16), 2), TypeError, "float16"),
        ((np.zeros(4), 2), ValueError, r"image .*\(4,\)"),
        ((np.zeros((1, 2, 3, 4)), 2), ValueError, "image .*"),
        ((np.zeros((0, 4)), 2), ValueError, "image .*at least one pixel"),
        ((np.zeros((4, 4)),), TypeError, "scale and output_size are None"),
        ((np.zeros((4, 4)), "2"), TypeError, "scale .*str"),
        ((np.zeros((4, 4)), True), TypeError, "scale .*bool"),
        ((np.zeros((4, 4)), 0), ValueError, "scale .*0"),
        ((np.zeros((4, 4)), -2.0), ValueError, "scale .*-2.0"),
        ((np.zeros((4, 4)), math.nan), ValueError, "scale .*nan"),
        ((np.zeros((4, 4)), math.inf), ValueError, "scale .*inf"),
        ((np.zeros((4, 4)), None, 8), TypeError, "output_size .*8"),
        ((np.zeros((4, 4)), None, (8,)), ValueError, "output_size .*"),
        ((np.zeros((4, 4)), None, (8, 0)), ValueError, "output_size .*"),
        ((np.zeros((4, 4)), None, (8, 2.5)), ValueError, "output_size .*"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        imresize(*arguments)


def test_a_border_of_another_name():
    with pytest.raises(ValueError, match="border is 'reflect', want one of mirror, clamp"):
        imresize(np.zeros((4, 4)), 2, border="reflect")


@pytest.mark.parametrize("limits", [(0, 0), (5, 3), (-1, 4), (0, 13)])
def test_windows_outside_the_result(limits):
    image = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"rows .*<= 12"):
        resize_region(image, (12, 12), rows=limits)
    with pytest.raises(ValueError, match=r"cols .*<= 12"):
        resize_region(image, (12, 12), cols=limits)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size, output_size", [
    ((200, 300), (66, 100)), ((66, 100), (200, 300)), ((97, 131), (97, 400)), ((70, 300), (140, 9)),
    ((2, 5000), (5, 5000)), ((64, 64), (64, 64))])
def test_compiled_code_has_the_bits_of_numpy(monkeypatch, size, output_size, border):
    pytest.importorskip("numba")
    image = np.random.default_rng(0).normal(size=size).astype(np.float32)
    window = {"rows": (1, output_size[0]), "cols": (0, output_size[1] - 1)}
    compiled = [imresize(image, output_size=output_size, border=border),
                resize_region(image, output_size, border=border, **window)]
    monkeypatch.setattr(resize, "_compiled", lambda: None)
    plain = [imresize(image, output_size=output_size, border=border),
             resize_region(image, output_size, border=border, **window)]
    for a, b in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(a, b)
