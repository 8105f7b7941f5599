"""The ``numba`` backend: fused paths, compiled code on disk, vector units, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minisrcnn.engine.backends import get_backend

backend = get_backend("numba")
numpy_backend = get_backend("numpy")

FUSED_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# arch, channels, filters, height, width, patches
CHAINS = [
    ("9-1-5", 1, (64, 32), 33, 33, 5),
    ("9-5-5", 1, (64, 32), 21, 19, 3),
    ("9-3-5", 3, (20, 7), 16, 17, 34),
    ("11-1-7", 1, (33, 16), 17, 18, 2),
    ("9-1-1-5", 1, (40, 17, 2), 13, 13, 1),
    ("5", 2, (), 6, 9, 4),
    ("2-4-3", 1, (3, 70), 9, 8, 3),
]


def make_params(arch, channels, filters, dtype, seed=0):
    rng = np.random.default_rng(seed)
    widths = (channels, *filters, channels)
    params = {}
    for i, size in enumerate(map(int, arch.split("-"))):
        w = rng.standard_normal((widths[i + 1], widths[i], size, size))
        params[f"conv{i + 1}.weight"] = (w / np.sqrt(w[0].size)).astype(dtype)
        params[f"conv{i + 1}.bias"] = (0.1 * rng.standard_normal(widths[i + 1])).astype(dtype)
    return params


def layers_of(params):
    values = list(params.values())
    return list(zip(values[::2], values[1::2], strict=True))


def make_batch(chain, dtype, seed=1):
    arch, channels, filters, H, W, N = chain
    params = make_params(arch, channels, filters, dtype)
    lost = sum(int(k) - 1 for k in arch.split("-"))
    rng = np.random.default_rng(seed)
    x = rng.random((N, channels, H, W)).astype(dtype)
    t = rng.random((N, channels, H - lost, W - lost)).astype(dtype)
    return params, x, t


def by_layer(ops, params, x, t):
    """Loss and gradients of a chain from a backend's single operations."""
    layers = layers_of(params)
    inputs = []
    for i, (w, b) in enumerate(layers):
        inputs.append(x)
        x = ops.conv2d_forward(x, w, b)
        if i < len(layers) - 1:
            x = ops.relu_forward(x)
    loss, dy = ops.mse(x, t)
    grads = []
    for i in range(len(layers) - 1, -1, -1):
        grads = [ops.conv2d_backward_weight(inputs[i], dy), ops.conv2d_backward_bias(dy), *grads]
        if i > 0:
            dy = ops.relu_backward(ops.conv2d_backward_input(dy, layers[i][0]), inputs[i])
    return loss, dict(zip(params, grads, strict=True))


def predict_oracle(params, image):
    """Every layer over the whole image in float64, borders replicated by NumPy."""
    x = image[None].astype(np.float64)
    layers = layers_of(params)
    for i, (w, b) in enumerate(layers):
        KH, KW = w.shape[2:]
        pads = ((KH - 1) // 2, KH // 2), ((KW - 1) // 2, KW // 2)
        x = np.pad(x, ((0, 0), (0, 0), *pads), mode="edge")
        x = numpy_backend.conv2d_forward(x, w.astype(np.float64), b.astype(np.float64))
        if i < len(layers) - 1:
            x = np.maximum(x, 0)
    return x[0]


def assert_gradients_close(got, want, tolerance):
    assert list(got) == list(want)
    for key in want:
        assert got[key].shape == want[key].shape
        assert np.abs(got[key] - want[key]).max() <= tolerance * np.abs(want[key]).max(), key


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{c[0]}x{c[1]}")
def test_fused_step_agrees_with_layer_by_layer(chain, dtype):
    params, x, t = make_batch(chain, dtype)
    loss, grads = backend.chain_loss_and_gradients(params, x, t)
    assert isinstance(loss, float)
    want_loss, want = by_layer(backend, params, x, t)
    assert loss == pytest.approx(want_loss, rel=FUSED_TOLERANCE[dtype])
    assert_gradients_close(grads, want, FUSED_TOLERANCE[dtype])
    assert all(g.dtype == dtype for g in grads.values())


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{c[0]}x{c[1]}")
def test_fused_step_agrees_with_matrix_products_in_float64(chain):
    params, x, t = make_batch(chain, "float32")
    loss, grads = backend.chain_loss_and_gradients(params, x, t)
    wide = {key: value.astype(np.float64) for key, value in params.items()}
    want_loss, want = by_layer(numpy_backend, wide, x.astype(np.float64), t.astype(np.float64))
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert_gradients_close(grads, want, 1e-5)


def test_fused_step_agrees_with_pytorch_autograd():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params, x, t = make_batch(CHAINS[0], "float64")
    leaves = {key: torch.tensor(value, requires_grad=True) for key, value in params.items()}
    layers = layers_of(leaves)
    y = torch.tensor(x)
    for i, (w, b) in enumerate(layers):
        y = torch.nn.functional.conv2d(y, w, b)
        y = y.relu() if i < len(layers) - 1 else y
    want_loss = torch.nn.functional.mse_loss(y, torch.tensor(t))
    want_loss.backward()
    loss, grads = backend.chain_loss_and_gradients(params, x, t)
    assert loss == pytest.approx(want_loss.item(), rel=1e-12)
    assert_gradients_close(grads, {k: v.grad.numpy() for k, v in leaves.items()}, 1e-11)


def test_fused_step_leaves_its_arguments_alone_and_takes_read_only_ones():
    params, x, t = make_batch(CHAINS[0], "float32")
    arrays = [x, t, *params.values()]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    first = backend.chain_loss_and_gradients(params, x, t)
    second = backend.chain_loss_and_gradients(params, x, t)
    for a, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, old)
    for key in params:  # new arrays, and nothing left over from the first call
        assert not np.shares_memory(first[1][key], second[1][key])
        np.testing.assert_array_equal(first[1][key], second[1][key])


