"""Winograd convolution: the matrices, which layers use it, and its rounding errors."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from minisrcnn.kernels.cpu import simd
from minisrcnn.kernels.cpu.production import single, winograd, winograd1d


@pytest.mark.parametrize("K", [3, 5])
def test_matrices_make_a_correlation_and_its_gradients(K):
    AT, G, BT = winograd.matrices(K)
    rng = np.random.default_rng(K)
    d, g, dy = (rng.standard_normal(n) for n in (6, K, 7 - K))
    np.testing.assert_allclose(AT @ ((G @ g) * (BT @ d)), np.correlate(d, g), atol=1e-13)
    # Both are linear: dg[k] = sum_i dy[i] d[i+k], dd[j] = sum_i dy[i] g[j-i].
    np.testing.assert_allclose(G.T @ ((BT @ d) * (AT.T @ dy)), np.correlate(d, dy), atol=1e-13)
    np.testing.assert_allclose(BT.T @ ((G @ g) * (AT.T @ dy)), np.convolve(g, dy), atol=1e-13)


def test_matrices_that_multiply_pixels_are_exact_in_binary():
    for K in (3, 5):
        AT, _, BT = winograd.matrices(K)
        for matrix in (AT, BT):
            assert (matrix.astype(np.float32) == matrix).all()


def test_nine_taps_in_three_groups_of_three():
    """The formula at the head of winograd1d, for one channel and one column."""
    AT, G, BT = winograd.matrices(3)
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal(9), rng.standard_normal(9 + 11)
    y = np.zeros(12)
    for i in range(3):
        total = sum((G @ w[3 * a:3 * a + 3]) * (BT @ x[4 * i + 3 * a:4 * i + 3 * a + 6])
                    for a in range(3))
        y[4 * i:4 * i + 4] = AT @ total
    np.testing.assert_allclose(y, np.correlate(x, w), atol=1e-13)


@pytest.mark.skipif(simd.SIMD == "plain", reason="plain loops sum plainly")
def test_which_layers_use_winograd_convolution():
    assert winograd.outputs(32, 64, 5, 5) == 2 and winograd.outputs(32, 64, 3, 3) == 4
    for shape in ((1, 32, 5, 5), (64, 1, 9, 9), (32, 64, 1, 1), (32, 64, 5, 3), (32, 64, 7, 7)):
        assert winograd.outputs(*shape) == 0
    assert winograd1d.is_made_for(64, 1, 9) and winograd1d.is_made_for(64, 3, 9)
    for F, C, KH in ((64, 1, 11), (64, 64, 9), (8, 1, 9), (64, 1, 3)):
        assert not winograd1d.is_made_for(F, C, KH)


@pytest.mark.parametrize("shape", [(2, 64, 17, 18, 32, 5), (2, 32, 17, 18, 32, 3),
                                   (4, 1, 33, 33, 64, 9)], ids=["5x5", "3x3", "9x9"])
def test_rounding_errors_are_those_of_a_plain_sum(shape):
    """Largest error in float32 over largest result, at most 2.5 times that without Winograd."""
    N, C, H, W, F, K = shape
    rng = np.random.default_rng(0)
    x = rng.random((N, C, H, W))
    w, dy = rng.standard_normal((F, C, K, K)), rng.standard_normal((N, F, H - K + 1, W - K + 1))
    b = np.zeros(F)
    x, w, dy, b = (a.astype(np.float32) for a in (x, w, dy, b))
    y, dw = oracles.conv2d_forward(x, w, b), oracles.conv2d_backward_weight(x, dy)
    for operation, arguments, want in ((single.convolve, (x, w, b), y),
                                       (single.gradient_of_weights, (x, dy), dw)):
        plain, fast = (np.abs(operation(*arguments, winograd=way) - want).max()
                       for way in (False, True))
        assert fast <= 2.5 * plain, (operation.__name__, fast / plain)
        assert fast <= 1e-6 * np.abs(want).max()


def test_an_infinity_stays_in_its_tile():
    x = np.zeros((1, 1, 29, 12), np.float32)
    x[0, 0, 14, 6] = np.inf
    w = np.ones((16, 1, 9, 9), np.float32)
    y = single.conv2d_forward(x, w, np.zeros(16, np.float32))[0]
    reached = ~np.isfinite(y).all(axis=0)
    assert reached[6:15].all()  # rows that read it
    assert not reached[:4].any() and not reached[16:].any()  # their groups of four are 4 to 15
