"""Single convolutions of each layer, in all versions: forward, input and weight gradient."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from minisrcnn.kernels.cpu import VERSIONS

from minisrcnn.engine.backends import get_backend

from . import measure

# C, F, kernel, size of the input: the layers of 9-1-5 and 9-5-5 on a patch of 33x33.
LAYERS = {
    "conv1 9x9 1->64": (1, 64, 9, 33),
    "conv2 1x1 64->32": (64, 32, 1, 25),
    "conv3 5x5 32->1": (32, 1, 5, 25),
    "conv2 5x5 64->32": (64, 32, 5, 25),
}
OPERATIONS = ("forward", "backward_input", "backward_weight")


def run(threads: int, rounds: int, batches: tuple[int, ...] = (32, 128),
        versions: tuple[str, ...] = VERSIONS) -> list[dict[str, Any]]:
    """Time every version of every operation; v1, a hundred times slower, on 32 patches only."""
    results = []
    for layer in LAYERS:
        for operation in OPERATIONS:
            for batch in batches:
                results.append(_run(layer, operation, batch, rounds, versions))
    columns = sorted({row["name"] for r in results for row in r["candidates"]})
    columns.sort(key=lambda name: not name.startswith("v"))
    rows = []
    for r in results:
        times = {row["name"]: row["median_ms"] for row in r["candidates"]}
        rows.append({"job": r["job"], **times, "x best peer": r.get("times_best_peer", "")})
    measure.show("single operations, median ms", rows, ("job", *columns, "x best peer"))
    return results


def _run(layer: str, operation: str, batch: int, rounds: int,
         versions: tuple[str, ...]) -> dict[str, Any]:
    C, F, K, size = LAYERS[layer]
    out = size - K + 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, C, size, size), np.float32)
    w = rng.standard_normal((F, C, K, K), np.float32)
    b = rng.standard_normal(F, np.float32)
    dy = rng.standard_normal((batch, F, out, out), np.float32)
    arguments = {"forward": (x, w, b), "backward_input": (dy, w), "backward_weight": (x, dy)}
    mine = arguments[operation]
    mflop = 2e-6 * batch * out * out * w.size

    candidates: dict[str, Callable[[], Any]] = {}
    for version in versions:
        if version == "v1_loops" and batch > 32:
            continue
        kernel = getattr(importlib.import_module(f"minisrcnn.kernels.cpu.{version}"),
                         f"conv2d_{operation}")
        candidates[version] = lambda kernel=kernel: kernel(*mine)
    try:
        candidates |= _torch(operation, x, w, b, dy)
    except ImportError:
        print("PyTorch is not installed: no peer is timed")

    want = _right_answer(operation, x, w, b, dy)
    refused = []
    for name in list(candidates):
        error = measure.relative_error(candidates[name](), want)
        if not error < 1e-4:
            refused.append({"name": name, "refused": f"wrong by {error:.1e}"})
            del candidates[name]
    slow = {k: v for k, v in candidates.items() if k in ("v1_loops", "v2_parallel")}
    fast = {k: v for k, v in candidates.items() if k not in slow}
    seconds = measure.take_turns(slow, 2) | measure.take_turns(fast, rounds)
    rows = [measure.summary(name, s, mflop) for name, s in seconds.items()]
    result = {"job": f"{layer}, {operation}, {batch}", "mflop": mflop, "candidates": rows,
              "refused": refused}
    times = {row["name"]: row["median_ms"] for row in rows}
    peers = {name: time for name, time in times.items() if name.startswith("PyTorch")}
    ours = VERSIONS[-1]
    if peers and ours in times:
        best = min(peers, key=lambda name: peers[name])
        result |= {"best_peer": best, "times_best_peer": peers[best] / times[ours]}
    return result


def _right_answer(operation: str, x: Any, w: Any, b: Any, dy: Any) -> Any:
    """Return what the ``numpy`` backend computes in float64, eight patches at a time."""
    ops = get_backend("numpy")
    x, w, b, dy = (a.astype(np.float64) for a in (x, w, b, dy))
    groups = [slice(n, n + 8) for n in range(0, len(x), 8)]
    if operation == "forward":
        return np.concatenate([ops.conv2d_forward(x[g], w, b) for g in groups])
    if operation == "backward_input":
        return np.concatenate([ops.conv2d_backward_input(dy[g], w) for g in groups])
    return sum(ops.conv2d_backward_weight(x[g], dy[g]) for g in groups)


def _torch(operation: str, x: Any, w: Any, b: Any, dy: Any) -> dict[str, Callable[[], Any]]:
    import torch

    def make(layout: Any) -> Callable[[], Any]:
        X, weights, DY = (torch.tensor(a).to(memory_format=layout) for a in (x, w, dy))
        bias = torch.tensor(b)
        if operation == "forward":
            return lambda: torch.nn.functional.conv2d(X, weights, bias).detach().numpy()
        which = operation == "backward_input"
        return lambda: torch.ops.aten.convolution_backward(
            DY, X, weights, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
            [which, not which, False],
        )[0 if which else 1].numpy()

    return {"PyTorch contiguous": make(torch.contiguous_format),
            "PyTorch channels-last": make(torch.channels_last)}
