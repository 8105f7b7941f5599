"""The GPU's columns, proved at toy sizes by the emulator; its times mean nothing there."""

from __future__ import annotations

import pytest

from benchmarks import results
from benchmarks.__main__ import main
from minisrcnn.engine.backends import unavailable_reason

# The standard sizes on a device; the emulator runs thread by thread.
REQUESTS = {
    "ops": ["--shape", "1,2,3,3,7,7"],
    "training": ["--arch", "3-1-3", "--batch", "2", "--size", "9x9"],
    "inference": ["--arch", "3-3", "--size", "11x12"],
    "transfer": ["--quick", "--filter", "64 KB"],
}


@pytest.mark.parametrize("suite", REQUESTS)
@pytest.mark.parametrize("backend", [
    pytest.param("cupy-emulated", marks=pytest.mark.slow),
    pytest.param("cupy", marks=pytest.mark.gpu),
])
def test_every_column_of_the_gpu_is_checked_and_timed(suite, backend, tmp_path):
    reason = unavailable_reason(backend)
    if reason is not None:
        pytest.skip(f"backend {backend}: {reason}")
    words = [suite, "--rounds", "3", "--threads", "1", "--out", str(tmp_path / "out.json"),
             "--filter", f"^{suite}.*({backend}|CUDA|emulated)", *REQUESTS[suite]]
    assert main([*words, "--emulated"] if backend == "cupy-emulated" else words) == 0
    rows = [row for row in results.load(tmp_path / "out.json").rows if row.suite == suite]
    assert {row.implementation for row in rows} >= ({backend} | (
        {f"{backend} recorded step"} if suite == "training" else set()))
    if suite == "ops":  # six versions and the backend
        assert len({row.implementation for row in rows if "PyTorch" not in row.implementation}) >= 7
    for row in rows:
        assert row.status in ("ok", "skipped"), (row.implementation, row.case, row.reason)
        assert row.device == "gpu"
        if row.status == "ok":
            assert row.error <= row.gate and all(t > 0 for turn in row.samples for t in turn)
    timings = {row.timing for row in rows if row.implementation == backend}
    assert timings == {"warm", "first", "cold"} | (set() if suite == "transfer" else {"end to end"})
