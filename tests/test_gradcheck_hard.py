"""What made the checker silent, wrong or too large once: memory, passes, alarms, noise, points."""

from __future__ import annotations

import traceback
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest

from minisrcnn.gradcheck import (
    GradientCheckError,
    check_gradients,
    check_jvp,
    check_layer,
    check_loss,
    check_update,
    jacobian,
)


def peak(function, *args, **options):
    tracemalloc.start()
    try:
        return function(*args, **options), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def mse(y, t):
    return np.mean((y - t) ** 2, dtype=y.dtype), 2 * (y - t) / y.size


# Memory ---------------------------------------------------------------------------------------


def test_a_failing_projection_of_a_large_array_needs_little_memory():
    report, used = peak(check_gradients, lambda x: 3 * x, lambda dy, x: 3.1 * dy,
                        {"x": (300, 300)}, mode="projection", raises=False)
    assert not report.ok and "a factor of 0.967742 is missing" in report.mistake
    assert used < 300e6


def test_a_right_loss_of_a_large_array_passes_in_the_default_mode():
    report, used = peak(check_loss, mse, {"y": (250, 250), "t": (250, 250)})
    assert report.mode == "projection" and "took projection" in report.notes[0]
    assert used < 200e6
    assert not check_loss(lambda y, t: (mse(y, t)[0], mse(y, t)[1] * 1.0005),
                          {"y": (250, 250), "t": (250, 250)}, raises=False).ok


def test_the_full_mode_works_in_blocks_under_its_budget():
    shapes = {"x": (20, 10), "w": (10, 16)}

    def back(dy, x, w):
        return dy @ w.T, x.T @ dy

    def bad(dy, x, w):
        dx = dy @ w.T
        dx[7, 3] *= 1.001
        return dx, x.T @ dy

    report, used = peak(check_gradients, np.matmul, back, shapes, mode="full", max_memory=2**21)
    assert report.coverage == 1
    assert used < 10e6
    report = check_gradients(np.matmul, bad, shapes, mode="full", max_memory=2**21, raises=False)
    assert report["x"].index == (7, 3) and report["w"].ok
    assert "numbers are wrong" in report["x"].problems[0]


def test_a_full_mode_that_would_take_hours_says_so():
    import time

    def slow(x):
        time.sleep(0.05)
        return x.sum()

    with pytest.raises(ValueError, match="use mode='projection'"):
        check_gradients(slow, lambda dy, x: dy * np.ones_like(x), {"x": (400, 400)}, mode="full")


# Silent passes --------------------------------------------------------------------------------


def test_whole_numbers_with_a_gradient_are_checked():
    x = np.arange(1, 7).reshape(2, 3)
    assert check_gradients(lambda x: x * x, lambda dy, x: 2.0 * dy * x, {"x": x}).ok
    report = check_gradients(lambda x: x * x, lambda dy, x: 3.0 * dy * x, {"x": x}, raises=False)
    assert not report.ok and report["x"].problems
    report = check_gradients(lambda x: x * x, lambda dy, x: 3.0 * dy * x, {"x": x}, wrt="x",
                             raises=False)
    assert not report.ok


def test_every_argument_is_in_the_report():
    ids = np.array([1, 0, 2])

    def forward(x, ids, k, c):
        return x[ids] * k + c

    def backward(dy, x, ids, k, c):
        dx = np.zeros_like(x)
        np.add.at(dx, ids, dy * k)
        return dx, None, None, dy.sum()

    report = check_gradients(forward, backward, {"x": (3, 2), "ids": ids, "k": 2, "c": ()})
    assert [(a.name, a.status) for a in report.arguments] == [
        ("x", "ok"), ("ids", "not checked"), ("k", "not checked"), ("c", "ok")]
    assert "whole numbers (int64)" in str(report)
    nothing = check_gradients(lambda k: k * 1.0, lambda dy, k: None, {"k": ids}, raises=False)
    assert not nothing.ok and "no argument was checked" in nothing.problems


def test_none_is_listed_and_refused_where_a_gradient_is_asked_for():
    def backward(dy, x, c):
        return 2 * dy, None

    report = check_gradients(lambda x, c: 2 * x + c, backward, {"x": (3,), "c": (3,)})
    assert report["c"].status == "not checked" and "None" in report["c"].unchecked
    report = check_gradients(lambda x, c: 2 * x + c, backward, {"x": (3,), "c": (3,)},
                             wrt=["x", "c"], raises=False)
    assert "backward gave no gradient for it" in report["c"].problems


