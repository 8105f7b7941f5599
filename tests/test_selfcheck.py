"""The table behind ``minisrcnn gradcheck``: right backends pass, a broken one is shown."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from minisrcnn.engine import backends, selfcheck
from minisrcnn.engine.backends import get_backend, unavailable_reason
from minisrcnn.engine.layers import ACTIVATIONS


def text(rows):
    console = Console(file=io.StringIO(), width=160)
    console.print(selfcheck.table(rows))
    return console.file.getvalue()


def broken(**functions):
    module = ModuleType("broken")
    module.__dict__.update(vars(get_backend("numpy")) | {"NAME": "broken"} | functions)
    return module


def test_the_numpy_backend_passes_and_every_part_is_there():
    rows = selfcheck.run(["numpy"])
    assert not [row for row in rows if row.failed], text(rows)
    for dtype in ("float64", "float32"):
        parts = {(row.what.split()[0], row.mode) for row in rows if row.dtype == dtype}
        assert parts == {*((layer.__name__, "full") for layer in ACTIVATIONS),
                         ("conv2d", "full"), ("conv2d", "adjoint"), ("chain", "full"),
                         ("mse", "full"), ("sgd_update", "update"), ("adam_update", "update")}
    assert all(row.report.coverage > 0.9 for row in rows)
    assert "FAILED" not in text(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backends.BACKENDS if name != "numpy"])
def test_every_other_backend_passes(name):
    if (reason := unavailable_reason(name)) is not None:
        pytest.skip(reason)
    rows = selfcheck.run([name])
    assert not [row for row in rows if row.failed], text(rows)


def test_a_wrong_gradient_fails_in_every_row_that_holds_it_and_is_named():
    right = get_backend("numpy").conv2d_backward_weight
    rows = selfcheck.run([broken(
        conv2d_backward_weight=lambda x, dy: np.ascontiguousarray(right(x, dy)[:, :, ::-1, ::-1]))])
    failed = {row.what for row in rows if row.failed}
    assert "chain conv-relu-conv" in failed
    assert any(what.startswith("conv2d 2x3x6x5") for what in failed)
    assert not failed & {"ReLU", "mse", "sgd_update", "adam_update"}
    assert "kernel flipped" in text(rows)


def test_a_wrong_fused_path_fails(monkeypatch):
    weights = (2, 1, 3, 3), (2, 2, 1, 1), (1, 2, 2, 2)
    monkeypatch.setattr(selfcheck, "CHAINS", {"3-1-2": ("full", (2, 1, 5, 4), weights)})
    monkeypatch.setattr(selfcheck, "CONVOLUTIONS", ())

    def chain(params, x, t):
        loss, _ = get_backend("numpy").mse(selfcheck._chain_forward(x, *params.values()), t)
        return loss, {key: np.zeros_like(value) for key, value in params.items()}

    rows = [row for row in selfcheck.run([broken(chain_loss_and_gradients=chain)]) if row.failed]
    assert {row.what for row in rows} == {"fused 3-1-2"}


def test_a_backend_that_raises_is_a_failure_and_does_not_hide_the_others(monkeypatch):
    monkeypatch.setattr(selfcheck, "CONVOLUTIONS", selfcheck.CONVOLUTIONS[2:])

    def relu_forward(x):
        raise RuntimeError("no such kernel")

    rows = selfcheck.run([broken(relu_forward=relu_forward)])
    assert {row.what for row in rows if row.failed} == {"ReLU", "chain conv-relu-conv"}
    assert "no such kernel" in text(rows)


def test_a_backend_that_cannot_run_here_is_a_failure_only_if_asked_for(monkeypatch):
    def get(name):
        raise backends.BackendUnavailableError(f"{name} needs a GPU")

    monkeypatch.setattr(selfcheck, "get_backend", get)
    assert [row.failed for row in selfcheck.run()] == [False] * len(backends.BACKENDS)
    (row,) = selfcheck.run(["cupy"])
    assert row.failed
    assert "unavailable: cupy needs a GPU" in text([row])


def test_a_function_that_a_backend_lacks_is_shown_and_is_no_failure(monkeypatch):
    class Softsign:
        """Stands for a new layer of which one backend has the functions."""

        def __init__(self, *, backend):
            self.backend = get_backend(backend, "softsign_forward", "softsign_backward")

    monkeypatch.setattr(selfcheck, "ACTIVATIONS", (Softsign,))
    monkeypatch.setattr(selfcheck, "CONVOLUTIONS", ())
    rows = [row for row in selfcheck.run([broken()]) if row.what == "Softsign"]
    assert [row.failed for row in rows] == [False, False]
    assert "backend broken has no softsign_forward" in text(rows)
    assert "not checked" in text(rows)
