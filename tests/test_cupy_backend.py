"""The cupy backend as a network sees it: whole chains, fused and by layer, and what it refuses.

Run on the CPU through the emulator; with ``-m gpu`` the same tests run on the device.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from types import SimpleNamespace

import numpy as np
import oracles
import pytest

from minisrcnn import SRCNN
from minisrcnn.engine.backends import _cuda, cupy, cupy_emulated, get_backend, unavailable_reason
from minisrcnn.errors import BackendUnavailableError

# One small net for most tests: a layer is compiled once.
ARCH, FILTERS = "5-1-3", (8, 4)
SHRINKAGE = 6


def network(device, dtype, arch=ARCH, filters=FILTERS, channels=1):
    net = SRCNN(arch, filters, channels, backend=device, dtype=dtype, init="he", seed=3)
    rng = np.random.default_rng(4)
    for name, value in net.parameters.items():
        if name.endswith("bias"):  # biases of zero would hide a bias that is not added
            value[...] = device.asarray(0.1 * rng.normal(size=value.shape), dtype)
    return net


def batch(device, dtype, N=3, channels=1, size=(17, 15), shrinkage=SHRINKAGE, seed=0):
    rng = np.random.default_rng(seed)
    H, W = size
    x = rng.normal(size=(N, channels, H, W))
    t = rng.normal(size=(N, channels, H - shrinkage, W - shrinkage))
    return device.asarray(x, dtype), device.asarray(t, dtype)


def oracle(net, x, t):
    to_numpy = net.backend.to_numpy
    params = {name: to_numpy(value) for name, value in net.parameters.items()}
    return oracles.torch_gradients(params, to_numpy(x), to_numpy(t))


def worst(to_numpy, grads, want):
    assert list(grads) == list(want)
    return max(np.abs(to_numpy(grads[k]) - want[k]).max() / np.abs(want[k]).max() for k in want)


TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
CHAINS = [
    (ARCH, FILTERS, 1, (17, 15), "float64"),
    pytest.param(ARCH, FILTERS, 1, (17, 15), "float32", marks=pytest.mark.slow),
    ("9-1-5", (64, 32), 1, (16, 17), "float32"),    # the paper's net on a small patch
    ("3-1-1-3", (9, 5, 3), 3, (9, 11), "float64"),  # colour, four layers, odd counts of filters
]


@pytest.mark.parametrize(("arch", "filters", "channels", "size", "dtype"), CHAINS)
def test_fused_gradients_are_pytorchs(device, arch, filters, channels, size, dtype):
    tolerance = TOLERANCE[dtype]
    net = network(device, dtype, arch, filters, channels)
    x, t = batch(device, dtype, 2, channels, size, net.shrinkage)
    loss, grads = device.chain_loss_and_gradients(net.parameters, x, t)
    want_loss, want = oracle(net, x, t)
    assert loss.shape == () and str(loss.dtype) == dtype
    assert float(loss) == pytest.approx(want_loss, rel=tolerance)
    assert worst(device.to_numpy, grads, want) < tolerance


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_fused_and_layer_by_layer_agree(device, dtype):
    tolerance = TOLERANCE[dtype]
    net = network(device, dtype)
    x, t = batch(device, dtype)
    loss, grads = net.loss_and_gradients(x, t)
    by_layer, want = net.loss_and_gradients_by_layer(x, t)
    assert float(loss) == pytest.approx(float(by_layer), rel=tolerance)
    want = {k: device.to_numpy(v) for k, v in want.items()}
    assert worst(device.to_numpy, grads, want) < tolerance


def test_gradients_are_finite_differences(device):
    """Central differences of the fused loss, for every parameter of the chain, one by one."""
    net = network(device, "float64", "2-1-2", (3, 2))
    x, t = batch(device, "float64", 2, 1, (5, 4), 2)
    _, grads = device.chain_loss_and_gradients(net.parameters, x, t)
    h = 1e-5
    for name, value in net.parameters.items():
        start = device.to_numpy(value).copy()
        numeric = np.empty(start.shape)
        for at in np.ndindex(start.shape):
            losses = []
            for sign in (1, -1):
                moved = start.copy()
                moved[at] += sign * h
                params = {**net.parameters, name: device.asarray(moved, "float64")}
                losses.append(float(device.chain_loss_and_gradients(params, x, t)[0]))
            numeric[at] = (losses[0] - losses[1]) / (2 * h)
        assert np.abs(device.to_numpy(grads[name]) - numeric).max() < 1e-8 * np.abs(numeric).max()


def test_ranks_of_a_machine_take_its_devices_in_turn():
    used = []
    cuda = SimpleNamespace(Device=lambda number: SimpleNamespace(use=lambda: used.append(number)),
                           runtime=SimpleNamespace(getDeviceCount=lambda: 2))
    backend = _cuda.CudaBackend(lambda: SimpleNamespace(cuda=cuda))
    for rank in range(5):
        backend.use_device(rank)
    assert used == [0, 1, 0, 1, 0]


def test_a_step_changes_nothing_that_it_was_given(device):
    net = network(device, "float32")
    x, t = batch(device, "float32")
    before = [device.to_numpy(a).copy() for a in (x, t, *net.parameters.values())]
    first = device.chain_loss_and_gradients(net.parameters, x, t)[1]
    kept = {k: device.to_numpy(v).copy() for k, v in first.items()}
    device.chain_loss_and_gradients(net.parameters, x, t)
    for a, old in zip((x, t, *net.parameters.values()), before, strict=True):
        np.testing.assert_array_equal(device.to_numpy(a), old)
    for name, value in first.items():  # the second call made new arrays
        np.testing.assert_array_equal(device.to_numpy(value), kept[name])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("size", [(23, 30), (1, 1), (2, 40)])
def test_predict_keeps_the_size_with_replicated_borders(device, size, dtype, tolerance):
    from scipy.signal import correlate

    net = network(device, dtype)
    image = np.random.default_rng(5).random((1, *size)).astype(dtype)
    y = image.astype(float)
    for layer in (1, 2, 3):
        w = device.to_numpy(net.parameters[f"conv{layer}.weight"]).astype(float)
        b = device.to_numpy(net.parameters[f"conv{layer}.bias"]).astype(float)
        pad = w.shape[2] // 2
        y = np.pad(y, ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        y = np.stack([correlate(y, f, mode="valid")[0] for f in w]) + b[:, None, None]
        y = np.maximum(y, 0) if layer < 3 else y
    got = device.to_numpy(device.chain_predict(net.parameters, device.asarray(image, dtype)))
    assert got.shape == image.shape
    assert np.abs(got - y).max() < tolerance


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_strips_are_the_whole_image_bit_for_bit(device, rows, monkeypatch):
    net = network(device, "float32")
    image = device.asarray(np.random.default_rng(6).random((1, 23, 30)), "float32")
    whole = device.to_numpy(device.chain_predict(net.parameters, image))
    monkeypatch.setattr(_cuda, "_PREDICT_BYTES", rows * (8 + 4) * 30 * 4)
    strips = device.to_numpy(device.chain_predict(net.parameters, image))
    np.testing.assert_array_equal(strips, whole)


def test_training_by_the_public_classes_learns(device):
    """Twenty steps of SGD: fused gradients, then sgd_update for every parameter."""
    from minisrcnn.engine.optim import SGD

    net = network(device, "float32")
    optimizer = SGD(net.parameters, 0.05, momentum=0.9, backend=device)
    rng = np.random.default_rng(7)
    image = np.cumsum(rng.normal(size=(4, 1, 13, 13)), axis=3) / 4  # neighbours are alike
    x = device.asarray(image, "float32")
    t = device.asarray(image[:, :, 3:-3, 3:-3], "float32")
    losses = []
    for _ in range(20):
        loss, grads = net.loss_and_gradients(x, t)
        optimizer.step(grads)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]


# ---- what is refused -------------------------------------------------------------------------


def test_both_backends_export_the_seam():
    reference = get_backend("numpy")
    for module in (cupy, cupy_emulated):
        for name in ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight",
                     "conv2d_backward_bias", "relu_forward", "relu_backward", "mse", "sgd_update",
                     "adam_update", "asarray", "to_numpy"):
            got = inspect.signature(getattr(module, name))
            want = inspect.signature(getattr(reference, name))
            assert list(got.parameters) == list(want.parameters), name
            assert [p.kind for p in got.parameters.values()] == [
                p.kind for p in want.parameters.values()]
        assert list(inspect.signature(module.chain_predict).parameters) == ["params", "image"]


def test_numpy_arrays_are_refused(device):
    public = r"(cupy|minisrcnn\.engine\.emulator\.arrays)\.ndarray"
    with pytest.raises(TypeError, match=rf"x is a numpy\.ndarray, want a {public}$"):
        device.relu_forward(np.zeros(3, "float32"))


def test_a_view_that_is_not_contiguous_is_refused(device):
    x = device.asarray(np.zeros((4, 6)), "float32")
    with pytest.raises(ValueError, match="want a C-contiguous array"):
        device.relu_forward(x[:, ::2])
    assert device.asarray(x[:, ::2], "float32").flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_other_dtypes_are_refused(device, dtype):
    x = device.asarray(np.zeros(3), dtype)
    with pytest.raises(TypeError, match=f"x has dtype {dtype}, want float32 or float64"):
        device.relu_forward(x)


def test_a_target_of_the_wrong_size_is_refused(device):
    net = network(device, "float32")
    x, t = batch(device, "float32")
    with pytest.raises(ValueError, match=r"t has shape .*, want .*: that is what the chain gives"):
        device.chain_loss_and_gradients(net.parameters, x, x)
    with pytest.raises(TypeError, match="x has dtype float64, want float32"):
        device.chain_loss_and_gradients(net.parameters, device.asarray(x, "float64"), t)


# ---- why CUDA cannot be used -----------------------------------------------------------------


class FakeCudaError(RuntimeError):
    pass


def fake_cupy(count, launch=lambda: 42.0):
    """Give a module with the names that the probe uses; ``count`` and ``launch`` may raise."""
    class Kernel:
        def __call__(self, grid, block, arguments):
            arguments[0][0] = launch()

    class RawModule:
        def __init__(self, code):
            pass

        def get_function(self, name):
            return Kernel()

    runtime = types.SimpleNamespace(CUDARuntimeError=FakeCudaError, getDeviceCount=count)
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime), RawModule=RawModule,
                                 zeros=np.zeros)


def failing(name, message):
    def fail():
        raise type(name, (Exception,), {})(message)
    return fail


def no_driver():
    raise FakeCudaError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


def no_device():
    raise FakeCudaError("cudaErrorNoDevice: no CUDA-capable device is detected")


def test_without_a_driver_cupy_is_not_imported(monkeypatch):
    pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setattr(cupy, "_load", lambda: pytest.fail("imported"))
    monkeypatch.setattr(cupy, "has_driver", lambda: False)
    cupy.unavailable_reason.cache_clear()
    try:
        assert cupy.unavailable_reason() == "there is no NVIDIA driver"
    finally:
        cupy.unavailable_reason.cache_clear()


@pytest.mark.parametrize(("module", "reason"), [
    (fake_cupy(lambda: 1), None),
    (fake_cupy(no_driver), "driver is older than CuPy's CUDA"),
    (fake_cupy(no_device), "no CUDA device can be used .*NoDevice"),
    (fake_cupy(lambda: 0), "there is no CUDA device"),
    (fake_cupy(lambda: 1, failing("DynamicLibNotFoundError", "libnvrtc.so")),
     r"NVRTC is not installed; pip install .*cuda12.*cuda13"),
    (fake_cupy(lambda: 1, failing("CompileException", "error: expected ;\nmore")),
     r"cannot be compiled \(error: expected ;\)"),
    (fake_cupy(lambda: 1, failing("CUDADriverError", "CUDA_ERROR_ILLEGAL_ADDRESS")),
     r"a CUDA kernel failed \(CUDADriverError: CUDA_ERROR_ILLEGAL_ADDRESS\)"),
    (fake_cupy(lambda: 1, lambda: 41.0), "wrote 41 where it should write 42"),
])
def test_the_reason_is_one_sentence(monkeypatch, module, reason):
    monkeypatch.setattr(cupy, "_load", lambda: module)
    monkeypatch.setattr(cupy, "has_driver", lambda: True)
    cupy.unavailable_reason.cache_clear()
    try:
        got = cupy.unavailable_reason()
    finally:
        cupy.unavailable_reason.cache_clear()
    if reason is None:
        assert got is None
    else:
        assert re.search(reason, got) and "\n" not in got


def test_the_real_cupy_without_a_gpu_says_why():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    reason = unavailable_reason("cupy")
    if reason is None:
        pytest.skip("CUDA works here")
    assert "\n" not in reason and any(word in reason for word in ("driver", "device", "NVRTC"))
    with pytest.raises(BackendUnavailableError, match="backend cupy cannot be used here: "):
        get_backend("cupy")


def test_without_cupy_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # an import of it now fails
    for driver, reason in ((True, "CuPy is not installed; pip install 'cupy-cuda12x[ctk]' or "),
                           (False, "there is no NVIDIA driver, and CuPy is not installed")):
        monkeypatch.setattr(cupy, "has_driver", lambda driver=driver: driver)
        cupy.unavailable_reason.cache_clear()
        try:
            assert cupy.unavailable_reason().startswith(reason)
        finally:
            cupy.unavailable_reason.cache_clear()


@pytest.mark.parametrize("compiler, driver, words", [
    (13, 12080, "NVRTC is of CUDA 13, the driver of CUDA 12"), (12, 12080, ""), (12, 13000, ""),
])
def test_a_compiler_that_is_newer_than_the_driver_is_said(compiler, driver, words):
    fake = SimpleNamespace(cuda=SimpleNamespace(
        nvrtc=SimpleNamespace(getVersion=lambda: (compiler, 0)),
        runtime=SimpleNamespace(driverGetVersion=lambda: driver)))
    said = cupy.compiler_mismatch(fake)
    assert words in said and bool(said) == bool(words)
