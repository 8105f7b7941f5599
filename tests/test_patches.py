"""Patches against index loops, adjointness, and the design notes' numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisrcnn.imaging.patches import (
    NOTES,
    PatchIndex,
    PatchSizes,
    augment,
    average_patches,
    extract_pairs,
    extract_patches,
    gather,
    merge_crop,
    merge_patches,
    patch_grid,
    sum_patches,
)

geometry = st.tuples(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 15)
).filter(lambda g: g[2] <= min(g[:2]))


def loops(image, size, stride):
    patches = []
    rows = cols = 0
    for y in range(0, image.shape[0] - size + 1, stride):
        rows, cols = rows + 1, 0
        for x in range(0, image.shape[1] - size + 1, stride):
            cols += 1
            patches.append([[image[y + i, x + j] for j in range(size)] for i in range(size)])
    return np.array(patches), (rows, cols)


@given(geometry)
@settings(max_examples=40, deadline=None)
def test_extraction_is_the_loop(g):
    H, W, size, stride = g
    image = np.arange(H * W).reshape(H, W)
    patches, grid = extract_patches(image, size, stride)
    expected, expected_grid = loops(image, size, stride)
    assert grid == expected_grid == patch_grid((H, W), size, stride)
    np.testing.assert_array_equal(patches, expected)
    assert patches.flags.c_contiguous
    assert not np.shares_memory(patches, image)


@given(geometry, st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_sum_is_the_adjoint_of_extraction(g, below, right):
    H, W, size, stride = g
    rng = np.random.default_rng(H * W)
    image = rng.normal(size=(H, W))
    patches, grid = extract_patches(image, size, stride)
    p = rng.normal(size=patches.shape)
    image_back = sum_patches(p, grid, stride, image.shape)
    assert image_back.shape == image.shape
    np.testing.assert_allclose(
        np.vdot(patches, p), np.vdot(image, image_back), rtol=1e-11, atol=1e-11
    )
    covered = sum_patches(p, grid, stride)
    h, w = covered.shape
    assert (h, w) == ((grid[0] - 1) * stride + size, (grid[1] - 1) * stride + size)
    np.testing.assert_array_equal(covered, image_back[:h, :w])
    larger = sum_patches(p, grid, stride, (H + below, W + right))
    np.testing.assert_array_equal(larger[:H, :W], image_back)
    assert not larger[H:].any()
    assert not larger[:, W:].any()


def test_sum_counts_the_patches_over_each_pixel():
    count = sum_patches(np.ones((4, 3, 3)), (2, 2), 2, (6, 5))
    line = [1, 1, 2, 1, 1]
    np.testing.assert_array_equal(count[:5], np.outer(line, line))
    np.testing.assert_array_equal(count[5], 0)


@given(geometry)
@settings(max_examples=40, deadline=None)
def test_averaging_takes_the_image_back(g):
    H, W, size, stride = g
    image = np.random.default_rng(1).normal(size=(H, W))
    patches, grid = extract_patches(image, size, stride)
    back = average_patches(patches, grid, stride, image.shape)
    seen = np.zeros((H, W), bool)
    for y in range(0, H - size + 1, stride):
        for x in range(0, W - size + 1, stride):
            seen[y : y + size, x : x + size] = True
    np.testing.assert_allclose(back[seen], image[seen], rtol=1e-12)
    assert np.isnan(back[~seen]).all()


def test_averaging_weighs_overlaps_evenly():
    patches = np.array([[[0.0, 0.0]] * 2, [[6.0, 6.0]] * 2])
    np.testing.assert_array_equal(average_patches(patches, (1, 2), 1), [[0, 3, 6]] * 2)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_merge_is_exact_for_any_grid(rows, cols, h, w, network_shape):
    patches = np.arange(rows * cols * h * w).reshape(rows * cols, h, w)
    given_ = patches[:, None] if network_shape else patches
    merged = merge_patches(given_, (rows, cols))
    expected = np.block([[patches[r * cols + c] for c in range(cols)] for r in range(rows)])
    np.testing.assert_array_equal(merged, expected)
    assert not np.shares_memory(merged, patches)


def test_merge_undoes_extraction_side_by_side():
    image = np.random.default_rng(2).random((12, 20))
    np.testing.assert_array_equal(merge_patches(*extract_patches(image, 4, 4)), image)


def test_the_notes_sizes():
    assert (NOTES.input_size, NOTES.label_size) == (33, 21)
    assert (NOTES.train_stride, NOTES.test_stride, NOTES.padding) == (14, 21, 6)
    assert NOTES.input_size - (9 - 1) - (1 - 1) - (5 - 1) == NOTES.label_size


@pytest.mark.parametrize("stride", [None, 21])
def test_the_notes_patches_from_the_formulas(stride):
    H, W = 63, 96
    input_ = np.arange(H * W, dtype=float).reshape(H, W)
    label = -input_
    x, t, (rows, cols) = extract_pairs(input_, label, stride=stride)
    step = stride or 14
    # patch n of row r and column c starts at pixel (r, c) * step; its label 6 further in
    assert (rows, cols) == {14: (3, 5), 21: (2, 4)}[step]
    n, i, j = np.indices(x.shape)
    np.testing.assert_array_equal(x, (n // cols * step + i) * W + n % cols * step + j)
    n, i, j = np.indices((rows * cols, 21, 21))
    np.testing.assert_array_equal(t, -((n // cols * step + 6 + i) * W + n % cols * step + 6 + j))
    assert x.flags.c_contiguous
    assert t.flags.c_contiguous


def test_the_notes_merge_says_by_how_much_it_crops():
    H, W = 255, 100
    image = np.random.default_rng(3).random((H, W))
    _, t, grid = extract_pairs(image, image, stride=NOTES.test_stride)
    merged = merge_patches(t, grid)
    crop = merge_crop((H, W))
    # (255 - 33) // 21 + 1 = 11 rows of 21, (100 - 33) // 21 + 1 = 4 columns of 21, from pixel 6 on
    assert crop.grid == grid == (11, 4)
    assert merged.shape == (231, 84)
    np.testing.assert_array_equal(merged, image[6:237, 6:90])
    np.testing.assert_array_equal(merged, image[crop.window])
    assert str(crop) == (
        "keeps 231x84 of 255x100 pixels: crops 6 at the top, 18 at the bottom, "
        "6 at the left, 10 at the right"
    )


def test_index_and_gather_are_extraction():
    rng = np.random.default_rng(4)
    images = [rng.random(shape).astype("f4") for shape in ((40, 35), (20, 90), (33, 33), (61, 47))]
    index = PatchIndex([image.shape for image in images], 33, 14)[:]
    expected = [extract_patches(image, 33, 14)[0] for image in images if min(image.shape) >= 33]
    assert index.shape == (sum(map(len, expected)), 3)
    assert set(index[:, 0].tolist()) == {0, 2, 3}
    got = gather(images, index, 33)
    assert got.dtype == "f4"
    np.testing.assert_array_equal(got, np.concatenate(expected))
    middle = gather(images, index, 21, offset=6)
    np.testing.assert_array_equal(middle, got[:, 6:27, 6:27])
    chosen = rng.permutation(len(index))[:3]
    out = np.empty((3, 33, 33), "f4")
    assert gather(images, index[chosen], 33, out=out) is out
    np.testing.assert_array_equal(out, got[chosen])


def test_the_index_is_computed_not_stored():
    shapes = [(330, 330), (20, 900), (47, 61), (33, 33)]
    index = PatchIndex(shapes, 33, 14)
    assert len(index) == 22 * 22 + 0 + 2 * 3 + 1
    np.testing.assert_array_equal(index.starts, [0, 484, 484, 490, 491])
    np.testing.assert_array_equal(index[np.array([490, 483, 487, 0])],
                                  [[3, 0, 0], [0, 294, 294], [2, 14, 0], [0, 0, 0]])
    np.testing.assert_array_equal(index.images(np.array([0, 483, 484, 490])), [0, 0, 2, 3])
    assert len(PatchIndex([], 33, 14)) == 0 and PatchIndex([], 33, 14)[:].shape == (0, 3)
    assert gather([np.zeros((330, 330), "f4")], index[:0], 33).shape == (0, 33, 33)
    million = PatchIndex([(33000, 33000)] * 1000, 33, 14)  # a table would have 133 GB
    assert million[np.array([len(million) - 1])].tolist() == [[999, 32956, 32956]]


def test_augment_gives_the_eight_symmetries():
    patch = np.array([[[1, 2], [3, 4]]])
    turns = {tuple(augment(patch, code).ravel()) for code in range(8)}
    assert len(turns) == 8
    assert tuple(augment(patch, 0).ravel()) == (1, 2, 3, 4)
    assert tuple(augment(patch, 1).ravel()) == (2, 4, 1, 3)  # a quarter turn, anticlockwise
    assert tuple(augment(patch, 4).ravel()) == (2, 1, 4, 3)  # left to right


def test_augment_one_code_for_each_patch():
    rng = np.random.default_rng(5)
    x = rng.random((50, 9, 9))
    codes = rng.integers(0, 8, 50)
    turned = augment(x, codes)
    assert turned.flags.c_contiguous
    for n, code in enumerate(codes):
        np.testing.assert_array_equal(turned[n], augment(x[n : n + 1], int(code))[0])
    # what is in the middle stays in the middle: labels turn with their inputs
    np.testing.assert_array_equal(augment(x[:, 2:7, 2:7], codes), turned[:, 2:7, 2:7])


image_ = np.zeros((8, 9))
tiles_ = np.zeros((6, 4, 4))
index_ = np.zeros((1, 3), int)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: extract_patches([[1]], 1, 1), TypeError, "image .*list"),
        (lambda: extract_patches(np.zeros((8, 8, 3)), 3, 1), ValueError, r"image .*\(8, 8, 3\)"),
        (lambda: extract_patches(image_, 0, 1), ValueError, "size .*0"),
        (lambda: extract_patches(image_, 9, 1), ValueError, "size is 9, .* 8x9"),
        (lambda: extract_patches(image_, 3.0, 1), TypeError, "size is .*, want an integer"),
        (lambda: extract_patches(image_, True, 1), TypeError, "size is .*, want an integer"),
        (lambda: extract_patches(image_, 3, 0), ValueError, "stride .*0"),
        (lambda: extract_patches(image_, 3, -1), ValueError, "stride .*-1"),
        (lambda: extract_patches(image_, 3, "2"), TypeError, "stride is .*, want an integer"),
        (lambda: PatchIndex([(8, 9, 3)], 3, 1), ValueError, r"shapes has shape \(1, 3\)"),
        (lambda: PatchIndex([(8, 9)], 0, 1), ValueError, "size"),
        (lambda: PatchIndex([(8, 9)], 3, 1)[np.array([42])], IndexError, "want 0 to 41"),
        (lambda: PatchIndex([(8, 9)], 3, 1)[np.array([-1])], IndexError, "from -1"),
        (lambda: gather([image_], [[0, 0, 0]], 3), TypeError, "index"),
        (lambda: gather([image_], np.zeros((1, 3)), 3), TypeError, "index .*float64"),
        (lambda: gather([image_], np.zeros((1, 2), int), 3), ValueError, r"index .*\(1, 2\)"),
        (lambda: gather([image_], index_ + np.array([0, 6, 0]), 3), IndexError, "patch 0 at"),
        (lambda: gather([image_], index_ - np.array([0, 0, 1]), 3), IndexError, "patch 0 at"),
        (lambda: gather([image_], index_, 3, offset=6), IndexError, "8x9"),
        (lambda: gather([image_], index_, 3, offset=-1), ValueError, "offset"),
        (lambda: gather([image_], index_, 3, out=np.zeros((1, 3, 4))), ValueError, "out"),
        (lambda: extract_pairs(image_, image_.T), ValueError, "label"),
        (lambda: extract_pairs(image_, image_), ValueError, "size .*33"),
        (lambda: merge_patches(tiles_, (2, 2)), ValueError, "grid is 2 .*6 patches"),
        (lambda: merge_patches(tiles_, (6,)), ValueError, "grid"),
        (lambda: merge_patches(tiles_, 6), ValueError, "grid"),
        (lambda: merge_patches(tiles_, (-2, -3)), ValueError, "grid rows"),
        (lambda: merge_patches(tiles_, (2.0, 3.0)), TypeError, "grid rows"),
        (lambda: merge_patches(tiles_[0], (1, 1)), ValueError, "patches"),
        (lambda: merge_patches(tiles_.tolist(), (2, 3)), TypeError, "patches"),
        (lambda: merge_crop((32, 99)), ValueError, "size .*32x99"),
        (lambda: merge_crop((99, 99), PatchSizes(33, 21, 14, 14)), ValueError, "test_stride"),
        (lambda: PatchSizes(33, 20, 14, 20), ValueError, "label_size .*20"),
        (lambda: PatchSizes(21, 33, 14, 33), ValueError, "label_size .*33"),
        (lambda: PatchSizes(33, 21, 0, 21), ValueError, "train_stride .*0"),
        (lambda: sum_patches(tiles_, (2, 3), 4, (8, 11)), ValueError, "8x11, want .* 8x12"),
        (lambda: sum_patches(tiles_, (2, 3), 0), ValueError, "stride"),
        (lambda: average_patches(tiles_.astype(int), (2, 3), 4), TypeError, "int64"),
        (lambda: augment(tiles_, 8), ValueError, "code .*8"),
        (lambda: augment(tiles_, -1), ValueError, "code .*-1"),
        (lambda: augment(tiles_, 0.5), TypeError, "code .*float64"),
        (lambda: augment(tiles_, np.zeros(5, int)), ValueError, "code .*6"),
        (lambda: augment(tiles_[:, :3], 1), ValueError, "patches"),
        (lambda: augment(None, 1), TypeError, "patches"),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()
