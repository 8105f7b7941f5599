"""The loss: mean squared error, with its hand-derived gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .backends import get_backend


def mse(y: Any, t: Any, *, backend: str | ModuleType = "auto") -> tuple[Any, Any]:
    """Return the mean squared error over all M elements, and its gradient with respect to ``y``.

    ::

        loss = 1/M sum_k (y[k] - t[k])^2
        dy[k] = d loss / d y[k] = 2/M (y[k] - t[k])

    M counts every element: batch, channels, rows and columns.

    Parameters
    ----------
    y, t : arrays of one shape and dtype
        Output and target.
    backend : str or module
        What computes; see :func:`minisrcnn.get_backend`.

    Returns
    -------
    loss : float
        On ``cupy`` an array with no dimensions, still on the device.
    dy : array of the shape of ``y``

    Raises
    ------
    TypeError, ValueError
        If the arguments are not arrays of one shape and of a dtype that the backend accepts.
    """
    return get_backend(backend).mse(y, t)
