"""Fixtures that many tests share: the backends of this machine, and where the images are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from minisrcnn.engine.backends import BACKENDS, get_backend, unavailable_reason

ROOT = Path(__file__).resolve().parent.parent

# In the background of a shell, Ctrl-C is ignored, and so it would be in every process that a test
# starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.gpu] if name == "cupy" else [])
            for name in BACKENDS]
)
def backend(request):
    """Every backend in turn; those that this machine cannot run are skipped with the reason."""
    reason = unavailable_reason(request.param)
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return get_backend(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Give the folder that holds T91, Set5 and Set14; skip where there is none."""
    places = [os.environ.get("MINISRCNN_DATA"), ROOT / "data", ROOT.parent / "shared" / "data"]
    for place in places:
        if place and (Path(place) / "Set5").is_dir():
            return Path(place)
    pytest.skip("no T91/Set5/Set14 here: set MINISRCNN_DATA to the folder that holds them")
