"""The GPU benchmark, proved at a toy size by the emulator; its times mean nothing there."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisrcnn.engine.backends import unavailable_reason


@pytest.mark.parametrize(("backend", "batch", "size"), [
    pytest.param("cupy-emulated", 1, 15, marks=pytest.mark.slow),
    pytest.param("cupy", 128, 33, marks=pytest.mark.gpu),
])
def test_every_kernel_is_compared_before_it_is_timed(backend, batch, size, monkeypatch):
    reason = unavailable_reason(backend)
    if reason is not None:
        pytest.skip(f"backend {backend}: {reason}")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent)
    from benchmarks import gpu

    lines: list[str] = []
    rows = gpu.run(backend=backend, batch=batch, size=size, repeats=1, show=lines.append)
    ours = [row for row in rows if "PyTorch" not in row["who"] and "cuDNN" not in row["who"]]
    # six versions of eight convolutions (the first layer's input needs no gradient), three
    # kinds of step, one image
    assert len(ours) == 6 * 8 + 3 + 1
    assert len(lines) == len(rows) + 1
    assert all(row["microseconds"] > 0 and row["gflops"] > 0 for row in rows)

    monkeypatch.setattr(gpu, "_TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match=r"differs from version 1 by .*, want less than 0"):
        gpu.run(backend=backend, batch=batch, size=size, repeats=1, show=lines.append)