def test_shapes():
    def back(dy, x):
        return 3 * dy * x * x

    shape = (np.int64(2), np.int32(3))
    assert check_gradients(lambda x: x**3, back, {"x": shape})["x"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"the list \[2, 3\], want the tuple \(2, 3\)"):
        check_gradients(lambda x: x**3, back, {"x": [2, 3]})
    assert check_gradients(lambda x: x**3, back, {"x": [[1.0, 2.0]]})["x"].shape == (1, 2)


@pytest.mark.parametrize("make", [tuple, list, lambda ys: {"a": ys[0], "b": ys[1]},
                                  lambda ys: namedtuple("Pair", "a b")(*ys)])
def test_several_outputs(make):
    def forward(x, w):
        return make([x * w, x + np.sin(w)])

    def backward(dy, x, w, second=1.0):
        da, db = dy.values() if isinstance(dy, dict) else dy
        return da * w + second * db, da * x + second * db * np.cos(w)

    assert check_gradients(forward, backward, {"x": (2, 3), "w": (2, 3)}).ok
    report = check_gradients(forward, lambda dy, x, w: backward(dy, x, w, 0.0),
                             {"x": (2, 3), "w": (2, 3)}, raises=False)
    assert not report["x"].ok and not report["w"].ok
    assert "output y[" in report.mistake and "is left out" in report.mistake


def test_two_outputs_of_one_input_are_not_taken_for_a_cache():
    def forward(x):
        return 2 * x, 3 * x

    assert check_gradients(forward, lambda dy, x: 2 * dy[0] + 3 * dy[1], {"x": (4, 3)}).ok
    assert not check_gradients(forward, lambda dy, x: 2 * dy[0], {"x": (4, 3)}, raises=False).ok
    report = check_gradients(forward, lambda dy, x: 2 * dy, {"x": (4, 3)}, raises=False)
    assert not report.ok and "outputs=" in report.problems[0]
    # A cache, as ever.
    assert check_gradients(lambda x: (np.tanh(x), np.tanh(x)), lambda dy, y: dy * (1 - y * y),
                           {"x": (4, 3)}).ok
    assert check_gradients(lambda x: (x * x * x, x * x), lambda dy, x2: 3 * dy * x2,
                           {"x": (4, 3)}).ok


def test_outputs_and_a_cache_with_the_upstream_gradients_spread():
    def forward(x, h):
        return np.tanh(x + h), x * h, (x, h)

    def backward(da, db, cache):
        x, h = cache
        d = da * (1 - np.tanh(x + h) ** 2)
        return d + db * h, d + db * x

    assert check_gradients(forward, backward, {"x": (3, 2), "h": (3, 2)}).ok
    assert check_gradients(lambda x, h: (forward(x, h)[:2], (x, h)),
                           lambda dys, cache: backward(*dys, cache), {"x": (3, 2), "h": (3, 2)}).ok


def test_keyword_arguments():
    def forward(x, *, w, power=1):
        return (x @ w) ** power

    def backward(dy, x, *, w, power=1):
        dz = dy * power * (x @ w) ** (power - 1)
        return {"dx": dz @ w.T, "dw": x.T @ dz}

    report = check_gradients(forward, backward, {"x": (3, 2), "w": (2, 4)}, kwargs={"power": 3})
    assert [a.status for a in report.arguments] == ["ok", "ok"]


def test_a_cache_that_is_used_up():
    def forward(x):
        return np.exp(x), [np.exp(x)]

    report = check_gradients(forward, lambda dy, cache: dy * cache.pop(), {"x": (3, 2)})
    assert report.ok and "uses its cache up" in report.notes[0]
    assert not check_gradients(forward, lambda dy, cache: 2 * dy * cache.pop(), {"x": (3, 2)},
                               raises=False).ok


# False alarms ---------------------------------------------------------------------------------


def centred(x, b):
    z = x + b
    return z - z.mean(axis=0)


