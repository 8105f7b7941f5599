"""A run that is killed and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisrcnn import MinisrcnnError
from minisrcnn.checkpoint import load_state
from minisrcnn.imaging.files import write_image
from minisrcnn.training.loop import train
from minisrcnn.training.settings import TrainSettings

# Trains in a process of its own, which kills itself (SIGKILL, so that nothing is tidied up) just
# before or after the n-th time that it makes something durable, or after so many seconds.
CHILD = """
import os, signal, sys, threading, time
out, resume, when, after, seconds = sys.argv[1:]
count = 0

def wrapped(call):
    def counted(*args, **kwargs):
        global count
        count += 1
        here = count == int(when)
        if here and after == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

os.fsync, os.replace = wrapped(os.fsync), wrapped(os.replace)
from pathlib import Path
from minisrcnn.training import loop
from minisrcnn.training.recipes import RECIPES, Recipe
from minisrcnn.training.loop import train
from minisrcnn.training.settings import TrainSettings
loop.write_report = lambda result, lines: None  # seconds, and not what this is about
RECIPES["tiny"] = Recipe("tiny", "", input_size=17, augment=True, init="identity",
                         optimizer="adam", lr=1e-3, schedule="cosine", batch=5, epochs=6)
if seconds != "-":
    def killer():
        time.sleep(float(seconds))
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=killer, daemon=True).start()
train(TrainSettings(data="pictures", recipe="tiny", backend="numpy", arch="5-1-3", scale=2,
                    out=Path(out), resume=resume == "resume", checkpoint_seconds=0),
      say=lambda text: None)
"""


def child(out, resume, when=0, after="after", seconds="-"):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, out, "resume" if resume else "fresh", str(when), after,
         str(seconds)], capture_output=True, text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


def begun(out):
    """Whether there is something to go on with; before the first checkpoint a run starts anew."""
    return Path(out, "checkpoint.safetensors").exists()


def log(out):
    """Return the lines of the log but for the time that they took."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


def assert_same(out, whole):
    for file in ("checkpoint.safetensors", "model.safetensors"):
        a, b = load_state(Path(out) / file)[0], load_state(Path(whole) / file)[0]
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert log(out) == log(whole)
    assert [path.name for path in Path(out).glob(".*")] == [".lock"], "leftovers"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Run once without a break."""
    here = tmp_path_factory.mktemp("resume")
    old = Path.cwd()
    os.chdir(here)
    rng = np.random.default_rng(0)
    for name in ("T91", "Set5"):
        Path("pictures", name).mkdir(parents=True)
        for i in range(2):
            write_image(Path("pictures", name, f"{i}.png"),
                        rng.integers(0, 256, (44, 50)).astype(np.uint8))
    assert child("whole", resume=False)
    yield here
    os.chdir(old)


# 2 pictures of 44x50, 17x17 patches at stride 14: 12 patches; 2 steps of 5 an epoch, 6 epochs.
# Durable events: probe, checkpoint 0 (2), log, checkpoint 0 again (2); then 2 a step and 1 an
# epoch; last save, model.
@pytest.mark.parametrize("kill", [
    *range(3), *(pytest.param(kill, marks=pytest.mark.slow) for kill in range(3, 12))])
def test_killed_at_any_moment(place, kill):
    rng = random.Random(kill)
    out = f"killed{kill}"
    moments = [(rng.randrange(1, 36), rng.choice(["before", "after"])) for _ in range(2)]
    if kill == 0:
        moments = [(1, "before"), (3, "before")]  # there is no checkpoint yet
    for when, after in moments:
        if child(out, begun(out), when, after):
            break
    else:
        assert child(out, begun(out))
    assert_same(out, "whole")


def test_killed_by_the_clock(place):
    rng = random.Random(1)
    kills, done = 0, False
    while not done:
        # A resumed run has at most what is left to do, so this ends.
        seconds = rng.uniform(0.02, 0.1) if kills < 3 else "-"
        done = child("clock", begun("clock"), seconds=seconds)
        kills += not done
    assert_same("clock", "whole")


def settings(**changes):
    values = {"out": Path("whole"), "resume": True}
    return TrainSettings(**values | changes)


@pytest.mark.parametrize("changes, message", [
    ({"scale": 3}, "--scale 3, but this run began with 2"),
    ({"arch": "9-1-5"}, "--arch 9-1-5, but this run began with 5-1-3"),
    ({"recipe": "paper"}, "--recipe paper, but this run began with tiny"),
    ({"degradation": "zoom"}, "--degradation zoom, but this run began with bicubic"),
    ({"epochs": 7}, "--epochs 7, but this run began with 6"),
    ({"batch_size": 6}, "--batch-size 6, but this run began with 5"),
    ({"seed": 1}, "--seed 1, but this run began with 0"),
    ({"backend": "numba"}, "--backend numba, but this run began with numpy"),
])
def test_changed_settings_are_refused_by_name(place, changes, message):
    before = (place / "whole" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(MinisrcnnError, match=message):
        train(settings(**changes), print)
    assert (place / "whole" / "checkpoint.safetensors").read_bytes() == before


def test_changed_pictures_are_refused(place):
    path = place / "pictures" / "T91" / "0.png"
    original = path.read_bytes()
    write_image(path, np.full((44, 50), 7, np.uint8))
    try:
        with pytest.raises(MinisrcnnError, match="the pictures, T91, are not those"):
            train(settings(), print)
    finally:
        path.write_bytes(original)


def test_pictures_that_moved_are_fine(place):
    (place / "pictures").rename("moved")
    try:
        with pytest.raises(MinisrcnnError, match="pictures: neither a folder"):
            train(settings(), print)
        assert train(settings(data="moved"), print).finished
    finally:
        Path("moved").rename("pictures")


def test_nothing_to_resume(place):
    with pytest.raises(MinisrcnnError, match="nowhere: nothing to resume"):
        train(settings(out=Path("nowhere")), print)
    assert not Path("nowhere").exists()


def test_damaged_checkpoint_is_one_line(place):
    Path("damaged").mkdir()
    (Path("damaged") / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(MinisrcnnError, match=r"damaged/checkpoint\.safetensors: damaged"):
        train(settings(out=Path("damaged")), print)
