"""The checker itself: what it measures, what it refuses, what it says."""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import subprocess
import sys

import mutants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minisrcnn.gradcheck as module
from minisrcnn.engine.backends import get_backend, unavailable_reason
from minisrcnn.engine.layers import Chain, Conv2d, ReLU
from minisrcnn.gradcheck import (
    GradientCheckError,
    check_gradients,
    check_layer,
    check_loss,
    check_update,
)


def tanh(x, w):
    return np.tanh(x @ w)


def tanh_back(dy, x, w):
    dz = dy * (1 - np.tanh(x @ w) ** 2)
    return dz @ w.T, x.T @ dz


TANH = {"x": (4, 3), "w": (3, 5)}


def test_it_stands_alone():
    tree = ast.parse(inspect.getsource(module))
    roots = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
             for name in node.names}
    roots |= {node.module.split(".")[0] for node in ast.walk(tree)
              if isinstance(node, ast.ImportFrom)}
    assert roots <= {"__future__", "collections", "contextlib", "dataclasses", "functools",
                     "inspect", "itertools", "math", "numpy", "sys", "time", "typing", "zlib"}


def test_it_can_be_lifted_out(tmp_path):
    shutil.copy(module.__file__, tmp_path / "lifted.py")
    code = ("import sys; sys.path.insert(0, '.'); import lifted; "
            "lifted.check_gradients(lambda x: x**2, lambda dy, x: 2 * dy * x, {'x': (3,)}); "
            "sys.exit('minisrcnn' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


# What is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "projection", "complex"])
def test_smooth_functions_are_measured_far_below_the_tolerance(mode):
    report = check_gradients(tanh, tanh_back, TANH, mode=mode)
    assert report.error < (1e-14 if mode == "complex" else 1e-10)
    assert report.coverage == 1


def test_a_linear_function_may_have_a_large_step_and_a_sharp_tolerance():
    report = check_gradients(mutants.conv, mutants.conv_back, mutants.CONV, step=1, rtol=1e-13)
    assert report.error < 1e-13


@pytest.mark.parametrize("degree", range(1, 9))
def test_polynomials_up_to_the_sixth_degree_have_no_truncation_error(degree):
    x = np.array([0.3, -0.7, 1.1])
    report = check_gradients(lambda x: x**degree, lambda dy, x: dy * degree * x ** (degree - 1),
                             {"x": x}, step=0.5, rtol=1e-2, min_coverage=1e-9, raises=False)
    if report.coverage == 1:
        assert (report.error < 1e-12) == (degree <= 6)
    else:  # curved so strongly within this step that it is told from a kink no more
        assert degree > 4


@given(N=st.integers(1, 3), C=st.integers(1, 3), F=st.integers(1, 3), KH=st.integers(1, 3),
       KW=st.integers(1, 3), OH=st.integers(1, 3), OW=st.integers(1, 3),
       seed=st.integers(0, 2**32 - 1), mode=st.sampled_from(["projection", "complex", "adjoint"]))
@settings(max_examples=30, deadline=None)
def test_right_gradients_pass_whatever_the_shape_and_the_seed(N, C, F, KH, KW, OH, OW, seed, mode):
    shapes = {"x": (N, C, OH + KH - 1, OW + KW - 1), "w": (F, C, KH, KW), "b": (F,)}
    check_gradients(mutants.conv, mutants.conv_back, shapes, mode=mode, seed=seed)


@given(shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
       seed=st.integers(0, 2**32 - 1), place=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_one_wrong_element_is_found_whatever_the_shape(shape, seed, place):
    wrong = np.unravel_index(place % int(np.prod(shape)), shape)

    def backward(dy, x):
        dx = np.asarray(dy * np.cos(x))
        dx[wrong] *= 1 + 1e-4
        return dx

    report = check_gradients(np.sin, backward, {"x": shape}, seed=seed, raises=False)
    assert not report.ok
    assert report["x"].index == wrong
    assert report["x"].analytic == pytest.approx(report["x"].numeric * (1 + 1e-4), rel=1e-6)


def test_every_kind_of_pair_is_taken():
    scale = np.array([1.0, -2.0, 3.0])
    check_gradients(lambda x: x * scale, lambda dy, x: dy * scale, {"x": (2, 3)})  # one array
    check_gradients(lambda x: (x * scale, None), lambda dy, cache: [dy * scale], {"x": (2, 3)})
    check_gradients(lambda x: (x * x, x), lambda dy, x: {"x": 2 * dy * x}, {"x": (2, 3)})
    check_gradients(lambda x: float(np.sum(x**2)), lambda dy, x: 2 * dy * x, {"x": (2, 3)})
    labels = np.array([2, 0, 1])
    check_gradients(lambda x, i: x[i], lambda dy, x, i: dy[np.argsort(i)],
                    {"x": (3, 2), "labels": labels})  # whole numbers are passed through


def test_float32_with_a_float64_oracle_is_sharp():
    report = check_gradients(tanh, tanh_back, TANH, dtype="float32", oracle=tanh)
    assert report.rtol == 1e-5
    assert report.dtype == "float32"
    wrong = check_gradients(tanh, lambda *a: [g * np.float32(1.0005) for g in tanh_back(*a)],
                            TANH, dtype="float32", oracle=tanh, raises=False)
    assert not wrong.ok
    assert "a factor of 0.9995" in wrong.mistake


def test_an_oracle_that_is_another_function_is_refused():
    report = check_gradients(tanh, tanh_back, TANH, oracle=lambda x, w: x @ w, raises=False)
    assert "forward and oracle differ" in report.problems[0]


# Kinks ----------------------------------------------------------------------------------------


def relu_report(x, mode="full", **options):
    return check_gradients(mutants.relu, mutants.relu_back, {"x": np.asarray(x)}, mode=mode,
                           **options)


@pytest.mark.parametrize("offset", [0, 1 / 16, 1 / 8, 2 / 9, 1 / 4, 1 / 3, 4 / 9, 1 / 2, 0.6, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_kink_anywhere_within_the_step_is_found_and_excluded(offset, sign):
    # 4/9 and 1/3 are where one of the two signs of a kink is blind; 0 is where the other is.
    step = 2.0**-12
    report = relu_report([sign * offset * step, 1.0, 2.0, -1.5], step=step)
    assert report.ok
    assert (report["x"].checked, report["x"].total) == (2, 3)  # the dead element never responds


def test_a_kink_beyond_the_step_is_checked():
    report = relu_report([1.1 * 2.0**-12, 1.0, 2.0])
    assert (report["x"].checked, report["x"].total) == (3, 3)


def test_too_many_kinks_fail():
    x = [0.0, 0.0, 0.0, 1.0]
    with pytest.raises(GradientCheckError, match="only 1 of 4 entries could be compared"):
        relu_report(x)
    assert relu_report(x, min_coverage=0.25).coverage == 0.25


def test_kinks_never_hide_a_wrong_gradient_elsewhere():
    def backward(dy, x):
        return np.where(x == 0, 123.0, 1.001 * (x > 0)) * dy

    report = check_gradients(mutants.relu, backward, {"x": np.array([0.0, 1.0, 2.0])}, raises=False)
    assert not report.ok
    assert report.error == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("f, df", [
    (np.abs, np.sign),
    (lambda x: np.minimum(x, 0.3), lambda x: 1.0 * (x < 0.3)),
    (lambda x: np.where(x > 0, x, 0.1 * x), lambda x: np.where(x > 0, 1, 0.1)),
    (np.floor, np.zeros_like),
])
@pytest.mark.parametrize("mode", ["full", "projection"])
def test_kinks_and_jumps_of_black_boxes(f, df, mode):
    x = np.random.default_rng(0).standard_normal(300)
    x[:5] = [0, 1e-5, -1e-5, 0.3, 1.0]
    report = check_gradients(f, lambda dy, x: dy * df(x), {"x": x}, mode=mode, min_coverage=1e-3,
                             raises=False)
    if f is np.floor:  # constant but for its jumps: there is nothing that could be compared
        assert not report.ok
    else:
        assert report.ok, str(report)
        assert report.coverage < 1


def test_coverage_in_projection_counts_outputs_and_survives_many_kinks():
    report = check_gradients(mutants.relu, mutants.relu_back, {"x": (40, 40)}, mode="projection",
                             step=0.1)
    assert 0.5 < report.coverage < 1


# Contract -------------------------------------------------------------------------------------


def test_randomness_is_found():
    rng = np.random.default_rng(0)

    def dropout(x):
        return x * (rng.random(x.shape) > 0.5)

    report = check_gradients(dropout, lambda dy, x: dy, {"x": (5, 5)}, raises=False)
    assert "not deterministic" in report.problems[0]

    def noisy(dy, x):
        return dy * (1 + 1e-12 * rng.random())

    report = check_gradients(lambda x: x, noisy, {"x": (5, 5)}, raises=False)
    assert "same gradient twice" in report["x"].problems[0]
    assert report["x"].mistake is None


def test_a_gradient_that_is_not_finite_is_refused():
    report = check_gradients(lambda x: 2 * x, lambda dy, x: dy * np.inf, {"x": (3,)}, raises=False)
    assert "not finite" in report["x"].problems[0]


@pytest.mark.parametrize("mode", ["full", "projection"])
def test_nan_for_some_dy_only_is_no_pass(mode):
    def backward(dy, x):  # NaN as soon as a whole row of dy is zero
        with np.errstate(invalid="ignore"):
            dead = (dy == 0).any() if mode == "full" else dy.sum() > 0
            return 2 * dy * np.where(dead, np.nan, 1)

    report = check_gradients(lambda x: 2 * x, backward, {"x": (3, 2)}, mode=mode, raises=False)
    assert not report.ok
    assert report.error == np.inf or not np.isfinite(report.error)


def test_one_number_is_too_little_to_name_an_unknown_factor():
    wrong = check_gradients(lambda x: x, lambda dy, x: 1.7 * dy, {"x": ()}, raises=False)
    assert not wrong.ok
    assert wrong.mistake is None
    wrong = check_gradients(lambda x: x, lambda dy, x: dy / 2, {"x": ()}, raises=False)
    assert wrong.mistake == "a factor 2 is missing"


def test_an_argument_without_effect_is_said_to_have_none():
    report = check_gradients(lambda x, c: 2 * x, lambda dy, x, c: (2 * dy, 0 * c),
                             {"x": (3,), "c": (3,)})
    assert report["x"].status == "ok"
    assert report["c"].status == "zero, agrees"
    assert "does not respond" in report["c"].notes[0]


def test_derivatives_of_rounding_alone_are_zero():
    def forward(x, b):  # b is taken out again: its derivative is rounding alone
        return (x + b) - (x + b).mean()

    report = check_gradients(forward, lambda dy, x, b: {"x": dy - dy.mean(), "b": 0 * b},
                             {"x": (5,), "b": ()}, zero="b")
    assert report["x"].ok
    assert report["b"].zero


def test_derivatives_that_drown_in_rounding_are_not_passed_silently():
    report = check_gradients(lambda x: 1e17 + x, lambda dy, x: dy, {"x": (5,)}, raises=False)
    assert not report.ok


@pytest.mark.parametrize("inputs, options, error, message", [
    ({}, {}, ValueError, "inputs is empty"),
    ({"x": [2, 3]}, {}, ValueError, r"the list \[2, 3\], want the tuple \(2, 3\)"),
    ({"x": (3,)}, {"points": 0}, ValueError, "points is 0"),
    ({"x": (3,)}, {"max_memory": 10}, ValueError, "max_memory is 10"),
    ({"x": np.zeros((0, 3))}, {}, ValueError, "at least one element"),
    ({"x": np.ones(3, "float16")}, {}, TypeError, "float16"),
    ({"x": np.ones(3), "z": np.ones(3, "float32")}, {}, TypeError, "float32"),
    ({"x": (3,)}, {"mode": "fast"}, ValueError, "mode is 'fast'"),
    ({"x": (3,)}, {"wrt": ["z"]}, ValueError, "wrt has 'z'"),
    ({"x": (3,)}, {"min_coverage": 0}, ValueError, "min_coverage is 0"),
    ({"x": (3,)}, {"directions": 0}, ValueError, "directions is 0"),
    ({"x": (3,)}, {"step": 0}, ValueError, "step is 0"),
    ({"x": (3,)}, {"rtol": -1}, ValueError, "rtol is -1"),
])
def test_what_is_asked_for_wrongly_is_refused(inputs, options, error, message):
    with pytest.raises(error, match=message):
        check_gradients(lambda x, *z: 2 * x, lambda dy, x, *z: (2 * dy,), inputs, **options)


def test_modes_that_do_not_fit_the_function_say_so():
    with pytest.raises(ValueError, match="not affine in x"):
        check_gradients(tanh, tanh_back, TANH, mode="adjoint")
    with pytest.raises(ValueError, match="complex inputs"):
        check_gradients(lambda x: np.real(x), lambda dy, x: dy, {"x": (3,)}, mode="complex")
    with pytest.raises(TypeError, match="backward gave 1 gradients, want 2: x, w"):
        check_gradients(tanh, lambda dy, x, w: (dy,), TANH)


# Reports --------------------------------------------------------------------------------------


def test_the_report_says_all_that_is_needed():
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(tanh, lambda dy, x, w: (tanh_back(dy, x, w)[0], -tanh_back(dy, x, w)[1]),
                        TANH, seed=3, name="my layer")
    assert isinstance(caught.value, AssertionError)
    report = caught.value.report
    text = str(caught.value)
    assert not report.ok
    assert report["x"].ok
    w = report["w"]
    assert not w.ok
    assert w.analytic == pytest.approx(-w.numeric, rel=1e-6)
    assert w.mistake == report.mistake == "sign wrong"
    for part in ("my layer: FAILED", "mode full", "float64", f"step {2.0**-12:.3g}", "seed 3",
                 f"w{list(w.index)}", f"y{list(w.output)}", f"analytic {w.analytic:.9g}",
                 f"numeric {w.numeric:.9g}", "likely mistake: sign wrong"):
        assert part in text


def test_one_seed_one_report():
    reports = [str(check_gradients(tanh, tanh_back, TANH, seed=seed)) for seed in (1, 1, 2)]
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]


def test_a_failed_projection_is_located():
    def backward(dy, x):
        dx = dy * 2
        dx[3, 1] = 0
        return dx

    report = check_gradients(lambda x: 2 * x, backward, {"x": (5, 4)}, mode="projection",
                             raises=False)
    assert report["x"].index == (3, 1)
    assert report["x"].analytic == 0


# Layers, losses, updates ----------------------------------------------------------------------


def chain(dtype="float64"):
    return Chain({"conv1": Conv2d(2, 3, (3, 2), backend="numpy", dtype=dtype, rng=0),
                  "relu": ReLU(backend="numpy"),
                  "conv2": Conv2d(3, 2, 2, backend="numpy", dtype=dtype, rng=1)})


@pytest.mark.parametrize("mode, dtype", [
    *itertools.product(["full", "projection", "complex"], ["float64"]),
    ("full", "float32"), ("complex", "float32")])
def test_layers_of_the_engine_pass_and_get_their_parameters_back(mode, dtype):
    layer = chain(dtype)
    before = {key: value.copy() for key, value in layer.parameters.items()}
    arrays = dict(layer.parameters)
    report = check_layer(layer, (2, 2, 6, 5), mode=mode)
    assert report.name == "Chain"
    assert report.dtype == dtype
    assert [a.name for a in report.arguments] == ["x", *before]
    for key, value in layer.parameters.items():
        assert value is arrays[key]
        assert np.array_equal(value, before[key])
        assert layer.layers[key.split(".")[0]].parameters[key.split(".")[1]] is value


def test_a_layer_that_writes_to_its_parameters_is_caught():
    class Writes(Conv2d):
        def forward(self, x):
            self.parameters["weight"] *= 0.5
            return super().forward(x)

    layer = Writes(1, 2, 2, backend="numpy", dtype="float64", rng=0)
    before = layer.parameters["weight"].copy()
    report = check_layer(layer, (1, 1, 3, 3), raises=False)
    assert "forward writes to weight" in report.problems
    assert np.array_equal(layer.parameters["weight"], before)


def test_losses():
    mse = get_backend("numpy").mse
    shapes = {"y": (2, 3, 4), "t": (2, 3, 4)}
    assert check_loss(mse, shapes, step=1).error < 1e-12
    report = check_loss(lambda y, t: (mse(y, t)[0], mse(y, t)[1] / 2), shapes, raises=False)
    assert "a factor 2 or N (N = 2, the batch size) is missing" in report.mistake


def asarray(a):
    return Device(a)


class Device:
    """A stand-in for an array on a device: nothing but the seam's functions may touch it."""

    def __init__(self, a):
        self.a = a

    def get(self):
        return self.a.copy()


def test_arrays_of_a_device():
    def forward(x, w):
        return Device(tanh(x.a, w.a)), (x, w)

    def backward(dy, cache):
        dx, dw = tanh_back(dy.a, cache[0].a, cache[1].a)
        return {"x": Device(dx), "w": Device(dw)}

    assert check_gradients(forward, backward, TANH, asarray=Device).ok
    explicit = check_gradients(forward, backward, TANH, asarray=Device, to_numpy=lambda d: d.a)
    assert explicit.ok
    # As with CuPy: an array among the inputs shows the way to the device and back.
    x = Device(np.random.default_rng(0).standard_normal((4, 3)))
    assert check_gradients(forward, backward, {"x": x, "w": (3, 5)}).ok


def test_arrays_of_the_emulated_device():
    if (reason := unavailable_reason("cupy-emulated")) is not None:
        pytest.skip(reason)
    assert check_layer(ReLU(backend="cupy-emulated"), get_backend("cupy-emulated").asarray(
        np.random.default_rng(0).standard_normal((3, 4)), "float64")).ok


def test_updates_that_are_asked_for_wrongly():
    with pytest.raises(ValueError, match="formula gave"):
        check_update(mutants.sgd, lambda p, g, v: {"z": p}, mutants.SGD_STATE)
    with pytest.raises(ValueError, match="steps is 0"):
        check_update(mutants.sgd, mutants.sgd_formula, mutants.SGD_STATE, steps=0)


def test_an_update_that_is_wrong_from_the_second_step_on_is_caught():
    calls = []

    def update(param, grad, velocity):
        calls.append(1)
        velocity[...] = 0.9 * velocity * (len(calls) == 1) - 0.1 * grad
        param += velocity

    report = check_update(update, mutants.sgd_formula, mutants.SGD_STATE, raises=False)
    assert "step 2" in report["velocity"].problems[0]
    assert "the term in velocity" in report["velocity"].mistake