def centred_back(dy, x, b):
    dz = dy - dy.mean(axis=0)
    return {"x": dz, "b": dz.sum(axis=0)}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mode", ["full", "projection", "complex", "adjoint"])
def test_a_gradient_that_is_zero_agrees(mode, dtype):
    shapes = {"x": (5, 3), "b": (3,)}
    report = check_gradients(centred, centred_back, shapes, mode=mode, dtype=dtype, zero="b")
    assert report["b"].status == "zero, agrees"
    report = check_gradients(centred, lambda dy, x, b: centred_back(dy, x, b) | {
        "b": dy.sum(axis=0)}, shapes, mode=mode, dtype=dtype, raises=False)
    assert not report["b"].ok and report["x"].ok
    report = check_gradients(centred, centred_back, shapes, mode=mode, dtype=dtype, zero=["x"],
                             raises=False)
    assert report["x"].problems == ("its derivative is not zero, as zero= says it is",)


def test_a_zero_gradient_where_the_derivative_is_not_is_no_agreement():
    for dtype in ("float64", "float32"):
        report = check_gradients(lambda x, b: x + b, lambda dy, x, b: (dy, 0 * b),
                                 {"x": (3,), "b": (3,)}, dtype=dtype, raises=False)
        assert "zero everywhere" in report["b"].mistake


def test_small_gradients_of_a_large_mean_are_no_zeros():
    for factor in (1.0, 2.0):
        report = check_loss(lambda y, t, f=factor: (mse(y, t)[0], y.dtype.type(f) * mse(y, t)[1]),
                            {"y": (40, 50), "t": (40, 50)}, dtype="float32", raises=False)
        assert report.ok == (factor == 1.0), str(report)
        assert not report["y"].zero


def test_inputs_of_any_size_are_taken():
    def forward(x, h, image):
        return np.tanh(x * 1000 + h) + image / 255

    def backward(dy, x, h, image):
        d = dy * (1 - np.tanh(x * 1000 + h) ** 2)
        return d * 1000, d, dy / 255

    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(0, 1e-3, (3, 4)), "h": np.zeros((3, 4)),
              "image": rng.uniform(0, 255, (3, 4))}
    assert check_gradients(forward, backward, inputs).ok
    # A state of zeros hides this mistake; the other points do not.
    report = check_gradients(lambda x, h: x * np.exp(h), lambda dy, x, h: (dy, dy * x),
                             {"x": (3,), "h": np.zeros(3)}, raises=False)
    assert not report.ok


def test_an_ill_conditioned_forward_in_float32():
    def forward(x):  # the variance of numbers near 100, as a difference of squares
        return (x * x).mean(axis=0) - x.mean(axis=0) ** 2

    def backward(dy, x):
        return (2 * dy * (x - x.mean(axis=0)) / len(x)).astype(x.dtype)

    x = (30 + np.random.default_rng(0).standard_normal((8, 3))).astype(np.float32)
    report = check_gradients(forward, backward, {"x": x}, raises=False)
    assert report.ok, str(report)
    assert report.sees > 1e-4
    assert not check_gradients(forward, lambda dy, x: 1.5 * backward(dy, x), {"x": x},
                               raises=False).ok


@pytest.mark.parametrize("rate", [0.1, 1e-3, 1e-4])
def test_updates_of_float32_at_a_small_rate(rate):
    def update(param, grad, factor=1.0):
        param -= np.float32(rate * factor) * grad

    state = {"param": (5, 4), "grad": (5, 4)}
    report = check_update(update, lambda param, grad: {"param": param - rate * grad}, state,
                          dtype="float32")
    assert report.sees < 1e-2
    assert not check_update(lambda p, g: update(p, g, 1.02),
                            lambda param, grad: {"param": param - rate * grad}, state,
                            dtype="float32", raises=False).ok


