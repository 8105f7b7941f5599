"""Checks of single numbers: one wording of errors, for the engine, the imaging part and commands.

Each check returns the value as a plain ``int`` or ``float``, or raises ``TypeError`` (not a number
of that kind) or ``ValueError`` (out of range) with one line: ``scale is 1, want an integer from 2
to 16``.
"""

from __future__ import annotations

import math
import re
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


def check_bytes(name: str, value: Any, low: int = 1) -> int:
    """Return a size in bytes that is written as ``500MB``, ``2 GB`` or ``1.5GiB``.

    Decimal units are powers of 1000, binary ones (``KiB``) powers of 1024.

    Parameters
    ----------
    name, value : str
    low : int
        Bytes, at least.

    Raises
    ------
    TypeError, ValueError
        If it is no text, not so written, or too small.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is {describe(value)}, want a size such as 500MB or 2GB")
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT])(i?)B\s*", value,
                         re.ASCII | re.IGNORECASE)
    if not match:
        raise ValueError(f"{name} is {value!r}, want a size such as 500MB or 2GB")
    power = "KMGT".index(match[2].upper()) + 1
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size < low:
        raise ValueError(f"{name} is {value}, want at least {low / 1e6:g}MB")
    return size


def describe(value: Any) -> str:
    """Name the type of a value for an error message: ``a list``, ``an int``, ``None``."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else (
        f"{kind.__module__}.{kind.__qualname__}")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
