"""The files of a run: locked, checked, and kept from damage."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from minisrcnn import MinisrcnnError
from minisrcnn.checkpoint import load_model, load_state, save_state
from minisrcnn.imaging.files import write_image
from minisrcnn.training import loop, report
from minisrcnn.training.files import RunFiles
from minisrcnn.training.loop import train
from minisrcnn.training.recipes import RECIPES, Recipe
from minisrcnn.training.settings import TrainSettings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small training, done once: a folder with pictures/ and run/."""
    here = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for name in ("T91", "Set5"):
        (here / "pictures" / name).mkdir(parents=True)
        for i in range(2):
            write_image(here / "pictures" / name / f"{i}.png",
                        rng.integers(0, 256, (44, 50)).astype(np.uint8))
    old = Path.cwd()
    os.chdir(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_report", lambda result, lines: None)
        patch.setitem(RECIPES, "tiny", TINY)
        train(settings(max_minutes=0), say=lambda text: None)  # stops after the first step
        train(settings(max_minutes=0, resume=True), say=lambda text: None)
    os.chdir(old)
    return here


TINY = Recipe("tiny", "", input_size=17, optimizer="adam", lr=1e-3, batch=4, epochs=2)


def settings(**changes):
    values = {"data": "pictures", "recipe": "tiny", "backend": "numpy", "arch": "5-1-3",
              "scale": 2, "out": Path("run")}
    return TrainSettings(**values | changes)


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    monkeypatch.setattr(loop, "write_report", lambda result, lines: None)
    return tmp_path


def go_on(**changes):
    told: list[str] = []
    return train(settings(resume=True, **changes), told.append), told


# --- beginning ----------------------------------------------------------------------------------


def test_an_empty_folder_is_not_resumed(place):
    """A run that was killed early left an empty folder, and --resume trained the defaults there."""
    Path("empty").mkdir()
    (Path("empty") / ".lock").touch()
    with pytest.raises(MinisrcnnError, match="empty: nothing to resume"):
        train(TrainSettings(out=Path("empty"), resume=True), print)
    with pytest.raises(MinisrcnnError, match="nowhere: nothing to resume"):
        train(TrainSettings(out=Path("nowhere"), resume=True), print)
    assert not Path("nowhere").exists()


def test_the_plan_is_written_before_anything_that_takes_long(place, monkeypatch):
    def killed(self):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_score", killed)  # where the kernels are compiled
        with pytest.raises(SystemExit):
            train(settings(out=Path("new"), seed=5), lambda text: None)
    done = train(TrainSettings(out=Path("new"), resume=True), lambda text: None)
    assert (done.plan.arch, done.plan.seed, done.plan.recipe.name) == ("5-1-3", 5, "tiny")
    assert json.loads(Path("new/log.jsonl").read_text().splitlines()[0])["event"] == "start"


# --- the lock -----------------------------------------------------------------------------------


LOCKER = """
import sys
from pathlib import Path
from minisrcnn.training.files import RunFiles
with RunFiles(Path("run")).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_trainings_in_one_folder(place):
    child = subprocess.Popen([sys.executable, "-c", LOCKER], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "locked\n"
    with pytest.raises(MinisrcnnError, match="run: another training is writing to it"):
        go_on()
    child.kill()  # the system ends its lock
    child.wait()
    go_on()


def test_two_that_begin_at_once(place, monkeypatch):
    """The second found the folder free, and takes the lock only after the first is through."""
    check, checks = RunFiles.check_free, []

    def first_passes(self):
        checks.append(self)
        if len(checks) == 1:
            check(self)
            train(settings(out=Path("new")), lambda text: None)
        else:
            check(self)

    monkeypatch.setattr(RunFiles, "check_free", first_passes)
    with pytest.raises(MinisrcnnError, match="holds files already"):
        train(settings(out=Path("new"), seed=9), lambda text: None)
    assert json.loads(load_state("new/checkpoint.safetensors")[1]["plan"])["seed"] == 0


def test_a_lock_that_cannot_be_made(place):
    """A name that is a folder; permissions do not stop a test that runs as root."""
    (place / "run/.lock").unlink()
    (place / "run/.lock").mkdir()
    with pytest.raises(MinisrcnnError, match="run: cannot be written to"):
        go_on()


@pytest.mark.parametrize("error", [
    OSError(errno.ENOLCK, "No locks available"), OSError(errno.EOPNOTSUPP, "Not supported"),
    OSError(errno.ENOSYS, "Function not implemented"), NotImplementedError("no flock here")])
def test_a_file_system_without_locks(place, error, monkeypatch):
    """It is said, and the training goes on."""
    def acquire(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    said = []
    with RunFiles(Path("run")).locked(said.append):
        pass
    assert len(said) == 1 and "has no locks" in said[0] and str(Path("run/.lock")) in said[0]


def test_a_file_system_where_nothing_can_be_replaced(place, monkeypatch):
    """The checkpoint that was there is whole, and stays."""
    before = Path("run/checkpoint.safetensors").read_bytes()

    def refuse(*args):
        raise OSError(errno.EXDEV, "Invalid cross-device link", args[0])

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(MinisrcnnError, match=r"cannot be written \(Invalid cross-device") as e:
        go_on()
    assert "\n" not in str(e.value)
    assert Path("run/checkpoint.safetensors").read_bytes() == before
    assert not list(Path("run").glob(".*.part"))


def test_a_clock_that_goes_backwards(place, monkeypatch):
    """Durations and the time for the next checkpoint are of another clock."""
    go_on()
    clock = itertools.count(4e9, -1e6)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    train(settings(out=Path("again")), lambda text: None)
    want, got = (load_model(f"{name}/model.safetensors").parameters for name in ("run", "again"))
    assert all(np.array_equal(want[name], got[name]) for name in want)


# --- the checkpoint -----------------------------------------------------------------------------


def test_any_changed_bit_of_a_checkpoint_is_found(place):
    """Both checkpoints are damaged in the same place, so that neither can be used."""
    path, previous = Path("run/checkpoint.safetensors"), Path("run/checkpoint-previous.safetensors")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(8, len(data), 60):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        previous.write_bytes(changed)
        try:
            checkpoint = RunFiles(Path("run")).load(print)
        except MinisrcnnError as error:
            assert "checkpoint" in str(error) and "\n" not in str(error)
        else:  # the white space of the header
            path.write_bytes(data)
            for name, value in load_state(path)[0].items():
                np.testing.assert_array_equal(checkpoint.arrays[name], value)


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "missing"])
def test_the_checkpoint_before_is_used_with_a_word(place, damage):
    path = Path("run/checkpoint.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"changed": data, "cut": data[:-7], "empty": b""}[damage])
    result, told = go_on()
    assert any("The checkpoint before it, of step 1, is used" in line for line in told)
    shutil.rmtree("run")
    whole = train(settings(), lambda text: None)
    for name, value in whole.net.parameters.items():
        np.testing.assert_array_equal(result.net.parameters[name], value)


def test_a_damaged_checkpoint_never_replaces_the_good_one(place, monkeypatch):
    Path("run/checkpoint.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(loop.RunFiles, "probe", lambda self, size: 1 / 0)  # ends before any write
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            go_on()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert RunFiles(Path("run")).load(print).progress.step == 1


@pytest.mark.parametrize("change, says", [
    (lambda a: a.update({"conv1.bias": a["conv1.bias"][:1]}), r"conv1.bias has shape \(1,\)"),
    (lambda a: a.update({"conv2.weight": a["conv2.weight"].astype("f8")}), "dtype float64"),
    (lambda a: a.pop("conv3.bias"), "has the arrays"),
    (lambda a: a.update({"x": np.zeros(1)}), "has the arrays"),
])
def test_arrays_of_other_shapes_are_refused(place, change, says):
    """NumPy broadcasts: a bias of one number would be taken for all."""
    path = Path("run/checkpoint.safetensors")
    arrays, metadata = load_state(path)
    change(arrays)
    save_state(path, arrays, metadata)
    with pytest.raises(MinisrcnnError, match=f"run: the checkpoint.*{says}"):
        go_on()


@pytest.mark.parametrize("key, value", [
    ("progress", "[]"), ("progress", "{"), ("progress", '{"step": "many"}'),
    ("progress", '{"step": -1}'), ("plan", "7"), ("plan", '{"recipe": 3}'), ("pictures", "x"),
    ("progress", "[" * 100_000),
])
def test_a_header_of_another_kind_is_one_line(place, key, value):
    with pytest.raises(MinisrcnnError, match="not a checkpoint of this version") as error:
        resumed_with(key, value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key, name, value", [
    ("plan", "scale", "2"), ("plan", "scale", 1), ("plan", "channels", 2), ("plan", "data", 0),
    ("plan", "seed", -1), ("plan", "arch", None), ("recipe", "batch", 0), ("recipe", "lr", "x"),
    ("recipe", "lr", float("inf")), ("recipe", "optimizer", []), ("recipe", "schedule", "x"),
    ("recipe", "rescaled", [2]), ("recipe", "name", 1), ("progress", "loss_sum", "x"),
    ("progress", "psnr", []), ("progress", "log_bytes", 1.5),
])
def test_a_header_of_wrong_values_is_one_line(place, key, name, value):
    """With a checksum that is right: whoever wrote it meant harm, or had another version."""
    _, metadata = load_state("run/checkpoint.safetensors")
    held = json.loads(metadata["plan" if key == "recipe" else key])
    (held["recipe"] if key == "recipe" else held)[name] = value
    with pytest.raises(MinisrcnnError, match="not a checkpoint of this version"):
        resumed_with("plan" if key == "recipe" else key, json.dumps(held))


def test_a_checkpoint_of_too_many_steps(place):
    _, metadata = load_state("run/checkpoint.safetensors")
    progress = json.loads(metadata["progress"]) | {"step": 10**9}
    with pytest.raises(MinisrcnnError, match="is of step 1,000,000,000, want at most 6"):
        resumed_with("progress", json.dumps(progress))


def resumed_with(key, value):
    arrays, metadata = load_state("run/checkpoint.safetensors")
    for name in ("checkpoint", "checkpoint-previous"):
        save_state(f"run/{name}.safetensors", arrays, metadata | {key: value})
    go_on()


# --- the log ------------------------------------------------------------------------------------


def test_damaged_lines_of_the_log_are_skipped_with_a_warning(place):
    log = Path("run/log.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    junk = [b"\x00\xff\n", b"{\n", b"[1]\n", b'{"event": "epoch", "loss": []}\n',
            b"[" * 100_000 + b"\n"]
    log.write_bytes(b"".join(junk + lines))
    told: list[str] = []
    kept = RunFiles(Path("run")).read_log(told.append)
    assert [line["event"] for line in kept] == ["start"]
    assert len(told) == 5 and "log.jsonl: line 1 is damaged" in told[0]


def test_a_report_from_a_log_that_lost_everything(place, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    Path("run/log.jsonl").write_bytes(b"")
    result, told = go_on()
    assert any("has lost lines" in line for line in told)
    assert Path("run/curve.png").exists()
    report.write_report(result, [])  # not a line is left


def test_a_log_that_ends_within_a_line(place):
    log = Path("run/log.jsonl")
    log.write_bytes(log.read_bytes()[:-9])
    go_on()
    for line in log.read_text().splitlines():
        json.loads(line)


# --- what is the user's -------------------------------------------------------------------------


def test_hidden_files_of_the_user_are_left_alone(place):
    Path("new").mkdir()
    mine = [".gitignore", ".notes.part", ".model.part", ".x.123-00000000.part"]
    for name in mine:
        (Path("new") / name).write_text("mine")
    ours = [".checkpoint.safetensors.12-0123abcd.part", ".probe-77.part"]
    for name in ours:
        (Path("new") / name).write_text("left by a run that was killed")
    train(settings(out=Path("new")), lambda text: None)
    hidden = {path.name for path in Path("new").glob(".*")}
    assert hidden == {*mine, ".lock"}
    assert load_model("new/model.safetensors").scale == 2
