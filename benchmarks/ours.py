"""What computes a case: the backends, the CPU lessons, and a file of your own.

All of them are modules with a backend's functions (``conv2d_forward``, ..., and where they have
them ``chain_loss_and_gradients`` and ``chain_predict``), so one function makes a call of each.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .cases import Case, Convolution, Inference, Training, step_by_layer
from .machine import ROOT

Call = Callable[[], Any]


class NotOffered(Exception):
    """Raised where an implementation has no such operation."""


@dataclass
class Prepared:
    """A case, ready to be timed.

    Attributes
    ----------
    calls : dict
        Each setting's call; the fastest is the one that is timed.
    fetch : callable
        Makes NumPy arrays of what a call returns.
    whole : callable, optional
        For a device: from arrays of the host to arrays of the host.
    mflop : float, optional
        Operations of a call, where only the implementation knows.
    stream : context manager
        For a device: the stream that the work is queued on, where the events must be, too.
    """

    calls: dict[str, Call]
    fetch: Callable[[Any], Any] = field(default=lambda result: result)
    whole: Call | None = None
    mflop: float | None = None
    stream: Any = field(default_factory=contextlib.nullcontext)


@dataclass(frozen=True)
class Implementation:
    """A column of the table.

    Attributes
    ----------
    name : str
        The column's title.
    prepare : callable
        ``(case, threads) -> Prepared``; raises :class:`NotOffered`, or ImportError where a package
        is missing.
    suites : tuple of str
        What it takes part in.
    device : {"cpu", "gpu"}
    kind : {"textbook", "lesson", "ours", "peer", "yours", "roof"}
    gate : float
        Largest error against float64 with which it is still timed.
    needs : str
        What it cannot run without; where that is missing, so are all others that need it.
    most_mflop : float
        Work beyond which it is skipped: the loops of ``reference``.
    done_mflop : callable, optional
        Operations actually done for a case.
    """

    name: str
    prepare: Callable[[Case, int], Prepared]
    suites: tuple[str, ...] = ("ops", "training", "inference")
    device: str = "cpu"
    kind: str = "ours"
    gate: float = 1e-4
    needs: str = ""
    most_mflop: float = float("inf")
    done_mflop: Callable[[Case], float | None] = field(default=lambda case: None)


def prepare_module(module: ModuleType | Any, case: Case, threads: int) -> Prepared:
    """Prepare a case for a module with a backend's functions over NumPy arrays."""
    if isinstance(case, Convolution):
        function = getattr(module, case.function, None)
        arguments = [case.data[name] for name in case.arguments]
        if function is not None:
            return Prepared({"": lambda: function(*arguments)})
    elif isinstance(case, Training):
        fused = getattr(module, "chain_loss_and_gradients", None)
        params, x, t = case.params, case.data["x"], case.data["t"]
        if fused is not None:
            return Prepared({"fused": lambda: fused(params, x, t)})
        if hasattr(module, "conv2d_backward_bias"):
            return Prepared({"by layer": lambda: step_by_layer(module, case, np.float32)})
    elif isinstance(case, Inference):
        predict = getattr(module, "chain_predict", None)
        params, image = case.params, case.data["image"]
        if predict is not None:
            return Prepared({"fused": lambda: predict(params, image)})
    raise NotOffered


def backend(name: str, title: str, **more: Any) -> Implementation:
    """Return a backend as a column."""
    def prepare(case: Case, threads: int) -> Prepared:
        from minisrcnn.engine.backends import get_backend

        return prepare_module(get_backend(name), case, threads)

    return Implementation(title, prepare, **more)


def lessons() -> list[Implementation]:
    """Return every numbered CPU lesson, found by listing the folder."""
    names = [path.stem for path in (ROOT / "kernels" / "cpu" / "lessons").glob("v[0-9]*_*.py")]

    def prepare(name: str) -> Callable[[Case, int], Prepared]:
        return lambda case, threads: prepare_module(
            importlib.import_module(f"minisrcnn.kernels.cpu.lessons.{name}"), case, threads)

    names.sort(key=lambda name: int(name[1:].split("_")[0]))
    return [Implementation(name, prepare(name), suites=("ops", "training"), kind="lesson")
            for name in names]


def your_file(path: Path) -> Implementation:
    """Return a Python file with any of a backend's functions as a column."""
    def prepare(case: Case, threads: int) -> Prepared:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return prepare_module(module, case, threads)

    return Implementation(path.stem, prepare, kind="yours")


def done_by_production(case: Case) -> float | None:
    """Return the operations that the ``numba`` backend does: Winograd's are fewer.

    Counted are the multiply-adds of the products, with what hangs over the edge of a tile; not
    the transforms, nor vectors that are not full.
    """
    try:
        if isinstance(case, Convolution):
            return _done(case, first=True)
        if isinstance(case, Training | Inference):
            first = case.layers[0][0].shape
            return sum(_done(c, first=first == (c.F, c.C, c.K, c.K)) for c in case.convolutions())
    except (ImportError, AttributeError):  # another revision, by ab
        pass
    return None


def _done(case: Convolution, first: bool) -> float:
    """Operations of one convolution: by tiles of m x m, by columns of m, or the plain sum."""
    from minisrcnn.kernels.cpu.production import winograd, winograd1d

    OH, OW = case.output
    pairs = 2e-6 * case.N * case.C * case.F
    m = winograd.outputs(case.F, case.C, case.K, case.K)
    if m:
        return pairs * -(-OH // m) * -(-OW // m) * (m + case.K - 1) ** 2
    if (first and case.operation != "input gradient"
            and winograd1d.is_made_for(case.F, case.C, case.K)):
        m = winograd1d.M  # the rows of the filter in groups of three
        return pairs * -(-OH // m) * (m + 2) * (case.K // 3) * case.K * OW
    if case.operation == "input gradient" and case.K > 1:
        return pairs * case.H * case.W * case.K**2  # dy within a border of zeros
    return case.mflop


def implementations() -> list[Implementation]:
    """Return our columns, slowest first."""
    return [
        backend("reference", "reference", suites=("ops",), kind="textbook",
                most_mflop=0.2),
        backend("numpy", "numpy", suites=("ops", "training"), kind="textbook",
                most_mflop=2000),
        *lessons(),
        backend("numba", "production", done_mflop=done_by_production),
    ]
