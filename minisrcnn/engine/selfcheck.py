"""What ``minisrcnn gradcheck`` prints: every layer and loss, backend and dtype, with its error.

Two kinds of evidence, from :mod:`minisrcnn.gradcheck`:

``full``
    Every entry of the Jacobian. The gradient comes from the backend, in its dtype; the measured
    derivative from the ``numpy`` backend's forward in float64, once both forwards agree. So a
    float32 kernel is held to 1e-5, where differences of float32 numbers would allow 1e-3.
``adjoint``
    Convolution alone: ``<conv(v, w), dy> = <v, dx>``, all of it on the backend itself.

The update rules are compared with their formulas. Shapes are small and odd on purpose, so that
the textbook loops and the emulated GPU need seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from ..errors import BackendUnavailableError
from ..gradcheck import GradientReport, check_gradients, check_layer, check_loss, check_update
from .backends import BACKENDS, get_backend
from .backends import numpy as textbook
from .layers import ACTIVATIONS, Chain, Conv2d, ReLU

Shape = tuple[int, ...]
Mode = Literal["full", "projection"]

# x (N,C,H,W) and w (F,C,KH,KW).
CONVOLUTIONS: tuple[tuple[Shape, Shape], ...] = (
    ((2, 3, 6, 5), (4, 3, 3, 2)),
    ((3, 1, 7, 4), (2, 1, 5, 4)),   # one input channel, a kernel as wide as the image
    ((1, 5, 3, 4), (1, 5, 3, 4)),   # one output, 1x1
    ((2, 4, 3, 3), (3, 4, 1, 1)),   # a 1x1 kernel
)
# The chains that the fused path is checked on: the mode of the check, x, and the weights' shapes.
CHAINS: dict[str, tuple[Mode, Shape, tuple[Shape, ...]]] = {
    "3-1-2": ("full", (2, 2, 7, 6), ((4, 2, 3, 3), (3, 4, 1, 1), (2, 3, 2, 2))),
    "SRCNN 9-1-5": ("projection", (2, 1, 15, 14), ((64, 1, 9, 9), (32, 64, 1, 1), (1, 32, 5, 5))),
}
LR, MOMENTUM = 0.1, 0.9
ADAM = (3, 0.1, 0.8, 0.9, 1e-8)  # step, lr, beta1, beta2, eps


@dataclass(frozen=True)
class Row:
    """One line of the table: one check of one backend in one dtype.

    Attributes
    ----------
    backend, dtype, what, mode : str
        What was checked and how; ``what`` is empty for a backend that cannot run here.
    report : GradientReport or None
        All that was found; None if the check could not be made.
    note : str
        Why not.
    failed : bool
        Whether something is wrong.
    """

    backend: str
    dtype: str = ""
    what: str = ""
    mode: str = ""
    report: GradientReport | None = None
    note: str = ""
    failed: bool = False


def run(backends: Sequence[str | ModuleType] = (), *, seed: int = 0) -> list[Row]:
    """Check every gradient of the given backends.

    Parameters
    ----------
    backends : sequence of str or module
        Names, or backends of your own. If none is given, all are tried, and one that cannot run
        here is no failure; one that was asked for by name is.
    seed : int
        Of everything drawn.

    Returns
    -------
    list of Row

    Raises
    ------
    ValueError
        If there is no backend of that name.
    """
    rows: list[Row] = []
    for name in backends or BACKENDS:
        try:
            backend = get_backend(name)
        except BackendUnavailableError as error:
            rows.append(Row(str(name), note=f"unavailable: {error}", failed=bool(backends)))
            continue
        for dtype in ("float64", "float32"):
            for check in _checks(backend, dtype, seed):
                rows.append(_guarded(backend.NAME, dtype, *check))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table to print with rich; failures are spelled out below their row."""
    result = Table(title="Gradients, largest relative error of each check")
    for heading in ("backend", "dtype", "checked", "mode"):
        result.add_column(heading, overflow="fold")
    for heading in ("error", "allowed", "coverage"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("result")
    for row in rows:
        numbers = ["", "", ""]
        if row.report is not None:
            report = row.report
            numbers = [f"{report.error:.1e}", f"{report.rtol:.0e}", f"{report.coverage:.1%}"]
        verdict = Text("FAILED", "bold red") if row.failed else Text(
            "ok" if row.report else "not checked", "green" if row.report else "yellow")
        result.add_row(row.backend, row.dtype, row.what, row.mode, *numbers, verdict)
        if row.note:
            result.add_row("", "", Text(row.note), "", "", "", "", "")
        if row.report is not None and row.failed:
            result.add_row("", "", Text(str(row.report)), "", "", "", "", "")
    return result


def _guarded(
    name: str, dtype: str, what: str, mode: str, check: Callable[[], GradientReport]
) -> Row:
    try:
        report = check()
    except BackendUnavailableError as error:  # a function that this backend does not have yet
        return Row(name, dtype, what, mode, note=f"{error}")
    except Exception as error:  # a broken backend must not hide the rows of the others
        return Row(name, dtype, what, mode, note=f"{type(error).__name__}: {error}", failed=True)
    return Row(name, dtype, what, mode, report, failed=not report.ok)


def _checks(
    backend: ModuleType, dtype: str, seed: int
) -> Iterator[tuple[str, str, Callable[[], GradientReport]]]:
    """Yield what is checked, the mode, and the check, for one backend and dtype."""
    options: dict[str, Any] = {
        "seed": seed, "raises": False, "to_numpy": backend.to_numpy,
        "asarray": lambda a: backend.asarray(a, a.dtype),
    }
    drawn = options | {"dtype": dtype}

    def conv_backward(dy: Any, x: Any, w: Any, b: Any) -> dict[str, Any]:
        return {"x": backend.conv2d_backward_input(dy, w),
                "w": backend.conv2d_backward_weight(x, dy),
                "b": backend.conv2d_backward_bias(dy)}

    for x, w in CONVOLUTIONS:
        what = f"conv2d {'x'.join(map(str, x))} by {'x'.join(map(str, w))}"
        inputs = {"x": x, "w": w, "b": w[:1]}
        # Linear in each argument: the largest step is the best one.
        check = partial(check_gradients, backend.conv2d_forward, conv_backward, inputs,
                        name="conv2d", **drawn)
        yield what, "full", partial(check, step=1.0, oracle=textbook.conv2d_forward)
        yield what, "adjoint", partial(check, mode="adjoint")

    for layer in ACTIVATIONS:
        yield layer.__name__, "full", partial(_activation, layer, backend, drawn)

    chain = Chain({
        "conv1": Conv2d(2, 3, (3, 2), backend=backend, dtype=dtype, rng=seed),
        "relu1": ReLU(backend=backend),
        "conv2": Conv2d(3, 2, 2, backend=backend, dtype=dtype, rng=seed),
    })
    yield "chain conv-relu-conv", "full", partial(
        check_layer, chain, (2, 2, 5, 4), oracle=_chain_forward, **options)

    target = {"y": (2, 2, 3, 4), "t": (2, 2, 3, 4)}
    yield "mse", "full", partial(check_loss, backend.mse, target, step=1.0, oracle=textbook.mse,
                                 name="mse", **drawn)

    if hasattr(backend, "chain_loss_and_gradients"):
        for name, (mode, shape, weights) in CHAINS.items():
            yield f"fused {name}", mode, partial(_fused, backend, shape, weights, mode, drawn)

    moments = {"param": (4, 3), "grad": (4, 3), "m": (4, 3)}
    yield "sgd_update", "update", partial(
        check_update, lambda param, grad, m: backend.sgd_update(param, grad, m, LR, MOMENTUM),
        _sgd, moments, name="sgd_update", **drawn)
    squares = np.random.default_rng(seed).uniform(0.5, 2.0, (4, 3)).astype(dtype)
    yield "adam_update", "update", partial(
        check_update, lambda param, grad, m, v: backend.adam_update(param, grad, m, v, *ADAM),
        _adam, moments | {"v": squares}, name="adam_update", **drawn)


def _activation(layer: Any, backend: ModuleType, options: dict[str, Any]) -> GradientReport:
    """Check an element-wise layer against its own forward pass on the ``numpy`` backend."""
    mine, oracle = layer(backend=backend), layer(backend=textbook)
    return check_layer(mine, (3, 4, 5, 2), oracle=lambda x: oracle.forward(x)[0], **options)


def _fused(
    backend: ModuleType, shape: Shape, weights: tuple[Shape, ...], mode: Mode,
    options: dict[str, Any],
) -> GradientReport:
    """Check ``chain_loss_and_gradients``, a loss of the parameters that brings its gradients."""
    params = {f"conv{i}.{kind}": w if kind == "weight" else w[:1]
              for i, w in enumerate(weights, 1) for kind in ("weight", "bias")}
    N, _, H, W = shape
    crop = [sum(w[axis] - 1 for w in weights) for axis in (2, 3)]
    inputs: dict[str, Any] = {
        "x": shape, "t": (N, weights[-1][0], H - crop[0], W - crop[1]), **params}
    step = None
    if mode == "projection":
        # Many filters: keep the activations of order 1, and the step too short for most kinks,
        # each of which would exclude the one output that there is.
        step = 2.0**-18
        rng = np.random.default_rng(options["seed"])
        inputs |= {key: (rng.standard_normal(w) * math.prod(w[1:]) ** -0.5
                         ).astype(options["dtype"])
                   for key, w in params.items() if len(w) == 4}

    def forward(x: Any, t: Any, *values: Any) -> tuple[Any, dict[str, Any]]:
        loss, grads = backend.chain_loss_and_gradients(
            dict(zip(params, values, strict=True)), x, t)
        return loss, grads

    def backward(dloss: Any, grads: dict[str, Any]) -> dict[str, Any]:
        return {key: grad * grad.dtype.type(float(dloss)) for key, grad in grads.items()}

    def oracle(x: Any, t: Any, *values: Any) -> Any:
        return textbook.mse(_chain_forward(x, *values), t)[0]

    return check_gradients(forward, backward, inputs, wrt=list(params), mode=mode, oracle=oracle,
                           step=step, name="chain_loss_and_gradients", **options)


def _chain_forward(x: Any, *values: Any) -> Any:
    """Run convolutions with ReLU between them, on the textbook backend."""
    for i in range(0, len(values), 2):
        x = textbook.conv2d_forward(x if i == 0 else textbook.relu_forward(x), *values[i:i + 2])
    return x


def _sgd(param: Any, grad: Any, velocity: Any) -> dict[str, Any]:
    velocity = MOMENTUM * velocity - LR * grad
    return {"param": param + velocity, "m": velocity}


def _adam(param: Any, grad: Any, m: Any, v: Any) -> dict[str, Any]:
    step, lr, beta1, beta2, eps = ADAM
    m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
    change = lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return {"param": param - change, "m": m, "v": v}
