"""The production kernels against SciPy, a lesson, and the register tile against matrix products."""

from __future__ import annotations

import tracemalloc

import numba
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minisrcnn.kernels.cpu import simd
from minisrcnn.kernels.cpu.jit import const, kernel
from minisrcnn.kernels.cpu.lessons import v1_loops
from minisrcnn.kernels.cpu.production import plan, planes, single, tile

from minisrcnn.engine.backends import numba as numba_backend

TOLERANCE = {"float32": 2e-5, "float64": 1e-13}


def assert_close(got, want, dtype):
    assert got.dtype == dtype and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()


def results(module, x, w, b, dy):
    return (module.conv2d_forward(x, w, b), module.conv2d_backward_input(dy, w),
            module.conv2d_backward_weight(x, dy))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("winograd", [False, True], ids=["sums", "winograd"])
def test_every_method_agrees_with_scipy(winograd, dtype):
    for shape in oracles.SHAPES:
        (x, w, b, dy), (y, dx, dw) = oracles.drawn(shape, dtype)
        assert_close(single.convolve(x, w, b, winograd=winograd), y, dtype)
        assert_close(single.gradient_of_input(dy, w, winograd=winograd), dx, dtype)
        assert_close(single.gradient_of_weights(x, dy, winograd=winograd), dw, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_production_agrees_with_scipy(dtype):
    for shape in oracles.SHAPES:
        arrays, wanted = oracles.drawn(shape, dtype)
        for got, want in zip(results(single, *arrays), wanted, strict=True):
            assert_close(got, want, dtype)


def test_production_agrees_with_the_first_lesson():
    for shape in oracles.SHAPES:
        arrays = oracles.draw(shape, "float32", seed=2)
        for got, want in zip(results(single, *arrays), results(v1_loops, *arrays), strict=True):
            assert_close(got, want, "float32")


def test_arguments_are_left_alone_and_may_be_read_only():
    for shape in ((2, 3, 6, 7, 5, 3, 2), (2, 17, 9, 9, 16, 5, 5), (2, 8, 8, 9, 8, 1, 1)):
        arrays = oracles.draw(shape, "float32")
        before = [a.copy() for a in arrays]
        for a in arrays:
            a.flags.writeable = False
        results(single, *arrays)
        for a, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, old)


@pytest.mark.parametrize("shape", [(2, 3, 61, 300, 20, 5, 3), (1, 18, 40, 45, 17, 3, 3),
                                   (1, 2, 50, 270, 18, 9, 9), (2, 40, 23, 21, 1, 5, 5)])
def test_large_images_are_cut_into_pieces(shape, monkeypatch):
    arrays = oracles.draw(shape, "float32")
    whole = results(single, *arrays)
    monkeypatch.setattr(single, "_LARGE", 1000)
    monkeypatch.setattr(single, "_PIECE", 20000)
    cuts = []
    cut = single.cut
    monkeypatch.setattr(single, "cut", lambda *args: cuts.append(len(args[1])) or cut(*args))
    for got, one, want in zip(results(single, *arrays), whole, oracles.all_three(*arrays),
                              strict=True):
        assert_close(got, want, "float32")
        assert np.abs(got - one).max() <= 1e-5 * np.abs(want).max()
    assert len(cuts) >= 3 and sum(cuts) > 6 * shape[0]


