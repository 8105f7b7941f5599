"""The real CUDA kernels: the same bits in every schedule, and nothing for the sanitizers to say."""

from __future__ import annotations

import re
import subprocess
from importlib import resources
from pathlib import Path

import emulated_cases
import pytest

from minisrcnn.engine.backends import _cuda_launch
from minisrcnn.engine.emulator import configure, sanitize, unavailable_reason

pytestmark = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no emulator: {unavailable_reason()}"
)
SCRIPT = Path(emulated_cases.__file__)
ORDERS = ("reverse", 1, 2, 3)
everything = pytest.mark.parametrize(
    "everything", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"]
)


def kernels():
    """Every kernel in kernels/cuda."""
    folder = resources.files("minisrcnn.kernels.cuda")
    text = "".join(f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".cu"))
    name = r"__global__\s+void\s+(?:__launch_bounds__\([^{;]*?\)\s+)?(\w+)\s*\("
    return sorted(re.findall(name, text))


@everything
def test_the_same_bits_in_every_schedule(everything):
    with configure(order="forward"):
        forward = emulated_cases.results(everything)
    for order in ORDERS:
        with configure(order=order):
            other = emulated_cases.results(everything)
        assert other.keys() == forward.keys()
        different = [name for name in forward if other[name] != forward[name]]
        assert all(name.endswith(emulated_cases.ATOMIC) for name in different), (order, different)


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True], ids=["few", "all"])
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_have_nothing_to_say(sanitizer, everything):
    reason = sanitize.unavailable_reason(sanitizer)
    if reason is not None:
        pytest.skip(reason)
    arguments = [str(SCRIPT), *["--all"] * everything]
    done = subprocess.run(sanitize.command(sanitizer, arguments),
                          env=sanitize.environment(sanitizer),
                          capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer cannot live with this kernel's address randomisation")
    assert done.returncode == 0, done.stderr
    assert not re.search("Sanitizer|runtime error", done.stderr), done.stderr
    assert done.stdout.splitlines()[-1].split()[1:] == kernels()  # all of them have been watched


@pytest.mark.slow
def test_the_bits_do_not_depend_on_how_kernels_are_compiled():
    """-O0, -O1 and both kinds of fibers: rounding follows the text of the kernels alone."""
    usual = emulated_cases.results()
    for changes in ({"debug": False}, {"debug": True}, {"portable": True}):
        with configure(**changes):
            assert emulated_cases.results() == usual


def barriers():
    """Every __syncthreads() in the real kernels: the file, and which of them."""
    folder = resources.files("minisrcnn.kernels.cuda")
    for file in sorted(f.name for f in folder.iterdir() if f.name.endswith(".cu")):
        count = (folder / file).read_text("utf-8").count("__syncthreads();")
        yield from ((file, i) for i in range(count))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "which"), list(barriers()))
def test_every_barrier_is_missed_when_it_is_taken_out(monkeypatch, file, which):
    """What the schedules are worth: without any one barrier a result is wrong in one of them."""
    launcher = emulated_cases.device.conv2d_forward.__self__.launch
    right = emulated_cases.results()
    parts = _cuda_launch.read_source(file).split("__syncthreads();")
    parts[which] += "/* taken out */;" + parts.pop(which + 1)
    broken = "__syncthreads();".join(parts)
    original = _cuda_launch.read_source
    monkeypatch.setattr(
        _cuda_launch, "read_source", lambda name: broken if name == file else original(name)
    )
    monkeypatch.setattr(launcher, "_modules", {})
    monkeypatch.setattr(launcher, "_kernels", {})
    wrong = []
    for order in ("forward", "reverse", 1):
        try:
            with configure(order=order):
                results = emulated_cases.results()
        except AssertionError as error:
            wrong.append(str(error))  # not finite
        else:
            wrong += [name for name in right if results[name] != right[name]
                      and not name.endswith(emulated_cases.ATOMIC)]
    assert wrong
