"""Check hand-written gradients: one file, NumPy only, for any function with a backward.

::

    def forward(x, w):
        return np.tanh(x @ w)

    def backward(dy, x, w):
        dz = dy * (1 - np.tanh(x @ w) ** 2)
        return dz @ w.T, x.T @ dz

    check_gradients(forward, backward, {"x": (4, 3), "w": (3, 5)})

A shape stands for a random array of that shape. If a gradient is wrong, the call raises a
:class:`GradientCheckError` that shows where, by how much, and which known mistake explains it.
:func:`check_layer`, :func:`check_loss`, :func:`check_jvp` and, for the in-place rules of
optimizers, :func:`check_update` are made of the same parts; :func:`jacobian` gives the matrix.

How a derivative is measured
----------------------------
A central difference with the step h is exact for a function that is affine along the direction,
which ``f(x + h) + f(x - h) = 2 f(x)`` tells. Otherwise the steps h, h/2 and h/4 are extrapolated
to step zero (Romberg). The same values tell a kink from a slope: where a function is smooth,
extrapolations from the larger and from the smaller steps agree, and so do the derivatives from
the left and the right. What they disagree by, and what the rounding of ``forward`` (measured, by
changing its inputs in their last bit) leaves undecided, is the *doubt* of an entry. If it is too
large, smaller steps are tried (kinks) and larger ones (noise). A float32 function that also
takes float64, and is the same there, is measured in float64. An entry that stays in doubt is
*excluded and counted*, never tolerated; that verdict rests on ``forward`` alone, so a wrong
``backward`` cannot hide there. If most entries are in doubt because ``forward`` is noisy, the
tolerance is widened for that argument as far as its noise demands, up to 5 %, and the report says
so: the column "sees" is the smallest relative error that would have failed.

How two numbers are compared
----------------------------
By one relative error, never by an absolute tolerance beside it::

    error = |analytic - numeric| / max(|analytic|, |numeric|, rms(numeric))

The root mean square is that of all numbers measured for this argument, so an entry that is small
beside its fellows is held to their scale, and one single wrong entry is found. The upstream
gradient ``dy`` is always drawn at random: with ones, a transposed or flipped kernel can pass.

Complex arrays are pairs of real ones: their gradient is dL/dRe + i dL/dIm (as in PyTorch; JAX
has its conjugate), so that ``y = A x`` has ``dx = A^H dy``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

__all__ = ["ArgumentReport", "GradientCheckError", "GradientReport", "check_gradients",
           "check_jvp", "check_layer", "check_loss", "check_update", "jacobian"]
__version__ = "0.2.0"  # of this file, and of the distribution gradcheck-np that carries it

Mode = Literal["auto", "full", "projection", "complex", "adjoint"]
MODES = ("auto", "full", "projection", "complex", "adjoint")
Array = np.ndarray[Any, np.dtype[Any]]
Values = dict[str, Any]    # arrays, and whatever else a function takes

# The largest error that passes. "differences": the numeric side was evaluated in the same dtype
# by differences; "exact": it has no step, or was evaluated in a wider dtype.
_RTOL = {
    "float64": {"differences": 1e-7, "exact": 1e-11},
    "float32": {"differences": 1e-4, "exact": 1e-5},
    "float16": {"exact": 1e-2},
    "bfloat16": {"exact": 8e-2},
}
_STEP = {"float64": 2.0**-12, "float32": 2.0**-4}
_ELSEWHERE = {"float64": 1e-5, "float32": 1e-3}  # least tolerance at points other than the first
_LARGEST_RTOL = 0.05       # a noisy forward widens the tolerance up to here
_COMPLEX_STEP = 1e-30      # nothing is subtracted, so nothing is lost
_SAMPLES = 64              # elements looked at one by one to explain a failed projection
_FULL = {"entries": 4_000_000, "calls": 20_000, "work": 500_000_000}  # most that "auto" spends
_LONGEST = 1800.0          # seconds that mode "full" may take by estimate
_CHUNK = 32                # directions measured together
_UNKNOWN = object()


class GradientCheckError(AssertionError):
    """A gradient is wrong, or could not be checked; ``report`` has every detail."""

    def __init__(self, report: GradientReport) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class ArgumentReport:
    """What was found for one argument.

    Attributes
    ----------
    name, shape : str, tuple of int
        The argument.
    error : float
        The largest relative error; NaN where nothing could be compared.
    checked, total : int
        How many pairs of an output and a direction were compared, of all that respond.
    sees : float
        The smallest relative error that would have failed.
    index, output : tuple of int or None
        Where the error is largest, in the argument and (mode ``"full"`` or ``"complex"``) in the
        output. ``index`` is None if only random directions were looked at.
    output_name : str
        Which output that is: ``"y"``, or ``"y[1]"``, ``"y['h']"`` if there are several.
    analytic, numeric : float
        The two derivatives there.
    problems : tuple of str
        What is wrong; empty if nothing is.
    mistake : str or None
        The known mistake that explains the numbers, if one does.
    notes : tuple of str
        What else to know.
    unchecked : str
        Why it was not checked; empty if it was.
    zero : bool
        Whether derivative and gradient are both zero, within what rounding leaves undecided.
    """

    name: str
    shape: tuple[int, ...]
    error: float = math.nan
    checked: int = 0
    total: int = 0
    index: tuple[int, ...] | None = None
    output: tuple[int, ...] | None = None
    analytic: float = math.nan
    numeric: float = math.nan
    problems: tuple[str, ...] = ()
    mistake: str | None = None
    sees: float = math.nan
    output_name: str = "y"
    notes: tuple[str, ...] = ()
    unchecked: str = ""
    zero: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; also True of what was not to be checked."""
        return not self.problems

    @property
    def status(self) -> str:
        """One of "ok", "zero, agrees", "WRONG", "not checked"."""
        if self.problems:
            return "WRONG"
        if self.unchecked:
            return "not checked"
        return "zero, agrees" if self.zero else "ok"

    @property
    def coverage(self) -> float:
        """The share that was compared, from 0 to 1."""
        return self.checked / self.total if self.total else float(self.zero)


