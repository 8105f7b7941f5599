"""The CUDA kernels one by one, executed by the emulator, or by a GPU with -m gpu.

The oracles work in float64: SciPy for the convolutions, the formula in NumPy for the rest.
"""

from __future__ import annotations

import re
import types

import numpy as np
import oracles
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from minisrcnn.engine.backends._cuda import (
    PATCHES,
    POINTWISE,
    CudaBackend,
    _check_image_sizes,
    compile_configurations,
)
from minisrcnn.engine.backends._cuda_ladder import col2im, im2col, versions
from minisrcnn.engine.backends._cuda_launch import list_sources, read_signatures, read_source
from minisrcnn.engine.backends._cuda_plan import SHARED_BYTES, plan_convolution

FILES = list_sources()
# The names of all versions; nothing is loaded for them.
STEPS = [version.name for version in versions(CudaBackend(lambda: types.ModuleType("none")))]

# N, C, H, W, F, KH, KW. No size is a multiple of a tile.
SHAPES = {
    "ragged": (2, 3, 13, 38, 9, 4, 3),         # two segments a row, several tiles, KH != KW
    "few-filters": (3, 5, 9, 8, 2, 2, 5),      # the tile for fewer than four channels
    "many-channels": (2, 66, 6, 5, 70, 1, 1),  # two blocks of filters; a last stage of 2 channels
}
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}
CASES = [("ragged", "float64"), ("few-filters", "float64"), ("many-channels", "float32"),
         *(pytest.param(*case, marks=pytest.mark.slow)
           for case in (("ragged", "float32"), ("many-channels", "float64")))]


def inner(device):
    """Give the object behind the module's functions."""
    return device.conv2d_forward.__self__


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_every_version_is_the_convolution_and_its_gradients(device, step, shape, dtype):
    version = next(v for v in versions(inner(device)) if v.name == step)
    arrays = oracles.draw(SHAPES[shape])
    rounded = [a.astype(dtype).astype(float) for a in arrays]
    x, w, b, dy = (device.asarray(a, dtype) for a in arrays)
    results = (version.forward(x, w, b), version.backward_input(dy, w),
               version.backward_weight(x, dy))
    for got, want in zip(results, oracles.all_three(*rounded), strict=True):
        assert str(got.dtype) == dtype
        assert error(device.to_numpy(got), want) < TOLERANCE[dtype]


def test_the_same_bits_every_run(device):
    x, w, b, dy = (device.asarray(a, "float32") for a in oracles.draw(SHAPES["ragged"]))
    for function, arguments in ((device.conv2d_forward, (x, w, b)),
                                (device.conv2d_backward_input, (dy, w)),
                                (device.conv2d_backward_weight, (x, dy)),
                                (device.conv2d_backward_bias, (dy,)),
                                (lambda a: device.mse(a, a * 2)[0], (x,))):
        first, second = (device.to_numpy(function(*arguments)) for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("atomic", [False, True])
def test_col2im_is_the_transpose_of_im2col(device, atomic):
    """im2col copies; its transpose counts each column element once: a histogram, and an adjoint."""
    N, C, H, W, _, KH, KW = shape = SHAPES["ragged"]
    x = oracles.draw(shape)[0]
    backend = inner(device)
    cols = device.to_numpy(im2col(backend, device.asarray(x, "float64"), KH, KW))
    windows = sliding_window_view(x, (KH, KW), (2, 3)).transpose(0, 1, 4, 5, 2, 3)
    np.testing.assert_array_equal(cols, windows.reshape(cols.shape))

    u = np.random.default_rng(1).normal(size=cols.shape)
    dx = col2im(backend, device.asarray(u, "float64"), (N, C, H, W), KH, KW, atomic=atomic)
    want = np.zeros_like(x)
    for i in range(KH):
        for j in range(KW):
            want[:, :, i:i + H - KH + 1, j:j + W - KW + 1] += u.reshape(windows.shape)[:, :, i, j]
    assert error(device.to_numpy(dx), want) < 1e-14


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 31, 1024, 4099])
def test_sums_of_any_length(device, size, dtype):
    rng = np.random.default_rng(size)
    y, t = rng.normal(size=(2, size)).astype(dtype)
    loss, dy = device.mse(device.asarray(y, dtype), device.asarray(t, dtype))
    difference = y.astype(float) - t
    assert float(loss) == pytest.approx(np.mean(difference**2), rel=TOLERANCE[dtype])
    assert error(device.to_numpy(dy), 2 * difference / size) < 1e-6
    db = device.conv2d_backward_bias(device.asarray(y.reshape(1, 1, 1, -1), dtype))
    assert device.to_numpy(db)[0] == pytest.approx(y.astype(float).sum(), abs=1e-4)