PICTURES = [
    ("9-1-5", 1, (64, 32), 41, 300),
    ("9-5-5", 1, (64, 32), 24, 30),
    ("9-3-5", 3, (20, 7), 17, 23),
    ("4-3-2", 2, (20, 7), 19, 21),
    ("9-1-1-5", 1, (40, 33, 16), 11, 2),
    ("9-5-5", 1, (64, 32), 1, 1),
    ("11-1-7", 1, (64, 32), 3, 70),
]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p[0]}x{p[1]}-{p[3]}x{p[4]}")
def test_predict_replicates_borders_layer_by_layer(picture):
    arch, channels, filters, H, W = picture
    for dtype, tolerance in (("float32", 2e-6), ("float64", 1e-13)):
        params = make_params(arch, channels, filters, dtype)
        image = np.random.default_rng(2).random((channels, H, W)).astype(dtype)
        want = predict_oracle(params, image)
        y = backend.chain_predict(params, image)
        assert y.dtype == dtype and y.shape == want.shape
        # Where the outputs nearly cancel, the error is that of the terms, of order one.
        assert np.abs(y - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("picture", PICTURES[:5], ids=lambda p: f"{p[0]}x{p[1]}")
def test_predict_is_the_same_bit_for_bit_in_any_tiles(picture):
    arch, channels, filters, H, W = picture
    params = make_params(arch, channels, filters, "float32")
    image = np.random.default_rng(3).random((channels, H, W)).astype(np.float32)
    whole = backend._predict(params, image, tile=(H, W))
    for tile in (None, (1, W), (H, 1), (7, 11), (16, 16), (5, 64)):
        np.testing.assert_array_equal(backend._predict(params, image, tile=tile), whole)


def test_nan_and_infinity_come_through():
    params = make_params("3-1-3", 1, (4, 3), "float32")
    image = np.zeros((1, 9, 9), np.float32)
    image[0, 4, 4] = np.nan
    y = backend.chain_predict(params, image)[0]
    assert np.isnan(y[2:7, 2:7]).all() and np.isfinite(y[0]).all() and np.isfinite(y[8]).all()
    x = np.array([-1.0, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(backend.relu_forward(x), [0, 0, 0, 2, np.inf, 0, np.nan])


def test_refuses_what_it_cannot_compute():
    params, x, t = make_batch(CHAINS[0], "float32")
    with pytest.raises(TypeError, match="float16"):
        backend.relu_forward(x.astype(np.float16))
    with pytest.raises(TypeError, match="complex128"):
        backend.conv2d_forward(x.astype(complex), params["conv1.weight"], params["conv1.bias"])
    with pytest.raises(ValueError, match=r"^x has .*C-contiguous"):
        backend.chain_loss_and_gradients(params, x.transpose(0, 1, 3, 2), t)
    with pytest.raises(TypeError, match=r"^t has dtype float64"):
        backend.chain_loss_and_gradients(params, x, t.astype(np.float64))
    with pytest.raises(ValueError, match=r"^image has shape"):
        backend.chain_predict(params, np.zeros((3, 8, 8), np.float32))


def test_threads_are_bounded():
    most = backend.numba.config.NUMBA_NUM_THREADS
    with pytest.raises(ValueError, match="NUMBA_NUM_THREADS"):
        backend.set_threads(most + 1)
    with pytest.raises(ValueError, match="at least 1"):
        backend.set_threads(0)


def test_may_be_called_from_several_python_threads_at_once():
    params, x, t = make_batch(CHAINS[0], "float32")
    want = backend.chain_loss_and_gradients(params, x, t)[1]
    results = []
    calls = [threading.Thread(
        target=lambda: results.append(backend.chain_loss_and_gradients(params, x, t)[1])
    ) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert len(results) == 4
    for got in results:
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])


# What follows runs in processes of its own.

TINY_STEP = """
import numpy as np
from minisrcnn.engine.backends import numba as backend
rng = np.random.default_rng(0)
params = {}
for i, shape in enumerate([(20, 1, 3, 3), (6, 20, 1, 1), (1, 6, 3, 3)]):
    params[f"conv{i + 1}.weight"] = rng.standard_normal(shape).astype(np.float32)
    params[f"conv{i + 1}.bias"] = rng.standard_normal(shape[0]).astype(np.float32)
x = rng.random((3, 1, 9, 8), np.float32)
t = rng.random((3, 1, 5, 4), np.float32)
loss, grads = backend.chain_loss_and_gradients(params, x, t)
y = backend.chain_predict(params, x[0])
ops = {}
for size in (1, 5):
    x, w, dy = (rng.standard_normal(shape).astype(np.float32) for shape in (
        (3, 17, 9, 11), (19, 17, size, size), (3, 19, 10 - size, 12 - size)))
    ops[f"y{size}"] = backend.conv2d_forward(x, w, w[:, 0, 0, 0].copy())
    ops[f"dx{size}"] = backend.conv2d_backward_input(dy, w)
    ops[f"dw{size}"] = backend.conv2d_backward_weight(x, dy)
np.savez(OUT, y=y, loss=loss, **grads, **ops)
"""


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True,
        check=False,
    )


def load(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def tiny_result(tmp_path_factory):
    """Outputs of the tiny step with this process's vector unit, proved elsewhere."""
    path = tmp_path_factory.mktemp("tiny") / "here.npz"
    exec(compile(TINY_STEP, "tiny", "exec"), {"OUT": path})
    return load(path)


@pytest.mark.parametrize("simd", [
    "avx2", *(pytest.param(simd, marks=pytest.mark.slow) for simd in ("plain", "sse"))])
def test_every_vector_unit_computes_the_same(simd, tmp_path, tiny_result):
    import llvmlite.binding

    has = llvmlite.binding.get_host_cpu_features()
    if simd != "plain" and not has.get({"sse": "sse2"}.get(simd, simd)):
        pytest.skip(f"this processor has no {simd}")
    path = tmp_path / "out.npz"
    done = run_python(f"OUT = {str(path)!r}\n" + TINY_STEP, MINISRCNN_SIMD=simd)
    assert done.returncode == 0, done.stderr
    for key, want in tiny_result.items():
        assert np.abs(load(path)[key] - want).max() <= 1e-5 * np.abs(want).max()


def test_unknown_vector_unit_is_refused():
    done = run_python("import minisrcnn.engine.backends.numba", MINISRCNN_SIMD="mmx")
    assert done.returncode != 0 and "MINISRCNN_SIMD is 'mmx', want one of avx512" in done.stderr


def test_compiling_leaves_numbas_settings_alone(tmp_path):
    done = run_python("""
import threading, numba
from minisrcnn.engine.backends import numba as backend
usual = numba.config.OPT
calls = [threading.Thread(target=kernel.compile, args=("float64",)) for kernel in (
    backend.pointwise.relu, backend.pointwise.mse, backend.pointwise.sgd, backend.pointwise.adam)]
for call in calls:
    call.start()
for call in calls:
    call.join()
print(numba.config.OPT is usual)
""", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "True", done.stderr


def test_needs_compiling_knows_its_jobs():
    assert backend.needs_compiling("train") in (True, False)
    with pytest.raises(ValueError, match="job is 'dance'"):
        backend.needs_compiling("dance")


def test_forked_child_computes():
    """Threads do not survive a fork; the child must not wait for its parent's."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    done = run_python("""
import os, numpy as np
from minisrcnn.engine.backends import numba as backend
x = np.ones((4, 1, 5, 5), np.float32); w = np.ones((1, 1, 3, 3), np.float32)
b = np.zeros(1, np.float32)
backend.conv2d_forward(x, w, b)
pid = os.fork()
if pid == 0:
    os._exit(0 if (backend.conv2d_forward(x, w, b) == 9).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""", NUMBA_NUM_THREADS="3")
    assert done.stdout.strip() == "0", done.stderr


def test_scratch_fits_a_cache_whatever_the_image():
    """What a thread works in: under 1 MB for a training patch and for a strip of any image."""
    from minisrcnn.kernels.cpu.production import plan, whole

    for arch in ("9-1-5", "9-5-5"):
        shapes = tuple(w.shape for w, _ in layers_of(make_params(arch, 1, (64, 32), "float32")))
        assert 4 * plan.plan_chain(shapes, 33, 33, 4).scratch < 1e6
        for size in ((512, 512), (4000, 6000), (6000, 257), (1, 10**6)):
            height, width = whole.strip_size(size, threads=2)
            assert 4 * whole.plan_whole(shapes, width, 4).scratch < 1e6
            assert -(-size[0] // height) * -(-size[1] // width) >= min(2, size[0] // 64)
