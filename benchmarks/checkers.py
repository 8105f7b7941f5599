"""Hold gradient checkers against the same right functions and planted mistakes.

``python -m benchmarks.checkers`` prints a table of tools and kinds, and what each tool missed. The
functions are those of ``tests/gradcheck_families.py`` in float64; a tool that is not installed is
skipped with a warning. The families were written for our own checker, so its column is the one to
trust least.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minisrcnn.gradcheck import check_gradients

KINDS = {
    "elementwise": ("sigmoid", "gelu", "softplus", "silu", "elu", "leaky relu", "abs", "hardtanh",
                    "hard sigmoid", "sqrt of square plus", "large x only", "log",
                    "square of ones", "image", "tiny"),
    "losses, reductions": ("softmax", "logsumexp", "cross entropy", "bce with logits", "huber",
                           "hinge", "norm", "cumsum", "max", "sort"),
    "normalisation": ("batch norm", "layer norm", "bias before batch norm", "rms norm"),
    "attention, recurrence": ("attention", "lstm cell", "lstm cell from zeros", "gru cell"),
    "convolution": ("conv", "conv padded", "conv strided", "conv dilated", "conv grouped"),
    "pooling, layout": ("max pool", "max pool with ties", "average pool", "pad", "reflect",
                        "upsample", "pixel shuffle"),
    "indexing, algebra": ("embedding", "dropout", "einsum", "broadcast", "inverse"),
    "complex": ("fft of real", "complex matrix", "modulus"),
    "several outputs": ("mean and variance", "dict of outputs", "list of outputs"),
}


class Problem:
    """One pair with its inputs as arrays, and outputs as a flat list."""

    def __init__(self, case: Any, backward: Callable[..., Any], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.case, self.backward = case, backward
        self.kwargs = case.options.get("kwargs", {})
        self.inputs = {key: rng.standard_normal(value) if isinstance(value, tuple) else value
                       for key, value in case.inputs.items()}
        wrt = case.options.get("wrt")
        self.wrt = [wrt] if isinstance(wrt, str) else wrt or [
            key for key, value in self.inputs.items() if value.dtype.kind in "fc"]

    def run(self, inputs: dict[str, Any]) -> tuple[list[Any], Callable[[list[Any]], list[Any]]]:
        """Return the outputs, and a function from their gradients to those of ``wrt``."""
        result = self.case.forward(*inputs.values(), **self.kwargs)
        cache: Any = None
        if isinstance(result, tuple) and isinstance(result[-1], tuple):
            *items, cache = result
        else:
            items = list(result.values()) if isinstance(result, dict) else (
                list(result) if isinstance(result, (tuple, list)) else [result])

        def back(dys: list[Any]) -> list[Any]:
            if cache is not None:
                grads = self.backward(*dys, cache)
            else:
                dy = dict(zip(result, dys, strict=True)) if isinstance(result, dict) else (
                    type(result)(dys) if isinstance(result, (tuple, list)) else dys[0])
                grads = self.backward(dy, *inputs.values(), **self.kwargs)
            return [grads[key] for key in self.wrt]
        return [np.asarray(y) for y in items], back


def ours(problem: Problem, **options: Any) -> bool:
    """Check with ours."""
    case = problem.case
    return check_gradients(case.forward, problem.backward, case.inputs, raises=False,
                           **case.options, **options).ok


def lecture(problem: Problem) -> bool:
    """Check by the recipe of lectures: central differences of the sum, 1e-5, error below 1e-6."""
    outputs, back = problem.run(problem.inputs)
    grads = back([np.ones_like(y) for y in outputs])
    for key, grad in zip(problem.wrt, grads, strict=True):
        x = problem.inputs[key]
        if x.dtype.kind == "c":
            raise NotImplementedError("complex")
        numeric = np.empty(x.shape)
        for place in np.ndindex(x.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = x.copy()
                moved[place] += step
                values.append(sum(y.sum() for y in problem.run(problem.inputs | {key: moved})[0]))
            numeric[place] = (values[0] - values[1]) / 2e-5
        if grad.shape != x.shape:
            return False
        scale = np.maximum(abs(numeric) + abs(grad), 1e-8)
        if (abs(numeric - grad) / scale).max() > 1e-6:
            return False
    return True


def scipy_check_grad(problem: Problem) -> bool:
    """Check each argument with SciPy, for random weights of the outputs."""
    from scipy.optimize import check_grad

    rng = np.random.default_rng(1)
    outputs, _ = problem.run(problem.inputs)
    if any(y.dtype.kind == "c" for y in outputs):
        raise NotImplementedError("complex")
    weights = [rng.standard_normal(y.shape) for y in outputs]
    for i, key in enumerate(problem.wrt):
        x = problem.inputs[key]
        if x.dtype.kind == "c":
            raise NotImplementedError("complex")

        def value(flat: Any, key: str = key, x: Any = x) -> float:
            ys, _ = problem.run(problem.inputs | {key: flat.reshape(x.shape)})
            return float(sum((w * y).sum() for w, y in zip(weights, ys, strict=True)))

        def gradient(flat: Any, key: str = key, x: Any = x, i: int = i) -> Any:
            _, back = problem.run(problem.inputs | {key: flat.reshape(x.shape)})
            return back(weights)[i].ravel()

        size = np.linalg.norm(gradient(x.ravel()))
        if check_grad(value, gradient, x.ravel().copy()) > 1e-5 * max(size, 1.0):
            return False
    return True


def pytorch(problem: Problem, fast: bool = False) -> bool:
    """Check as a ``torch.autograd.Function`` with PyTorch's gradcheck, at its own tolerances."""
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            moved = dict(zip(problem.wrt, (a.detach().numpy() for a in args), strict=True))
            outputs, ctx.back = problem.run(problem.inputs | moved)
            return tuple(torch.from_numpy(np.array(y)) for y in outputs)

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> Any:
            grads = ctx.back([dy.detach().numpy() for dy in dys])
            return tuple(torch.from_numpy(np.ascontiguousarray(g)) for g in grads)

    args = [torch.from_numpy(np.array(problem.inputs[key])).requires_grad_() for key in problem.wrt]
    return bool(torch.autograd.gradcheck(Function.apply, args, raise_exception=False,
                                         fast_mode=fast))


