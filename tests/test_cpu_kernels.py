"""Every version of the CPU kernels against SciPy, and the register tile against matrix products."""

from __future__ import annotations

import importlib

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minisrcnn.kernels.cpu import VERSIONS, plan, tile
from minisrcnn.kernels.cpu.jit import const, kernel
from scipy.signal import convolve, correlate

TOLERANCE = {"float32": 2e-5, "float64": 1e-13}

# N, C, H, W, F, KH, KW: the layers of SRCNN, one-pixel outputs, odd everything.
SHAPES = [
    (2, 1, 33, 33, 64, 9, 9),
    (2, 64, 13, 11, 32, 1, 1),
    (2, 32, 12, 13, 1, 5, 5),
    (1, 64, 9, 9, 32, 5, 5),
    (1, 1, 1, 1, 1, 1, 1),
    (3, 3, 5, 7, 5, 5, 7),
    (33, 2, 4, 6, 3, 2, 3),
    (2, 17, 6, 5, 33, 3, 2),
    (1, 40, 7, 4, 2, 4, 3),
    (1, 16, 10, 9, 19, 3, 3),
    (3, 21, 5, 6, 17, 5, 5),
    (3, 3, 14, 17, 18, 9, 9),
    (2, 1, 9, 12, 21, 9, 4),
    (35, 6, 8, 9, 9, 1, 1),
    (1, 5, 25, 131, 70, 1, 1),
]


def version(name):
    return importlib.import_module(f"minisrcnn.kernels.cpu.{name}")


def draw(shape, dtype, seed=0):
    N, C, H, W, F, KH, KW = shape
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(s) for s in (
        (N, C, H, W), (F, C, KH, KW), (F,), (N, F, H - KH + 1, W - KW + 1)))
    return [a.astype(dtype) for a in arrays]


def oracle(x, w, b, dy):
    """The three convolutions by SciPy, in float64, one image and pair of channels at a time."""
    x, w, b, dy = (a.astype(np.float64) for a in (x, w, b, dy))
    y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
    y += b[:, None, None]
    for n in range(len(x)):
        for f in range(w.shape[0]):
            for c in range(w.shape[1]):
                y[n, f] += correlate(x[n, c], w[f, c], "valid", "direct")
                dx[n, c] += convolve(dy[n, f], w[f, c], "full", "direct")
                dw[f, c] += correlate(x[n, c], dy[n, f], "valid", "direct")
    return y, dx, dw


def assert_close(got, want, dtype):
    assert got.dtype == dtype and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in VERSIONS),
                        ("v4_tile", "float64"), ("v5_winograd", "float64"),
                        ("v6_planes", "float64")]
)
def test_version_agrees_with_scipy(name, dtype):
    kernels = version(name)
    for shape in SHAPES:
        x, w, b, dy = draw(shape, dtype)
        y, dx, dw = oracle(x, w, b, dy)
        assert_close(kernels.conv2d_forward(x, w, b), y, dtype)
        assert_close(kernels.conv2d_backward_input(dy, w), dx, dtype)
        assert_close(kernels.conv2d_backward_weight(x, dy), dw, dtype)


def test_arguments_are_left_alone_and_may_be_read_only():
    for name in VERSIONS:
        kernels = version(name)
        arrays = draw((2, 3, 6, 7, 5, 3, 2), "float32")
        before = [a.copy() for a in arrays]
        for a in arrays:
            a.flags.writeable = False
        x, w, b, dy = arrays
        kernels.conv2d_forward(x, w, b)
        kernels.conv2d_backward_input(dy, w)
        kernels.conv2d_backward_weight(x, dy)
        for a, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, old)


