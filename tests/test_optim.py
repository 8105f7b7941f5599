"""Optimizers: rates for each layer, state that can be saved, and mistakes that are named."""

from __future__ import annotations

import numpy as np
import pytest

from minisrcnn import SGD, SRCNN, Adam


def net():
    return SRCNN("3-1-3", (3, 2), backend="numpy", dtype="float64", init="he")


def ones(parameters):
    return {name: np.ones_like(value) for name, value in parameters.items()}


def test_a_learning_rate_for_each_layer():
    model = net()
    before = {name: value.copy() for name, value in model.parameters.items()}
    SGD(model.parameters, lr={"conv1": 0.1, "conv2": 0.2, "conv3": 0.01},
        backend="numpy").step(ones(before))
    for name, rate in {"conv1": 0.1, "conv2": 0.2, "conv3": 0.01}.items():
        for kind in ("weight", "bias"):
            moved = before[f"{name}.{kind}"] - model.parameters[f"{name}.{kind}"]
            np.testing.assert_allclose(moved, rate, rtol=1e-12)


def test_a_parameter_may_have_its_own_rate():
    model = net()
    optimizer = SGD(model.parameters, lr={"conv1": 0.1, "conv2": 0.2, "conv3": 0.3,
                                          "conv3.bias": 0.0}, backend="numpy")
    assert optimizer.lr["conv3.weight"] == 0.3
    assert optimizer.lr["conv3.bias"] == 0.0


def test_state_restores_bit_for_bit():
    rng = np.random.default_rng(0)
    for make in (lambda p: SGD(p, 0.1, momentum=0.9, backend="numpy"),
                 lambda p: Adam(p, 0.1, backend="numpy")):
        whole, halted = net(), net()
        grads = [{k: rng.normal(size=v.shape) for k, v in whole.parameters.items()}
                 for _ in range(4)]
        optimizer = make(whole.parameters)
        for g in grads:
            optimizer.step(g)
        first = make(halted.parameters)
        for g in grads[:2]:
            first.step(g)
        second = make(halted.parameters)
        for name, value in first.state.items():
            second.state[name][...] = value
        if isinstance(first, Adam):
            second.steps = first.steps
        for g in grads[2:]:
            second.step(g)
        for name, value in whole.parameters.items():
            np.testing.assert_array_equal(value, halted.parameters[name])


def test_plain_gradient_descent_keeps_no_state():
    assert SGD(net().parameters, 0.1, backend="numpy").state == {}


def test_gradient_descent_goes_down():
    model = net()
    rng = np.random.default_rng(0)
    x, t = rng.random((4, 1, 9, 9)), rng.random((4, 1, 5, 5))
    optimizer = Adam(model.parameters, 1e-2, backend="numpy")
    losses = []
    for _ in range(30):
        loss, grads = model.loss_and_gradients(x, t)
        optimizer.step(grads)
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda p: SGD(p, -1.0), ValueError, r"lr of conv1\.weight is -1\.0, want"),
    (lambda p: SGD(p, float("nan")), ValueError, "is nan, want a finite number"),
    (lambda p: SGD(p, "fast"), TypeError, "want a finite number"),
    (lambda p: SGD(p, {"conv1": 0.1}), ValueError, "want a key conv2"),
    (lambda p: SGD(p, {"conv1": 1, "conv2": 1, "conv3": 1, "conv4": 1}), ValueError,
     "lr has the key 'conv4'"),
    (lambda p: SGD(p, 0.1, momentum=1.0), ValueError, r"momentum is 1\.0, want"),
    (lambda p: SGD({}, 0.1), ValueError, "parameters is empty"),
    (lambda p: Adam(p, 0.1, betas=(1.0, 0.9)), ValueError, r"betas\[0\] is 1\.0"),
    (lambda p: SGD(p, 0.1).step({}), ValueError, "grads has the keys"),
])
def test_mistakes(make, error, message):
    with pytest.raises(error, match=message):
        make(net().parameters)
