"""The pytest plugin: a fixture ``gradcheck``, so that a suite checks a gradient in one line.

::

    def test_my_layer(gradcheck):
        gradcheck(forward, backward, {"x": (4, 3), "w": (3, 5)})
        gradcheck.layer(MyLayer(), (2, 3, 8, 8))
        gradcheck.loss(my_loss, {"y": (2, 5), "t": (2, 5)})
        gradcheck.update(my_update, formula, {"param": (3,), "grad": (3,)})

The plugin is found by its entry point; nothing is to be imported. NumPy is loaded by the first
test that asks for the fixture, not when pytest starts. The fixture lives as long as the session, so
fixtures of any scope and tests under Hypothesis's ``@given`` may use it; :func:`shapes` is a
strategy for shapes that fit together. ``--gradcheck-np-seed`` draws other numbers.

This file and ``gradcheck.py`` beside it can be lifted out together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .gradcheck import GradientReport

_ITEM = pytest.StashKey[pytest.Item]()
_REPORTS = pytest.StashKey["list[GradientReport]"]()


class Gradcheck:
    """What the fixture is: ``check_gradients`` when called, with the other checks beside it.

    Every report is kept in ``reports`` for as long as its test runs, and its outcome in the test's
    user properties, which ``--junit-xml`` writes out.

    Parameters
    ----------
    config : pytest.Config
        Knows the seed of every check that does not say its own, and the test that runs.
    """

    def __init__(self, config: pytest.Config) -> None:
        from . import gradcheck

        self._module = gradcheck
        self._config = config

    @property
    def reports(self) -> list[GradientReport]:
        """The reports of the test that runs."""
        return self._config.stash[_ITEM].stash.setdefault(_REPORTS, [])

    def __call__(self, *args: Any, **options: Any) -> GradientReport:
        """Check a pair; see ``check_gradients``."""
        __tracebackhide__ = True
        return self._run(self._module.check_gradients, args, options)

    def layer(self, *args: Any, **options: Any) -> GradientReport:
        """Check a layer; see ``check_layer``."""
        __tracebackhide__ = True
        return self._run(self._module.check_layer, args, options)

    def loss(self, *args: Any, **options: Any) -> GradientReport:
        """Check a loss; see ``check_loss``."""
        __tracebackhide__ = True
        return self._run(self._module.check_loss, args, options)

    def jvp(self, *args: Any, **options: Any) -> GradientReport:
        """Check a forward-mode derivative; see ``check_jvp``."""
        __tracebackhide__ = True
        return self._run(self._module.check_jvp, args, options)

    def update(self, *args: Any, **options: Any) -> GradientReport:
        """Check an update rule; see ``check_update``."""
        __tracebackhide__ = True
        return self._run(self._module.check_update, args, options)

    def _run(
        self, check: Callable[..., GradientReport], args: tuple[Any, ...], options: dict[str, Any]
    ) -> GradientReport:
        __tracebackhide__ = True
        raises = options.pop("raises", True)
        seed = self._config.getoption("gradcheck_np_seed")
        report = check(*args, **{"seed": seed, **options, "raises": False})
        self.reports.append(report)
        # Straight into the list: record_property is of one test, and warns in xunit2 files.
        self._config.stash[_ITEM].user_properties.append(
            ("gradcheck", f"{report.name}: {'passed' if report.ok else 'FAILED'}, "
                          f"error {report.error:.1e}, coverage {report.coverage:.1%}"))
        if raises:
            report.raise_if_failed()
        return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gradcheck-np-seed``, unless another copy of this plugin has."""
    with contextlib.suppress(ValueError):  # minisrcnn and gradcheck-np are both installed
        parser.getgroup("gradcheck").addoption(
            "--gradcheck-np-seed", type=int, default=0, metavar="SEED", dest="gradcheck_np_seed",
            help="seed of the numbers that the gradcheck fixture draws (default 0)")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember which test runs."""
    item.config.stash[_ITEM] = item


@pytest.fixture(scope="session")
def gradcheck(pytestconfig: pytest.Config) -> Gradcheck:
    """Check gradients in one line: ``gradcheck(forward, backward, {"x": (4, 3)})``."""
    return Gradcheck(pytestconfig)


def shapes(
    layout: Mapping[str, str] | None = None, *, smallest: int = 1, largest: int = 4,
    **sizes: tuple[int, int],
) -> Any:
    """Return a Hypothesis strategy for the inputs of a check: shapes whose axes agree.

    ``shapes({"x": "N C", "w": "C F", "b": "F"}, N=(2, 5))`` draws ``{"x": (3, 1), "w": (1, 4),
    "b": (4,)}`` and the like: one size for each letter.

    Parameters
    ----------
    layout : mapping
        Name to the names of its axes, apart by blanks.
    smallest, largest : int
        The bounds of a size.
    **sizes : (int, int)
        The bounds of single sizes.

    Returns
    -------
    hypothesis.strategies.SearchStrategy

    Raises
    ------
    ImportError
        If Hypothesis is not installed.
    ValueError
        If ``sizes`` has a name that no axis has.
    """
    try:
        from hypothesis import strategies as st
    except ImportError as error:
        raise ImportError("shapes() needs Hypothesis: pip install hypothesis") from error
    axes = {key: text.split() for key, text in (layout or {}).items()}
    letters = sorted({letter for names in axes.values() for letter in names})
    for letter in sizes:
        if letter not in letters:
            raise ValueError(f"sizes has {letter!r}, want some of {letters}")
    bounds = {letter: sizes.get(letter, (smallest, largest)) for letter in letters}
    drawn = st.fixed_dictionaries({k: st.integers(*pair) for k, pair in bounds.items()})
    return drawn.map(lambda size: {key: tuple(size[letter] for letter in names)
                                   for key, names in axes.items()})