# Float32 and noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("takes", ["float64 too", "float32 alone"])
@pytest.mark.parametrize("mode", ["full", "projection"])
@pytest.mark.parametrize("seed", [
    0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_float32_without_an_oracle_sees_a_twentieth_of_a_percent(mode, seed, takes):
    def forward(x, w):
        if takes == "float32 alone" and x.dtype != np.float32:
            raise TypeError("want float32")
        return np.tanh(x @ w)

    def backward(dy, x, w, factor=1.0):
        dz = dy * (1 - np.tanh(x @ w) ** 2)
        return dz @ w.T, x.T @ dz * np.float32(factor)

    shapes = {"x": (4, 3), "w": (3, 5)}
    report = check_gradients(forward, backward, shapes, mode=mode, dtype="float32", seed=seed)
    assert report.sees < 5e-4
    assert not check_gradients(forward, lambda *a: backward(*a, 1.0005), shapes, mode=mode,
                               dtype="float32", seed=seed, raises=False)["w"].ok


@pytest.mark.parametrize("kind", ["float32 inside", "quantised", "iterative", "returns float32"])
def test_a_noisy_forward_is_recognised_and_measured(kind):
    def forward(x):
        if kind == "iterative":  # Newton's square root, to a tolerance
            y = np.ones_like(x)
            while np.max(abs(y * y - (1 + x * x))) > 1e-5:
                y = (y + (1 + x * x) / y) / 2
            return np.round(y, 6)
        y = np.sin(x)
        if kind == "quantised":
            return np.round(y * 4096) / 4096
        y = np.sin(x.astype(np.float32))
        return y if kind == "returns float32" else y.astype(float)

    def backward(dy, x, factor=1.0):
        return factor * dy * (x / np.sqrt(1 + x * x) if kind == "iterative" else np.cos(x))

    report = check_gradients(forward, backward, {"x": (6, 4)}, raises=False)
    assert report.ok, str(report)
    assert "noise" in str(report) or "float32 for float64" in str(report)
    assert not check_gradients(forward, lambda dy, x: backward(dy, x, 1.2), {"x": (6, 4)},
                               raises=False).ok


def test_atomic_additions():
    rng = np.random.default_rng(0)

    def forward(x, w):
        y = x @ w
        return y * (1 + 1e-12 * rng.standard_normal(y.shape))

    def backward(dy, x, w):
        return dy @ w.T, x.T @ dy * (1 + 1e-12 * rng.standard_normal(w.shape))

    shapes = {"x": (4, 3), "w": (3, 5)}
    assert "not deterministic" in check_gradients(forward, backward, shapes,
                                                  raises=False).problems[0]
    assert check_gradients(forward, backward, shapes, nondeterministic=1e-11).ok


# Points, dy -------------------------------------------------------------------------------------


def test_a_mistake_that_shows_at_large_inputs_alone():
    def backward(dy, x):
        return dy * np.where(abs(x) > 5, 1.0, 2 * x)

    def forward(x):
        return np.where(abs(x) > 5, 10 * abs(x) - 25, x * x)

    report = check_gradients(forward, backward, {"x": (6, 5)}, raises=False)
    assert "point 2" in report["x"].problems[0]
    assert check_gradients(forward, backward, {"x": (6, 5)}, points=1).ok


def test_a_cache_of_another_input_is_stale():
    kept = {}

    def forward(x):
        kept.setdefault("x", x.copy())
        return np.sin(x)

    assert not check_gradients(forward, lambda dy, x: dy * np.cos(kept["x"]), {"x": (3, 2)},
                               raises=False).ok


def test_strange_upstream_gradients():
    def flat(dy, x):  # right for contiguous memory alone
        base = dy if dy.base is None else dy.base
        return 2 * base.ravel()[:dy.size].reshape(dy.shape)

    report = check_gradients(lambda x: 2 * x, flat, {"x": (3, 2)}, raises=False)
    assert "not contiguous" in report.problems[0]

    def writes(dy, x):
        dy *= 2
        return dy

    report = check_gradients(lambda x: 2 * x, writes, {"x": (3, 2)}, raises=False)
    assert "backward writes to dy" in report.problems[0]
    assert report["x"].status == "not checked" and "0.00%" not in str(report)
    assert check_gradients(lambda x: 2 * x, writes, {"x": (3, 2)}, inplace_dy=True).ok


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_scalar_loss_with_many_kinks_in_projection(dtype):
    def forward(x, w):
        return np.maximum(x @ w, 0).mean(dtype=x.dtype)

    def backward(dy, x, w):
        d = (dy * ((x @ w) > 0) / (len(x) * w.shape[1])).astype(x.dtype)
        return d @ w.T, x.T @ d

    shapes = {"x": (60, 40), "w": (40, 50)}
    report = check_gradients(forward, backward, shapes, mode="projection", dtype=dtype,
                             raises=False)
    assert report.ok, str(report)


def test_failures_of_a_users_function_keep_their_traceback():
    def backward(dy, x):
        return dy @ np.ones((7, 7))

    with pytest.raises(ValueError) as caught:
        check_gradients(lambda x: 2 * x, backward, {"x": (4, 3)})
    text = "".join(traceback.format_exception(caught.value))
    assert "dy @ np.ones((7, 7))" in text
    assert "gradcheck called backward(float64 (4, 3), float64 (4, 3))" in text


# More of the map --------------------------------------------------------------------------------


def test_jvp():
    def forward(x, w):
        return np.tanh(x @ w)

    def jvp(v, x, w, factor=1.0):
        return (1 - forward(x, w) ** 2) * (v["x"] @ w + factor * (x @ v["w"]))

    shapes = {"x": (4, 3), "w": (3, 5)}
    assert check_jvp(forward, jvp, shapes).ok
    report = check_jvp(forward, lambda *a: jvp(*a, 1.01), shapes, raises=False)
    assert report["x"].ok and not report["w"].ok
    assert check_jvp(np.sin, lambda v, x: v * np.cos(x), {"x": (3,)}).ok


def test_the_jacobian_of_a_linear_map_is_its_matrix():
    a = np.random.default_rng(0).standard_normal((4, 3))
    assert np.array_equal(jacobian(lambda x: a @ x, {"x": (3,)}, linear=True), a)
    assert np.allclose(a, jacobian(lambda x: (a @ x, x), {"x": (3,)},
                                   backward=lambda dy, x: a.T @ dy))
    x = np.array([0.3, -1.0])
    assert np.allclose(jacobian(np.sin, {"x": x}), np.diag(np.cos(x)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_needs_an_oracle(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 comes with ml_dtypes")

    def forward(x):
        return x * x

    with pytest.raises(TypeError, match="want an oracle="):
        check_gradients(forward, lambda dy, x: 2 * dy * x, {"x": (4, 3)}, dtype=dtype)
    two = np.ones((), dtype) + np.ones((), dtype)
    assert check_gradients(forward, lambda dy, x: two * dy * x, {"x": (4, 3)}, dtype=dtype,
                           oracle=forward).ok
    assert not check_gradients(forward, lambda dy, x: (two + two) * dy * x, {"x": (4, 3)},
                               dtype=dtype, oracle=forward, raises=False).ok


class Affine:
    """A layer that keeps its cache and its gradients in itself."""

    def __init__(self, wrong=1.0):
        self.W, self.b, self.wrong = np.full((3, 4), 1e-3), np.zeros(4), wrong
        self.running = np.zeros(4)

    def forward(self, x):
        self.x = x
        self.running = 0.9 * self.running + 0.1 * x.mean()
        return x @ self.W + self.b

    def backward(self, dy):
        self.dW = self.x.T @ dy * self.wrong
        self.db = dy.sum(axis=0)
        return dy @ self.W.T


class Listed(Affine):
    @property
    def params(self):
        return [self.W, self.b]

    @property
    def grads(self):
        return [self.dW, self.db]


class Returning(Affine):
    def backward(self, dy):
        dx = super().backward(dy)
        return dx, self.dW, self.db


@pytest.mark.parametrize("kind", [Affine, Listed, Returning])
@pytest.mark.parametrize("mode", ["full", "projection", "complex"])
def test_stateful_layers(kind, mode):
    layer = kind()
    report = check_layer(layer, (5, 3), mode=mode)
    assert [(a.name, a.status) for a in report.arguments] == [("x", "ok"), ("W", "ok"), ("b", "ok")]
    assert (layer.W == 1e-3).all() and not layer.b.any() and not layer.running.any()
    report = check_layer(kind(wrong=0.5), (5, 3), mode=mode, raises=False)
    assert report["W"].mistake == "a factor 2 is missing"


def test_a_layer_without_parameters_and_one_of_several_inputs():
    class Sine:
        def forward(self, x):
            self.x = x
            return np.sin(x)

        def backward(self, dy):
            return dy * np.cos(self.x)

    class Product:
        parameters: dict = {}  # noqa: RUF012

        def forward(self, a, b):
            return a * b, (a, b)

        def backward(self, dy, cache):
            return dy * cache[1], dy * cache[0]

    assert check_layer(Sine(), (3, 2)).ok
    assert check_layer(Product(), {"a": (3, 2), "b": (3, 2)}).ok


def test_arrays_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is optional")

    def forward(x, w):
        return torch.tanh(x @ w)

    def backward(dy, x, w):
        dz = dy * (1 - torch.tanh(x @ w) ** 2)
        return dz @ w.T, x.T @ dz

    x = torch.randn(4, 3, dtype=torch.float64)
    report = check_gradients(forward, backward, {"x": x, "w": (3, 5)})
    assert report.ok and report.dtype == "float64"
    assert not check_gradients(forward, lambda *a: backward(*a)[::-1], {"x": x[:3], "w": (3, 3)},
                               raises=False).ok


def test_batched_directions_give_the_same_in_fewer_calls():
    calls = []

    def forward(x, w):
        calls.append(1)
        return np.tanh(x @ w)

    def backward(dy, x, w):
        dz = dy * (1 - np.tanh(x @ w) ** 2)
        return dz @ w.T, x.T @ dz

    shapes = {"x": (6, 8), "w": (8, 2)}
    plain = check_gradients(forward, backward, shapes)
    many, calls[:] = len(calls), []
    batched = check_gradients(forward, backward, shapes, batched=["x"])
    assert len(calls) < many / 2
    assert batched.ok and batched["x"].error == pytest.approx(plain["x"].error, rel=0.5)


# Names of mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "says"), [
    (lambda r: r | {"b": r["b"][None]}, "keepdims"),
    (lambda r: r | {"x": r["w"], "w": r["x"]}, "swapped: the gradient given for w is that of x"),
    (lambda r: r | {"x": np.vstack([r["x"][:-1], 0 * r["x"][-1:]])},
     "index 3 of axis 0 of dy (the batch) is left out"),
    (lambda r: r | {"w": np.hstack([0 * r["w"][:, :1], r["w"][:, 1:]])},
     "entries left out: the gradient is zero at index 0 of axis 1"),
    (lambda r: r | {"w": r["w"].T}, "transposed"),
    (lambda r: r | {"w": np.roll(r["w"], 1, axis=0)}, "rolled by -1 along axis 0"),
])
def test_names(change, says):
    def forward(x, w, b):
        return np.tanh(x @ w.T + b)

    def backward(dy, x, w, b):
        dz = dy * (1 - np.tanh(x @ w.T + b) ** 2)
        return {"x": dz @ w, "w": dz.T @ x, "b": dz.sum(axis=0)}

    with pytest.raises(GradientCheckError) as caught:
        check_gradients(forward, lambda *a: change(backward(*a)), {"x": (4, 4), "w": (4, 4),
                                                                   "b": (4,)})
    assert says in str(caught.value)


@pytest.mark.parametrize(("mean", "var", "says"), [
    (False, True, "the mean of the gradient over axes (0,)"),
    (True, False, "that of the variance over axes (0,)"),
    (False, False, "mean and variance over axes (0,)"),
])
def test_missing_terms_of_the_batch_statistics(mean, var, says):
    def stats(x):
        s = np.sqrt(x.var(axis=0) + 1e-5)
        return (x - x.mean(axis=0)) / s, s

    def backward(dy, x):
        h, s = stats(x)
        return (dy - mean * dy.mean(axis=0) - var * h * (dy * h).mean(axis=0)) / s

    report = check_gradients(lambda x: stats(x)[0], backward, {"x": (6, 3)}, raises=False)
    assert says in (report.mistake or ""), str(report)


def test_eps_misplaced():
    def backward(dy, x, s):
        h = (x - x.mean(axis=0)) / s
        return (dy - dy.mean(axis=0) - h * (dy * h).mean(axis=0)) / s

    def forward(x):
        return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)

    report = check_gradients(forward, lambda dy, x: backward(dy, x, np.sqrt(x.var(axis=0)) + 1e-3),
                             {"x": (6, 3)}, raises=False)
    assert "eps misplaced" in (report.mistake or ""), str(report)
    assert "eps = 0.001" in report.mistake
