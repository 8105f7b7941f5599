"""The network: every architecture of the paper, gradients against PyTorch, whole images."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from scipy.ndimage import correlate

import minisrcnn.srcnn
from minisrcnn import SRCNN

ARCHITECTURES = [
    ("9-1-5", (64, 32), 1), ("9-3-5", (64, 32), 1), ("9-5-5", (64, 32), 1), ("11-1-7", (64, 32), 1),
    ("9-1-1-5", (64, 32, 16), 1), ("9-1-5", (32, 16), 3), ("9-1-5", (128, 64), 1), ("5", (), 1),
]


@pytest.mark.parametrize(("arch", "filters", "channels"), ARCHITECTURES)
def test_architectures(arch, filters, channels):
    net = SRCNN(arch, filters, channels, backend="numpy")
    sizes = [int(size) for size in arch.split("-")]
    widths = [channels, *filters, channels]
    for i, size in enumerate(sizes):
        assert net.parameters[f"conv{i + 1}.weight"].shape == (
            widths[i + 1], widths[i], size, size)
    y = net(np.zeros((1, channels, 33, 33), "float32"))
    assert y.shape == (1, channels, 33 - sum(sizes) + len(sizes), 33 - sum(sizes) + len(sizes))
    assert net.shrinkage == 33 - y.shape[2]


@pytest.mark.parametrize(("arch", "count"), [("9-1-5", 8032), ("9-3-5", 24416), ("9-5-5", 57184)])
def test_the_paper_counts_the_weights(arch, count):
    """Section 4.3.2 gives the number of parameters without biases."""
    net = SRCNN(arch, backend="numpy")
    assert sum(v.size for k, v in net.parameters.items() if k.endswith("weight")) == count


def test_the_network_is_a_layer_like_the_others(gradcheck):
    """Every entry of the Jacobian, by differences of the network's own forward pass."""
    net = SRCNN("3-2-1", (3, 2), 2, backend="numpy", dtype="float64", init="he", seed=1)
    report = gradcheck.layer(net, (2, 2, 6, 5))
    assert report.ok and report.coverage > 0.9
    x = np.random.default_rng(0).random((1, 2, 6, 5))
    y, cache = net.forward(x)
    np.testing.assert_array_equal(net(x), y)
    dx, grads = net.backward(np.ones_like(y), cache)
    assert dx.shape == x.shape
    assert list(grads) == list(net.parameters)


def test_33_in_21_out(backend):
    net = SRCNN("9-1-5", (4, 3), backend=backend)
    x = backend.asarray(np.zeros((1, 1, 33, 33)), "float32")
    assert net(x).shape == (1, 1, 21, 21)


@pytest.mark.parametrize(("arch", "filters", "channels"), [
    ("3-2-3", (4, 3), 3), ("5-1-3", (5, 3), 1), ("3-1-1-2", (6, 3, 2), 1), ("3", (), 2),
])
def test_loss_and_gradients_are_pytorchs(backend, arch, filters, channels):
    if backend.NAME == "cupy-emulated" and channels == 1:
        pytest.skip("each net is seconds of compiling; test_cupy_backend.py has others")
    net = SRCNN(arch, filters, channels, backend=backend, dtype="float64", init="he", seed=3)
    rng = np.random.default_rng(0)
    for name, value in net.parameters.items():  # zero biases would hide a mistake with them
        if name.endswith("bias"):
            value[...] = backend.asarray(rng.normal(size=value.shape), "float64")
    x = rng.normal(size=(3, channels, 10, 9))
    t = rng.normal(size=(3, channels, 10 - net.shrinkage, 9 - net.shrinkage))

    params = {name: backend.to_numpy(value) for name, value in net.parameters.items()}
    want_loss, want_grads = oracles.torch_gradients(params, x, t)
    arrays = backend.asarray(x, "float64"), backend.asarray(t, "float64")
    for path in (net.loss_and_gradients, net.loss_and_gradients_by_layer):
        loss, grads = path(*arrays)
        assert float(loss) == pytest.approx(want_loss, rel=1e-12)
        assert list(grads) == list(net.parameters)
        for name, want in want_grads.items():
            error = np.abs(backend.to_numpy(grads[name]) - want).max()
            assert error <= 1e-10 * np.abs(want).max(), name


