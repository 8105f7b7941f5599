"""Every backend against independent oracles: SciPy, PyTorch, and the written formulas."""

from __future__ import annotations

import inspect

import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisrcnn import BackendUnavailableError
from minisrcnn.engine.backends import (
    FUNCTIONS,
    get_backend,
    reference,
    unavailable_reason,
)
from minisrcnn.engine.backends.checks import MOST_ELEMENTS
from minisrcnn.engine.layers import ACTIVATIONS

# The functions of the derivation; a backend may lack those that are not in FUNCTIONS.
DERIVED = [name for name, function in inspect.getmembers(reference, inspect.isfunction)
           if function.__module__ == reference.__name__ and not name.startswith("_")]

# N, C, H, W, F, KH, KW: square and not, down to one output and one of everything.
SHAPES = [
    (2, 3, 7, 6, 4, 3, 2),
    (1, 1, 9, 9, 5, 9, 9),
    (3, 2, 5, 8, 1, 1, 1),
    (2, 1, 6, 5, 3, 2, 5),
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 3, 10, 2, 3, 4),
]
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


def close(got, want, dtype):
    scale = max(np.abs(want).max(), 1e-300)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * scale


def compiled_in_turn(backend, shape, dtype):
    """Skip half of what costs a run of the C++ compiler each; either dtype has half the shapes."""
    turn = ["float64", "float32"][SHAPES.index(shape) % 2]
    if backend.NAME == "cupy-emulated" and dtype != turn:
        pytest.skip(f"emulated in {turn}; test_cuda_kernels.py has other shapes in both")


