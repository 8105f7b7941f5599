"""Checks of single numbers: one wording of errors, for the engine, the imaging part and commands.

Each check returns the value as a plain ``int`` or ``float``, or raises ``TypeError`` (not a number
of that kind) or ``ValueError`` (out of range) with one line: ``scale is 1, want an integer from 2
to 16``.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return ``value`` as an int in [low, high], or raise an error that names it.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : int or NumPy integer
    low, high : int
        Bounds, both allowed; None: no upper bound.

    Raises
    ------
    TypeError
        If ``value`` is not an integer (a bool is not).
    ValueError
        If it is out of range.
    """
    bound = f"of at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}, want an integer {bound}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {value}, want an integer {bound}")
    return number


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return ``value`` as a finite float in [low, high), or raise an error that names it.

    Raises
    ------
    TypeError
        If ``value`` is not a real number (a bool is not).
    ValueError
        If it is out of range, NaN or infinite.
    """
    bound = f"of at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {describe(value)}, want a finite number {bound}")
    number = float(value)
    if not (math.isfinite(number) and low <= number < high):
        raise ValueError(f"{name} is {value}, want a finite number {bound}")
    return number


def describe(value: Any) -> str:
    """Name the type of a value for an error message: ``a list``, ``an int``, ``None``."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else (
        f"{kind.__module__}.{kind.__qualname__}")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
