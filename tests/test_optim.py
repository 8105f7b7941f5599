"""Optimizers: rates for each layer, state that can be saved, and mistakes that are named."""

from __future__ import annotations

import numpy as np
import pytest

from minisrcnn import SGD, SRCNN, Adam, get_backend
from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.engine.optim import DCTAdam, Muon, orthogonalise
from minisrcnn.engine.transforms import cosine_transform


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
                 lambda p: Adam(p, 0.1, backend="numpy"),
                 lambda p: Muon(p, 0.1, backend="numpy")):
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
    (lambda p: Muon(p, 0.1, momentum=-1), ValueError, "momentum is -1, want"),
    (lambda p: DCTAdam({"w": np.zeros((2, 1, 3, 5))}), ValueError, "w has kernels of 3x5"),
    (lambda p: SGD(p, 0.1).step({}), ValueError, "grads has the keys"),
])
def test_mistakes(make, error, message):
    with pytest.raises(error, match=message):
        make(net().parameters)


@pytest.mark.parametrize("kind", [SGD, Adam, DCTAdam, Muon])
@pytest.mark.parametrize("name", ["conv2.weight", "conv3.bias"])
def test_a_read_only_parameter_is_refused_before_anything_changes(backend, kind, name):
    model = SRCNN("3-1-3", (3, 2), backend=backend, init="he")
    try:
        model.parameters[name].flags.writeable = False
    except AttributeError:
        pytest.skip(f"arrays of {backend.NAME} cannot be made read-only")
    optimizer = kind(model.parameters, lr=0.1, backend=backend)
    before = {key: backend.to_numpy(value).copy() for key, value in model.parameters.items()}
    with pytest.raises(ValueError, match=f"^{name} is read-only, want an array that can be "
                                         "changed in place$"):
        optimizer.step(model.parameters)
    with pytest.raises(ValueError, match=f"^{name} is read-only, want an array"):
        model.load_parameters({key: value + 1 for key, value in before.items()})
    for key, value in before.items():
        np.testing.assert_array_equal(backend.to_numpy(model.parameters[key]), value)
    assert getattr(optimizer, "steps", 0) == 0


def test_cosine_transform_is_scipys():
    from scipy.fft import dctn, idctn

    rng = np.random.default_rng(1)
    for K in (3, 5, 9):
        D, w = cosine_transform(K), rng.normal(size=(K, K))
        np.testing.assert_allclose(D @ w @ D.T, dctn(w, norm="ortho"), atol=1e-13)
        np.testing.assert_allclose(D.T @ w @ D, idctn(w, norm="ortho"), atol=1e-13)


def by_cosine_coefficients(parameters, grads, rate):
    """Adam's own equations on the coefficients that SciPy gives; 1x1 kernels and biases as is."""
    from scipy.fft import dctn, idctn

    values = {name: value.copy() for name, value in parameters.items()}
    m = dict.fromkeys(values, 0.0)
    v = dict(m)
    for step, grad in enumerate(grads, 1):
        for name, g in grad.items():
            kernel = g.ndim == 4
            h = dctn(g, axes=(2, 3), norm="ortho") if kernel else g
            m[name] = 0.9 * m[name] + 0.1 * h
            v[name] = 0.999 * v[name] + 0.001 * h * h
            u = m[name] / (1 - 0.9**step) / (np.sqrt(v[name] / (1 - 0.999**step)) + 1e-8)
            values[name] -= rate * (idctn(u, axes=(2, 3), norm="ortho") if kernel else u)
    return values