TOOLS: dict[str, Callable[[Problem], bool]] = {
    "minisrcnn": ours,
    "minisrcnn, projection": lambda problem: ours(problem, mode="projection"),
    "lecture recipe": lecture,
    "SciPy check_grad": scipy_check_grad,
    "PyTorch gradcheck": pytorch,
    "PyTorch, fast mode": lambda problem: pytorch(problem, fast=True),
}


def passes(tool: Callable[[Problem], bool], problem: Problem) -> bool | None:
    """Whether a tool accepts a pair; None if it cannot take it. What it raises is a refusal."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return tool(problem)
    except (ImportError, NotImplementedError):
        return None
    except Exception:  # a wrong shape, mostly: caught
        return False


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkers", description=__doc__)
    parser.add_argument("--tool", action="append", choices=list(TOOLS), default=[])
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from gradcheck_families import FAMILIES  # type: ignore[import-not-found]

    tools = {}
    for name in options.tool or TOOLS:
        first = FAMILIES["sigmoid"]
        if passes(TOOLS[name], Problem(first, first.backward)) is None:
            print(f"{name}: skipped, not installed", file=sys.stderr)
        else:
            tools[name] = TOOLS[name]
    names = list(tools)
    print("| kind | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    totals = {name: [0, 0, 0, 0, 0.0] for name in names}  # caught, mutants, alarms, right, seconds
    missed: dict[str, list[str]] = {name: [] for name in names}
    for kind, families in KINDS.items():
        cells = []
        for name, tool in tools.items():
            caught = mutants = alarms = right = 0
            start = time.perf_counter()
            for family in families:
                case = FAMILIES[family]
                verdict = passes(tool, Problem(case, case.backward))
                right += 1
                if verdict is not True:
                    alarms += 1
                    missed[name].append(f"{family} ({'refused' if verdict is False else 'cannot'})")
                for what, mutant in case.mutants.items():
                    mutants += 1
                    if verdict is not None and passes(tool, Problem(case, mutant)) is False:
                        caught += 1
                    else:
                        missed[name].append(f"{family}: {what}")
            totals[name] = [a + b for a, b in zip(totals[name], (
                caught, mutants, alarms, right, time.perf_counter() - start), strict=True)]
            cells.append(f"{caught}/{mutants}" + (f", {alarms} alarms" if alarms else ""))
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
    cells = [f"{c}/{m}, {a} of {r} right ones refused" for c, m, a, r, _ in totals.values()]
    print("| all | " + " | ".join(cells) + " |\n")
    for name in names:
        print(f"{name} missed: {'; '.join(missed[name]) or 'nothing'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