@pytest.mark.parametrize("name", ["v4_tile", "v6_planes"])
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (4, 20, 13, 13, 35)]),
    kernel_size=st.one_of(st.sampled_from([(1, 1), (3, 3), (5, 5), (9, 9), (9, 4)]),
                          st.tuples(st.integers(1, 7), st.integers(1, 7))),
    seed=st.integers(0, 2**16),
)
def test_any_shape(name, sizes, kernel_size, seed):
    N, C, H, W, F = sizes
    shape = (N, C, H, W, F, min(kernel_size[0], H), min(kernel_size[1], W))
    x, w, b, dy = draw(shape, "float32", seed)
    y, dx, dw = oracle(x, w, b, dy)
    kernels = version(name)
    # Cancellation may leave one result small, so the scale is that of the sum of magnitudes.
    Y, DX, DW = oracle(abs(x), abs(w), abs(b), abs(dy))
    for got, want, scale in ((kernels.conv2d_forward(x, w, b), y, Y),
                             (kernels.conv2d_backward_input(dy, w), dx, DX),
                             (kernels.conv2d_backward_weight(x, dy), dw, DW)):
        assert (np.abs(got - want) <= 1e-5 * scale).all()


@kernel(lambda t: (const(t, 1), const(tile.types.int64, 1), tile.types.int64,
                   const(tile.types.int64, 1), const(t, 1), const(t, 1), t[::1],
                   tile.types.int64, t, tile.types.boolean))
def run_product(a, rows, M, cols, b, init, c, columns, low, masked):
    tile.product(a, rows, M, cols, 0, cols.size, b, 0, columns, init, 0, 0, c, 0, columns, low,
                 masked)


@pytest.mark.parametrize("vectors", range(1, 8))
@pytest.mark.parametrize("M", [1, 5, 6, 7, 13])
def test_product_is_a_matrix_product(vectors, M):
    rng = np.random.default_rng(M)
    K, J = 11, vectors * tile.lanes(8)
    a, b, init = (rng.standard_normal(n) for n in (200, K * J, J))
    rows = rng.integers(0, 100, M + tile.SLACK)
    cols = rng.integers(0, 100, K)
    c = rng.standard_normal((M + tile.SLACK) * J)
    old = c[:M * J].reshape(M, J).copy()
    want = init + a[rows[:M, None] + cols] @ b.reshape(K, J)
    f = run_product.compile("float64")
    f(a, rows, M, cols, b, init, c, J, -np.inf, False)
    np.testing.assert_allclose(c[:M * J].reshape(M, J), want, rtol=1e-12, atol=1e-12)
    f(a, rows, M, cols, b, init, c, J, 0.25, False)
    np.testing.assert_allclose(c[:M * J].reshape(M, J), np.maximum(want, 0.25), rtol=1e-12)
    c[:M * J] = old.ravel()
    f(a, rows, M, cols, b, init, c, J, 0.0, True)
    np.testing.assert_allclose(c[:M * J].reshape(M, J), np.where(old > 0, want, 0), rtol=1e-12,
                               atol=1e-12)


def test_relu_in_the_tile_keeps_nan():
    f = run_product.compile("float64")
    J = tile.lanes(8)
    c = np.zeros((1 + tile.SLACK) * J)
    f(np.array([np.nan]), np.zeros(1 + tile.SLACK, np.int64), 1, np.zeros(1, np.int64),
      np.ones(J), np.zeros(J), c, J, 0.0, False)
    assert np.isnan(c[:J]).all()


@pytest.mark.skipif(tile.SIMD != "avx512", reason="the host (or MINISRCNN_SIMD) has no AVX-512")
def test_avx512_tile_uses_whole_registers():
    # Compiled here and now: code that comes from the disk cannot be inspected.
    fresh = numba.njit(run_product.py_func, nogil=True, error_model="numpy")
    fresh.compile(run_product._signature(numba.float32))
    (assembly,) = fresh.inspect_asm().values()
    assert "vfmadd" in assembly and "zmm" in assembly


def test_few_filters_are_summed_along_the_channels():
    assert plan.has_few_filters(32, 1, 16) and plan.has_few_filters(32, 3, 16)
    assert not plan.has_few_filters(1, 64, 16)
    assert not plan.has_few_filters(64, 32, 16)


def test_scratch_is_aligned_and_zero():
    a = plan.aligned(3, 48, np.float32)
    assert a.shape == (3, 48) and not a.any()
    assert all(row.ctypes.data % 64 == 0 for row in a)