def on(backend, dtype, *arrays):
    return [backend.asarray(a, dtype) for a in arrays]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_scipys_correlation(backend, shape, dtype):
    compiled_in_turn(backend, shape, dtype)
    x, w, b, _ = oracles.draw(shape)
    y = backend.conv2d_forward(*on(backend, dtype, x, w, b))
    assert str(y.dtype) == dtype
    close(backend.to_numpy(y), oracles.conv2d_forward(x, w, b), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_gradients_are_pytorchs(backend, shape, dtype):
    compiled_in_turn(backend, shape, dtype)
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    x, w, b, dy = oracles.draw(shape, seed=1)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    y = torch.nn.functional.conv2d(*leaves)
    y.backward(torch.tensor(dy))

    X, WEIGHT, BIAS, DY = on(backend, dtype, x, w, b, dy)
    close(backend.to_numpy(backend.conv2d_forward(X, WEIGHT, BIAS)), y.detach().numpy(), dtype)
    grads = (
        backend.conv2d_backward_input(DY, WEIGHT),
        backend.conv2d_backward_weight(X, DY),
        backend.conv2d_backward_bias(DY),
    )
    for got, leaf in zip(grads, leaves, strict=True):
        assert str(got.dtype) == dtype
        close(backend.to_numpy(got), leaf.grad.numpy(), dtype)


sizes = st.integers(1, 4)


@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(N=sizes, C=sizes, F=sizes, KH=sizes, KW=sizes, OH=sizes, OW=sizes,
       seed=st.integers(0, 2**32))
def test_any_shape(backend, N, C, F, KH, KW, OH, OW, seed):
    """Forward is SciPy's, and the two gradients are its adjoints: <y, dy> = <x, dx> = <w, dw>."""
    if backend.NAME == "cupy-emulated":  # every new layer is a run of the C++ compiler
        C, F, KH, KW = [(1, 3, 3, 2), (4, 1, 1, 1), (3, 2, 2, 4)][seed % 3]
    x, w, b, dy = oracles.draw((N, C, OH + KH - 1, OW + KW - 1, F, KH, KW), seed=seed)
    X, WEIGHT, DY = on(backend, "float64", x, w, dy)
    zero = backend.asarray(np.zeros(F), "float64")
    y = backend.to_numpy(backend.conv2d_forward(X, WEIGHT, zero))
    close(y, oracles.conv2d_forward(x, w, 0 * b), "float64")
    dx = backend.to_numpy(backend.conv2d_backward_input(DY, WEIGHT))
    dw = backend.to_numpy(backend.conv2d_backward_weight(X, DY))
    size = np.abs(dy).sum() * np.abs(w).max() * np.abs(x).max() * C * KH * KW
    assert abs(np.vdot(y, dy) - np.vdot(x, dx)) <= 1e-12 * size
    assert abs(np.vdot(y, dy) - np.vdot(w, dw)) <= 1e-12 * size
    close(backend.to_numpy(backend.conv2d_backward_bias(DY)), dy.sum((0, 2, 3)), "float64")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_relu(backend, dtype):
    x = np.array([[-2.0, -0.0, 0.0, 1.5], [3.0, -1e-30, 1e-30, -5.0]])
    dy = np.arange(1.0, 9.0).reshape(2, 4)
    X, DY = on(backend, dtype, x, dy)
    y = backend.relu_forward(X)
    np.testing.assert_array_equal(
        backend.to_numpy(y), np.array([[0, 0, 0, 1.5], [3, 0, 1e-30, 0]], dtype)
    )
    dx = backend.relu_backward(DY, y)
    np.testing.assert_array_equal(backend.to_numpy(dx), [[0, 0, 0, 4], [5, 0, 7, 0]])


def test_relu_does_not_hide_nan(backend):
    (x,) = on(backend, "float64", np.array([np.nan, 1.0]))
    assert np.isnan(backend.to_numpy(backend.relu_forward(x))[0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_mse(backend, dtype):
    """Worked out by hand: differences 1, -2, 0, 3 over four elements."""
    y, t = np.array([[2.0, 0.0], [1.0, 4.0]]), np.array([[1.0, 2.0], [1.0, 1.0]])
    y, t = on(backend, dtype, y, t)
    loss, dy = backend.mse(y, t)
    assert float(loss) == pytest.approx(14 / 4, rel=1e-6)
    np.testing.assert_allclose(backend.to_numpy(dy), [[0.5, -1.0], [0.0, 1.5]], rtol=1e-6)
    assert str(dy.dtype) == dtype


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_equation_5(backend, momentum):
    """Three steps of the paper's equation (5), worked out in plain Python."""
    grads = [0.5, -1.0, 0.25]
    param, velocity = 2.0, 0.0
    arrays = on(backend, "float64", np.full((2, 3), param), np.zeros((2, 3)))
    for grad in grads:
        velocity = momentum * velocity - 0.1 * grad
        param += velocity
        (g,) = on(backend, "float64", np.full((2, 3), grad))
        backend.sgd_update(arrays[0], g, arrays[1] if momentum else None, 0.1, momentum)
    np.testing.assert_allclose(backend.to_numpy(arrays[0]), param, rtol=1e-14)


def test_sgd_and_adam_are_pytorchs(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    rng = np.random.default_rng(3)
    start, grads = rng.normal(size=(4, 3)), rng.normal(size=(5, 4, 3))
    for kind in ("sgd", "adam"):
        leaf = torch.tensor(start.copy(), requires_grad=True)
        oracle = (torch.optim.SGD([leaf], lr=0.05, momentum=0.9) if kind == "sgd"
                  else torch.optim.Adam([leaf], lr=0.05, betas=(0.8, 0.95), eps=1e-6))
        param, m, v = on(backend, "float64", start.copy(), np.zeros((4, 3)), np.zeros((4, 3)))
        for step, grad in enumerate(grads, 1):
            leaf.grad = torch.tensor(grad)
            oracle.step()
            (g,) = on(backend, "float64", grad)
            if kind == "sgd":
                backend.sgd_update(param, g, m, 0.05, 0.9)
            else:
                backend.adam_update(param, g, m, v, step, 0.05, 0.8, 0.95, 1e-6)
        np.testing.assert_allclose(backend.to_numpy(param), leaf.detach().numpy(), rtol=1e-12)


def test_arguments_are_not_changed_and_results_are_new(backend):
    x, w, b, dy = on(backend, "float64", *oracles.draw(SHAPES[0]))
    y = backend.conv2d_forward(x, w, b)
    calls = [
        (backend.conv2d_forward, (x, w, b)),
        (backend.conv2d_backward_input, (dy, w)),
        (backend.conv2d_backward_weight, (x, dy)),
        (backend.conv2d_backward_bias, (dy,)),
        (backend.relu_forward, (y,)),
        (backend.relu_backward, (dy, y)),
        (lambda a, b: backend.mse(a, b)[1], (dy, y)),
    ]
    for function, arguments in calls:
        before = [backend.to_numpy(a).copy() for a in arguments]
        first = backend.to_numpy(function(*arguments)).copy()
        second = backend.to_numpy(function(*arguments))
        np.testing.assert_array_equal(first, second)  # overwritten, not accumulated
        for a, old in zip(arguments, before, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(a), old)


def test_the_textbook_backends_run_everywhere():
    assert unavailable_reason("reference") is None and unavailable_reason("numpy") is None


def test_every_required_function_is_derived():
    assert set(FUNCTIONS) <= set(DERIVED)


@pytest.mark.parametrize("function", DERIVED)
def test_signatures_are_those_of_reference(backend, function):
    if not hasattr(backend, function) and function not in FUNCTIONS:
        pytest.skip(f"{backend.NAME} has no {function}")
    got, want = (inspect.signature(getattr(module, function)) for module in (backend, reference))
    assert list(got.parameters) == list(want.parameters)


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=lambda layer: layer.__name__)
def test_activations_by_complex_step(layer, gradcheck):
    """The derivation itself, to the last digit: complex numbers through ``reference``."""
    gradcheck.layer(layer(backend="reference"), (2, 3, 4, 3), mode="complex")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", ACTIVATIONS, ids=lambda layer: layer.__name__)
def test_activations_are_those_of_reference(backend, layer, dtype):
    try:
        mine, want = layer(backend=backend), layer(backend="reference")
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(5)
    x, dy = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    (y, cache), (want_y, want_cache) = (
        net.forward(net.backend.asarray(x, dtype)) for net in (mine, want))
    close(backend.to_numpy(y), want_y, dtype)
    dx, grads = mine.backward(backend.asarray(dy, dtype), cache)
    close(backend.to_numpy(dx), want.backward(dy.astype(dtype), want_cache)[0], dtype)
    assert grads == {}


def a(*shape, dtype="float64"):
    return np.ones(shape, dtype)


# function, arguments, exception, what the message must name: the argument, what it got, and wants
MISTAKES = [
    ("conv2d_forward", (a(5, 5), a(1, 1, 3, 3), a(1)), ValueError,
     r"x has shape \(5, 5\), want \(N, C, H, W\)$"),
    ("conv2d_forward", (a(1, 1, 5, 5), a(3, 3), a(1)), ValueError,
     r"w has shape \(3, 3\), want \(F, C, KH, KW\)$"),
    ("conv2d_forward", (a(1, 2, 5, 5), a(4, 3, 3, 3), a(4)), ValueError,
     r"w has shape \(4, 3, 3, 3\), want \(F, 2, KH, KW\)"),
    ("conv2d_forward", (a(1, 1, 5, 5), a(1, 1, 6, 3), a(1)), ValueError,
     "6x3 kernel, want at most 5x5"),
    ("conv2d_forward", (a(1, 1, 5, 5), a(4, 1, 3, 3), a(3)), ValueError,
     r"b has shape \(3,\), want \(4,\)"),
    ("conv2d_forward", (a(0, 1, 5, 5), a(4, 1, 3, 3), a(4)), ValueError,
     "x has shape .*at least 1"),
    ("conv2d_forward", (a(1, 1, 5, 5, dtype="int64"), a(4, 1, 3, 3), a(4)), TypeError,
     "x has dtype int64, want float"),
    ("conv2d_forward", (a(1, 1, 5, 5), a(4, 1, 3, 3, dtype="float32"), a(4)), TypeError,
     "w has dtype float32, want float64"),
    ("conv2d_backward_input", (a(1, 3, 5, 5), a(4, 1, 3, 3)), ValueError,
     r"dy has shape \(1, 3, 5, 5\), want \(1, 4, 5, 5\)"),
    ("conv2d_backward_weight", (a(1, 1, 5, 5), a(1, 3, 6, 5)), ValueError,
     "dy has 6x5 outputs, want at most 5x5"),
    ("conv2d_backward_weight", (a(2, 1, 5, 5), a(1, 3, 3, 3)), ValueError, "x has 2 images"),
    ("conv2d_backward_bias", (a(3, 3),), ValueError,
     r"dy has shape \(3, 3\), want \(N, F, OH, OW\)"),
    ("relu_backward", (a(3, 3), a(3, 2)), ValueError, r"y has shape \(3, 2\), want \(3, 3\)"),
    ("mse", (a(3, 3), a(9)), ValueError, r"t has shape \(9,\), want \(3, 3\)"),
    ("mse", (a(3, dtype="float32"), a(3)), TypeError, "t has dtype float64, want float32"),
    ("sgd_update", (a(3), a(2), None, 0.1, 0.0), ValueError, "grad has shape"),
    ("sgd_update", (a(3), a(3), None, 0.1, 0.9), ValueError, "velocity is None, want an array"),
    ("sgd_update", (a(3), a(3), None, float("nan"), 0.0), ValueError, "lr is nan, want a finite"),
    ("sgd_update", (a(3), a(3), None, -1.0, 0.0), ValueError, "lr is -1.0, want a finite"),
    ("sgd_update", (a(3), a(3), a(3), 0.1, 1.0), ValueError, "momentum is 1.0, want"),
    ("adam_update", (a(3), a(3), a(3), a(3), 0, 0.1, 0.9, 0.999, 1e-8), ValueError, "step is 0"),
    ("adam_update", (a(3), a(3), a(2), a(3), 1, 0.1, 0.9, 0.999, 1e-8), ValueError, "m has shape"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), MISTAKES)
def test_mistakes_are_named(backend, function, arguments, error, message):
    arguments = [backend.asarray(v, v.dtype) if isinstance(v, np.ndarray) else v for v in arguments]
    with pytest.raises(error, match=message) as caught:
        getattr(backend, function)(*arguments)
    assert "\n" not in str(caught.value)


def test_lists_are_refused(backend):
    with pytest.raises(TypeError, match=r"x is a list, want a"):
        backend.relu_forward([1.0, 2.0])


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend is 'tpu', want one of reference, numpy, numba, "
                                         "cupy, cupy-emulated or auto"):
        get_backend("tpu")


def test_a_backend_without_a_function_says_who_has_it():
    assert get_backend("numpy", "relu_forward", "im2col").NAME == "numpy"
    with pytest.raises(BackendUnavailableError, match="backend reference has no im2col, "
                                                      "want one of those that have it: numpy"):
        get_backend("reference", "relu_forward", "im2col")


HUGE = np.broadcast_to(np.float32(1), (2, 1, 1 << 15, 1 << 15))  # 2^31 elements, four bytes


@pytest.mark.parametrize("name", ["reference", "numpy", "numba"])
def test_more_elements_than_can_be_indexed_are_refused_before_they_are_allocated(name):
    """Broadcast arrays take no memory, so nothing here is large but the numbers."""
    if (reason := unavailable_reason(name)) is not None:
        pytest.skip(f"backend {name}: {reason}")
    backend = get_backend(name)
    assert HUGE.size == MOST_ELEMENTS + 1
    with pytest.raises(ValueError, match=r"x has shape .*, 2,147,483,648 elements, want at most"):
        backend.relu_forward(HUGE)
    one = np.ones((1, 1, 1, 1), np.float32)
    rows = np.ones((1 << 16, 1, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"y has shape \(65536, 65536, 1, 1\), 4,294,967,296"):
        backend.conv2d_forward(rows, rows, np.ones(1 << 16, np.float32))
    with pytest.raises(ValueError, match=r"dx has shape \(65536, 65536, 1, 1\)"):
        backend.conv2d_backward_input(rows, rows.reshape(1, -1, 1, 1))
    with pytest.raises(ValueError, match=r"dw has shape \(65536, 65536, 1, 1\)"):
        backend.conv2d_backward_weight(rows.reshape(1, -1, 1, 1), rows.reshape(1, -1, 1, 1))
    assert backend.conv2d_forward(one, one, one[0, 0, 0]).item() == 2


def test_auto_is_never_the_emulator_or_the_textbook():
    assert get_backend("auto").NAME in ("cupy", "numba")