@dataclass(frozen=True)
class GradientReport:
    """The outcome of a check; ``str(report)`` is the table.

    Attributes
    ----------
    name, mode, dtype : str
        What was checked, and how; ``mode`` is what ``"auto"`` chose.
    step : float or None
        The largest step of the differences; None if there was none.
    rtol, seed : float, int
        The tolerance, and the seed of every random number.
    arguments : tuple of ArgumentReport
        One for each input, checked or not.
    problems, notes : tuple of str
        What is wrong with the function as a whole; what else to know.
    """

    name: str
    mode: str
    dtype: str
    step: float | None
    rtol: float
    seed: int
    arguments: tuple[ArgumentReport, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every argument passed and nothing else is wrong."""
        return not self.problems and all(a.ok for a in self.arguments)

    @property
    def error(self) -> float:
        """The largest error of all checked arguments; NaN if one could not be compared."""
        errors = [a.error for a in self.arguments if not a.unchecked]
        return float(np.max(errors)) if errors else math.nan

    @property
    def coverage(self) -> float:
        """The smallest coverage of all checked arguments."""
        return min((a.coverage for a in self.arguments if not a.unchecked), default=0.0)

    @property
    def sees(self) -> float:
        """The smallest relative error that would have failed in every checked argument."""
        return max((a.sees for a in self.arguments if not a.unchecked), default=math.nan)

    @property
    def mistake(self) -> str | None:
        """The likely mistake in the first argument that has one."""
        return next((a.mistake for a in self.arguments if a.mistake), None)

    def __getitem__(self, name: str) -> ArgumentReport:
        """Return the report of one argument."""
        return {a.name: a for a in self.arguments}[name]

    def __str__(self) -> str:
        step = "no step" if self.step is None else f"step {self.step:.3g}"
        lines = [f"gradient check of {self.name}: {'passed' if self.ok else 'FAILED'}",
                 f"mode {self.mode}, {self.dtype}, {step}, tolerance {self.rtol:.0e}, "
                 f"seed {self.seed}"]
        lines += [f"  {problem}" for problem in self.problems]
        width = max([8, *(len(a.name) for a in self.arguments)])
        shapes = max([5, *(len(str(a.shape)) for a in self.arguments)])
        if self.arguments:
            lines.append(f"  {'argument':{width}}  {'shape':{shapes}}     error     sees  coverage")
        for a in self.arguments:
            error, sees = ("-" if math.isnan(v) else f"{v:.1e}" for v in (a.error, a.sees))
            coverage = "-" if math.isnan(a.error) else f"{a.coverage:.2%}"
            lines.append(f"  {a.name:{width}}  {a.shape!s:{shapes}}  {error:>8} {sees:>8}  "
                         f"{coverage:>8}  {a.status}"
                         + (f": {a.unchecked}" if a.unchecked and a.ok else ""))
            lines += [f"    {problem}" for problem in a.problems]
            if a.mistake:
                lines.append(f"    likely mistake: {a.mistake}")
            lines += [f"    note: {note}" for note in a.notes]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def raise_if_failed(self) -> None:
        """Raise :class:`GradientCheckError` unless everything passed."""
        __tracebackhide__ = True
        if not self.ok:
            raise GradientCheckError(self)


# ------------------------------------------------------------------------------ what users call


def check_gradients(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    mode: Mode = "auto",
    wrt: str | Sequence[str] | None = None,
    oracle: Callable[..., Any] | None = None,
    step: float | None = None,
    rtol: float | None = None,
    min_coverage: float = 0.5,
    directions: int = 6,
    points: int = 3,
    dtype: Any = None,
    seed: int = 0,
    zero: str | Sequence[str] = (),
    outputs: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batched: str | Sequence[str] = (),
    inplace_dy: bool = False,
    nondeterministic: float = 0.0,
    max_memory: int = 2**30,
    asarray: Callable[[Array], Any] | None = None,
    to_numpy: Callable[[Any], Array] | None = None,
    name: str | None = None,
    raises: bool = True,
) -> GradientReport:
    r"""Compare ``backward`` with the measured derivatives of ``forward``.

    With ``J = dy/dx``, a backward returns ``J^T dy``. Beside those
    numbers it is checked that two runs agree bit for bit, that calling ``backward`` twice gives
    the same gradient and not its double, also for a ``dy`` that is not contiguous or read-only,
    that neither function writes to its arguments, and that gradients are finite and have the
    shape and dtype of their argument.

    Parameters
    ----------
    forward : callable
        ``forward(*inputs) -> y`` or ``-> (y, cache)``. ``y`` is one array or number, or a tuple,
        list or dict of them.
    backward : callable
        ``backward(dy, *inputs)``, or ``backward(dy, cache)`` if ``forward`` gave a cache; ``dy``
        is built like ``y``, or spread over the first parameters, as in ``backward(dh, dc,
        cache)``. Returns the gradients: a dict by name, a sequence in the order of ``wrt`` or of
        all inputs, or one array; None for an argument that has none.
    inputs : mapping
        Name to value, in the order in which ``forward`` takes them; a keyword-only parameter is
        given by its name. A tuple of ints is a shape, and is drawn from the standard normal
        distribution. Arrays of whole numbers, such as labels, and other objects are passed on as
        they are, and listed as not checked; if ``wrt`` names such an array, or ``backward`` gives
        a gradient for it, it is taken as an array of floats.
    mode : {"auto", "full", "projection", "complex", "adjoint"}
        ``"full"``: every entry of J. ``"projection"``: ``<dy, Jv> =
        <J^T dy, v>`` for random v and dy; for large arguments. ``"auto"``: full
        where that takes moments, else projection, and the report says so. ``"complex"``: every
        entry of J as ``Im f(x + ih) / h``, exact to rounding; ``forward`` must take
        complex arrays, be analytic between its kinks, and branch on real parts. ``"adjoint"``: as
        projection, with ``Jv = f(v) - f(0)``: no step at all, for functions that are affine
        in each argument.
    wrt : str or sequence of str, optional
        The arguments that ``backward`` has gradients for; all floating ones by default.
    oracle : callable, optional
        A forward that takes float64 (in complex mode, complex128) and is differentiated in place
        of ``forward``: so a float32 kernel is held to a sharp tolerance. Both must agree.
        float16 and bfloat16 need one.
    step : float, optional
        The largest step, and the only one tried. By default 2^-12 in float64 and 1/16 in float32,
        times the size of the argument; other steps where those show a kink or noise.
    rtol : float, optional
        The largest error that passes, then never widened. Default in float64: 1e-7, without
        differences (complex, adjoint) 1e-11; in float32: 1e-4, without differences in float32
        1e-5; in float16 1e-2 and bfloat16 8e-2.
    min_coverage : float
        Fail if less than this share of the entries could be compared because of kinks.
    directions : int
        How many random directions (projection, adjoint).
    points : int
        At how many points. The first is ``inputs``. At the others drawn arrays are drawn anew,
        large at one point and small at the next; given ones that have a gradient are changed by
        up to 1/8 of each element, and drawn if all zero. There, random directions are
        compared, to 1e-5 (float32: 1e-3) at best. A point where ``forward`` fails is skipped.
    dtype : dtype, optional
        Of the arrays drawn for shapes; that of the given arrays, else float64, by default.
    seed : int
        Of everything drawn.
    zero : str or sequence of str
        Arguments whose derivative must be zero, such as a bias before a normalisation.
    outputs : int, optional
        How many outputs ``forward`` returns; what follows them is the cache. Found out by
        default.
    kwargs : mapping, optional
        Keyword arguments for all functions alike (``backward`` with a cache: if it takes them).
    batched : str or sequence of str
        Arguments along whose first axis ``forward`` works on each entry by itself: several
        directions are then measured in one call.
    inplace_dy : bool
        Whether ``backward`` may write to ``dy``.
    nondeterministic : float
        How far two runs may differ, relative to the root mean square (atomic additions).
    max_memory : int
        Bytes that the check may use beside what the functions use themselves.
    asarray, to_numpy : callables, optional
        To and from the arrays that the functions want. Known without them: NumPy, and arrays of
        packages such as PyTorch, JAX and CuPy when they are given in ``inputs``.
    name : str, optional
        What to call it in the report.
    raises : bool
        Raise if the check fails; otherwise return the failed report.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientCheckError
        If a gradient is wrong or could not be checked.
    TypeError, ValueError
        If the check itself was asked for wrongly.
    """
    __tracebackhide__ = True
    options = _Options(
        mode, _names(wrt), oracle, step, rtol, min_coverage, directions, points, seed,
        _names(zero) or [], _names(batched) or [], inplace_dy, nondeterministic, max_memory)
    prepared = _prepare(inputs, dtype, seed, options.wrt)
    if asarray is None:
        asarray = next((f for f in map(_asarray_of, inputs.values()) if f), None)
    pair = _Pair(forward, backward, prepared, asarray, to_numpy or _to_numpy, outputs,
                 dict(kwargs or {}))
    report = _Diagnosis(pair, prepared, options, name or _name_of(forward)).run()
    if raises:
        report.raise_if_failed()
    return report


def check_loss(
    loss: Callable[..., Any], inputs: Mapping[str, Any], *,
    wrt: str | Sequence[str] | None = None, name: str | None = None, **options: Any,
) -> GradientReport:
    """Check a loss that returns its value and its gradient together.

    Parameters
    ----------
    loss : callable
        ``loss(*inputs) -> (value, gradient)``; the gradient is that of ``wrt``: one array, or a
        dict or sequence of several.
    inputs : mapping
        As for :func:`check_gradients`, for instance ``{"y": (2, 5), "t": (2, 5)}``.
    wrt : str or sequence of str, optional
        The argument that has the gradient; the first by default, or, if the gradient is a
        dict, its names.
    name, **options
        As :func:`check_gradients`.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientCheckError, TypeError, ValueError
        As :func:`check_gradients`.
    """
    __tracebackhide__ = True

    def forward(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result = loss(*args, **kwargs)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"loss gave {_brief(result)}, want (value, gradient)")
        return result[0], [result[1]]

    to_numpy = options.get("to_numpy") or _to_numpy

    def backward(dloss: Any, cache: list[Any]) -> Any:
        # The chain rule through a number; the product keeps the gradient's dtype.
        host = np.asarray(dloss if isinstance(dloss, float) else to_numpy(dloss))
        if host.size != 1:
            raise TypeError(f"loss gave a value of shape {host.shape}, want one number")
        (gradient,) = cache
        factor = host.item()

        def scaled(g: Any) -> Any:
            if g is None:
                return None
            kind = getattr(getattr(g, "dtype", None), "type", None)
            return g * (kind(factor) if kind else factor)

        if isinstance(gradient, Mapping):
            return {key: scaled(g) for key, g in gradient.items()}
        if isinstance(gradient, (tuple, list)):
            return [scaled(g) for g in gradient]
        return scaled(gradient)

    functions = inspect.unwrap(loss) if callable(loss) else loss
    forward.__qualname__ = name or _name_of(functions)
    if wrt is None:
        wrt = [next(iter(inputs), "")]
        gradient = _gradient_names(loss, inputs, options)
        wrt = gradient or wrt
    forward.__signature__ = _signature(loss)  # type: ignore[attr-defined]
    return check_gradients(forward, backward, inputs, wrt=wrt, name=forward.__qualname__,
                           **options)


def _gradient_names(
    loss: Callable[..., Any], inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> list[str]:
    """Return the names in a loss's gradient, if it is a dict, by running it once."""
    prepared = _prepare(inputs, options.get("dtype"), options.get("seed", 0), None)
    asarray = options.get("asarray") or next(
        (f for f in map(_asarray_of, inputs.values()) if f), _identity)
    given = [asarray(v.copy()) if isinstance(v, np.ndarray) else v
             for v in prepared.values.values()]
    try:
        gradient = loss(*given, **dict(options.get("kwargs") or {}))[1]
    except Exception:  # the check itself will meet it again, and say what was called
        return []
    return [key for key in inputs if key in gradient] if isinstance(gradient, Mapping) else []


def check_jvp(
    forward: Callable[..., Any], jvp: Callable[..., Any], inputs: Mapping[str, Any], *,
    wrt: str | Sequence[str] | None = None, oracle: Callable[..., Any] | None = None,
    rtol: float | None = None, directions: int = 6, dtype: Any = None, seed: int = 0,
    name: str | None = None, raises: bool = True,
) -> GradientReport:
    """Check a forward-mode derivative: ``jvp(tangents, *inputs) -> J v``.

    Parameters
    ----------
    forward : callable
        ``forward(*inputs) -> y`` or ``-> (y, cache)``.
    jvp : callable
        ``jvp(tangents, *inputs)``, of the shape of ``y``; ``tangents`` is a dict of the names in
        ``wrt`` to arrays, or one array if there is one name.
    inputs, wrt, oracle, rtol, directions, dtype, seed, name, raises
        As :func:`check_gradients`; every direction moves one argument alone.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientCheckError, TypeError, ValueError
        As :func:`check_gradients`.
    """
    __tracebackhide__ = True
    options = _Options("projection", _names(wrt), oracle, None, rtol, 0.5, directions, 1, seed)
    prepared = _prepare(inputs, dtype, seed, options.wrt)
    pair = _Pair(forward, lambda dy, *a: None, prepared, None, _to_numpy, None, {})
    check = _Diagnosis(pair, prepared, options, name or _name_of(jvp))
    report = check.run_jvp(jvp)
    if raises:
        report.raise_if_failed()
    return report


def jacobian(
    forward: Callable[..., Any], inputs: Mapping[str, Any], wrt: str | None = None, *,
    backward: Callable[..., Any] | None = None, linear: bool = False, dtype: Any = None,
    seed: int = 0,
) -> Array:
    """Return J as a matrix: a row for each output, a column for each element of one argument.

    Parameters
    ----------
    forward : callable
        As :func:`check_gradients`.
    inputs : mapping
        As :func:`check_gradients`.
    wrt : str, optional
        The argument; the first by default.
    backward : callable, optional
        If given, the matrix that this backward multiplies by, row by row; else the measured one.
    linear : bool
        Whether ``forward`` is affine in the argument: column j is then f(e_j) - f(0), exactly.
    dtype, seed
        As :func:`check_gradients`.

    Returns
    -------
    array
        (outputs, elements); complex arrays count as pairs of real numbers.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_gradients`.
    """
    key = next(iter(inputs), "") if wrt is None else wrt
    options = _Options("adjoint" if linear else "full", [key], seed=seed)
    prepared = _prepare(inputs, dtype, seed, [key])
    pair = _Pair(forward, backward or (lambda dy, *a: None), prepared, None, _to_numpy,
                 None if backward else 1, {})
    check = _Diagnosis(pair, prepared, options, "jacobian")
    point = check.point(prepared.values)
    if backward is None:
        size = _flat(prepared.values[key]).size
        return check.measure(point, key, list(range(size)), careful=True).slope
    rows = check.rows(point.values, [key], point.y0.size, range(point.y0.size),
                      np.ones(point.y0.size))
    return _flat_rows(rows[key])


def check_layer(
    layer: Any, x: Any, *, name: str | None = None, oracle: Callable[..., Any] | None = None,
    **options: Any,
) -> GradientReport:
    """Check a layer: the gradient of its input and of every parameter.

    The layer keeps its cache apart (``forward(x) -> (y, cache)`` and ``backward(dy, cache)``) or
    in itself (``forward(x) -> y`` and ``backward(dy)``). Its parameters are a dict or list
    ``parameters`` or ``params``, or plain attributes that have a gradient beside them. The
    gradients are what ``backward`` returns, as in ``(dx, {"weight": dw})`` or ``(dx, dw, db)``,
    or it returns ``dx`` and they are a dict or list ``grads`` or attributes such as ``dW``,
    ``grad_W``, ``W_grad``. The parameters are drawn anew, of order 1, for the time of the check
    (a small or zero initialisation hides mistakes), and restored afterwards.

    Parameters
    ----------
    layer : object
        The layer; a chain of layers is a layer.
    x : array, tuple of int, or mapping
        Its input, or the shape of a random one; a dict of them for a layer of several inputs.
    name, oracle, **options
        As :func:`check_gradients`; ``oracle(x, *parameters)`` in the order of ``parameters``.
        Mode ``"complex"`` without an oracle needs layers that read their arrays from
        ``parameters`` or attributes.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientCheckError, TypeError, ValueError
        As :func:`check_gradients`.
    """
    __tracebackhide__ = True
    inputs = dict(x) if isinstance(x, Mapping) else {"x": x}
    host = options.get("to_numpy") or _to_numpy
    if "asarray" not in options:
        own = _listed_parameters(layer) or dict(_arrays_of(layer))
        module = next((f for f in map(_asarray_of, [*own.values(), *inputs.values()]) if f), None)
        options |= {"asarray": module} if module else {}
    state = [(holder, key, a, np.array(host(a))) for holder, key, a in _held_arrays(layer)]
    adapted = _Layer(layer, list(inputs), host)
    try:
        own = adapted.find(inputs, options)
        for key in own:
            if key in inputs:
                raise ValueError(f"layer has a parameter {key!r}, want another name: {key} is "
                                 "the layer's input")
        saved = {key: np.array(host(value)) for key, value in own.items()}
        if own:
            options.setdefault("dtype", next(iter(saved.values())).dtype)
        return check_gradients(
            adapted.forward, adapted.backward, inputs | {k: v.shape for k, v in saved.items()},
            name=name or type(layer).__name__, oracle=oracle, **options)
    finally:
        for holder, key, a, value in state:
            _assign(holder, key, a)
            _write(a, (options.get("asarray") or _identity)(value))


@dataclass
class _Layer:
    """A layer as a pair of functions of its input and its parameters."""

    layer: Any
    inputs: list[str]
    host: Callable[[Any], Array]
    own: dict[str, Any] = field(default_factory=dict)

    def find(self, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters, running the layer once if only its gradients tell them."""
        self.own = _listed_parameters(self.layer)
        if self.own or hasattr(self.layer, "parameters") or hasattr(self.layer, "params"):
            return self.own
        candidates = dict(_arrays_of(self.layer))
        if not candidates:
            return {}
        dtype = options.get("dtype") or next(iter(candidates.values())).dtype
        prepared = _prepare(inputs, dtype, options.get("seed", 0), None)
        asarray = options.get("asarray") or _identity
        given = [asarray(v.copy()) if isinstance(v, np.ndarray) else v
                 for v in prepared.values.values()]
        try:
            ys, cache = self._split(_called("layer.forward", self._forward, *given))
            layout = _Layout.of(ys, self.host)
            dy = layout.build(np.zeros(layout.size), lambda a: asarray(a), str(dtype))
            result = self._call_backward(dy, cache, given)
        except Exception:  # the check itself will meet it again, and say what was called
            return {}
        found = self._from_result(result)
        self.own = {key: a for key, a in candidates.items()
                    if key in found or _gradient_beside(self.layer, key) is not None}
        return self.own

    @property
    def _forward(self) -> Callable[..., Any]:
        forward: Callable[..., Any] = getattr(self.layer, "forward", self.layer)
        return forward

    def _split(self, result: Any) -> tuple[Any, Any]:
        if not isinstance(result, tuple) or len(result) < 2:
            return result, _UNKNOWN
        required, most, names, _ = _parameters_of(self.layer.backward)
        upstream = names[-1:] and names[-1].lower().startswith(("d", "grad"))
        if most <= 1 or (required == most == len(result) and upstream):
            return result, _UNKNOWN  # backward(dy), or backward(dh, dc): no cache
        return (result[0] if len(result) == 2 else result[:-1]), result[-1]

    def _call_backward(self, dy: Any, cache: Any, xs: Sequence[Any]) -> Any:
        zero = getattr(self.layer, "zero_grad", None)
        if callable(zero):
            zero()
        required = _parameters_of(self.layer.backward)[0]
        dys = [dy]
        after = 0 if cache is _UNKNOWN else 1
        if isinstance(dy, (tuple, list)) and required == len(dy) + after > 1 + after:
            dys = list(dy)
        if cache is not _UNKNOWN:
            return self.layer.backward(*dys, cache)
        return self.layer.backward(*dys, *(xs if required >= len(dys) + len(xs) else ()))

    def forward(self, *args: Any) -> tuple[Any, list[Any]]:
        """Run the layer; the arguments are its inputs and then its parameters."""
        xs, values = args[:len(self.inputs)], args[len(self.inputs):]
        with self._holding(values):
            ys, cache = self._split(self._forward(*xs))
        return ys, [cache, xs, values]

    def backward(self, dy: Any, kept: list[Any]) -> dict[str, Any]:
        """Return the gradients of inputs and parameters by name."""
        cache, xs, values = kept
        with self._holding(values):
            result = self._call_backward(dy, cache, xs)
            grads = self._from_result(result)
            for place, key in enumerate(self.own):
                if key not in grads:
                    beside = _gradient_beside(self.layer, key, place)
                    if beside is not None:
                        grads[key] = beside
        return grads

    @contextlib.contextmanager
    def _holding(self, values: Sequence[Any]) -> Iterator[None]:
        """Let the layer have these parameters for a while; if it writes to them, let it be seen."""
        mine = list(self.own.values())
        if any(str(a.dtype) != str(b.dtype) for a, b in zip(values, mine, strict=True)):
            _replace(self.layer, mine, values)  # another type doesn't fit into its arrays
            try:
                yield
            finally:
                _replace(self.layer, values, mine)
            return
        for target, value in zip(mine, values, strict=True):
            _write(target, value)
        yield
        for target, value in zip(values, mine, strict=True):
            _write(target, value)

    def _from_result(self, result: Any) -> dict[str, Any]:
        """Name what ``backward`` returned."""
        names = [*self.inputs, *self.own]
        if isinstance(result, Mapping):
            return _renamed(result, names)
        if not isinstance(result, (tuple, list)):
            return {self.inputs[0]: result}
        grads: dict[str, Any] = {}
        items = list(result)
        if items and isinstance(items[-1], Mapping):
            candidates = names[len(self.inputs):] or [key for key, _ in _arrays_of(self.layer)]
            grads = _renamed(items.pop(), candidates)
        elif len(items) == 2 and isinstance(items[1], (tuple, list)):
            grads = dict(zip(self.own, items.pop(), strict=False))
        if len(items) == 1 and isinstance(items[0], (tuple, list)):
            items = list(items[0])
        return dict(zip(names, items, strict=False)) | grads


def _listed_parameters(layer: Any) -> dict[str, Any]:
    """Return what a layer's ``parameters`` or ``params`` lists, by name."""
    for word in ("parameters", "params"):
        listed = getattr(layer, word, None)
        if callable(listed):
            listed = listed()
        if listed is None:
            continue
        if isinstance(listed, Mapping):
            return {str(key): _data_of(value) for key, value in listed.items()}
        found = {}
        for i, item in enumerate(listed):
            pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
            value = _data_of(item[1] if pair else item)
            name = item[0] if pair else next(
                (key for key, a in _arrays_of(layer) if a is value), str(i))
            found[name] = value
        return found
    return {}


def _data_of(parameter: Any) -> Any:
    """Return the array of a parameter object; an array is its own."""
    if hasattr(parameter, "shape"):
        return parameter
    for word in ("data", "value", "array"):
        if hasattr(getattr(parameter, word, None), "shape"):
            return getattr(parameter, word)
    return parameter


def _arrays_of(layer: Any) -> Iterator[tuple[str, Any]]:
    for key, value in getattr(layer, "__dict__", {}).items():
        a = _data_of(value)
        if getattr(getattr(a, "dtype", None), "kind", "f" if hasattr(a, "dtype") else "") in "fc" \
                and hasattr(a, "shape") and not isinstance(a, type):
            yield key, a


def _gradient_beside(layer: Any, key: str, place: int | None = None) -> Any:
    """Return the gradient that a layer holds of one of its parameters; None if it has none."""
    for word in ("grads", "gradients", "grad"):
        held = getattr(layer, word, None)
        if isinstance(held, Mapping):
            found = _renamed(held, [key])
            if key in found:
                return found[key]
        elif isinstance(held, (tuple, list)) and place is not None and place < len(held):
            return held[place]
    for text in (f"d{key}", f"d_{key}", f"grad_{key}", f"{key}_grad", f"g{key}", f"{key}grad"):
        if hasattr(getattr(layer, text, None), "shape"):
            return getattr(layer, text)
    grad = getattr(getattr(layer, key, None), "grad", None)
    if hasattr(grad, "shape"):
        return grad
    for listed in (getattr(layer, "parameters", None), getattr(layer, "params", None)):
        items = listed() if callable(listed) else listed
        if isinstance(items, (tuple, list)) and place is not None and place < len(items):
            return getattr(items[place], "grad", None)
        if isinstance(items, Mapping) and key in items:
            return getattr(items[key], "grad", None)
    return None


def _held_arrays(layer: Any) -> list[tuple[Any, Any, Any]]:
    """Return (holder, key, array) for every array that a layer reaches."""
    found: list[tuple[Any, Any, Any]] = []
    seen: set[int] = set()

    def walk(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 6:
            return
        seen.add(id(thing))
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(thing, dict):
            items = list(thing.items())
        elif isinstance(thing, (list, tuple)) and len(thing) < 1000:
            items = list(enumerate(thing))
        elif hasattr(thing, "__dict__") and not isinstance(thing, type) and not callable(
                getattr(thing, "__path__", None)) and not inspect.ismodule(thing):
            items = list(vars(thing).items())
        for key, value in items:
            if hasattr(value, "shape") and hasattr(value, "dtype") and \
                    not isinstance(value, (type, np.generic)):
                found.append((thing, key, value))
            elif not isinstance(value, (str, bytes, int, float)):
                walk(value, depth + 1)

    walk(layer, 0)
    return found


def _assign(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, (dict, list)):
        if isinstance(holder, dict) or key < len(holder):
            holder[key] = value
    elif not isinstance(holder, tuple):
        vars(holder)[key] = value


def _replace(layer: Any, olds: Sequence[Any], news: Sequence[Any]) -> None:
    """Put ``news`` wherever a layer holds ``olds``."""
    for holder, key, a in _held_arrays(layer):
        for old, new in zip(olds, news, strict=True):
            if a is old:
                _assign(holder, key, new)


def _write(target: Any, value: Any) -> None:
    """Copy ``value`` into the array ``target``, of any package and any dimension."""
    if target is value:
        return
    flags = getattr(target, "flags", None)
    if getattr(flags, "writeable", True) is False:
        return  # what nobody can write to has not changed
    if hasattr(target, "copy_"):  # PyTorch: also for a leaf that asks for its own gradient
        getattr(target, "data", target).copy_(value)
    else:
        target[...] = value


def _renamed(grads: Mapping[Any, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return gradients by the names of their arguments: ``dx`` and ``grad_x`` mean ``x``."""
    found = {}
    for name in names:
        for key in (name, f"d{name}", f"d_{name}", f"grad_{name}", f"{name}_grad"):
            if key in grads:
                found[name] = grads[key]
                break
    return found


def check_update(
    update: Callable[..., Any],
    formula: Callable[..., Mapping[str, Any]],
    state: Mapping[str, Any],
    *,
    steps: int = 3,
    rtol: float | None = None,
    dtype: Any = None,
    seed: int = 0,
    asarray: Callable[[Array], Any] | None = None,
    to_numpy: Callable[[Any], Array] | None = None,
    name: str | None = None,
    raises: bool = True,
) -> GradientReport:
    """Check an in-place update rule, such as that of an optimizer, against its formula.

    The rule is applied several times, with new random values each time for all that it does not
    change. After each step every array must hold what the formula says of the values before it,
    to a tolerance relative to the *change*, beyond the rounding of the array itself: a rule that
    does nothing has an error of 1. If the changes are linear in the arrays, as in gradient
    descent with momentum, a failure names the term that is wrong.

    Parameters
    ----------
    update : callable
        ``update(*arrays)``; what it returns is ignored.
    formula : callable
        ``formula(*arrays) -> {name: new value}`` in float64, for each array that changes. All
        others must stay as they are.
    state : mapping
        Name to array or shape, as for :func:`check_gradients`.
    steps : int
        How many times.
    rtol : float, optional
        1e-11 in float64 and 1e-5 in float32 by default.
    dtype, seed, asarray, to_numpy, name, raises
        As :func:`check_gradients`.

    Returns
    -------
    GradientReport
        With one row for each array; "analytic" is what the rule did, "numeric" the formula.

    Raises
    ------
    GradientCheckError, TypeError, ValueError
        As :func:`check_gradients`.
    """
    __tracebackhide__ = True
    if steps < 1:
        raise ValueError(f"steps is {steps}, want at least 1")
    prepared = _prepare(state, dtype, seed, None)
    host, real = {k: np.asarray(a) for k, a in prepared.values.items()}, prepared.real
    asarray = asarray or next((f for f in map(_asarray_of, state.values()) if f), _identity)
    to_numpy = to_numpy or _to_numpy
    rtol = _RTOL[real]["exact"] if rtol is None else rtol
    held = {key: asarray(a.copy()) for key, a in host.items()}
    arguments = {key: ArgumentReport(key, a.shape, error=0.0, sees=rtol)
                 for key, a in host.items()}
    for step in range(steps):
        before = {key: np.array(to_numpy(a)).astype(float) for key, a in held.items()}
        wanted = {key: np.asarray(a) for key, a in formula(
            *(a.copy() for a in before.values())).items()}
        if not wanted or not set(wanted) <= set(held):
            raise ValueError(f"formula gave {sorted(wanted)}, want some of {sorted(held)}")
        _called("update", update, *held.values())
        after = {key: np.array(to_numpy(a)).astype(float) for key, a in held.items()}
        for key, argument in arguments.items():
            if argument.ok:
                arguments[key] = _update_verdict(
                    argument, before, after[key], wanted.get(key, before[key]), rtol,
                    _eps(real), step)
        for key, a in host.items():
            if key not in wanted and a.dtype.kind == "f":
                _write(held[key], asarray(_draw(a.shape, a.dtype, seed, "step", step, key)))
    report = GradientReport(name or _name_of(update), "update", real, None, rtol, seed,
                            tuple(arguments.values()))
    if raises:
        report.raise_if_failed()
    return report


def _update_verdict(
    argument: ArgumentReport, before: dict[str, Array], after: Array, wanted: Array, rtol: float,
    eps: float, step: int,
) -> ArgumentReport:
    old = before[argument.name]
    change, want = after - old, wanted - old
    argument = replace(argument, checked=argument.checked + change.size,
                       total=argument.total + change.size)
    if not np.isfinite(after).all():
        return replace(argument, error=math.inf, problems=("it holds numbers that are not finite",))
    scale = np.maximum(np.maximum(abs(change), abs(want)), _rms(want) or 1.0)
    # An array of order 1 cannot take up a change of 1e-3 more sharply than its last bit.
    rounding = eps * np.maximum(abs(old), abs(wanted)) if want.any() else np.zeros(want.shape)
    errors = np.maximum(abs(change - want) - rounding, 0.0) / scale
    worst = _place(np.argmax(errors), change.shape)
    sees = rtol + float(np.max(rounding / scale, initial=0.0))
    argument = replace(argument, error=max(argument.error, float(errors[worst])),
                       sees=max(argument.sees, sees))
    if errors[worst] <= rtol:
        return argument
    problem = (f"step {step + 1}, worst at {argument.name}{list(worst)}: changed by "
               f"{change[worst]:.9g}, want {want[worst]:.9g}, error {errors[worst]:.1e}")
    return replace(argument, index=worst, analytic=float(change[worst]),
                   numeric=float(want[worst]), problems=(problem,),
                   mistake=_update_mistake(argument.name, before, change, want, sees))


def _update_mistake(
    key: str, before: dict[str, Array], change: Array, want: Array, rtol: float
) -> str | None:
    """Write both changes as sums of the arrays before the step, and compare the terms."""
    if not want.any():
        return f"{key} is written to; the formula leaves it as it is"
    if not change.any():
        return f"{key} is not updated in place"
    terms = [name for name, a in before.items() if a.shape == change.shape]
    basis = np.stack([before[name].ravel() for name in terms], axis=1)
    sums = [np.linalg.lstsq(basis, a.ravel(), rcond=None)[0] for a in (change, want)]
    for a, coefficients in zip((change, want), sums, strict=True):
        if _rms(basis @ coefficients - a.ravel()) > 10 * rtol * _rms(a):
            return None
    texts = []
    for name, got, right in zip(terms, *sums, strict=True):
        loose = max(1e-4, 10 * rtol) * max(abs(got), abs(right))
        small = max(1e-4, 10 * rtol) * np.max(np.abs(sums))
        if abs(got - right) <= loose or max(abs(got), abs(right)) <= small:
            continue
        what = ("sign wrong" if abs(got + right) <= loose else
                "term missing" if abs(got) <= loose else
                "term too many" if abs(right) <= loose else f"off by the factor {got / right:.4g}")
        texts.append(f"the term in {name}: {what} ({got:.4g} {name}, want {right:.4g} {name})")
    return "; ".join(texts) or None


# ---------------------------------------------------------------------------- arrays in and out


@dataclass
class _Options:
    """What the caller of a check asked for."""

    mode: str
    wrt: list[str] | None = None
    oracle: Callable[..., Any] | None = None
    step: float | None = None
    rtol: float | None = None
    min_coverage: float = 0.5
    directions: int = 6
    points: int = 1
    seed: int = 0
    zero: Sequence[str] = ()
    batched: Sequence[str] = ()
    inplace_dy: bool = False
    nondeterministic: float = 0.0
    max_memory: int = 2**30

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, want one of {', '.join(map(repr, MODES))}")
        if not 0 < self.min_coverage <= 1:
            raise ValueError(f"min_coverage is {self.min_coverage}, want a number in (0, 1]")
        for option in ("directions", "points"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}, want at least 1")
        for option in ("step", "rtol"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{option} is {value}, want a number above 0")
        if not 0 <= self.nondeterministic < 1:
            raise ValueError(f"nondeterministic is {self.nondeterministic}, want a number from 0 "
                             "to 1")
        if self.max_memory < 2**20:
            raise ValueError(f"max_memory is {self.max_memory}, want at least 1 MiB of bytes")


@dataclass
class _Prepared:
    """The inputs on the host: arrays, and what is passed on as it is."""

    values: Values
    real: str                 # the precision: float64, float32, float16 or bfloat16
    wrt: list[str]
    asked: bool               # whether the caller named them
    drawn: set[str]           # those that were given as a shape
    unchecked: dict[str, str]  # why the others are not checked


def _names(names: str | Sequence[str] | None) -> list[str] | None:
    return [names] if isinstance(names, str) else None if names is None else list(names)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and not hasattr(value, "_fields") and all(
        isinstance(size, (int, np.integer)) and not isinstance(size, (bool, np.bool_))
        for size in value)


def _prepare(
    inputs: Mapping[str, Any], dtype: Any, seed: int, wrt: Sequence[str] | None
) -> _Prepared:
    """Return host arrays for ``inputs``, drawn where a shape is given."""
    if not isinstance(inputs, Mapping) or not inputs:
        what = "empty" if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
        raise ValueError(f"inputs is {what}, want a dict of names to arrays or shapes")
    values: Values = {}
    drawn = {key for key, value in inputs.items() if _is_shape(value)}
    for key, value in inputs.items():
        if key not in drawn:
            values[key] = _host_value(key, value, key in (wrt or ()))
    kinds = {_precision(a) for a in values.values()
             if isinstance(a, np.ndarray) and a.dtype.kind not in "iubSUOMm"}
    if dtype is None:
        dtype = kinds.copy().pop() if len(kinds) == 1 else "float64"
    if drawn:
        kinds.add(_precision(np.empty(0, dtype)))
    for key in drawn:
        shape = tuple(int(size) for size in inputs[key])
        if any(size < 0 for size in shape):
            raise ValueError(f"inputs[{key!r}] has shape {shape}, want sizes of at least 1")
        values[key] = _draw(shape, dtype, seed, "input", key)
    values = {key: values[key] for key in inputs}
    for key in wrt or ():  # whole numbers that a gradient is asked for
        a = values.get(key)
        if isinstance(a, np.ndarray) and a.dtype.kind in "iu":
            real = str(np.dtype(dtype)) if dtype is not None else "float64"
            values[key] = a.astype(real)
            kinds.add(_precision(values[key]))
    if len(kinds) > 1 or not kinds <= set(_RTOL):
        raise TypeError(f"inputs have the dtypes {sorted(kinds)}, want all float64 or all float32")
    for key, a in values.items():
        if isinstance(a, np.ndarray) and a.size == 0:
            raise ValueError(f"inputs[{key!r}] has shape {a.shape}, want at least one element")
        if _is_float(a) and not np.isfinite(a).all() and key in (wrt or ()):
            raise ValueError(f"inputs[{key!r}] has NaN or infinite numbers, want finite ones")
    floats = [key for key, a in values.items() if _is_float(a)]
    for key in wrt or ():
        if key not in floats:
            raise ValueError(f"wrt has {key!r}, want names of floating inputs: {floats}")
    unchecked = {key: _why_unchecked(a, key in floats) for key, a in values.items()
                 if key not in (floats if wrt is None else wrt)}
    return _Prepared(values, next(iter(kinds), "float64"), floats if wrt is None else list(wrt),
                     wrt is not None, drawn, unchecked)


def _host_value(key: str, value: Any, asked: bool) -> Any:
    """Return one input on the host: an array, or an object that is passed on as it is."""
    if isinstance(value, list):
        if value and all(isinstance(v, (int, np.integer)) for v in value):
            raise ValueError(f"inputs[{key!r}] is the list {value}, want the tuple "
                             f"{tuple(int(v) for v in value)} for a shape or a NumPy array for "
                             "values")
        try:
            a = np.array(value)
        except ValueError:
            return value
        return a if a.dtype.kind in "iubfc" else value
    if isinstance(value, (bool, int, str, bytes, tuple, Mapping)) or value is None:
        return np.array(value) if asked and isinstance(value, int) else value
    if isinstance(value, (float, complex)) and not isinstance(value, np.generic):
        return np.array(value) if asked else value
    if hasattr(value, "shape") or hasattr(value, "__array__") or hasattr(value, "get"):
        a = np.array(_to_numpy(value))
        return a if a.dtype.kind != "O" else value
    return value


def _why_unchecked(a: Any, floating: bool) -> str:
    if floating:
        return "not in wrt"
    if isinstance(a, np.ndarray):
        kind = "whole numbers" if a.dtype.kind in "iu" else "booleans" if a.dtype.kind == "b" else \
            "no numbers"
        return f"{kind} ({a.dtype})"
    return f"passed on as it is ({type(a).__name__})"


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and (a.dtype.kind in "fc" or a.dtype.name == "bfloat16")


def _precision(a: Array) -> str:
    return {"complex128": "float64", "complex64": "float32"}.get(a.dtype.name, a.dtype.name)


def _eps(real: str) -> float:
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(real) or float(np.finfo(real).eps)


def _rng(seed: int, *words: Any) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(repr(words).encode())])


def _draw(shape: tuple[int, ...], dtype: Any, seed: int, *words: Any) -> Array:
    rng = _rng(seed, *words)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return np.asarray(a, dtype)


def _rms(a: Array) -> float:
    if not a.size:
        return 0.0
    top = float(np.max(np.abs(a)))  # squares of tiny numbers would vanish, of large ones overflow
    if not 0 < top < math.inf:
        return top
    return top * float(np.sqrt(np.mean((np.abs(a) / top) ** 2, dtype=float)))


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _identity(a: Array) -> Array:
    return a


def _to_numpy(a: Any) -> Array:
    if isinstance(a, np.ndarray):
        return a
    if hasattr(a, "detach"):
        a = a.detach()
        a = a.cpu() if hasattr(a, "cpu") else a
    elif hasattr(a, "get") and not isinstance(a, Mapping):
        return np.asarray(a.get())
    if not hasattr(a, "__array__") and hasattr(a, "__dlpack__"):
        return np.from_dlpack(a)
    return np.asarray(a)


def _asarray_of(a: Any) -> Callable[[Array], Any] | None:
    """Return ``asarray`` of the package that ``a`` comes from, if ``a`` is an array elsewhere."""
    if isinstance(a, (np.ndarray, np.generic, Mapping, tuple, list)) or not (
            hasattr(a, "get") or hasattr(a, "__dlpack__") or hasattr(a, "__array_namespace__")):
        return None
    if hasattr(a, "__array_namespace__"):
        found: Callable[[Array], Any] = a.__array_namespace__().asarray
        return found
    name = type(a).__module__
    while name and not hasattr(sys.modules.get(name), "asarray"):
        name = name.rpartition(".")[0]
    if not name:
        return None
    asarray = sys.modules[name].asarray
    if name == "torch":  # also to the device; it warns of read-only memory
        return lambda b: asarray(b.copy(), device=a.device)
    return asarray


def _flat(a: Any) -> Array:
    """Return the real numbers of an array, in float64: complex ones as pairs."""
    a = np.asarray(a)
    if a.dtype.kind == "c":
        return np.ascontiguousarray(a, dtype=complex).reshape(-1).view(float)
    return np.array(a, dtype=float).ravel()


def _flat_rows(rows: Array) -> Array:
    """Return (R, real numbers) for gradients (R, *shape)."""
    if rows.dtype.kind == "c":
        return np.ascontiguousarray(rows).reshape(len(rows), -1).view(float)
    return rows.reshape(len(rows), -1)


def _place(flat: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(flat), shape))


def _place_in(flat: int, a: Array) -> tuple[int, ...]:
    return _place(flat // 2 if a.dtype.kind == "c" else flat, a.shape)


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


def _widened(values: Values, real: str) -> Values:
    def wide(a: Any) -> Any:
        if not _is_float(a):
            return a
        complexes = {"float64": "complex128", "float32": "complex64"}
        return a.astype(complexes.get(real, real) if a.dtype.kind == "c" else real)
    return {key: wide(a) for key, a in values.items()}


def _brief(value: Any) -> str:
    """Say in a few words what a value is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        left, right = ("(", ")") if isinstance(value, tuple) else ("[", "]")
        return left + ", ".join(map(_brief, value[:6])) + right
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_brief(v)}" for k, v in list(value.items())[:6]) + "}"
    return type(value).__name__


def _called(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a user's function; what it raises keeps its traceback and says what was called."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        given = [_brief(a) for a in args] + [f"{k}={_brief(v)}" for k, v in kwargs.items()]
        error.add_note(f"gradcheck called {name}({', '.join(given)})")
        raise


# --------------------------------------------------------------------------- the pair under test


def _parameters_of(function: Any) -> tuple[int, float, list[str], set[str]]:
    """Return how many positional arguments a function needs and takes, and its names."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a ufunc, a builtin
        return 0, math.inf, [], set()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = math.inf if any(p.kind == p.VAR_POSITIONAL for p in parameters) else len(positional)
    required = sum(p.default is p.empty for p in positional)
    keywords = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        keywords.add("**")
    return required, most, [p.name for p in positional], keywords


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _says_cache(names: Sequence[str]) -> bool:
    return any(word in name.lower() for name in names
               for word in ("cache", "ctx", "context", "saved", "tape", "memo", "residual"))


def _bind(
    function: Any, values: Values, lead: int = 0
) -> tuple[list[Any], dict[str, Any]]:
    """Divide inputs into positional and keyword arguments."""
    _, most, _, keywords = _parameters_of(function)
    named = {key: v for key, v in values.items() if key in keywords}
    rest = {key: v for key, v in values.items() if key not in keywords}
    if "**" in keywords and len(rest) + lead > most:
        room = int(most) - lead
        named |= dict(list(rest.items())[room:])
        rest = dict(list(rest.items())[:room])
    return list(rest.values()), named


@dataclass
class _Layout:
    """How outputs are arranged, and where each lies in one flat array of real numbers."""

    kind: Any               # None for one array, else tuple, list or dict, or a namedtuple's type
    keys: list[Any]
    labels: list[str]
    hosts: list[Array]
    numbers: list[bool]     # a plain Python number?
    live: list[bool]        # floating?

    @classmethod
    def of(cls, ys: Any, host: Callable[[Any], Array]) -> _Layout:
        """Return the layout of what forward gave."""
        kind: Any
        if isinstance(ys, Mapping):
            kind, keys, items = dict, list(ys), list(ys.values())
            labels = [f"y[{key!r}]" for key in keys]
        elif isinstance(ys, (tuple, list)):
            kind, keys, items = type(ys), list(range(len(ys))), list(ys)
            labels = [f"y[{key}]" for key in keys]
        else:
            kind, keys, items, labels = None, [0], [ys], ["y"]
        numbers = [isinstance(y, (int, float, complex)) and not isinstance(y, np.generic)
                   for y in items]
        hosts = [np.array(y if isinstance(y, (int, float, complex, np.generic)) else host(y))
                 for y in items]
        return cls(kind, keys, labels, hosts, numbers, [_is_float(y) for y in hosts])

    @property
    def size(self) -> int:
        return sum(len(range(*part.indices(10**18))) for part in self.parts())

    def parts(self) -> list[slice]:
        """Return the place of every live output in the flat array."""
        places, start = [], 0
        for y, live in zip(self.hosts, self.live, strict=True):
            if live:
                stop = start + y.size * (2 if y.dtype.kind == "c" else 1)
                places.append(slice(start, stop))
                start = stop
        return places

    def outputs(self) -> list[tuple[str, Array, slice]]:
        """Return label, values and place of every live output."""
        live = [i for i, alive in enumerate(self.live) if alive]
        return [(self.labels[i], self.hosts[i], part)
                for i, part in zip(live, self.parts(), strict=True)]

    def build(
        self, flat: Array, asarray: Callable[[Array], Any], real: str,
        keep: list[tuple[Any, Array]] | None = None,
    ) -> Any:
        """Arrange flat numbers as ``dy``."""
        items: list[Any] = []
        parts = iter(self.parts())
        for y, number, live in zip(self.hosts, self.numbers, self.live, strict=True):
            if not live:
                items.append(None)
                continue
            numbers = flat[next(parts)]
            kind = y.dtype
            if kind.kind == "c":
                host = np.ascontiguousarray(numbers, dtype=float).view(complex)
            else:
                host, kind = numbers, np.dtype(real) if kind.kind == "f" else kind
            host = np.array(host.reshape(y.shape), dtype=kind)
            item = host.item() if number else asarray(host.copy())
            if keep is not None:
                keep.append((item, host))
            items.append(item)
        if self.kind is None:
            return items[0]
        if self.kind is dict:
            return dict(zip(self.keys, items, strict=True))
        return self.kind(*items) if hasattr(self.kind, "_fields") else self.kind(items)


@dataclass
class _Run:
    """One forward pass, and the backward that belongs to it."""

    layout: _Layout
    y: Array
    back: Callable[..., dict[str, Any]]
    written: Callable[[], list[str]]


@dataclass
class _Pair:
    """The two functions, and how to give them arrays and take theirs."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    prepared: _Prepared
    device: Callable[[Array], Any] | None
    to_numpy: Callable[[Any], Array]
    outputs: int | None
    kwargs: dict[str, Any]
    split: Callable[[Any], tuple[Any, Any]] | None = None
    spread: bool = False       # dy is given as several arguments
    unsure: bool = False       # or perhaps not
    consumes: bool = False     # backward uses its cache up
    notes: list[str] = field(default_factory=list)

    @property
    def wrt(self) -> list[str]:
        return self.prepared.wrt

    def asarray(self, a: Array) -> Any:
        """Return a host array as the functions want it."""
        return a if self.device is None else self.device(a)

    def give(self, values: Values, copy: bool = True) -> Values:
        """Return inputs as the functions want them."""
        return {key: self.asarray(a.copy() if copy else a) if isinstance(a, np.ndarray) else a
                for key, a in values.items()}

    def host(self, a: Any) -> Array:
        """Return a copy of ``a`` as a NumPy array; numbers need no conversion from a device."""
        return np.array(a if isinstance(a, (int, float, np.generic)) else self.to_numpy(a))

    def call(self, given: Values) -> Any:
        """Call forward."""
        args, named = _bind(self.forward, given)
        return _called("forward", self.forward, *args, **named, **self.kwargs)

    def outputs_of(self, result: Any, given: Values) -> tuple[Any, Any]:
        """Divide what forward returned into outputs and cache."""
        if self.split is None:
            self.split = _Convention(self, result, given).learn()
        return self.split(result)

    def evaluate(self, given: Values, repeat: int = 1) -> Array:
        """Return (outputs, repeat): real numbers, or complex ones in complex mode."""
        ys, _ = self.outputs_of(self.call(given), given)
        return self._columns(ys, repeat)

    def _columns(self, ys: Any, repeat: int) -> Array:
        if repeat == 1 and not isinstance(ys, (tuple, list, Mapping)):
            host = np.asarray(ys if isinstance(ys, (int, float, np.generic)) else
                              self.to_numpy(ys))
            flat = _flat(host) if host.dtype.kind != "c" or not self.stepping else host.ravel()
            return flat[:, None]
        items = list(ys.values()) if isinstance(ys, Mapping) else (
            list(ys) if isinstance(ys, (tuple, list)) else [ys])
        columns = []
        for y in items:
            host = self.host(y)
            if not _is_float(host):
                continue
            if repeat > 1 and (host.ndim == 0 or host.shape[0] % repeat):
                raise ValueError(f"forward gave shape {host.shape} for {repeat} batches, want a "
                                 "first axis that grows with the batch: see batched")
            flat = host.ravel() if self.stepping and host.dtype.kind == "c" else _flat(host)
            columns.append(flat.reshape(repeat, -1).T)
        return np.concatenate(columns)

    stepping = False   # whether complex numbers stand for a complex step

    def oracle(self, function: Callable[..., Any]) -> Callable[[Values], Array]:
        """Return an oracle that gives what ``evaluate`` gives."""
        def evaluate(values: Values) -> Array:
            args, named = _bind(function, values)
            result = _called("oracle", function, *args, **named, **self.kwargs)
            if self.count == 0:
                result = result[0] if isinstance(result, tuple) else result
            elif isinstance(result, tuple) and len(result) == 2 and isinstance(
                    result[0], (tuple, list, Mapping)):
                result = result[0]
            elif isinstance(result, tuple):
                result = result[:self.count]
            return self._columns(result, 1)
        return evaluate

    count = 0          # outputs in a container; 0: one array

    def run(self, values: Values) -> _Run:
        """Run forward on copies of the inputs."""
        given = self.give(values)
        ys, cache = self.outputs_of(self.call(given), given)
        layout = _Layout.of(ys, self.host)
        self.count = 0 if layout.kind is None else len(layout.keys)
        upstream: list[tuple[Any, Array]] = []
        live = [y for _, y, _ in layout.outputs()]
        flat = np.concatenate([_flat(y) for y in live]) if live else np.empty(0)

        def back(dy: Array, asarray: Callable[[Array], Any] | None = None) -> dict[str, Any]:
            built = layout.build(dy, asarray or self.asarray, self.prepared.real, upstream)
            if not self.unsure:
                return call(list(built) if self.spread else [built])
            self.unsure = False
            try:
                return call([built])
            except Exception:
                self.spread = True
                return call(list(built))

        def call(lead: list[Any]) -> dict[str, Any]:
            if cache is _UNKNOWN:
                args, named = _bind(self.backward, given, len(lead))
                named |= self.kwargs
            else:
                args = [cache]
                keywords = _parameters_of(self.backward)
                named = {k: v for k, v in self.kwargs.items()
                         if k in keywords[2] or k in keywords[3] or "**" in keywords[3]}
            return self._named(_called("backward", self.backward, *lead, *args, **named))

        def written() -> list[str]:
            changed = [key for key, a in values.items()
                       if isinstance(a, np.ndarray) and not _same(self.host(given[key]), a)]
            items = [ys] if layout.kind is None else (
                list(ys.values()) if layout.kind is dict else list(ys))
            for label, item, host in zip(layout.labels, items, layout.hosts, strict=True):
                if not _same(self.host(item), host):
                    changed.append(label)
            if any(not _same(self.host(item), dy) for item, dy in upstream):
                changed.append("dy")
            return changed

        return _Run(layout, flat, back, written)

    def _named(self, grads: Any) -> dict[str, Any]:
        wrt, everything = self.wrt, list(self.prepared.values)
        if isinstance(grads, Mapping):
            items = _renamed(grads, everything)
            odd = [key for key in grads if key not in items
                   and not any(key in (f"d{n}", f"d_{n}", f"grad_{n}", f"{n}_grad") for n in items)]
            if odd and any(key not in items for key in wrt):
                items["*"] = odd
        elif isinstance(grads, (tuple, list)):
            names = wrt if len(grads) == len(wrt) else everything
            if len(grads) != len(names):
                raise TypeError(f"backward gave {len(grads)} gradients, want {len(wrt)}: "
                                f"{', '.join(wrt)}")
            items = dict(zip(names, grads, strict=True))
        else:
            items = {(wrt or everything)[0]: grads}
        return {key: g if key == "*" or g is None else self.host(g) for key, g in items.items()}


@dataclass
class _Convention:
    """Find out what forward returns: outputs, or outputs and a cache."""

    pair: _Pair
    result: Any
    given: Values

    def learn(self) -> Callable[[Any], tuple[Any, Any]]:
        """Return the function that divides a result into outputs and cache."""
        result, wanted = self.result, self.pair.outputs
        parts = len(result) if isinstance(result, tuple) else 1
        if wanted is not None:
            return self._wanted(wanted)
        if parts < 2 or hasattr(result, "_fields"):
            return self._plain()
        if parts == 2 and isinstance(result[0], (tuple, list, Mapping)):
            return self._pair()
        if not self._floating(result[-1]):
            return self._pair() if parts == 2 else self._tail(parts - 1)
        # Arrays throughout: the last may be an output or a cache.
        _, most, names, _ = _parameters_of(self.pair.backward)
        required = _parameters_of(self.pair.backward)[0]
        inputs = len(_bind(self.pair.backward, self.given)[0])
        as_cache = any(required <= n <= most for n in {2, parts})
        as_output = any(required <= n <= most for n in {1 + inputs, parts + inputs})
        if _says_cache(names[-1:]) or (as_cache and not as_output):
            return self._pair() if parts == 2 else self._tail(parts - 1)
        if as_output and not as_cache:
            return self._plain()
        if parts == 2:
            return self._tried()
        return self._plain()

    def _plain(self) -> Callable[[Any], tuple[Any, Any]]:
        self._spread(self.result, len(self.given))
        return lambda result: (result, _UNKNOWN)

    def _pair(self) -> Callable[[Any], tuple[Any, Any]]:
        self._spread(self.result[0], 1)
        return lambda result: (result[0], result[1])

    def _tail(self, count: int) -> Callable[[Any], tuple[Any, Any]]:
        self._spread(self.result[:count], 1)

        def split(result: Any) -> tuple[Any, Any]:
            rest = result[count:]
            return (result[0] if count == 1 else result[:count],
                    rest[0] if len(rest) == 1 else rest)
        return split

    def _spread(self, ys: Any, after: int) -> None:
        if isinstance(ys, (tuple, list)):
            required, most, _, _ = _parameters_of(self.pair.backward)
            self.pair.spread = not required <= 1 + after <= most and \
                required <= len(ys) + after <= most
            self.pair.unsure = most == math.inf and len(ys) > 1  # backward(*args)

    def _wanted(self, wanted: int) -> Callable[[Any], tuple[Any, Any]]:
        result = self.result
        tuple_of = len(result) if isinstance(result, tuple) else 0
        if wanted == 1:
            return self._plain() if tuple_of < 2 else self._tail(1)
        if isinstance(result, (tuple, list, Mapping)) and len(result) == wanted:
            return self._plain()
        if tuple_of == 2 and isinstance(result[0], (tuple, list, Mapping)) and \
                len(result[0]) == wanted:
            return self._pair()
        if tuple_of > wanted:
            return self._tail(wanted)
        raise TypeError(f"forward gave {_brief(result)}, want {wanted} outputs")

    def _floating(self, value: Any) -> bool:
        if isinstance(value, float):
            return True
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            return False
        return _is_float(self.pair.host(value))

    def _tried(self) -> Callable[[Any], tuple[Any, Any]]:
        """Two arrays: see what backward does with the second."""
        first, second = (self.pair.host(part) for part in self.result)
        hosts = [self.pair.host(v) for v in self.given.values() if hasattr(v, "shape")]
        if any(_same(second, a) for a in [*hosts, first]):
            return self._pair()
        dys = [np.asarray(_draw(a.shape, a.dtype, 0, "try", i))
               for i, a in enumerate((first, second))]
        cached = self._try(self.pair.asarray(dys[0]), [self.result[1]])
        args = list(self.given.values())
        several = self._try((self.pair.asarray(dys[0]), self.pair.asarray(dys[1])), args)
        if several is not None and cached is None:
            return self._plain()
        if cached is not None and several is None:
            spoilt = self._try(self.pair.asarray(dys[0]),
                               [self.pair.asarray(np.full_like(second, 3.25))])
            if spoilt is not None and all(_same(cached[k], spoilt[k]) for k in cached):
                self.pair.notes.append(
                    "FAIL forward returned two arrays, and backward neither uses the second as a "
                    "cache nor takes its gradient: outputs=1 says that it is a cache, outputs=2 "
                    "that it is an output")
                return self._pair()
        self.pair.notes.append("the second of the two arrays that forward returned was taken for "
                               "a cache; outputs=2 says that it is an output")
        return self._pair()

    def _try(self, dy: Any, args: Sequence[Any]) -> dict[str, Any] | None:
        try:
            with np.errstate(all="ignore"):
                copies = [self.pair.asarray(self.pair.host(a)) if hasattr(a, "shape") else a
                          for a in args]
                grads = self.pair._named(self.pair.backward(dy, *copies))
        except Exception:
            return None
        for key in self.pair.wrt:
            a = self.pair.prepared.values[key]
            if not isinstance(grads.get(key), np.ndarray) or grads[key].shape != a.shape or \
                    not _is_float(grads[key]):
                return None
        return grads


# --------------------------------------------------------------------------------- the derivative


@dataclass
class _Point:
    """One set of inputs, and what forward does there."""

    values: Values            # as the functions under test get them
    wide: Values              # as what is differentiated gets them, on the host ...
    given: Values             # ... and as it wants them
    y0: Array                 # (outputs,)
    sigma: Array              # (outputs,), the rounding of forward
    steps: dict[str, float] = field(default_factory=dict)
    typical: dict[str, float] = field(default_factory=dict)  # |J v| for random v
    floors: dict[str, float] = field(default_factory=dict)   # noise far above rounding


@dataclass
class _Measured:
    """J v for some directions v, a column each, and what is known of each number."""

    slope: Array     # (outputs, directions)
    doubt: Array     # how far it can be off
    noise: Array     # the part of the doubt that is the noise of forward
    responds: Array  # whether the output changes at all

    @classmethod
    def empty(cls, outputs: int, directions: int) -> _Measured:
        """Nothing measured yet."""
        shape = (outputs, directions)
        return cls(np.zeros(shape), np.full(shape, math.inf), np.zeros(shape),
                   np.zeros(shape, bool))

    def put(self, columns: Array, other: _Measured) -> None:
        """Replace what ``other`` has measured with less doubt in these columns."""
        self.replace(columns, other, other.doubt < self.doubt[:, columns])
        self.responds[:, columns] |= other.responds

    def replace(self, columns: Array, other: _Measured, where: Array) -> None:
        """Take over from ``other`` what is marked in these columns."""
        for name in ("slope", "doubt", "noise"):
            mine, its = getattr(self, name), getattr(other, name)
            mine[:, columns] = np.where(where, its, mine[:, columns])


def _shift(x: Array, t: float, direction: int | Array) -> Array:
    """Return x + t v; an int stands for the basis vector of that number."""
    y = np.array(x, order="C")
    flat = y.reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    if isinstance(direction, (int, np.integer)):
        flat[direction] += t
    else:
        flat += (t * direction).astype(flat.dtype)
    return y


def _last_bit(a: Array, eps: float, rng: np.random.Generator) -> Array:
    """Return numbers that differ in their last bit, up or down at random."""
    change = np.where(np.isfinite(a), a, 0) * eps * (rng.integers(0, 2, a.shape) * 2 - 1)
    return np.asarray(a + change, a.dtype)


def _vector(direction: int | Array, size: int) -> Array:
    if isinstance(direction, (int, np.integer)):
        v = np.zeros(size)
        v[direction] = 1
        return v
    return direction


def _extrapolated(
    lines: list[tuple[Array, Array, Array]], steps: Sequence[float], sigma: Array, careful: bool
) -> tuple[Array, Array, Array]:
    """Return slope, doubt and noise from the differences at the steps h, h/2, h/4 so far.

    d(h) = y' + a h^2 + b h^4 + ...: two values give one free of a, three one free of b.
    j(h) = y'(right) - y'(left) + a h + b h^3 + ...: the jump of the slope at x itself.
    """
    sigma = sigma[:, None]
    (d1, j1, _), h = lines[0], steps[0]
    if len(lines) == 1:  # exact where forward is affine, and then j = 0
        noise = 2 * sigma / h
        doubt = np.full(d1.shape, math.inf) if careful else abs(j1) / 2 + noise
        return d1, doubt, np.broadcast_to(noise, d1.shape)
    d2, j2, _ = lines[1]
    coarse = (4 * d2 - d1) / 3
    if len(lines) == 2:
        evidence = np.maximum(abs(d2 - d1), abs(2 * j2 - j1))
        slope, noise, seen = coarse, 5 * sigma / h, 10 * sigma / h
    else:
        d3, j3, _ = lines[2]
        fine = (4 * d3 - d2) / 3
        jump = (8 * (2 * j3 - j2) - (2 * j2 - j1)) / 7
        # Kinks have blind spots in either test, but no place is blind in both: a kink at x moves
        # d not at all, one at x + 4h/9 leaves coarse = fine; the jump is seen at both.
        evidence = np.maximum(abs(fine - coarse), abs(jump))
        slope, noise, seen = (16 * fine - coarse) / 15, 8 * sigma / h, 16 * sigma / h
    doubt = np.maximum(evidence - seen, evidence / 8) + noise
    return slope, doubt, np.broadcast_to(noise, slope.shape)


@dataclass
class _Check:
    """The first part of a check: what needs no derivative, and how derivatives are measured."""

    pair: _Pair
    prepared: _Prepared
    options: _Options
    name: str
    blocked: set[str] = field(default_factory=set)  # arguments that need no derivative to fail
    notes: list[str] = field(default_factory=list)
    credit: int = 64           # columns that may still be retried in vain
    layout: _Layout | None = None
    rtol: float = 0.0
    away: bool = False         # at another point than the first

    def __post_init__(self) -> None:
        o, real = self.options, self.prepared.real
        self.real = real
        self.wide = "float64" if o.oracle else real
        if self.wide not in _STEP:
            raise TypeError(f"inputs are {real}, want an oracle= that takes float64 beside them")
        self.mode = o.mode
        self.oracle = self.pair.oracle(o.oracle) if o.oracle else None
        self.seed = o.seed

    # ------------------------------------------------------------------------- the whole course

    def _report(
        self, problems: Sequence[str], arguments: Mapping[str, ArgumentReport]
    ) -> GradientReport:
        step = None if self.mode in ("complex", "adjoint") else (
            self.options.step or _STEP[self.wide])
        return GradientReport(self.name, self.mode, self.real, step, self.rtol, self.seed,
                              tuple(arguments.values()), tuple(problems), tuple(self.notes))

    def _rtol(self) -> float:
        exact = self.mode in ("complex", "adjoint") or self.options.oracle is not None
        default = _RTOL[self.real]["exact" if exact else "differences"]
        return default if self.options.rtol is None else self.options.rtol

    def _choose_mode(self, outputs: int) -> None:
        sizes = [_flat(self.prepared.values[key]).size for key in self.prepared.wrt]
        calls, entries = 4 * sum(sizes) + outputs, outputs * max(sizes, default=0)
        if self.mode == "full":
            self._refuse_if_too_long(calls)
        if self.mode != "auto":
            return
        work = calls * (outputs + sum(sizes))
        fits = entries <= _FULL["entries"] and calls <= _FULL["calls"] and work <= _FULL["work"]
        self.mode = "full" if fits else "projection"
        if not fits:
            self.notes.append(f"mode 'auto' took projection: full would compare {entries:,} "
                              f"entries in about {calls:,} calls")

    def _refuse_if_too_long(self, calls: int) -> None:
        if calls < 100_000:
            return
        given = self.pair.give(self.prepared.values)
        start = time.perf_counter()
        self.pair.evaluate(given)
        seconds = calls * (time.perf_counter() - start)
        if seconds > _LONGEST:
            raise ValueError(f"mode 'full' needs about {calls:,} calls, {seconds / 3600:.1f} hours "
                             "by the time of one: use mode='projection' or 'auto'")

    def _dy(self, shape: tuple[int, ...], word: str) -> Array:
        return _rng(self.seed, "dy", word).standard_normal(shape)

    # ----------------------------------------------------------- what is seen without derivatives

    def _unfilled_reports(self) -> dict[str, ArgumentReport]:
        """Return a report for each argument, with nothing found yet."""
        return {key: ArgumentReport(key, tuple(np.shape(a)) if hasattr(a, "shape") else (),
                                    unchecked=self.prepared.unchecked.get(key, ""))
                for key, a in self.prepared.values.items()}

    def contract(self) -> tuple[list[str], dict[str, ArgumentReport]]:
        """Check all that can be seen without a derivative."""
        values, pair = self.prepared.values, self.pair
        arguments = self._unfilled_reports()
        self._run_elsewhere()
        first, second = pair.run(values), pair.run(values)
        self.layout = first.layout
        if not any(first.layout.live) and self._promote(
                {key: np.ones(np.shape(a)) for key, a in values.items()}):
            return self.contract()  # whole numbers throughout
        self._notes_of_pair()
        problems = self._problems_of_forward(first, second)
        if problems:
            return problems, self._unchecked(arguments)
        if pair.notes:
            problems += [note[5:] for note in pair.notes if note.startswith("FAIL ")]
        shape = (first.y.size,)
        alive = np.isfinite(first.y)
        dy, other = self._dy(shape, "contract") * alive, self._dy(shape, "other") * alive
        written = first.written()
        problems += [f"forward writes to {key}" for key in written]
        runs = [first.back(dy)]
        if self._promote(runs[0]):
            return self.contract()
        runs += [self._again(first, dy), self._again(first, dy), self._again(first, other),
                 self._again(first, dy), second.back(dy)]
        problems += [f"backward writes to {key}" for key in first.written()
                     if key not in written and not (key == "dy" and self.options.inplace_dy)]
        for key in self.prepared.wrt:
            arguments[key] = self._contract_of(arguments[key], runs)
        if not problems and not self.blocked:
            problems += self._strange_dy(dy, runs[-1])
        return problems, self._unchecked(arguments) if problems else arguments

    def _unchecked(self, arguments: dict[str, ArgumentReport]) -> dict[str, ArgumentReport]:
        return {key: replace(a, unchecked=a.unchecked or "because of the above") if a.ok else a
                for key, a in arguments.items()}

    def _run_elsewhere(self) -> None:
        """Run both functions on another input before: a cache that stays would be stale."""
        if self.options.points < 2:
            return
        try:
            with np.errstate(all="ignore"):
                run = self.pair.run(self._elsewhere(2)[0])
                run.back(self._dy((run.y.size,), "elsewhere"))
        except Exception:
            self.pair.split = None
            self.pair.notes.clear()

    def _notes_of_pair(self) -> None:
        self.notes += [n for n in self.pair.notes if not n.startswith("FAIL ")]
        assert self.layout is not None
        for label, y, live in zip(self.layout.labels, self.layout.hosts, self.layout.live,
                                  strict=True):
            if not live and any(self.layout.live):
                self.notes.append(f"output {label} is {y.dtype}: not differentiated")
            elif live and self.real == "float64" and _precision(y) in ("float32", "float16"):
                self.notes.append(f"forward returned {y.dtype} for float64: its rounding is the "
                                  "noise that limits this check")

    def _problems_of_forward(self, first: _Run, second: _Run) -> list[str]:
        layout = first.layout
        if not any(layout.live):
            return [f"forward gave {_brief(layout.hosts[0])}, want one floating array or number, "
                    "or several"]
        if np.isnan(first.y).any() or not np.isfinite(first.y).any():
            return ["forward gave numbers that are not finite: want inputs inside its domain"]
        if not np.isfinite(first.y).all():
            infinite = int((~np.isfinite(first.y)).sum())
            self.notes.append(f"{infinite} outputs are infinite: skipped")
        allowed = self.options.nondeterministic * _rms(first.y[np.isfinite(first.y)])
        with np.errstate(invalid="ignore"):
            apart = abs(first.y - second.y)
        if first.y.shape != second.y.shape or (
                not _same(first.y, second.y) and not np.nanmax(apart) <= allowed):
            return ["forward is not deterministic: two runs differ (nondeterministic= allows a "
                    "little, for atomic additions)"]
        return []

    def _again(self, run: _Run, dy: Array) -> dict[str, Any]:
        """Call backward once more on the same cache, or on a new one if it was used up."""
        if not self.pair.consumes:
            try:
                return run.back(dy)
            except Exception:
                grads = self.pair.run(self.prepared.values).back(dy)  # raises if it is no cache's
                self.pair.consumes = True
                self.notes.append("backward uses its cache up: forward is run for every dy")
                return grads
        return self.pair.run(self.prepared.values).back(dy)

    def _promote(self, grads: Mapping[str, Any]) -> bool:
        """Take whole numbers as floats if backward has a gradient for them; say if any were."""
        taken = False
        for key, g in grads.items():
            a: Any = self.prepared.values.get(key)
            whole = a.dtype.kind in "iu" if isinstance(a, np.ndarray) else (
                isinstance(a, (int, float)) and not isinstance(a, bool))
            if self.prepared.asked or key not in self.prepared.unchecked or not whole or \
                    not isinstance(g, np.ndarray) or not _is_float(g) or not g.any() or \
                    g.shape != np.shape(a):
                continue
            floats = self.prepared.values | {key: np.asarray(a, self.real)}
            try:
                self.pair.evaluate(self.pair.give(floats))
            except Exception:
                self.notes.append(f"backward gives a gradient for {key}, but forward does not "
                                  "take it as floats")
                self.prepared.unchecked[key] += ", and forward does not take it as floats"
                continue
            self.notes.append(f"{key} was given as {_brief(np.asarray(a))}, and taken as floats")
            self.prepared.values[key] = floats[key]
            del self.prepared.unchecked[key]
            taken = True
        if taken:
            self.prepared.wrt[:] = [key for key in self.prepared.values
                                    if key not in self.prepared.unchecked]
        return taken

    def _contract_of(
        self, argument: ArgumentReport, runs: list[dict[str, Any]]
    ) -> ArgumentReport:
        key, a = argument.name, self.prepared.values[argument.name]
        if all(key in run and run[key] is None for run in runs) and not self.prepared.asked:
            return replace(argument, unchecked="backward gives None for it")
        if any(run.get(key) is None for run in runs):
            self.blocked.add(key)
            odd = next((f" (it gave {run['*']})" for run in runs if "*" in run), "")
            return replace(argument, problems=(f"backward gave no gradient for it{odd}",))
        one, two, three, other, again, fresh = (run[key] for run in runs)
        problems, mistake = [], None
        if one.shape != a.shape:
            problems.append(f"the gradient has shape {one.shape}, want {a.shape}")
        if one.dtype != a.dtype and not (a.ndim == 0 and one.dtype == np.float64):
            problems.append(f"the gradient has dtype {one.dtype}, want {a.dtype}")
        count = len(problems)
        if one.dtype.kind not in "fciub" and not _is_float(one):
            self.blocked.add(key)
        elif not np.isfinite(one).all():
            problems.append("the gradient has numbers that are not finite")
        elif not all(self._agree(one, g) for g in (two, three, again, fresh)):
            problems.append("backward does not give the same gradient twice for the same dy")
            if one.shape == two.shape == three.shape:
                growth, more = two.astype(float) - one, three.astype(float) - two
                if _rms(growth) > 0 and _rms(more - growth) <= 1e-4 * _rms(growth):
                    mistake = "accumulated instead of overwritten"
        elif one.any() and _same(one, other) and not self._constant(one, a):
            problems.append("backward gives the same gradient for every dy")
            mistake = "not multiplied by dy"
        if len(problems) > count:
            self.blocked.add(key)
        return replace(argument, problems=tuple(problems), mistake=mistake)

    def _constant(self, one: Array, a: Array) -> bool:
        """Whether a gradient is but rounding, so that it may well not depend on dy."""
        return bool(one.shape == a.shape and _rms(one) < 1e-300)

    def _agree(self, a: Array, b: Array) -> bool:
        if _same(a, b):
            return True
        allowed = self.options.nondeterministic
        return allowed > 0 and a.shape == b.shape and bool(
            np.max(abs(a - b)) <= 10 * allowed * (_rms(a) or 1.0))

    def _strange_dy(self, dy: Array, want: Mapping[str, Any]) -> list[str]:
        """Give backward a ``dy`` that is not contiguous, and one that is read-only."""
        if self.pair.device is not None:
            return []

        def strided(a: Array) -> Array:
            if a.ndim == 0:
                return a
            wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), 7.25, a.dtype)
            wide[..., ::2] = a
            return wide[..., ::2]

        def locked(a: Array) -> Array:
            a.flags.writeable = False
            return a

        problems = []
        for what, make in (("not contiguous", strided), ("read-only", locked)):
            if what == "read-only" and self.options.inplace_dy:
                continue
            try:
                grads = self.pair.run(self.prepared.values).back(dy, make)
            except Exception as error:
                if "read-only" in str(error):
                    problems.append(f"backward writes to dy: {error}")
                else:
                    self.notes.append(f"backward does not take a dy that is {what}: "
                                      f"{type(error).__name__}: {str(error)[:200]}")
                continue
            for key in self.prepared.wrt:
                if key in self.blocked or grads.get(key) is None or want.get(key) is None:
                    continue
                apart = _rms(np.subtract(grads[key], want[key], dtype=complex))
                # The order of additions may differ; noise beyond that was ruled out before.
                allowed = 1e4 * _eps(self.real) + 20 * self.options.nondeterministic
                if not apart <= allowed * max(_rms(want[key]), _rms(dy)):
                    problems.append(f"backward gives another gradient of {key} for the same dy "
                                    f"when it is {what}")
        return problems

    def _widen_forward(self) -> None:
        """Differentiate forward in float64, if it takes that and is the same function there."""
        if self.options.step is not None or self.options.batched:
            return

        def wide(values: Values) -> Array:
            given = self.pair.give(values)
            ys, _ = self.pair.outputs_of(self.pair.call(given), given)
            layout = _Layout.of(ys, self.pair.host)
            kinds = {_precision(y) for y, live in zip(layout.hosts, layout.live, strict=True)
                     if live}
            if kinds != {"float64"}:
                raise TypeError("not float64")
            return self.pair._columns(ys, 1)

        self.oracle, self.wide = wide, "float64"
        try:
            with np.errstate(all="ignore"):
                same = not self.agreement()
        except Exception:
            same = False
        if not same:
            self.oracle, self.wide = None, self.real

    def agreement(self) -> list[str]:
        """Check that the oracle is the same function as forward."""
        assert self.oracle is not None
        y = self.pair.run(self.prepared.values).y
        want = self.oracle(_widened(self.prepared.values, self.wide))[:, 0]
        if y.shape != want.shape:
            return [f"forward gave {y.size} numbers and oracle {want.size}"]
        finite = np.isfinite(y) & np.isfinite(want)
        want, y = want[finite], y[finite]
        error = np.max(abs(y - want), initial=0.0) / (_rms(want) or 1.0)
        rtol = _RTOL[self.real]["exact"]
        return [] if error <= rtol else [
            f"forward and oracle differ by {error:.1e} of their size, want at most {rtol:.0e}"]

    # ---------------------------------------------------------------------------- points

    def _elsewhere(self, number: int) -> tuple[Values, str]:
        """Return other inputs: large ones (1), small ones (2), of either size after that."""
        values: Values = {}
        largest, changed = 0.0, False
        first = next((k for k in self.prepared.values if k in self.prepared.drawn), None)
        for key, a in self.prepared.values.items():
            rng = _rng(self.seed, "point", number, key)
            if key in self.prepared.drawn:
                b = _draw(a.shape, a.dtype, self.seed, "point", number, "draw", key)
                spread = {1: 10.0 ** rng.uniform(-1, 1, a.shape) if key == first else 1.0,
                          2: 0.25}.get(number, 10.0 ** rng.uniform(-0.5, 0.5))
            elif key in self.prepared.wrt and not a.any():
                b, spread = _draw(a.shape, a.dtype, self.seed, "point", number, "draw", key), 1.0
            elif key in self.prepared.wrt:
                b, spread = a, 1 + rng.uniform(-1, 1, a.shape) / 8
            else:
                values[key] = a
                continue
            values[key] = np.asarray(b * spread, a.dtype)
            changed = True
            largest = max(largest, float(np.max(abs(values[key].astype(complex)))))
        return (values if changed else {}), f"point {number + 1}, |inputs| up to {largest:.2g}"

    def point(self, values: Values) -> _Point:
        """Run forward at a point and measure its rounding there."""
        wide = _widened(values, self.wide)
        given = wide if self.oracle else self.pair.give(wide)
        y0 = self._f(given)[:, 0]
        point = _Point(values, wide, given, y0, np.zeros(y0.shape))
        finite = np.isfinite(y0)
        apart = np.zeros(y0.shape)
        eps = _eps(self.wide)
        for attempt in range(2):
            rng = _rng(self.seed, "last bit", attempt)
            moved = {}
            for key in self.prepared.wrt:
                moved[key] = _last_bit(wide[key], eps, rng)
            convert = _identity if self.oracle else self.pair.asarray
            with np.errstate(all="ignore"):
                y = self._f(point.given | {k: convert(a) for k, a in moved.items()})[:, 0]
                apart = np.maximum(apart, np.nan_to_num(abs(y - y0), posinf=0, neginf=0))
        for part in self._parts(y0.size):
            mine = part_finite = y0[part][finite[part]]
            top = float(np.max(abs(part_finite), initial=0.0)) if mine.size else 0.0
            known = eps / 2 * top
            if self.options.nondeterministic:
                known = max(known, self.options.nondeterministic * _rms(mine))
            if self.layout and self.real == "float64" and not self.oracle:
                kind = next(y.dtype for _, y, p in self.layout.outputs() if p == part)
                known = max(known, top * _eps("float32") / 2) if kind.name in (
                    "float32", "complex64") else known
            point.sigma[part] = max(known, _rms(apart[part]))
        return point

    def _parts(self, size: int) -> list[slice]:
        return self.layout.parts() if self.layout else [slice(0, size)]

    # ---------------------------------------------------------------------------- measuring

    def _f(self, given: Values, repeat: int = 1) -> Array:
        return self.oracle(given) if self.oracle else self.pair.evaluate(given, repeat)

    def _at(self, point: _Point, key: str, arrays: list[Array]) -> Array:
        """Return (outputs, len(arrays)): y with these in place of one argument."""
        batched = self.options.batched
        if key in batched and not self.oracle and len(arrays) > 1:
            count = len(arrays)
            stacked = {name: np.concatenate([point.wide[name]] * count) for name in batched}
            stacked[key] = np.concatenate(arrays)
            return self._f(point.given | {k: self.pair.asarray(a) for k, a in stacked.items()},
                           count)
        convert = _identity if self.oracle else self.pair.asarray
        return np.concatenate([self._f(point.given | {key: convert(a)}) for a in arrays], axis=1)

    def measure(
        self, point: _Point, key: str, directions: list[Any], careful: bool = False
    ) -> _Measured:
        """Measure J v for each direction: a flat array of real numbers, or a number for e_i."""
        if self.mode == "complex":
            return self._complex_step(point, key, directions)
        if self.mode == "adjoint":
            return self._affine(point, key, directions)
        if key not in point.steps:
            self._choose_step(point, key)
        outputs = point.y0.size
        whole = _Measured.empty(outputs, len(directions))
        for start in range(0, len(directions), _CHUNK):
            columns = np.arange(start, min(start + _CHUNK, len(directions)))
            chunk = [directions[c] for c in columns]
            whole.put(columns, self._romberg(point, key, chunk, point.steps[key], careful))
            self._retry(point, key, directions, columns, whole)
        return whole

    def _retry(
        self, point: _Point, key: str, directions: list[Any], columns: Array, whole: _Measured
    ) -> None:
        """Try other steps where a column has entries in doubt: smaller for kinks, then larger."""
        if self.options.step is not None:
            return
        base, scale = point.steps[key], self._size_of(point, key)
        for c in columns:
            if self.credit <= 0:
                return
            before = self._bad(point, key, directions[c], whole, c)
            if not before:
                continue
            noisy = float(np.median(whole.noise[:, c])) > self.rtol / 4 * self._typical(
                point, key, directions[c])
            up = [base * f for f in (16.0, 256.0, 4096.0) if base * f <= 2 * scale]
            down = [base / f for f in (16.0, 256.0)]
            for step in up if noisy else [*down, *up[:1]]:
                column = self._romberg(point, key, [directions[c]], step, True)
                whole.put(np.array([c]), column)
                if not self._bad(point, key, directions[c], whole, c):
                    break
            self.credit += 1 if self._bad(point, key, directions[c], whole, c) < before else -1

    def _bad(self, point: _Point, key: str, direction: Any, whole: _Measured, c: int) -> int:
        """Count the entries of a column that are in doubt, if they are many."""
        scale = np.maximum(abs(whole.slope[:, c]), self._typical(point, key, direction))
        responds = whole.responds[:, c] & np.isfinite(point.y0)
        bad = int((responds & ~(whole.doubt[:, c] <= self.rtol / 4 * scale)).sum())
        return bad if bad > 0.1 * responds.sum() else 0

    def _typical(self, point: _Point, key: str, direction: Any) -> float:
        """Return about how large an entry of a column is."""
        whole = point.typical[key]
        if isinstance(direction, (int, np.integer)):
            return whole / math.sqrt(_flat_size(point.wide[key]))
        return whole

    def _size_of(self, point: _Point, key: str) -> float:
        size = _rms(point.wide[key])
        return 2.0 ** round(math.log2(size)) if size > 0 and math.isfinite(size) else 1.0

    def _choose_step(self, point: _Point, key: str) -> None:
        """Set the first step: the usual one, or a larger one above a floor of noise."""
        if self.options.step is not None:
            base = self.options.step
        else:
            base = _STEP[self.wide] * self._size_of(point, key)
        point.steps[key] = base
        v = _rng(self.seed, "step", key).standard_normal(_flat_size(point.wide[key]))
        x = point.wide[key]

        def response(h: float) -> Array:
            with np.errstate(all="ignore"):
                d = abs(self._at(point, key, [_shift(x, h, v)])[:, 0] - point.y0)
            return d[np.isfinite(d)]

        near = response(base)
        point.typical[key] = _rms(near) / base
        if self.options.step is not None or self.mode in ("complex", "adjoint"):
            return
        floor = self._floor(response, base, float(np.median(point.sigma)))
        if floor:
            self._above_floor(point, key, floor, v, 2 * self._size_of(point, key))

    def _floor(self, response: Callable[[float], Array], base: float, sigma: float) -> float:
        """Return the size of forward's jumps or noise, if its response doesn't shrink as steps do.

        A slope responds 256 times less to a step 256 times smaller, down to rounding.
        """
        before, h = response(base), base
        if not before.any():
            far = response(base * 256)
            return float(np.median(far[far > 0])) if far.any() else 0.0
        alive = before > 0
        r1 = float(np.median(before[alive]))
        while r1 > 256 * sigma and h > base * 2.0**-40:
            h /= 256
            after = response(h)
            if after.shape != before.shape:
                return 0.0
            r2 = float(np.median(after[alive]))
            if r2 <= r1 / 64 and r2 > 0:
                r1 = r2
                continue
            if r2 == 0:
                between = response(h * 16)
                found = [d[d > 0] for d in (after, between) if d.shape == before.shape]
                r2 = next((float(np.median(d)) for d in found if d.size), r1)
            return r2
        return 0.0

    def _above_floor(
        self, point: _Point, key: str, floor: float, v: Array, largest: float
    ) -> None:
        """Choose the step at which a forward with jumps or noise of this size is measured best."""
        base, sigma = point.steps[key], point.sigma.copy()
        point.sigma = np.maximum(sigma, floor)
        found: list[tuple[float, float, float]] = []
        step = base
        while step <= largest:
            probe = self._romberg(point, key, [v], step, True)
            doubt, slope = probe.doubt[:, 0], probe.slope[:, 0]
            good = np.isfinite(doubt)
            if good.any():
                size = _rms(slope[good])
                found.append((float(np.median(doubt[good])) / (size or 1.0), step, size))
            step *= 4
        best = min(found, default=(math.inf, base, 0.0))
        if floor > 1e-12 * float(np.max(abs(point.y0[np.isfinite(point.y0)]))):
            point.floors[key] = floor
        if best[0] > 4 * _LARGEST_RTOL or not best[2]:
            point.sigma = sigma  # no step helps: perhaps these are jumps of a flat function
            return
        point.steps[key], point.typical[key] = best[1], best[2]

    def _romberg(
        self, point: _Point, key: str, directions: list[Any], base: float, careful: bool
    ) -> _Measured:
        """Measure columns with the steps h, h/2, h/4, as many as they need."""
        result = _Measured.empty(point.y0.size, len(directions))
        left = np.arange(len(directions))
        lines: list[tuple[Array, Array, Array]] = []
        x, y0 = point.wide[key], point.y0[:, None]
        typical = np.array([self._typical(point, key, v) for v in directions])
        for level in range(3):
            h = base / 2**level
            moved = [directions[c] for c in left]
            with np.errstate(all="ignore"):
                up = self._at(point, key, [_shift(x, h, v) for v in moved])
                down = self._at(point, key, [_shift(x, -h, v) for v in moved])
                lines.append(((up - down) / (2 * h), (up + down - 2 * y0) / h,
                              np.maximum(abs(up - y0), abs(down - y0))))
                slope, doubt, noise = _extrapolated(
                    lines, [base], point.sigma, careful and level == 0)
            responds = ~(np.max([line[2] for line in lines], axis=0) == 0)
            doubt = np.where(np.isfinite(doubt) & np.isfinite(slope), doubt, math.inf)
            slope = np.where(np.isfinite(slope), slope, 0.0)
            result.put(left, _Measured(slope, doubt, noise, responds))
            scale = np.maximum(abs(slope), typical[left])
            alive = responds & np.isfinite(y0)
            open_ = (alive & ~(doubt <= self.rtol / 4 * scale)).any(axis=0)
            if careful and level < 2:
                open_[:] = True
            if not open_.any():
                break
            left = left[open_]
            lines = [tuple(a[:, open_] for a in line) for line in lines]  # type: ignore[misc]
        return result

    def _complex_step(self, point: _Point, key: str, directions: list[Any]) -> _Measured:
        if point.wide[key].dtype.kind == "c":
            raise ValueError(f"inputs[{key!r}] is complex, want real arrays in mode 'complex'")
        wide = _widened(point.wide, "complex128")
        size = _flat_size(wide[key]) // 2
        base = wide if self.oracle else self.pair.give(wide)
        convert = _identity if self.oracle else self.pair.asarray
        result = _Measured.empty(point.y0.size, len(directions))
        self.pair.stepping = True
        try:
            for c, v in enumerate(directions):
                step = 1j * _COMPLEX_STEP * _vector(v, size).reshape(wide[key].shape)
                y = self._f(base | {key: convert(np.asarray(wide[key] + step))})[:, 0]
                if y.dtype.kind != "c":
                    raise ValueError(f"forward gave {y.dtype} for complex inputs, want complex: "
                                     "mode 'complex' needs a forward that computes in complex "
                                     "numbers")
                result.slope[:, c] = y.imag / _COMPLEX_STEP
        finally:
            self.pair.stepping = False
        return self._exact(point, key, result)

    def _affine(self, point: _Point, key: str, directions: list[Any]) -> _Measured:
        x, size = point.wide[key], _flat_size(point.wide[key])
        origin = self._at(point, key, [np.zeros_like(x)])[:, 0]
        result = _Measured.empty(point.y0.size, len(directions))
        for c, v in enumerate(directions):
            at = _shift(np.zeros_like(x), 1.0, _vector(v, size))
            moved = self._at(point, key, [at, np.asarray(x + at)])
            slope = moved[:, 0] - origin
            size_y = max(_rms(point.y0), _rms(slope), _rms(origin))
            if _rms(moved[:, 1] - point.y0 - slope) > 1e3 * _eps(self.wide) * size_y:
                raise ValueError(f"forward is not affine in {key}, want f(x + v) - f(x) = f(v) - "
                                 "f(0): use another mode than 'adjoint'")
            result.slope[:, c] = slope
        return self._exact(point, key, result)

    def _exact(self, point: _Point, key: str, result: _Measured) -> _Measured:
        point.typical.setdefault(key, _rms(result.slope))
        result.responds = result.slope != 0
        result.noise[:] = 4 * point.sigma[:, None]
        result.doubt = np.where(np.isfinite(result.slope), 0.0, math.inf)
        result.slope = np.where(np.isfinite(result.slope), result.slope, 0.0)
        return result

    def rows(
        self, values: Values, keys: Sequence[str], outputs: int, which: Iterable[int],
        lengths: Array,
    ) -> dict[str, Array]:
        """Return the gradients for dy = lengths[i] e_i, for each i."""
        def basis() -> Iterator[Array]:
            for i in which:
                dy = np.zeros(outputs)
                dy[i] = lengths[i]
                yield dy
        return self.gradients(values, keys, basis())

    def gradients(
        self, values: Values, keys: Sequence[str], upstream: Iterable[Array]
    ) -> dict[str, Array]:
        """Return the gradients for many ``dy``: for each argument (R, *shape)."""
        run = self.pair.run(values)
        found: dict[str, list[Array]] = {key: [] for key in keys}
        for count, dy in enumerate(upstream):
            if self.pair.consumes and count:
                run = self.pair.run(values)
            grads = run.back(dy)
            for key in keys:
                g = grads[key]
                found[key].append(g.astype(complex if g.dtype.kind == "c" else float))
        return {key: np.stack(rows) for key, rows in found.items()}


def _flat_size(a: Array) -> int:
    return a.size * (2 if a.dtype.kind == "c" else 1)


# ---------------------------------------------------------------------------------- the comparison


@dataclass
class _Evidence:
    """Gradients for some ``dy``, and the measured numbers that they must reproduce.

    With ``directions`` None, every entry of the Jacobian is compared: ``rows[r]`` is the gradient
    for ``upstream[r]`` times the r-th basis vector. Else ``rows[k]`` is the gradient for the
    vector ``upstream[k]``, compared along the k-th direction only.
    """

    a: Array                 # the argument
    measured: _Measured
    trusted: Array           # (outputs, directions): not in doubt
    upstream: Array          # (outputs,) or (R, outputs)
    rows: Array              # (R, *shape), if backward is right about the shape
    directions: Array | None  # (R, elements)
    rtol: float
    parts: Sequence[slice]   # the outputs
    limit: Array | float     # the largest error that passes: rtol, or what noise allows

    def numeric(self, outputs: Array | float = 1.0) -> Array:
        """Return the measured numbers, with only some ``outputs`` contributing."""
        if self.directions is None:
            return self.measured.slope * np.broadcast_to(outputs, len(self.upstream))[:, None]
        slope = np.where(self.trusted, self.measured.slope, 0.0)
        return np.einsum("ko,ok->k", self.upstream * outputs, slope)

    def analytic(self, rows: Array) -> Array:
        """Return what gradients say of the same numbers."""
        flat = _flat_rows(rows)
        if self.directions is None:
            return flat / self.upstream[:, None]
        return np.einsum("ki,ki->k", flat, self.directions)

    @property
    def mask(self) -> Array:
        """Which of the numbers count."""
        return self.trusted if self.directions is None else np.asarray(self.trusted.any(axis=0))

    def errors(self, rows: Array) -> Array:
        """Return the relative errors, zero where an entry is excluded, infinite for NaN."""
        return _relative(self.analytic(rows), *self._compared())

    def passes(self, rows: Array, outputs: Array | None = None) -> bool:
        """Whether these gradients would have passed; asked when the evidence is complete."""
        if rows.shape[1:] != self.a.shape or (rows.dtype.kind == "c") != (self.a.dtype.kind == "c"):
            return False
        compared = self._complete if outputs is None else self._compared(outputs)
        return bool(np.all(_relative(self.analytic(rows), *compared) <= self.limit))

    @functools.cached_property
    def _complete(self) -> tuple[Array, Array, Any]:
        return self._compared()  # once, and not for each of thousands of explanations

    def _compared(self, outputs: Array | float = 1.0) -> tuple[Array, Array, Any]:
        """Return the measured numbers, which of them count, and what errors are relative to."""
        numeric, mask = self.numeric(outputs), self.mask
        if self.directions is None:
            return numeric, mask, _sizes(numeric, mask & self.measured.responds, self.parts)
        return numeric, mask, _sizes(numeric, mask)

    def part(self, count: int) -> _Evidence:
        """Return a smaller piece of the evidence, to try explanations on."""
        if len(self.rows) <= count:
            return self
        picked = np.unique(np.linspace(0, len(self.rows) - 1, count).astype(int))
        m = self.measured
        if self.directions is not None:
            return replace(self, measured=_Measured(*(x[:, picked] for x in (
                m.slope, m.doubt, m.noise, m.responds))), trusted=self.trusted[:, picked],
                upstream=self.upstream[picked], rows=self.rows[picked],
                directions=self.directions[picked], limit=np.broadcast_to(
                    self.limit, len(self.rows))[picked])
        return replace(self, measured=_Measured(*(x[picked] for x in (
            m.slope, m.doubt, m.noise, m.responds))), trusted=self.trusted[picked],
            upstream=self.upstream[picked], rows=self.rows[picked], parts=(),
            limit=np.broadcast_to(self.limit, self.trusted.shape)[picked])


def _sizes(numeric: Array, counted: Array, parts: Sequence[slice] = ()) -> Any:
    whole = _rms(numeric[counted])
    if len(parts) <= 1:
        return whole
    size = np.empty((len(numeric), 1))
    for part in parts:
        size[part] = max(_rms(numeric[part][counted[part]]), 1e-3 * whole)
    return size


def _errors(
    analytic: Array, numeric: Array, mask: Array, counted: Array, parts: Sequence[slice] = ()
) -> Array:
    """Return relative errors; several outputs are held to their own scale each."""
    return _relative(analytic, numeric, mask, _sizes(numeric, counted, parts))


def _relative(analytic: Array, numeric: Array, mask: Array, size: Any) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.maximum(np.maximum(abs(analytic), abs(numeric)), size)
        error: Array = abs(analytic - numeric) / np.where(scale > 0, scale, 1.0)
    error[np.isnan(error)] = math.inf
    return np.where(mask, error, np.zeros(()))


@dataclass
class _Finding:
    """What comparing the numbers of one argument gave; findings of its blocks add up."""

    rtol: float              # the tolerance of half of the entries
    error: float = 0.0
    checked: int = 0
    total: int = 0
    wrong: int = 0
    compared: int = 0
    zero: bool = True
    slopes: float = 0.0
    noise: float = 0.0
    bound: float = 0.0
    index: tuple[int, ...] | None = None
    output: tuple[int, ...] | None = None
    output_name: str = "y"
    analytic: float = math.nan
    numeric: float = math.nan

    def add(self, other: _Finding) -> None:
        """Take in the finding of another block."""
        if other.wrong > self.wrong or (not self.wrong and other.error >= self.error) or \
                math.isnan(self.analytic):
            for name in ("error", "index", "output", "output_name", "analytic", "numeric"):
                setattr(self, name, getattr(other, name))
        for name in ("checked", "total", "wrong", "compared"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.zero = self.zero and other.zero
        for name in ("rtol", "slopes", "noise", "bound"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


def _is_still(measured: _Measured, alive: Array) -> bool:
    """Whether a derivative is zero everywhere, within the noise of forward."""
    responds = measured.responds & alive[:, None]
    if not responds.any():
        return True
    still = responds & (measured.doubt <= 8 * measured.noise) & np.isfinite(measured.noise)
    return bool(still.sum() >= 0.9 * responds.sum()
                and _rms(measured.slope[still]) <= 2 * _rms(measured.noise[still]))


def _tolerance(
    measured: _Measured, alive: Array, rtol: float, fixed: bool, noisy: bool
) -> tuple[Array, Array]:
    """Return the largest error that passes for each entry, and which entries can be judged.

    A kink excludes an entry; the noise of forward widens its tolerance, unless it is fixed. So do
    many small kinks in a single number, such as a loss of thousands of ReLUs, and the doubts of a
    forward that is known to be noisy.
    """
    shape = measured.slope.shape
    if _is_still(measured, alive):
        return np.full(shape, rtol), np.broadcast_to(alive[:, None], shape).copy()
    responds = measured.responds & alive[:, None]
    finite = responds & np.isfinite(measured.doubt)
    size = _rms(measured.slope[finite])
    with np.errstate(invalid="ignore"):
        scale = np.maximum(abs(measured.slope), size)
        relative = measured.doubt / np.where(scale > 0, scale, 1.0)
    trusted = relative <= rtol / 4
    if not fixed:
        small = 4 * relative <= _LARGEST_RTOL
        trusted |= small & (measured.doubt <= 4 * measured.noise)
        if (noisy or shape[0] == 1) and responds.any() and trusted[responds].mean() < 0.5:
            trusted |= small
    trusted &= alive[:, None]
    return np.where(trusted, np.maximum(rtol, 4 * relative), rtol), trusted


class _Judge(_Check):
    """The second part of a check: comparing, and naming the place."""

    def _diagnose(
        self, point: _Point, key: str, evidence: _Evidence,
        numbers: tuple[Array, Array, Array, Array] | None,
    ) -> str | None:
        raise NotImplementedError

    def _derivatives(
        self, ready: list[str], arguments: dict[str, ArgumentReport]
    ) -> list[str]:
        """Compare every argument that can be compared; fill in ``arguments``."""
        point = self.point(self.prepared.values)
        if self.mode not in ("complex", "adjoint"):
            for key in ready:
                self._choose_step(point, key)
        problems = []
        if self.mode in ("full", "complex"):
            problems = self._full(point, ready, arguments)
        else:
            for key in ready:
                evidence = self._along(point, key, self._directions(key, point))
                arguments[key] = self._verdict(point, arguments[key], evidence)
        for number in range(1, self.options.points):
            self._at_another_point(number, ready, arguments)
        for key in ready:
            if key in self.options.zero and not arguments[key].zero and arguments[key].ok:
                arguments[key] = replace(arguments[key], problems=(
                    "its derivative is not zero, as zero= says it is",))
            if key in point.floors:
                self._note_floor(key, point, arguments)
        return problems

    def _note_floor(
        self, key: str, point: _Point, arguments: dict[str, ArgumentReport]
    ) -> None:
        a = arguments[key]
        advice = f"measured with the step {point.steps[key]:.2g}" if a.ok else \
            "want a larger step=, an oracle=, or a forward without it"
        arguments[key] = replace(a, notes=(
            *a.notes, f"forward has a noise floor of {point.floors[key]:.1e} (quantised, iterative "
                      f"or computed in a narrower type): {advice}"))

    def _directions(self, key: str, point: _Point, count: int | None = None) -> list[Array]:
        size = _flat_size(point.wide[key])
        count = count or self.options.directions
        most = max(1, self.options.max_memory // (64 * size))
        if most < count:
            self.notes.append(f"{key}: {most} directions instead of {count}, for want of memory")
        return list(_rng(self.seed, "v", key).standard_normal((min(count, most), size)))

    # ---- every entry

    def _full(
        self, point: _Point, ready: list[str], arguments: dict[str, ArgumentReport]
    ) -> list[str]:
        outputs = point.y0.size
        # Basis vectors of any sign and length: dy = 1 would hide a use of |dy| or of dy^2.
        lengths = self._dy((outputs,), "basis")
        lengths += np.sign(lengths)
        sizes = {key: _flat_size(point.wide[key]) for key in ready}
        whole = outputs * sum(sizes.values()) * 8 * 4 <= self.options.max_memory
        rows = self.rows(point.values, ready, outputs, range(outputs), lengths) if whole else {}
        for key in ready:
            width = max(1, int(self.options.max_memory // (outputs * 8 * 16)))
            if width >= sizes[key] and rows:
                measured = self.measure(point, key, list(range(sizes[key])))
                evidence = _Evidence(point.values[key], measured, np.ones((0, 0), bool), lengths,
                                     rows[key], None, self.rtol, self._parts(outputs), self.rtol)
                arguments[key] = self._verdict(point, arguments[key], evidence)
            else:
                arguments[key] = self._in_blocks(point, arguments[key], rows, lengths, width)
        return self._linear(point, ready, rows, lengths)

    def _linear(
        self, point: _Point, ready: list[str], rows: dict[str, Array], lengths: Array
    ) -> list[str]:
        if not rows:
            return []
        dense = self._dy((1, lengths.size), "dense") * np.isfinite(point.y0)
        whole, problems = self.gradients(point.values, ready, dense), []
        for key in ready:
            parts = np.tensordot(dense[0] / lengths, rows[key], 1)
            terms = np.sqrt(np.tensordot((dense[0] / lengths) ** 2, abs(rows[key]) ** 2, 1))
            loose = 10 * _RTOL[self.real]["exact"] * max(_rms(whole[key]), _rms(terms))
            loose = max(loose, 20 * self.options.nondeterministic * _rms(whole[key]),
                        256 * _eps(self.real) * max(point.typical.values(), default=0.0)
                        * math.sqrt(lengths.size))
            if _rms(parts - whole[key][0]) > loose:
                problems.append(f"backward is not linear in dy: a sum of dy does not give "
                                f"the sum of the gradients of {key}")
        return problems

    def _in_blocks(
        self, point: _Point, argument: ArgumentReport, rows: dict[str, Array], lengths: Array,
        width: int,
    ) -> ArgumentReport:
        """Compare an argument whose Jacobian doesn't fit into memory, some columns at a time."""
        key, outputs = argument.name, lengths.size
        size = _flat_size(point.wide[key])
        finding: _Finding | None = None
        for start in range(0, size, width):
            columns = range(start, min(start + width, size))
            measured = self.measure(point, key, list(columns))
            analytic = np.empty((outputs, len(columns)))
            if key in rows:
                analytic[:] = _flat_rows(rows[key])[:, columns.start:columns.stop]
            else:
                run = self.pair.run(point.values)
                for i in range(outputs):
                    if self.pair.consumes and i:
                        run = self.pair.run(point.values)
                    dy = np.zeros(outputs)
                    dy[i] = lengths[i]
                    g = _flat(run.back(dy)[key])
                    if g.size != size:
                        return argument
                    analytic[i] = g[columns.start:columns.stop]
            block = self._compare(point, key, measured, analytic / lengths[:, None],
                                  list(columns))[0]
            finding = block if finding is None else finding
            if finding is not block:
                finding.add(block)
        assert finding is not None
        argument = self._from_finding(point, argument, finding)
        if finding.wrong:
            evidence = self._along(point, key, self._directions(key, point))
            return replace(argument, mistake=self._diagnose(point, key, evidence, None))
        return argument

    # ---- random directions

    def _along(self, point: _Point, key: str, directions: list[Array]) -> _Evidence:
        """Measure along directions, and get the gradients for as many random dy."""
        measured = self.measure(point, key, directions)
        evidence = _Evidence(
            point.values[key], measured, np.ones((0, 0), bool), np.empty((0, 0)), np.empty(0),
            np.stack(directions), self.rtol, self._parts(point.y0.size), self.rtol)
        evidence.trusted = self._settled(point, measured)[1]
        evidence.upstream = self._upstream(point, evidence, f"along {key}")
        self._limit_along(evidence)
        evidence.rows = self.gradients(point.values, [key], evidence.upstream)[key]
        return evidence

    def _limit_along(self, evidence: _Evidence) -> None:
        """Set how far the doubts of the outputs, weighted by dy, allow the sums to be off."""
        numeric = evidence.numeric()
        doubt = np.where(evidence.trusted, evidence.measured.doubt, 0.0)
        spread = np.sqrt(np.einsum("ko,ok->k", evidence.upstream**2, doubt**2))
        scale = np.maximum(abs(numeric), _rms(numeric[evidence.mask]))
        relative = spread / np.where(scale > 0, scale, 1.0)
        fixed = self.options.rtol is not None
        evidence.limit = np.full(len(numeric), self.rtol) if fixed else np.maximum(
            self.rtol, np.minimum(4 * relative, _LARGEST_RTOL))

    def _settled(self, point: _Point, measured: _Measured) -> tuple[Array, Array]:
        return _tolerance(measured, np.isfinite(point.y0), self.rtol,
                          self.options.rtol is not None, bool(point.floors))

    def _upstream(self, point: _Point, evidence: _Evidence, word: str) -> Array:
        """Draw dy: an output with a kink along v gets no weight, for dy is ours to choose."""
        trusted, slope = evidence.trusted, evidence.measured.slope
        dy = self._dy((trusted.shape[1], trusted.shape[0]), word) * trusted.T
        parts = evidence.parts
        if len(parts) > 1:  # several outputs: each at its own scale
            whole = _rms(slope[trusted])
            for part in parts:
                mine = _rms(slope[part][trusted[part]])
                if whole and mine:
                    dy[:, part] *= min(whole / mine, 1e3)
        return dy

    # ---- numbers

    def _compare(
        self, point: _Point, key: str, measured: _Measured, analytic: Array,
        columns: list[int],
    ) -> tuple[_Finding, Array, Array]:
        """Compare entries of the Jacobian; return the finding, the errors and their limits."""
        limit, trusted = self._settled(point, measured)
        counted = trusted & measured.responds
        parts = self._parts(point.y0.size)
        errors = _errors(analytic, measured.slope, trusted, counted, parts)
        if (errors > limit).any() and self.mode == "full":
            self._look_again(point, key, measured, errors > limit, columns)
            limit, trusted = self._settled(point, measured)
            counted = trusted & measured.responds
            errors = _errors(analytic, measured.slope, trusted, counted, parts)
        if (errors > limit).any() and self.options.rtol is None:
            limit = np.maximum(limit, self._backward_noise(point, key))
        finding = self._finding(point, key, measured, analytic, limit, trusted)
        finding.checked, finding.total = int(counted.sum()), int(
            (measured.responds & np.isfinite(point.y0)[:, None]).sum())
        if finding.zero:
            return finding, np.zeros(errors.shape), limit
        self._worst_entry(finding, point, key, errors, limit, analytic, measured.slope, columns)
        finding.wrong = int((errors > limit).sum())
        finding.compared = int(trusted.sum())
        return finding, errors, limit

    def _worst_entry(
        self, finding: _Finding, point: _Point, key: str, errors: Array, limit: Array,
        analytic: Array, numeric: Array, columns: list[int],
    ) -> None:
        shown = errors if not (errors > limit).any() else errors * (errors > limit)
        row, column = np.unravel_index(int(np.argmax(shown)), errors.shape)
        finding.error = float(errors[row, column])
        finding.index = _place_in(columns[int(column)], point.values[key])
        finding.output_name, finding.output = self._output_place(int(row))
        finding.analytic = float(analytic[row, column])
        finding.numeric = float(numeric[row, column])

    def _output_place(self, row: int) -> tuple[str, tuple[int, ...]]:
        assert self.layout is not None
        for label, y, part in self.layout.outputs():
            if part.start <= row < part.stop:
                return label, _place_in(row - part.start, y)
        return "y", (row,)

    def _finding(
        self, point: _Point, key: str, measured: _Measured, analytic: Array, limit: Array,
        trusted: Array,
    ) -> _Finding:
        """Tell whether derivative and gradient are both zero, within rounding."""
        responds = measured.responds & np.isfinite(point.y0)[:, None]
        limits = limit[responds & trusted] if limit.ndim == 2 else limit
        finding = _Finding(float(np.median(limits)) if limits.size else self.rtol)
        finding.slopes = _rms(measured.slope[responds & np.isfinite(measured.doubt)])
        finding.noise = float(np.median(measured.noise[responds])) if responds.any() else 0.0
        finding.zero = False
        if not _is_still(measured, np.isfinite(point.y0)):
            return finding
        size = _rms(measured.noise[responds & np.isfinite(measured.noise)])
        others = [point.typical.get(other, 0.0) for other in self.prepared.wrt if other != key]
        spread = float(np.std(point.y0[np.isfinite(point.y0)])) / self._size_of(point, key)
        natural = max(others, default=0.0) or spread
        bound = 8 * size + 64 * _eps(self.real) * natural
        if analytic.ndim == 1:  # along a direction, dy drawn
            bound *= math.sqrt(point.y0.size)
        if np.isfinite(analytic).all() and _rms(analytic) > bound:
            spread = self._backward_noise(point, key, absolute=True)
            bound += spread if analytic.ndim == 1 else spread / math.sqrt(point.y0.size)
        finding.bound = bound
        if not np.isfinite(analytic).all() or _rms(analytic) > bound:
            return finding
        finding.zero = natural == 0 or 8 * size <= 1e-3 * natural
        return finding

    def _look_again(
        self, point: _Point, key: str, measured: _Measured, wrong: Array, columns: list[int],
    ) -> None:
        """Measure the columns that disagree with all steps: the first may have misled."""
        wrong = np.flatnonzero(wrong.any(axis=0))
        for start in range(0, len(wrong), 8):
            some = wrong[start:start + 8]
            again = self.measure(point, key, [columns[c] for c in some], careful=True)
            apart = abs(again.slope - measured.slope[:, some]) > 2 * again.doubt
            measured.replace(some, again, apart)
            if not apart.any():
                return

    def _backward_noise(self, point: _Point, key: str, absolute: bool = False) -> float:
        """Return how much rounding alone changes the gradient: its inputs, in their last bit."""
        dy = self._dy((1, point.y0.size), "noise") * np.isfinite(point.y0)
        worst, eps = 0.0, _eps(self.real)
        try:
            right = self.gradients(point.values, [key], dy)[key]
            for attempt in range(3):
                rng = _rng(self.seed, "noise", attempt)
                moved = dict(point.values)
                for name in self.prepared.wrt:
                    moved[name] = _last_bit(moved[name], eps, rng)
                apart = self.gradients(moved, [key], dy)[key] - right
                worst = max(worst, _rms(apart) / (1.0 if absolute else _rms(right) or 1.0))
        except Exception:
            return 0.0
        if absolute or self.away:  # elsewhere, what cannot be judged is let pass
            return 10 * worst if math.isfinite(worst) else math.inf
        return 10 * worst if 10 * worst <= _LARGEST_RTOL else 0.0

    # ---- verdict

    def _verdict(
        self, point: _Point, argument: ArgumentReport, evidence: _Evidence
    ) -> ArgumentReport:
        """Compare one argument, and say where it is wrong and why."""
        key, a = argument.name, point.values[argument.name]
        if evidence.rows.shape[1:] != a.shape or (
                (evidence.rows.dtype.kind == "c") != (a.dtype.kind == "c")):
            limit, evidence.trusted = self._settled(point, evidence.measured)
            evidence.limit = limit if evidence.directions is None else evidence.limit
            return replace(argument, mistake=self._diagnose(point, key, evidence, None))
        if evidence.directions is None:
            analytic = evidence.analytic(evidence.rows)
            finding, errors, evidence.limit = self._compare(
                point, key, evidence.measured, analytic, list(range(analytic.shape[1])))
            evidence.trusted = self._settled(point, evidence.measured)[1]
            numbers = (analytic, evidence.measured.slope, errors > evidence.limit,
                       evidence.trusted)
        else:
            finding = self._projected(point, key, evidence)
            numbers = None
        failed = finding.wrong > 0
        if failed and evidence.directions is not None:
            numbers = self._sampled(point, key, evidence, finding)
        argument = self._from_finding(point, argument, finding)
        if not failed:
            return argument
        return replace(argument, mistake=argument.mistake or self._diagnose(
            point, key, evidence, numbers))

    def _projected(self, point: _Point, key: str, evidence: _Evidence) -> _Finding:
        measured = evidence.measured
        assert evidence.directions is not None
        errors = evidence.errors(evidence.rows)
        if (errors > evidence.limit).any() and self.mode == "projection":
            again = self.measure(point, key, list(evidence.directions), careful=True)
            apart = abs(again.slope - measured.slope) > 2 * again.doubt
            for name in ("slope", "doubt", "noise"):
                setattr(measured, name, np.where(apart, getattr(again, name),
                                                 getattr(measured, name)))
            evidence.trusted &= self._settled(point, measured)[1]
            evidence.upstream = evidence.upstream * evidence.trusted.T
            evidence.rows = self.gradients(point.values, [key], evidence.upstream)[key]
            self._limit_along(evidence)
            errors = evidence.errors(evidence.rows)
        if (errors > evidence.limit).any() and self.options.rtol is None:
            evidence.limit = np.maximum(evidence.limit, self._backward_noise(point, key))
            if self.away:  # saturated: what is left is the rounding of larger gradients
                largest = 64 * _eps(self.real) * max(point.typical.values(), default=0.0)
                size = _rms(evidence.numeric()) or 1.0
                evidence.limit = np.maximum(
                    evidence.limit, largest * math.sqrt(point.y0.size) / size)
        analytic, numeric = evidence.analytic(evidence.rows), evidence.numeric()
        limit = np.broadcast_to(evidence.limit, len(numeric))
        finding = self._finding(point, key, measured, analytic, limit, evidence.trusted)
        finding.checked = int((evidence.trusted & measured.responds).sum())
        finding.total = int((measured.responds & np.isfinite(point.y0)[:, None]).sum())
        if finding.zero:
            return finding
        wrong = errors > limit
        worst = int(np.argmax(errors * wrong if wrong.any() else errors))
        finding.error, finding.wrong = float(errors[worst]), int(wrong.sum())
        finding.compared = int(evidence.mask.sum())
        finding.analytic, finding.numeric = float(analytic[worst]), float(numeric[worst])
        return finding

    def _sampled(
        self, point: _Point, key: str, evidence: _Evidence, finding: _Finding
    ) -> tuple[Array, Array, Array, Array]:
        """Look at single elements, one at a time, to say where a projection fails."""
        size = _flat_size(point.wide[key])
        picked = _rng(self.seed, "sample", key).permutation(size)[:_SAMPLES] if size < 10**7 else \
            _rng(self.seed, "sample", key).integers(0, size, _SAMPLES)
        analytic, numeric = np.zeros(len(picked)), np.zeros(len(picked))
        trusted = np.zeros(len(picked), bool)
        run = self.pair.run(point.values)
        for k, i in enumerate(picked):
            measured = self.measure(point, key, [int(i)])
            good = self._settled(point, measured)[1][:, 0]
            dy = self._dy((point.y0.size,), f"sample {k}") * good
            run = self.pair.run(point.values) if self.pair.consumes and k else run
            numeric[k] = float(dy @ np.where(good, measured.slope[:, 0], 0.0))
            analytic[k] = float(_flat(run.back(dy)[key])[i])
            trusted[k] = bool(good.any())
        errors = _errors(analytic, numeric, trusted, trusted)
        worst, limit = int(np.argmax(errors)), 10 * max(finding.rtol, self.rtol)
        if errors[worst] > limit:
            finding.index = _place_in(int(picked[worst]), point.values[key])
            finding.analytic, finding.numeric = float(analytic[worst]), float(numeric[worst])
        return analytic, numeric, errors > limit, trusted

    def _from_finding(
        self, point: _Point, argument: ArgumentReport, finding: _Finding
    ) -> ArgumentReport:
        """Put a finding into words."""
        problems, notes = list(argument.problems), list(argument.notes)
        argument = replace(argument, checked=finding.checked, total=finding.total,
                           error=finding.error, sees=finding.rtol, analytic=finding.analytic,
                           numeric=finding.numeric)
        if finding.zero:
            within = f" within {finding.bound:.0e}" if finding.bound else ""
            responds = "" if finding.total else ": forward does not respond to it"
            return replace(argument, error=0.0, zero=True, checked=finding.total,
                           sees=math.nan, notes=(*notes, f"the derivative is zero{within}"
                                                         f"{responds}"))
        coverage = argument.coverage
        noisy = finding.noise * 4 > finding.rtol * finding.slopes or (
            argument.name in point.floors)
        if not finding.total:
            problems.append("forward does not respond to it, but its gradient is not zero")
        elif coverage < self.options.min_coverage and noisy:
            problems.append(f"its derivatives ({max(finding.slopes, finding.bound / 8):.1e}) "
                            f"drown in the noise of forward ({finding.noise:.1e}): nothing can be "
                            "said; want a larger step=, a wider dtype or an oracle=")
        elif coverage < self.options.min_coverage:
            problems.append(f"only {finding.checked} of {finding.total} entries could be compared, "
                            f"want {self.options.min_coverage:.0%}: kinks within the step")
        if not finding.wrong:
            return replace(argument, problems=tuple(problems), notes=tuple(notes),
                           index=finding.index, output=finding.output,
                           output_name=finding.output_name)
        place = "along a random direction"
        if finding.index is not None:
            place = f"at {argument.name}{list(finding.index)}"
        if finding.output is not None:
            place += f", output {finding.output_name}{list(finding.output)}"
        problems += [f"{finding.wrong} of {finding.compared} numbers are wrong",
                     f"worst {place}: analytic {finding.analytic:.9g}, numeric "
                     f"{finding.numeric:.9g}, error {finding.error:.1e}"]
        return replace(argument, problems=tuple(problems), notes=tuple(notes),
                       index=finding.index, output=finding.output,
                       output_name=finding.output_name)

    def _at_another_point(
        self, number: int, ready: Sequence[str], arguments: dict[str, ArgumentReport]
    ) -> None:
        """Compare random directions at other inputs; a wrong gradient there fails as well."""
        values, label = self._elsewhere(number)
        if not values:
            return
        try:
            with np.errstate(all="ignore"):
                point = self.point(values)
        except Exception as error:
            self.notes.append(f"{label}: skipped, forward raised {type(error).__name__}")
            return
        if not np.isfinite(point.y0).all() or (self.oracle and not self._oracle_agrees(values)):
            self.notes.append(f"{label}: skipped, forward is not finite there")
            return
        self.away = True
        usual, self.rtol = self.rtol, max(self.rtol, _ELSEWHERE.get(self.real, 0.05))
        try:
            for key in ready:
                argument = arguments[key]
                low = len(argument.problems) == 1 and argument.problems[0].startswith("only ")
                if (argument.ok or low) and not argument.unchecked:
                    arguments[key] = self._verdict_there(point, argument, label, low)
        finally:
            self.rtol, self.away = usual, False

    def _oracle_agrees(self, values: Values) -> bool:
        assert self.oracle is not None
        try:
            y = self.pair.run(values).y
        except Exception:
            return False
        want = self.oracle(_widened(values, self.wide))[:, 0]
        return bool(np.isfinite(y).all() and np.isfinite(want).all())

    def _verdict_there(
        self, point: _Point, argument: ArgumentReport, label: str, low: bool
    ) -> ArgumentReport:
        key = argument.name
        with np.errstate(all="ignore"):
            if self.mode not in ("complex", "adjoint"):
                self._choose_step(point, key)
            evidence = self._along(point, key, self._directions(key, point, 3))
            if not np.isfinite(evidence.rows).all():
                return replace(argument, problems=(
                    *argument.problems, f"{label}: the gradient is not finite, the derivative is"))
            empty = ArgumentReport(key, argument.shape)
            there = self._verdict(point, empty, evidence)
        good = there.coverage >= self.options.min_coverage
        if good and any("numbers are wrong" in p for p in there.problems):
            return replace(
                argument, problems=(*(f"{label}: {p}" for p in there.problems),),
                mistake=there.mistake, index=there.index, error=there.error, zero=False,
                analytic=there.analytic, numeric=there.numeric, output=None)
        if low and there.ok and good and not there.zero:
            return replace(argument, problems=(), checked=there.checked, total=there.total,
                           error=max(argument.error, there.error), sees=there.sees,
                           notes=(*argument.notes, f"{argument.problems[0]}; compared nearby "
                                                   f"instead, at {label}"))
        if argument.zero and there.ok and good and not there.zero:
            return replace(argument, zero=False, error=there.error, sees=there.sees,
                           checked=there.checked, total=there.total, notes=(
                               *argument.notes, f"compared at {label}, where it is not zero"))
        return argument

    # ---- forward-mode derivatives

    def run_jvp(self, jvp: Callable[..., Any]) -> GradientReport:
        """Compare J v of each argument with what ``jvp`` says."""
        self.rtol = self._rtol()
        values, wrt = self.prepared.values, self.prepared.wrt
        self.layout = self.pair.run(values).layout
        point = self.point(values)
        arguments = self._unfilled_reports()
        for key in wrt:
            directions = self._directions(key, point)
            measured = self.measure(point, key, list(directions))
            columns = []
            for v in directions:
                tangents = {name: np.zeros_like(values[name]) for name in wrt}
                tangents[key] = _shift(tangents[key], 1.0, v)
                given = next(iter(tangents.values())) if len(wrt) == 1 else tangents
                got = _called("jvp", jvp, given, *self.pair.give(values).values())
                columns.append(self.pair._columns(got, 1)[:, 0])
            analytic = np.stack(columns, axis=1)
            if analytic.shape != measured.slope.shape:
                arguments[key] = replace(arguments[key], problems=(
                    f"jvp gave {analytic.shape[0]} numbers, want {point.y0.size}",))
                continue
            finding = self._compare_jvp(point, key, measured, analytic)
            arguments[key] = self._from_finding(point, arguments[key], finding)
        return self._report([], arguments)

    def _compare_jvp(
        self, point: _Point, key: str, measured: _Measured, analytic: Array
    ) -> _Finding:
        limit, trusted = self._settled(point, measured)
        counted = trusted & measured.responds
        errors = _errors(analytic, measured.slope, trusted, counted,
                         self._parts(point.y0.size))
        finding = self._finding(point, key, measured, analytic, limit, trusted)
        finding.checked, finding.total = int(counted.sum()), int(measured.responds.sum())
        if not finding.zero:
            self._worst_entry(finding, point, key, errors, limit, analytic, measured.slope,
                              [0] * analytic.shape[1])
            finding.index = None
            finding.wrong, finding.compared = int((errors > limit).sum()), int(trusted.sum())
        return finding


# ----------------------------------------------------------------------------------- the diagnosis
#
# A mistake is named only if undoing it makes the gradient pass, at the full tolerance.


class _Diagnosis(_Judge):
    """The last part of a check: naming the mistake; and the whole course."""

    def run(self) -> GradientReport:
        """Check everything."""
        __tracebackhide__ = True
        problems, arguments = self.contract()
        size = self.layout.size if self.layout else 0
        self._choose_mode(size)
        self.rtol = self._rtol()
        if self.oracle is not None and not problems:
            problems = self.agreement()
        elif not problems and self.real == "float32" and self.mode in ("full", "projection"):
            self._widen_forward()
        ready = [key for key in self.prepared.wrt if key not in self.blocked
                 and not arguments[key].unchecked]
        if not problems and ready:
            problems = self._derivatives(ready, arguments)
            ready = [key for key in ready if not arguments[key].unchecked]
        if not problems and not ready and all(a.ok for a in arguments.values()):
            problems = ["no argument was checked"]
        for key, argument in arguments.items():
            if problems and key in ready and math.isnan(argument.error) and argument.ok:
                arguments[key] = replace(argument, unchecked="because of the above")
        return self._report(problems, arguments)

    def _diagnose(
        self, point: _Point, key: str, evidence: _Evidence,
        numbers: tuple[Array, Array, Array, Array] | None,
    ) -> str | None:
        rows, a = evidence.rows, evidence.a
        if not rows.any():
            return "the gradient is zero everywhere: never computed?"
        if not np.isfinite(rows).all():
            return None
        found = self._rearranged(point, key, evidence)
        if found or rows.shape[1:] != a.shape:
            return found
        for explain in (self._swapped, self._partial, self._terms, self._other_input):
            found = explain(point, key, evidence)
            if found:
                return found
        if numbers is None:
            return None
        if evidence.directions is None:
            found = _left_out(numbers, a)
        return found or _mask_mistake(*numbers, self.rtol)

    def _rearranged(self, point: _Point, key: str, evidence: _Evidence) -> str | None:
        """Undo an arrangement of the gradient, and a constant factor with it."""
        some, numeric = evidence.part(40), evidence.numeric()
        known = np.count_nonzero(numeric[evidence.mask])
        y_shape = self._y_shape()
        for text, undo in _variants(evidence.rows.ndim - 1, evidence.rows.shape[1:], evidence.a):
            candidate = undo(some.rows)
            if candidate.shape[1:] != evidence.a.shape:
                continue
            factor = _factor(some.analytic(candidate), some.numeric(), some.mask)
            for scale in (1.0, factor):
                named = "" if scale == 1 else self._name_factor(scale, evidence.a, y_shape)
                if not text and not named:
                    continue
                if named.startswith("a factor of") and known < 3:
                    continue  # one number agrees with some factor always
                if some.passes(scale * candidate) and evidence.passes(scale * undo(evidence.rows)):
                    return " and ".join(part for part in (text, named) if part)
        return None

    def _y_shape(self) -> tuple[int, ...]:
        assert self.layout is not None
        return self.layout.outputs()[0][1].shape

    def _name_factor(self, factor: float, a: Array, shape: tuple[int, ...]) -> str:
        first = next(iter(self.prepared.values.values()))
        batch = shape[0] if len(shape) > 1 else (
            np.shape(first)[0] if np.ndim(first) > 1 and not shape else 1)
        sizes = {"N": (batch, "the batch size"),
                 "P": (math.prod(shape[2:]), "the number of pixels"),
                 "M": (max(math.prod(shape), a.size), "the number of elements")}
        known = {2.0: "2", 0.5: "1/2"}
        for letter, (size, meaning) in sizes.items():
            if size > 1:
                for value, text in ((size, letter), (1 / size, f"1/{letter}"),
                                    (2 / size, f"2/{letter}"), (size / 2, f"{letter}/2")):
                    if value != 1:
                        named = f"{text} ({letter} = {size}, {meaning})"
                        known[value] = f"{known[value]} or {named}" if value in known else named
        sign, factor = factor < 0, abs(factor)
        if sign and _close(factor, 1):
            return "sign wrong"
        name = next((text for value, text in known.items() if _close(factor, value)),
                    f"of {factor:.6g}")
        return f"a factor {name} is missing" + (", and the sign is wrong" if sign else "")

    def _swapped(self, point: _Point, key: str, evidence: _Evidence) -> str | None:
        """See whether the gradient of another argument is this one's."""
        for other in self.prepared.wrt:
            a = point.values[other]
            if other == key or a.shape != evidence.a.shape or other in self.blocked:
                continue
            rows = self._rows_again(point, other, evidence)
            if rows is not None and evidence.passes(rows):
                return f"swapped: the gradient given for {other} is that of {key}"
        return None

    def _rows_again(
        self, point: _Point, key: str, evidence: _Evidence, values: Values | None = None
    ) -> Array | None:
        """Return the gradients of any argument for the dy of the evidence."""
        outputs = point.y0.size
        try:
            with np.errstate(all="ignore"):
                if evidence.directions is None:
                    return self.rows(values or point.values, [key], outputs, range(outputs),
                                     evidence.upstream)[key]
                return self.gradients(values or point.values, [key], evidence.upstream)[key]
        except Exception:  # an input that it does not expect: no evidence
            return None

    def _partial(self, point: _Point, key: str, evidence: _Evidence) -> str | None:
        """See whether a part of dy was forgotten."""
        assert self.layout is not None
        outputs = self.layout.outputs()
        total = point.y0.size
        for label, y, part in outputs:
            if len(outputs) > 1:
                without = np.ones(total)
                without[part] = 0
                if evidence.passes(evidence.rows, without):
                    return f"the gradient of output {label} is left out"
            for text, mask in _partial_outputs(y.shape) if y.dtype.kind == "f" else ():
                only = np.ones(total)
                only[part] = mask
                where = text if len(outputs) == 1 else f"{text} ({label})"
                if evidence.passes(evidence.rows, only):
                    return where
        return None

    def _terms(self, point: _Point, key: str, evidence: _Evidence) -> str | None:
        """See whether a term that couples the elements is missing."""
        if evidence.a.dtype.kind != "f" or evidence.rows.size > 2_000_000:
            return None
        first = self.layout.outputs()[0][1] if self.layout else np.empty(0)
        y = first if first.shape == evidence.a.shape else None
        some = evidence.part(12)
        for text, undo in _missing_terms(np.asarray(evidence.a, float), y):
            with np.errstate(all="ignore"):
                candidate = undo(some.rows)
                if not np.isfinite(candidate).all() or not some.passes(candidate):
                    continue
                if evidence.passes(undo(evidence.rows)):
                    return text
        return None

    def _other_input(self, point: _Point, key: str, evidence: _Evidence) -> str | None:
        """See whether another input was used in a wrong arrangement."""
        for other, a in point.values.items():
            if other == key or not _is_float(a) or other in self.options.batched:
                continue
            for text, undo in _variants(a.ndim, a.shape, a):
                moved = undo(a[None].astype(complex if a.dtype.kind == "c" else float))[0]
                if moved.shape != a.shape or not text or _same(moved, a):
                    continue
                moved = np.asarray(moved.real if a.dtype.kind != "c" else moved, a.dtype)
                rows = self._backward_with(point, key, evidence, other, moved)
                if rows is not None and evidence.passes(rows):
                    return f"{text.partition(':')[0]}: right if that is done to {other} in backward"
        return None

    def _backward_with(
        self, point: _Point, key: str, evidence: _Evidence, other: str, moved: Array
    ) -> Array | None:
        return self._rows_again(point, key, evidence, point.values | {other: np.array(moved)})


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-4 * abs(b)


def _factor(analytic: Array, numeric: Array, mask: Array) -> float:
    """Return the constant that brings ``analytic`` closest to ``numeric``."""
    a, n = analytic[mask], numeric[mask]
    return float(np.vdot(a, n) / (np.vdot(a, a) or 1.0))


Undo = Callable[[Array], Array]


def _variants(
    ndim: int, given: tuple[int, ...], a: Array
) -> Iterator[tuple[str, Undo]]:
    """Undo each known mistake of arrangement; the axes after the first are the argument's."""
    shape = a.shape
    yield "", lambda rows: rows
    if ndim > len(shape):
        if given != shape and tuple(s for s in given if s != 1) == tuple(
                s for s in shape if s != 1):
            kept = [i for i, s in enumerate(given) if s == 1]
            yield (f"axes of length 1 kept (keepdims), among axes {tuple(kept)}",
                   lambda rows: rows.reshape(len(rows), *shape))
        for axes in itertools.combinations(range(ndim), ndim - len(shape)):
            text = f"not summed over axes {axes}" + (", axis 0 is the batch" if 0 in axes else "")
            yield text, lambda rows, axes=axes: rows.sum(  # type: ignore[misc]
                axis=tuple(axis + 1 for axis in axes))
    elif given != shape and math.prod(given) == math.prod(shape):
        yield (f"the gradient is right, but of shape {given}",
               lambda rows: rows.reshape(len(rows), *shape))
    elif ndim == len(shape) and given != shape:
        axes = tuple(i for i, (g, s) in enumerate(zip(given, shape, strict=True)) if s == 1 != g)
        yield (f"not summed over axes {axes}, which are broadcast",
               lambda rows: rows.sum(axis=tuple(i + 1 for i in axes), keepdims=True))
    for i, j in itertools.combinations(range(ndim), 2):
        what = {(0, 1): "in/out channels swapped" if ndim > 2 else "transposed",
                (2, 3): "H and W swapped"}.get((i, j), "axes swapped")
        yield (f"{what}: right if axes {i} and {j} are exchanged",
               lambda rows, i=i, j=j: rows.swapaxes(i + 1, j + 1))  # type: ignore[misc]
    spatial = tuple(range(2, ndim)) if ndim > 2 else tuple(range(ndim))
    for count in range(len(spatial), 0, -1):
        for axes in itertools.combinations(spatial, count):
            what = "kernel flipped" if ndim > 2 and count == len(spatial) else "reversed"
            yield (f"{what}: right if reversed along axes {axes}",
                   lambda rows, axes=axes: np.flip(  # type: ignore[misc]
                       rows, tuple(axis + 1 for axis in axes)))
    for axis in range(ndim):
        for shift in (1, -1) if given[axis] > 2 else ():
            yield (f"shifted: right if rolled by {shift} along axis {axis}",
                   lambda rows, axis=axis, shift=shift: np.roll(  # type: ignore[misc]
                       rows, shift, axis + 1))
    if a.dtype.kind == "c":
        yield "conjugated (JAX's convention): right if conjugated", np.conj


def _partial_outputs(shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """Name the parts of ``dy`` that a backward may have forgotten, as masks of the outputs."""
    for axis, size in enumerate(shape):
        batch = " (the batch)" if axis == 0 and len(shape) > 1 else ""
        for place in (0, size - 1) if size > 1 else ():
            only = np.zeros(shape)
            np.moveaxis(only, axis, 0)[place] = 1
            yield (f"not summed over axis {axis} of dy{batch}: only index {place} contributes",
                   only.ravel())
            yield f"index {place} of axis {axis} of dy{batch} is left out", 1 - only.ravel()


def _missing_terms(x: Array, y: Array | None) -> Iterator[tuple[str, Undo]]:
    """Undo the loss of a term that a normalisation or a softmax has, for each set of axes."""
    ndim = x.ndim
    for count in range(1, ndim + 1):
        for axes in itertools.combinations(range(ndim), count):
            over = tuple(axis + 1 for axis in axes)
            size = math.prod(x.shape[axis] for axis in axes)
            if size < 2:
                continue
            where = f"over axes {axes}"

            def mean(g: Array, over: tuple[int, ...] = over) -> Array:
                return np.asarray(g.mean(axis=over, keepdims=True))

            yield (f"missing term: the mean of the gradient {where} is not subtracted",
                   lambda g, mean=mean: g - mean(g))  # type: ignore[misc]
            yield from _statistics_terms(x, axes, mean, where)
            if y is not None:
                yield (f"missing term: the sum of dy times y {where}, as in a softmax",
                       lambda g, over=over: g - y * g.sum(  # type: ignore[misc]
                           axis=over, keepdims=True))
                for text, scale in ((" (unit length)", 1.0), ("", float(size))):
                    yield (f"missing term: the part along y {where}{text}",
                           lambda g, over=over, scale=scale: g - y * (  # type: ignore[misc]
                               g * y).sum(axis=over, keepdims=True) / scale)


def _statistics_terms(
    x: Array, axes: tuple[int, ...], mean: Callable[[Array], Array], where: str
) -> Iterator[tuple[str, Undo]]:
    """Undo what is wrong with mean and variance in the backward of a normalisation."""
    centred = x - x.mean(axis=axes, keepdims=True)
    var = (centred**2).mean(axis=axes, keepdims=True)
    raw = (x**2).mean(axis=axes, keepdims=True)
    with np.errstate(all="ignore"):
        for eps in (0.0, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
            hat = centred / np.sqrt(var + eps)
            yield (f"missing term of the batch statistics: that of the variance {where}",
                   lambda g, hat=hat: g - hat * mean(g * hat))  # type: ignore[misc]
            yield (f"missing terms of the batch statistics: mean and variance {where}",
                   lambda g, hat=hat: g - mean(g) - hat * mean(g * hat))  # type: ignore[misc]
            root = x / np.sqrt(raw + eps)
            yield (f"missing term: that of the root mean square {where}",
                   lambda g, root=root: g - root * mean(g * root))  # type: ignore[misc]
            if eps:
                yield from _eps_terms(centred, var, eps, mean, where)


def _eps_terms(
    centred: Array, var: Array, eps: float, mean: Callable[[Array], Array], where: str
) -> Iterator[tuple[str, Undo]]:
    """Undo an eps that stands in another place of backward than of forward.

    With s the deviation that divides, dx = (g - mean g - c mean(g c) q) / s, where q is 1 / s^2 or,
    for s = sqrt(var) + eps, 1 / (s sqrt(var)): across c, dx has 1 / s, along c, (1 - var q) / s.
    """
    root = np.sqrt(var)
    places = {"sqrt(var + eps)": (np.sqrt(var + eps), 1 / (var + eps)),
              "sqrt(var) + eps": (root + eps, 1 / ((root + eps) * root)),
              "sqrt(var) + eps everywhere": (root + eps, 1 / (root + eps) ** 2),
              "sqrt(var + eps^2)": (np.sqrt(var + eps**2), 1 / (var + eps**2)),
              "var + eps": (var + eps, 1 / (var + eps))}
    for (right, (s, q)), (wrong, (t, p)) in itertools.permutations(places.items(), 2):
        across, along = t / s, (1 - var * q) * t / ((1 - var * p) * s)

        def undo(g: Array, across: Array = across, along: Array = along) -> Array:
            part = centred * mean(g * centred) / var
            return np.asarray(across * (g - part) + along * part)

        yield (f"eps misplaced: {wrong} where forward has {right} (eps = {eps:g}, {where})", undo)


def _left_out(
    numbers: tuple[Array, Array, Array, Array], a: Array
) -> str | None:
    """Name the slices of an argument whose gradient is zero where its derivative is not."""
    analytic, numeric, off, trusted = numbers
    if a.dtype.kind == "c" or analytic.ndim != 2:
        return None
    wrong = off.any(axis=0).reshape(a.shape)
    zero = (abs(analytic) <= 1e-300).all(axis=0).reshape(a.shape)
    lost = np.asarray(zero & (abs(numeric * trusted) > 0).any(axis=0).reshape(a.shape))
    if not wrong.any() or not np.array_equal(wrong, lost & wrong):
        return None
    slices, names = np.zeros(a.shape, bool), []
    for axis, size in enumerate(a.shape):
        for place in (0, size - 1) if size > 1 else ():
            part = (slice(None),) * axis + (place,)
            if lost[part].all():
                slices[part] = True
                names.append(f"index {place} of axis {axis}")
    if not names or not np.array_equal(slices, lost):
        return None
    return f"entries left out: the gradient is zero at {', '.join(names)}, and right elsewhere"


def _mask_mistake(
    analytic: Array, numeric: Array, wrong: Array, trusted: Array, rtol: float
) -> str | None:
    """Tell a mask that is missing, inverted or too strict, from numbers for single elements."""
    tiny = rtol * _rms(numeric[trusted])
    passes, stops = wrong & (abs(numeric) <= tiny), wrong & (abs(analytic) <= tiny)
    if not wrong.any() or not (passes | stops)[wrong].all():
        return None
    if not stops.any():
        return "mask missing: right except where the derivative is zero"
    alive = trusted & ~wrong & (abs(numeric) > tiny)
    if not passes.any():
        if not alive.any():
            return None
        return "entries left out: right except where the gradient itself is zero"
    return None if alive.any() else "mask inverted: zero exactly where the derivative is not"