def test_large_image_takes_little_memory_beside_the_result():
    """Bytes at the peak, counted by tracemalloc, which NumPy's arrays report to."""
    x = np.random.default_rng(0).random((1, 4, 700, 1100), np.float32)
    w, b = np.ones((8, 4, 3, 3), np.float32), np.zeros(8, np.float32)
    dy = np.ones((1, 8, 698, 1098), np.float32)
    single.conv2d_forward(x[:, :, :8, :8].copy(), w, b)  # compiled before it is counted
    for run, result in ((lambda: single.conv2d_forward(x, w, b), dy.nbytes),
                        (lambda: single.conv2d_backward_input(dy, w), x.nbytes),
                        (lambda: single.conv2d_backward_weight(x, dy), w.nbytes)):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - result < 45e6


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (4, 20, 13, 13, 35)]),
    kernel_size=st.one_of(st.sampled_from([(1, 1), (3, 3), (5, 5), (9, 9), (9, 4)]),
                          st.tuples(st.integers(1, 7), st.integers(1, 7))),
    seed=st.integers(0, 2**16),
)
def test_any_shape(sizes, kernel_size, seed):
    N, C, H, W, F = sizes
    shape = (N, C, H, W, F, min(kernel_size[0], H), min(kernel_size[1], W))
    arrays = oracles.draw(shape, "float32", seed)
    # Cancellation may leave all results small, so the scale is that of the sum of magnitudes; the
    # largest one, for Winograd convolution mixes the elements of a tile.
    scales = oracles.all_three(*(abs(a) for a in arrays))
    for got, want, scale in zip(results(single, *arrays), oracles.all_three(*arrays), scales,
                                strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-5 * scale.max()


@kernel(lambda t: (const(t, 1), const(numba.types.int64, 1), numba.types.int64,
                   const(numba.types.int64, 1), const(t, 1), const(t, 1), t[::1],
                   numba.types.int64, t, numba.types.boolean))
def run_product(a, rows, M, cols, b, init, c, columns, low, masked):
    tile.product(a, rows, M, cols, 0, cols.size, b, 0, columns, init, 0, 0, c, 0, columns, low,
                 masked)


@pytest.mark.parametrize("vectors", range(1, 8))
@pytest.mark.parametrize("M", [1, 5, 6, 7, 13])
def test_product_is_a_matrix_product(vectors, M):
    rng = np.random.default_rng(M)
    K, J = 11, vectors * simd.lanes(8)
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
    J = simd.lanes(8)
    c = np.zeros((1 + tile.SLACK) * J)
    f(np.array([np.nan]), np.zeros(1 + tile.SLACK, np.int64), 1, np.zeros(1, np.int64),
      np.ones(J), np.zeros(J), c, J, 0.0, False)
    assert np.isnan(c[:J]).all()


@pytest.mark.skipif(simd.SIMD != "avx512", reason="the host (or MINISRCNN_SIMD) has no AVX-512")
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


def test_scratch_is_aligned():
    a = plan.aligned(3, 48, np.float32)
    assert a.shape == (3, 48) and all(row.ctypes.data % 64 == 0 for row in a)
    assert not plan.aligned(3, 48, np.float32, np.zeros).any()


def test_results_do_not_depend_on_what_was_in_memory(monkeypatch):
    """Scratch is allocated as it comes, and cleared by the thread that uses it."""
    def compute():
        rng = np.random.default_rng(0)
        for shape in oracles.SHAPES:
            yield from results(single, *oracles.draw(shape, "float32"))
        for kernels in ((9, 1, 5), (9, 5, 5)):
            params = {}
            for i, (C, F, K) in enumerate(zip((1, 16, 16), (16, 16, 1), kernels, strict=True), 1):
                params[f"conv{i}.weight"] = rng.standard_normal((F, C, K, K), np.float32)
                params[f"conv{i}.bias"] = rng.standard_normal(F, np.float32)
            side = 24 - sum(kernels) + 3
            yield from numba_backend.chain_loss_and_gradients(
                params, rng.standard_normal((5, 1, 24, 24), np.float32),
                rng.standard_normal((5, 1, side, side), np.float32))[1].values()
            yield numba_backend.chain_predict(
                params, rng.standard_normal((1, 30, 40), np.float32))

    def used_before(rows, columns, dtype, allocate=np.empty):
        a = plan.aligned(rows, columns, dtype, allocate)
        if allocate is np.empty:
            a.fill(np.nan)
        return a

    want = list(compute())
    for module in (single, planes, numba_backend):
        monkeypatch.setattr(module, "aligned", used_before)
    assert all((a == b).all() for a, b in zip(want, compute(), strict=True))