@pytest.mark.parametrize("backend", ["numpy", "numba", "cupy-emulated"])
def test_dct_adam_is_adam_on_scipys_coefficients(backend):
    skip_unavailable(backend)
    rng = np.random.default_rng(2)
    model = SRCNN("5-1-3", (3, 2), backend=backend, dtype="float64", init="he")
    start = {name: model.backend.to_numpy(value).copy()
             for name, value in model.parameters.items()}
    grads = [{k: rng.normal(size=v.shape) for k, v in start.items()} for _ in range(3)]
    optimizer = DCTAdam(model.parameters, 0.1, backend=backend)
    for grad in grads:
        optimizer.step({k: model.backend.asarray(g, "float64") for k, g in grad.items()})
    for name, want in by_cosine_coefficients(start, grads, 0.1).items():
        np.testing.assert_allclose(model.backend.to_numpy(model.parameters[name]), want,
                                   rtol=0, atol=1e-10, err_msg=name)


def test_dct_adam_steps_alike_along_every_coefficient():
    """What it is for: a gradient that is large in one coefficient does not hide the others."""
    model = net()
    before = model.parameters["conv1.weight"].copy()
    coefficients = 10.0 ** -np.arange(27).reshape(3, 1, 3, 3) + 0 * before
    D = cosine_transform(3)
    DCTAdam(model.parameters, 0.1, eps=1e-300, backend="numpy").step(
        ones(model.parameters) | {"conv1.weight": D.T @ coefficients @ D})
    moved = D @ (before - model.parameters["conv1.weight"]) @ D.T
    np.testing.assert_allclose(moved.reshape(-1)[:9], 0.1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (4, 6, 3, 3), (6, 4, 1, 1), (32, 64, 5, 5)])
def test_orthogonalise_keeps_singular_vectors_and_levels_the_values(shape):
    w = np.random.default_rng(3).normal(size=shape)
    F = shape[0]
    U, _, Vt = np.linalg.svd(w.reshape(F, -1), full_matrices=False)
    inside = U.T @ orthogonalise(w, get_backend("numpy")).reshape(F, -1) @ Vt.T
    values = np.diag(inside).copy()
    assert values.min() > 0.6 and values.max() < 1.25
    np.testing.assert_allclose(inside - np.diag(values), 0, atol=1e-7)


@pytest.mark.parametrize("backend", ["numpy", "numba", "cupy-emulated"])
def test_muon_steps_along_the_orthogonal_factor(backend):
    skip_unavailable(backend)
    rng = np.random.default_rng(4)
    model = SRCNN("3-3-3", (8, 4), backend=backend, dtype="float64", init="he")
    start = {name: model.backend.to_numpy(value).copy()
             for name, value in model.parameters.items()}
    grad = {name: rng.normal(size=value.shape) for name, value in start.items()}
    optimizer = Muon(model.parameters, 0.1, backend=backend)
    assert "conv2.weight.v" not in optimizer.state and "conv1.weight.v" in optimizer.state
    optimizer.step({k: model.backend.asarray(g, "float64") for k, g in grad.items()})
    moved = {name: value - model.backend.to_numpy(model.parameters[name])
             for name, value in start.items()}
    U, _, Vt = np.linalg.svd(grad["conv2.weight"].reshape(4, -1), full_matrices=False)
    values = np.diag(U.T @ moved["conv2.weight"].reshape(4, -1) @ Vt.T)
    np.testing.assert_allclose(values / (Muon.SIZE * 0.1 * np.sqrt(72)), 1, atol=0.35)
    want = by_cosine_coefficients(start, [grad], 0.1)
    for name in start:
        if name != "conv2.weight":
            np.testing.assert_allclose(start[name] - moved[name], want[name], atol=1e-10)


def test_muon_does_not_depend_on_the_threads_of_blas():
    pools = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    w = np.random.default_rng(5).normal(size=(32, 64, 5, 5)).astype("float32")
    D = cosine_transform(9).astype("float32")
    g = np.random.default_rng(5).normal(size=(64, 3, 9, 9)).astype("float32")
    results = []
    for threads in (1, 2):
        with pools.threadpool_limits(threads):
            results.append((orthogonalise(w, get_backend("numpy")), D @ g @ D.T))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def skip_unavailable(backend):
    reason = unavailable_reason(backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