def predicted_by_scipy(net, image):
    """Keep the size with replicated borders, layer by layer, as the authors' test code does."""
    maps = image.astype(float)
    last = len(net.parameters) // 2
    for i in range(1, last + 1):
        w = net.backend.to_numpy(net.parameters[f"conv{i}.weight"]).astype(float)
        b = net.backend.to_numpy(net.parameters[f"conv{i}.bias"]).astype(float)
        # For an even kernel MATLAB's centre is the upper left one of the four in the middle.
        origin = [-1 if size % 2 == 0 else 0 for size in w.shape[2:]]
        maps = np.stack([
            sum(correlate(maps[c], w[f, c], mode="nearest", origin=origin)
                for c in range(len(maps))) + b[f]
            for f in range(len(w))
        ])
        maps = np.maximum(maps, 0) if i < last else maps
    return maps


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (23, 17)])
@pytest.mark.parametrize(("arch", "filters", "channels"), [
    ("9-1-5", (4, 3), 1), ("3-2-4", (3, 2), 1), ("5-3", (2,), 3)])
def test_predict_keeps_the_size_with_replicated_borders(backend, arch, filters, channels, size):
    net = SRCNN(arch, filters, channels, backend=backend, dtype="float64", init="he", seed=1)
    image = np.random.default_rng(0).random((channels, *size))
    got = net.predict(image if channels > 1 else image[0])
    assert got.shape == (image.shape if channels > 1 else size)
    want = predicted_by_scipy(net, image)
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-12)


@pytest.mark.parametrize("name", ["reference", "numpy"])
def test_tiles_do_not_show(name, monkeypatch):
    """Tiles smaller than the reach of the kernels, so that some see no border and some see all."""
    net = SRCNN("5-2-3", (3, 2), backend=name, dtype="float64", init="he", seed=1)
    image = np.random.default_rng(0).random((13, 11))
    whole = net.predict(image)
    for tile in (1, 4, 7):
        monkeypatch.setattr(minisrcnn.srcnn, "_TILE", tile)
        np.testing.assert_allclose(net.predict(image), whole, atol=1e-14)


@pytest.mark.parametrize(("image", "error", "message"), [
    (np.zeros((4, 4), "uint8"), TypeError, "image is dtype uint8, want a NumPy array of floats"),
    ([[0.0]], TypeError, "want a NumPy array of floats"),
    (np.zeros((3, 4, 4)), ValueError, r"image has shape \(3, 4, 4\), want \(H, W\)"),
    (np.zeros((0, 4)), ValueError, r"image has shape \(0, 4\), want"),
    (np.full((4, 4), 255.0), ValueError, r"from 255 to 255, want them in \[0, 1\]"),
    (np.full((4, 4), np.nan), ValueError, "from nan to nan, want them"),
])
def test_predict_mistakes(image, error, message):
    with pytest.raises(error, match=message):
        SRCNN("3-1-3", (2, 2), backend="numpy").predict(image)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (("9-1-x",), ValueError, "arch is '9-1-x', want kernel sizes joined by dashes"),
    (("9--5",), ValueError, "arch is '9--5', want"),
    (("0-1-5",), ValueError, "arch is '0-1-5', want"),
    ((915,), ValueError, "arch is 915, want"),
    (("9-1-5", (64,)), ValueError, r"filters is \(64,\), want 2 numbers"),
    (("9-1-5", (64, 0)), ValueError, "filters is 0, want an integer of at least 1"),
    (("9-1-5", (64, 32), 1.5), TypeError, r"channels is 1\.5, want"),
])
def test_wrong_architectures(arguments, error, message):
    with pytest.raises(error, match=message):
        SRCNN(*arguments, backend="numpy")


def test_load_parameters_changes_all_or_nothing():
    net = SRCNN("3-1-3", (2, 2), backend="numpy")
    before = {name: value.copy() for name, value in net.parameters.items()}
    wrong = {name: np.ones_like(value) for name, value in before.items()}
    wrong["conv3.bias"][0] = np.nan
    with pytest.raises(ValueError, match=r"parameters\['conv3.bias'\] has NaN"):
        net.load_parameters(wrong)
    for name, value in before.items():
        np.testing.assert_array_equal(net.parameters[name], value)


def test_one_seed_one_network():
    first, second, other = (SRCNN(backend="numpy", seed=seed) for seed in (5, 5, 6))
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(value, second.parameters[name])
    assert (first.parameters["conv1.weight"] != other.parameters["conv1.weight"]).any()
