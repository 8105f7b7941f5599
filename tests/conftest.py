"""Fixtures that many tests share: the backends of this machine, and where the images are."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from minisrcnn.kernels.cache import user

from minisrcnn.engine.backends import BACKENDS, get_backend, unavailable_reason

ROOT = Path(__file__).resolve().parent.parent

# Kernels are compiled once for all tests and all processes that they start, and kept from run to
# run; no data set is ever put there. A test that wants a cache of its own sets one.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have it from the process that starts them
    usual = os.environ.get("MINISRCNN_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "minisrcnn")
    try:
        kept = Path(usual).expanduser().absolute() / "of-tests"
        kept.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        kept = Path(tempfile.gettempdir(), f"minisrcnn-{user()}", "of-tests")
    os.environ["MINISRCNN_CACHE"] = str(kept)
    # The C++ compiler's optimisation takes longer than what it saves; the bits are the same.
    os.environ.setdefault("MINISRCNN_EMULATOR_DEBUG", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Let the processes that tests start hear signals that this one ignores.

    In the background of a shell Ctrl-C is ignored, under nohup a hangup, and by every process that
    is started from there too. A signal with a handler, of any kind, has its default again in a
    new process. What only starts workers of pytest leaves them as they are.
    """
    if getattr(config.option, "numprocesses", None):
        return
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def or_skip(name):
    """Give a backend; skip, with the reason, where this machine cannot run it."""
    reason = unavailable_reason(name)
    if reason is not None:
        pytest.skip(f"backend {name}: {reason}")
    return get_backend(name)


def marked(names):
    return [pytest.param(name, marks=[pytest.mark.gpu] if name == "cupy" else [])
            for name in names]


@pytest.fixture(params=marked(BACKENDS))
def backend(request):
    """Every backend in turn."""
    return or_skip(request.param)


@pytest.fixture(scope="module", params=marked(["cupy-emulated", "cupy"]))
def device(request):
    """Both backends of the CUDA sources in turn."""
    return or_skip(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Give the folder that holds T91, Set5 and Set14; skip where there is none."""
    places = [os.environ.get("MINISRCNN_DATA"), ROOT / "data", ROOT.parent / "shared" / "data"]
    for place in places:
        if place and (Path(place) / "Set5").is_dir():
            return Path(place)
    pytest.skip("no T91/Set5/Set14 here: set MINISRCNN_DATA to the folder that holds them")


@pytest.fixture
def own_set5(data_root, tmp_path) -> Path:
    """Give a folder that holds a copy of Set5 to be changed: the data sets may be read only."""
    folder = tmp_path / "own"
    (folder / "Set5").mkdir(parents=True)
    for path in (data_root / "Set5").iterdir():
        shutil.copyfile(path, folder / "Set5" / path.name)
    return folder
