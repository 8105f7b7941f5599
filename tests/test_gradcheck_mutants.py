"""Every mutant of the zoo is caught in every mode, and called by its name."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from mutants import (
    CONV,
    LR,
    MU,
    MUTANTS,
    SGD_MUTANTS,
    SGD_STATE,
    SQUARE,
    conv,
    conv_back,
    conv_db,
    conv_dw,
    conv_dx,
    mse,
    mse_back,
    relu,
    relu_back,
    sgd,
    sgd_formula,
)

from minisrcnn.gradcheck import GradientCheckError, check_gradients, check_update

MODES = ("full", "projection", "complex", "adjoint")


def complex_relu(x):
    return np.where(np.real(x) > 0, x, 0)


@pytest.mark.parametrize("shape", oracles.SHAPES[3:7])
def test_the_small_engine_is_scipys(shape):
    x, w, b, dy = oracles.draw(shape)
    ours = conv(x, w, b), conv_dx(dy, w), conv_dw(x, dy)
    for got, want in zip(ours, oracles.all_three(x, w, b, dy), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_the_zoo_is_large_enough():
    assert len(MUTANTS) + len(SGD_MUTANTS) >= 45
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mode", MODES)
def test_the_originals_pass(mode, dtype):
    for shapes in (CONV, SQUARE):
        if mode != "complex" or shapes is CONV:
            check_gradients(conv, conv_back, shapes, mode=mode, dtype=dtype)
    if mode != "adjoint":
        check_gradients(complex_relu, relu_back, {"x": (3, 5, 4)}, mode=mode, dtype=dtype)
        check_gradients(mse, mse_back, {"y": (3, 2, 4), "t": (3, 2, 4)}, wrt=("y",), mode=mode,
                        dtype=dtype)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught_and_named(mutant):
    fresh = mutant.backward() if isinstance(mutant.backward, type) else mutant.backward
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(mutant.forward, fresh, mutant.inputs, wrt=mutant.wrt)
    report = caught.value.report
    bad = [a.name for a in report.arguments if not a.ok]
    assert bad == [mutant.wrong] or (not bad and report.problems), str(report)
    mistake = report[mutant.wrong].mistake
    if mutant.says is None:
        assert mistake is None, str(report)
    else:
        assert mistake is not None, str(report)
        assert mutant.says in mistake, str(report)


def in_turn(mutants, modes):
    """Every mutant in one of the modes every day, in the others when there is time."""
    for i, mutant in enumerate(mutants):
        for k, mode in enumerate(modes):
            yield pytest.param(mode, mutant, id=f"{mode}-{mutant.name}",
                               marks=[] if i % 2 and k == i % len(modes) else [pytest.mark.slow])


@pytest.mark.parametrize(("mode", "mutant"), list(in_turn(
    [m for m in MUTANTS if m.forward is conv], ["projection", "complex", "adjoint"])))
def test_the_other_modes_catch_and_name_them_too(mutant, mode):
    fresh = mutant.backward() if isinstance(mutant.backward, type) else mutant.backward
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(mutant.forward, fresh, mutant.inputs, wrt=mutant.wrt, mode=mode)
    report = caught.value.report
    assert [a.name for a in report.arguments if not a.ok] == [mutant.wrong]
    if mutant.says and not mutant.only_full:
        assert mutant.says in report[mutant.wrong].mistake, str(report)


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.forward in (relu, mse)],
                         ids=lambda mutant: mutant.name)
def test_projection_catches_the_mutants_of_relu_and_mse(mutant):
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(mutant.forward, mutant.backward, mutant.inputs, wrt=mutant.wrt,
                        mode="projection")
    assert (mutant.says or "") in (caught.value.report.mistake or "")


@pytest.mark.parametrize("mutant", [
    pytest.param(m, id=m.name, marks=[pytest.mark.slow] if i % 2 else []) for i, m in enumerate(
        m for m in MUTANTS if m.inputs is CONV and m.says and "0.05" not in m.name)])
def test_float32_catches_and_names_them_too(mutant):
    fresh = mutant.backward() if isinstance(mutant.backward, type) else mutant.backward
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(conv, fresh, mutant.inputs, dtype="float32")
    assert mutant.says in caught.value.report[mutant.wrong].mistake


@pytest.mark.parametrize(("mode", "key"), [
    pytest.param(mode, key, marks=[] if i == j % 3 else [pytest.mark.slow])
    for j, mode in enumerate(MODES) for i, key in enumerate(["x", "w", "b"])])
def test_a_gradient_off_by_a_twentieth_of_a_percent_is_rejected(mode, key):
    def off(factor):
        def backward(dy, x, w, b):
            grads = conv_back(dy, x, w, b)
            return grads | {key: grads[key] * factor}
        return backward

    assert not check_gradients(conv, off(1.0005), CONV, mode=mode, raises=False).ok
    assert check_gradients(conv, off(1 + 1e-15), CONV, mode=mode).ok
    if mode != "full":
        assert not check_gradients(conv, off(np.float32(1.0005)), CONV, mode=mode, raises=False,
                                   dtype="float32", oracle=conv).ok


def test_one_wrong_element_among_many_small_ones_is_found():
    # A gradient spread over six orders of magnitude; its smallest element is wrong.
    scale = np.logspace(0, -6, 7)

    def backward(dy, x):
        dx = dy * scale
        dx[-1] = 0
        return dx

    report = check_gradients(lambda x: x * scale, backward, {"x": (7,)}, raises=False)
    assert not report.ok
    assert report["x"].index == (6,)
    assert report["x"].output == (6,)


def test_an_upstream_gradient_of_ones_would_have_been_blind():
    # The reason why dy is drawn at random: with ones, this wrong dw equals the right one.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 1, 6, 6))
    x = x + x.swapaxes(2, 3)
    dy = np.ones((1, 1, 4, 4))
    assert np.allclose(conv_dw(x, dy), conv_dw(x, dy).swapaxes(2, 3))

    def backward(dy, x, w, b):
        return {"x": conv_dx(dy, w), "w": conv_dw(x, dy).swapaxes(2, 3), "b": conv_db(dy)}

    report = check_gradients(conv, backward, {"x": x, "w": (1, 1, 3, 3), "b": (1,)}, raises=False)
    assert "H and W swapped" in report["w"].mistake


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_right_update_passes(dtype):
    report = check_update(sgd, sgd_formula, SGD_STATE, dtype=dtype)
    assert report.ok
    assert [a.name for a in report.arguments] == ["param", "grad", "velocity"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SGD_MUTANTS)
def test_every_wrong_update_is_caught_and_named(name, dtype):
    update, wrong, says = SGD_MUTANTS[name]
    with pytest.raises(GradientCheckError) as caught:
        check_update(update, sgd_formula, SGD_STATE, dtype=dtype)
    argument = caught.value.report[wrong]
    assert not argument.ok
    assert says in argument.mistake, str(caught.value)


def test_an_update_off_by_a_twentieth_of_a_percent_is_rejected():
    def update(param, grad, velocity):
        velocity[...] = MU * velocity - 1.0005 * LR * grad
        param += velocity

    for dtype in ("float64", "float32"):
        assert not check_update(update, sgd_formula, SGD_STATE, dtype=dtype, raises=False).ok
