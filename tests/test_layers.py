"""Layers and the chain: their contract, their initial weights, and gradients against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minisrcnn import Chain, Conv2d, ReLU, mse


def test_conv2d_contract(backend):
    conv = Conv2d(2, 3, (3, 2), backend=backend, dtype="float64", rng=0)
    assert conv.parameters["weight"].shape == (3, 2, 3, 2)
    x = backend.asarray(np.random.default_rng(0).normal(size=(2, 2, 6, 5)), "float64")
    y, cache = conv.forward(x)
    assert y.shape == (2, 3, 4, 4)
    dx, grads = conv.backward(y, cache)
    assert dx.shape == x.shape
    assert {name: g.shape for name, g in grads.items()} == {"weight": (3, 2, 3, 2), "bias": (3,)}


def test_normal_initialisation_is_the_design_notes():
    w = Conv2d(64, 64, 9, backend="numpy", dtype="float64", rng=1).parameters
    assert w["weight"].std() == pytest.approx(1e-3, rel=0.01)
    assert abs(w["weight"].mean()) < 1e-5
    assert not w["bias"].any()


def test_he_initialisation():
    w = Conv2d(32, 64, 5, backend="numpy", dtype="float64", rng=1, init="he").parameters
    assert w["weight"].std() == pytest.approx(math.sqrt(2 / (32 * 25)), rel=0.02)


def test_one_seed_means_the_same_weights_in_every_dtype():
    single = Conv2d(2, 3, 5, backend="numpy", dtype="float32", rng=7).parameters["weight"]
    double = Conv2d(2, 3, 5, backend="numpy", dtype="float64", rng=7).parameters["weight"]
    np.testing.assert_array_equal(single, double.astype("float32"))


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), [
    ((0, 1, 3), {}, ValueError, "in_channels is 0, want an integer of at least 1"),
    ((1, 2.5, 3), {}, TypeError, r"out_channels is 2\.5, want"),
    ((1, 1, float("nan")), {}, TypeError, "kernel_size is nan, want"),
    ((1, 1, float("inf")), {}, TypeError, "kernel_size is inf, want"),
    ((1, 1, True), {}, TypeError, "kernel_size is True, want"),
    ((1, 1, (3, 3, 3)), {}, ValueError, r"kernel_size is \(3, 3, 3\), want an integer or"),
    ((1, 1, 3), {"init": "xavier"}, ValueError, "init is 'xavier', want 'normal' or 'he'"),
])
def test_conv2d_mistakes(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        Conv2d(*arguments, backend="numpy", **keywords)


def test_chain_gradients_are_pytorchs(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    rng = np.random.default_rng(0)
    chain = Chain({
        "first": Conv2d(1, 4, (3, 2), backend=backend, dtype="float64", rng=rng, init="he"),
        "relu": ReLU(backend=backend),
        "last": Conv2d(4, 2, 2, backend=backend, dtype="float64", rng=rng, init="he"),
    })
    x, t = rng.normal(size=(3, 1, 6, 5)), rng.normal(size=(3, 2, 3, 3))
    y, caches = chain.forward(backend.asarray(x, "float64"))
    loss, dy = mse(y, backend.asarray(t, "float64"), backend=backend)
    dx, grads = chain.backward(dy, caches)
    assert list(grads) == list(chain.parameters)

    leaves = {k: torch.tensor(backend.to_numpy(v).copy(), requires_grad=True)
              for k, v in chain.parameters.items()}
    image = torch.tensor(x, requires_grad=True)
    conv = torch.nn.functional.conv2d
    hidden = conv(image, leaves["first.weight"], leaves["first.bias"]).relu()
    output = conv(hidden, leaves["last.weight"], leaves["last.bias"])
    oracle = torch.nn.functional.mse_loss(output, torch.tensor(t))
    oracle.backward()
    assert float(loss) == pytest.approx(oracle.item(), rel=1e-12)
    for got, leaf in [(dx, image), *((grads[k], leaves[k]) for k in grads)]:
        want = leaf.grad.numpy()
        assert np.abs(backend.to_numpy(got) - want).max() <= 1e-10 * np.abs(want).max()


def test_an_empty_chain_is_refused():
    with pytest.raises(ValueError, match="layers is empty"):
        Chain({})
