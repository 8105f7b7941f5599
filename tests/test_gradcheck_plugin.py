"""The fixture, in the suite of a small project that has nothing to do with this one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np  # noqa: F401  (loaded before pytester restores sys.modules: never twice)
import pytest

pytest_plugins = "pytester"

LAYER = '''
import numpy as np


class Affine:
    """y = x w + b, with a switch for a mistake."""

    def __init__(self, inputs, outputs, wrong=False):
        self.parameters = {"w": np.full((inputs, outputs), 1e-3), "b": np.zeros(outputs)}
        self.wrong = wrong

    def forward(self, x):
        return x @ self.parameters["w"] + self.parameters["b"], x

    def backward(self, dy, x):
        dw = x.T @ dy
        if self.wrong:
            dw /= len(x)
        return dy @ self.parameters["w"].T, {"w": dw, "b": dy.sum(axis=0)}


def square(y, t):
    return np.sum((y - t) ** 2), 2 * (y - t)


def descend(param, grad):
    param -= 0.5 * grad
'''


@pytest.fixture
def project(pytester):
    pytester.makepyfile(affine=LAYER)
    return pytester


def test_a_right_project_passes_in_one_line_a_check(project):
    project.makepyfile("""
        import numpy as np
        from affine import Affine, descend, square

        def test_layer(gradcheck):
            layer = Affine(4, 3)
            report = gradcheck.layer(layer, (5, 4))
            assert report.ok and report.coverage == 1
            assert gradcheck.reports == [report]
            assert np.all(layer.parameters["w"] == 1e-3)  # restored

        def test_pair(gradcheck):
            gradcheck(lambda x: np.tanh(x), lambda dy, x: dy / np.cosh(x) ** 2, {"x": (3, 2)})

        def test_loss(gradcheck):
            gradcheck.loss(square, {"y": (2, 3), "t": (2, 3)})

        def test_update(gradcheck):
            gradcheck.update(descend, lambda param, grad: {"param": param - 0.5 * grad},
                             {"param": (3,), "grad": (3,)})
    """)
    result = project.runpytest_subprocess("-q")
    result.assert_outcomes(passed=4)


def test_a_wrong_gradient_fails_with_the_report(project):
    project.makepyfile("""
        from affine import Affine

        def test_layer(gradcheck):
            gradcheck.layer(Affine(4, 3, wrong=True), (5, 4))
    """)
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        ">*gradcheck.layer(Affine(4, 3, wrong=True), (5, 4))",
        "E *gradient check of Affine: FAILED",
        "E *mode full, float64, step *, tolerance 1e-07, seed 0",
        "E *x * (5, 4) * ok",
        "E *w * (4, 3) * WRONG",
        "E *worst at w[[]*[]], output y[[]*[]]: analytic *, numeric *",
        "E *likely mistake: a factor N (N = 5, the batch size) is missing",
    ])
    # The traceback is the user's line, not the checker's inside.
    assert "raise_if_failed" not in result.stdout.str()


def test_the_seed_is_an_option_and_the_outcome_is_in_the_junit_file(project):
    project.makepyfile("""
        from affine import square

        def test_loss(gradcheck):
            assert gradcheck.loss(square, {"y": (2,), "t": (2,)}).seed == 7
            assert gradcheck.loss(square, {"y": (2,), "t": (2,)}, seed=1).seed == 1
    """)
    project.runpytest_inprocess("--gradcheck-np-seed=7", "--junit-xml=out.xml").assert_outcomes(
        passed=1)
    assert "square: passed, error" in (project.path / "out.xml").read_text()


def test_the_junit_file_costs_no_warning_and_no_option_collides(project):
    project.makeconftest("""
        def pytest_addoption(parser):
            parser.addoption("--gradcheck-seed", default="mine")
    """)
    project.makepyfile("""
        from affine import square

        def test_loss(gradcheck, request):
            gradcheck.loss(square, {"y": (2,), "t": (2,)})
            assert request.config.getoption("--gradcheck-seed") == "mine"
    """)
    result = project.runpytest_subprocess("--junit-xml=out.xml", "-W", "error")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*warnings summary*")


def test_fixtures_of_any_scope_and_hypothesis(project):
    project.makepyfile("""
        import numpy as np
        import pytest
        from affine import Affine
        from hypothesis import given, settings

        from minisrcnn.gradcheck_pytest import shapes

        @pytest.fixture(scope="module")
        def checked(gradcheck):
            return gradcheck.layer(Affine(4, 3), (5, 4))

        @pytest.fixture(scope="class")
        def again(gradcheck, checked):
            return gradcheck.layer(Affine(4, 3), (5, 4))

        class TestIt:
            def test_first(self, checked, again, gradcheck):
                assert gradcheck.reports == [checked, again]

            def test_second(self, checked, again, gradcheck):
                assert gradcheck.reports == [] and checked.ok

        @given(shapes({"x": "N C", "w": "C F"}, N=(2, 3)))
        @settings(max_examples=5, deadline=None)
        def test_any_shape(gradcheck, inputs):
            assert inputs["x"][1] == inputs["w"][0] and 2 <= inputs["x"][0] <= 3
            gradcheck(np.matmul, lambda dy, x, w: (dy @ w.T, x.T @ dy), inputs)
    """)
    project.runpytest_subprocess("-q").assert_outcomes(passed=3)


def test_strategies_that_are_asked_for_wrongly():
    from minisrcnn.gradcheck_pytest import shapes

    with pytest.raises(ValueError, match="sizes has 'H', want some of"):
        shapes({"x": "N C"}, H=(1, 2))


def test_raises_false_returns_the_failed_report(project):
    project.makepyfile("""
        from affine import Affine

        def test_layer(gradcheck):
            report = gradcheck.layer(Affine(4, 3, wrong=True), (5, 4), raises=False)
            assert not report.ok
    """)
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_the_plugin_loads_no_numpy():
    code = "import sys, minisrcnn.gradcheck_pytest; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