def test_a_nan_reaches_the_output_of_a_fused_layer(device):
    """A diverged network must look diverged: ReLU lets NaN through, also inside the convolution."""
    params = {"conv1.weight": np.full((1, 1, 1, 1), np.nan), "conv1.bias": np.zeros(1),
              "conv2.weight": np.ones((1, 1, 1, 1)), "conv2.bias": np.zeros(1)}
    params = {k: device.asarray(v, "float32") for k, v in params.items()}
    y = device.chain_predict(params, device.asarray(np.ones((1, 2, 2)), "float32"))
    assert np.isnan(device.to_numpy(y)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gather_cuts_mirrors_and_turns(device, dtype):
    """All eight orientations, images of two sizes, labels of full size and already cut."""
    rng = np.random.default_rng(2)
    C, F, size, label, N = 2, 1, 5, 3, 8
    shapes = [(9, 7), (6, 11)]
    inputs = [rng.random((C, H, W)).astype(dtype) for H, W in shapes]
    full = [rng.random((F, H, W)).astype(dtype) for H, W in shapes]
    labels = [full[0], np.ascontiguousarray(full[1][:, 1:-1, 1:-1])]  # one lost on each side
    geometry, starts = [], [0, 0]
    for image, target in zip(inputs, labels, strict=True):
        geometry.append((starts[0], *image.shape[1:], starts[1], *target.shape[1:]))
        starts = [starts[0] + image.size, starts[1] + target.size]
    table = np.array([(0, 0, 0), (0, 4, 2), (1, 1, 6), (1, 0, 3)], np.int32)
    order = np.stack([rng.integers(0, 4, 2 * N), np.arange(2 * N) % 8], axis=1).astype(np.int32)
    xp = inner(device).xp
    x, t = xp.empty((N, C, size, size), dtype), xp.empty((N, F, label, label), dtype)
    total = x.size + t.size
    for batch in (0, 1, 2):  # the third is the first again: the sequence holds two
        inner(device).launch(
            PATCHES, "gather_patches", (-(-total // 256),), (256,),
            *(xp.asarray(np.concatenate([a.ravel() for a in arrays]))
              for arrays in (inputs, labels)),
            xp.asarray(np.array(geometry)), xp.asarray(table), xp.asarray(order),
            xp.asarray(np.array([batch, 99])), x, t, N, C, size, F, label, 2, real=np.dtype(dtype))
        for n in range(N):
            row, code = order[batch % 2 * N + n]
            image, top, left = table[row]
            patch = inputs[image][:, top:top + size, left:left + size]
            target = full[image][:, top + 1:top + 4, left + 1:left + 4]
            for got, want in ((x, patch), (t, target)):
                want = want[:, :, ::-1] if code >= 4 else want
                want = np.rot90(want, code % 4, axes=(1, 2))
                np.testing.assert_array_equal(device.to_numpy(got)[n], want)


# ---- the sources, as text ------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_sources_keep_their_rules(file):
    text = read_source(file)
    assert "#include" not in text
    kernels = read_signatures(file)
    assert len(kernels) == len(re.findall(r"__global__", text))
    limits = re.findall(r"^// limits: (\w+) registers<=\d+ shared<=\d+ spills=0$", text, re.M)
    assert sorted(limits) == sorted(kernels)
    assert max(len(line) for line in text.splitlines()) <= 100


def test_only_the_lesson_uses_atomics():
    users = {file for file in FILES if "atomicAdd(" in read_source(file)}
    assert users == {"conv_v2_im2col.cu"}
    assert read_source("conv_v2_im2col.cu").count("atomicAdd(") == 1


def test_every_version_is_named_as_its_file():
    """The benchmarks take the names from the folder."""
    names = [f"conv_{step.replace(' ', '_')}.cu" for step in STEPS]
    assert sorted(names) == [file for file in FILES if file.startswith("conv_v")]


def test_configurations_name_every_file_once_for_each_use():
    found = compile_configurations()
    assert {file for file, _ in found} == set(FILES)
    assert len(set(found)) == len(found)


# ---- tiles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_any_layer_gets_tiles_that_fit(dtype):
    dtype = np.dtype(dtype)
    for F in (1, 2, 3, 4, 7, 8, 9, 32, 64, 65, 200):
        for C in (1, 3, 4, 33, 64, 130):
            for KH, KW in ((1, 1), (3, 3), (5, 5), (9, 9), (11, 11), (1, 17), (17, 1), (33, 33)):
                plan = plan_convolution((F, C, KH, KW), dtype)
                for tile in (plan.forward, plan.backward_input):
                    assert 1 <= tile.threads <= 256
                    assert tile.block_outs % tile.outs == 0
                    assert tile.shared(KH, KW, dtype.itemsize) <= SHARED_BYTES
                weight = plan.backward_weight
                assert 1 <= weight.threads <= 256
                assert weight.block_filters % weight.filters == 0
                assert weight.block_rows % weight.rows == 0
                assert weight.shared(KW, dtype.itemsize) <= SHARED_BYTES


def test_a_huge_kernel_is_refused(device):
    x, w = (device.asarray(np.zeros((1, 1, size, size)), "float64") for size in (90, 80))
    with pytest.raises(ValueError, match="w has a 80x80 kernel of 64-bit numbers, want a smaller"):
        device.conv2d_forward(x, w, device.asarray(np.zeros(1), "float64"))


def test_an_image_too_large_for_its_offsets_is_refused():
    small, large = (types.SimpleNamespace(shape=(9, 64, H, 1 << 13)) for H in (4095, 4096))
    _check_image_sizes(x=small)
    with pytest.raises(ValueError, match=r"y has shape \(9, 64, 4096, 8192\), want fewer than 2"):
        _check_image_sizes(x=small, y=large)


# ---- launches ------------------------------------------------------------------------------


def test_a_wrong_launch_is_refused(device):
    backend = inner(device)
    xp, real = backend.xp, np.dtype("float32")
    x, y = xp.zeros(6, "float32"), xp.zeros(6, "float32")

    def relu(*arguments, grid=(1,), block=(32,)):
        backend.launch(POINTWISE, "relu_forward", grid, block, *arguments, real=real)

    relu(x, y, 6)
    for arguments, kind, message in (
        ((x, y), TypeError, "got 2 arguments, want 3: x, y, size"),
        ((x, y, 6.0), TypeError, "size of relu_forward is 6.0, want an integer"),
        ((x, y, 1 << 63), ValueError, "size of relu_forward is .*, want at most"),
        ((x, xp.zeros(6, "float64"), 6), TypeError, "y of relu_forward has dtype float64, want"),
        ((x, np.zeros(6, "float32"), 6), TypeError, "y of relu_forward is a numpy.ndarray, want"),
        ((x, None, 6), TypeError, "y of relu_forward is a builtins.NoneType, want an array"),
        ((x, xp.zeros((6, 2), "float32")[:, 0], 6), ValueError, "has strides .*, want a C-cont"),
    ):
        with pytest.raises(kind, match=message):
            relu(*arguments)
    with pytest.raises(ValueError, match=r"grid \(0,\) of blocks \(32,\), want sizes of at least"):
        relu(x, y, 6, grid=(0,))
