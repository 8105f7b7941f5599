"""Training: what it leaves, what it refuses, how it fails."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.checkpoint import load_model, load_state
from minisrcnn.engine.backends import get_backend, unavailable_reason
from minisrcnn.imaging.datasets import load_dataset
from minisrcnn.imaging.files import read_image, write_image
from minisrcnn.imaging.metrics import psnr
from minisrcnn.imaging.prepare import prepare, to_unit
from minisrcnn.imaging.resize import imresize
from minisrcnn.training import files, loop, report
from minisrcnn.training.loop import train
from minisrcnn.training.network import new_network
from minisrcnn.training.order import Shuffle, Window
from minisrcnn.training.pictures import load_data, load_validation
from minisrcnn.training.ranks import Ranks
from minisrcnn.training.recipes import RECIPES, Recipe
from minisrcnn.training.settings import Plan, TrainSettings
from minisrcnn.training.state import TrainingFailedError, summary
from minisrcnn.training.steppers import DeviceStepper, HostStepper, SentStepper, new_stepper

PNG = b"\x89PNG\r\n\x1a\n"


def picture(seed, H=47, W=61):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W] / 10
    waves = sum(np.sin(a * y + b * x + c) for a, b, c in rng.normal(0, 2, (6, 3)))
    return np.uint8(np.clip(128 + 25 * waves, 0, 255))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Make a folder of two training and two test pictures, and a place of its own to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISRCNN_DATA", raising=False)
    monkeypatch.setenv("MINISRCNN_DATA_URL", "http://127.0.0.1:9")  # nobody answers there
    for name, seeds in (("T91", (1, 2)), ("Set5", (3, 4))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for seed in seeds:
            write_image(tmp_path / "pictures" / name / f"{seed}.png", picture(seed))
    return tmp_path / "pictures"


@pytest.fixture
def drawn():
    """Ask for the pictures and the report."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Leave pictures and report out, which take seconds, where they are not asked for."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(loop, "write_report", lambda result, lines: None)


@pytest.fixture
def tiny(monkeypatch):
    recipe = Recipe("tiny", "for tests", input_size=17, stride=14, augment=True, init="identity",
                    optimizer="adam", lr=1e-3, schedule="cosine", batch=4, epochs=3)
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    return recipe


def settings(pictures, **changes):
    values = {"data": str(pictures), "recipe": "tiny", "backend": "numpy", "arch": "5-1-3",
              "out": Path("run"), "scale": 2}
    return TrainSettings(**values | changes)


def log(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def quiet(text):
    pass


# --- what it leaves -----------------------------------------------------------------------------


def test_leaves_weights_log_pictures_and_report(pictures, tiny, drawn):
    result = train(settings(pictures), quiet)
    out = Path("run")
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "checkpoint.safetensors", "checkpoint-previous.safetensors",
        "log.jsonl", "curve.png", "filters.png", "before-after.png", "report.md", ".lock"}
    for name in ("curve.png", "filters.png", "before-after.png"):
        assert (out / name).read_bytes().startswith(PNG)
        assert read_image(out / name).std() > 5, "an empty picture"
    model = load_model(out / "model.safetensors")
    assert (model.arch, model.scale) == ("5-1-3", 2)
    assert model.metadata["recipe"] == "tiny"
    assert model.metadata["seed"] == "0"
    assert model.metadata["comparable"] == "false"
    page = (out / "report.md").read_text()
    for words in ("recipe tiny", "compare with no published", "| lr | 0.001 |", "| seed | 0 |",
                  "curve.png", f"{result.progress.psnr:.3f}"):
        assert words in page
    assert "(not comparable)" in summary(result)


def test_score_is_that_of_the_weights_it_leaves(pictures, tiny):
    """Independently: load the file, degrade the pictures, take the mean."""
    result = train(settings(pictures), quiet)
    net = SRCNN.load("run/model.safetensors", backend="numpy", dtype="float64")
    scores, bicubic = [], []
    for path in sorted((pictures / "Set5").iterdir()):
        x, t = prepare(read_image(path), 2, dtype=np.float64)
        scores.append(psnr(net.predict(x), t, 2))
        bicubic.append(psnr(x, t, 2))
    assert result.progress.psnr == pytest.approx(np.mean(scores), abs=1e-3)
    assert result.validation.bicubic == pytest.approx(np.mean(bicubic), abs=1e-3)
    assert log("run")[-1]["psnr"] == result.progress.psnr


@pytest.mark.parametrize("degradation", ["bicubic-mirror", "zoom"])
def test_another_degradation_than_the_recipes(pictures, tiny, drawn, degradation):
    result = train(settings(pictures, degradation=degradation, epochs=1), quiet)
    x, _ = prepare(read_image(pictures / "T91" / "1.png"), 2, degradation)
    np.testing.assert_array_equal(result.data.inputs[0], x)
    scored = [psnr(*prepare(read_image(path), 2, degradation), 2)
              for path in sorted((pictures / "Set5").iterdir())]
    assert result.validation.bicubic == pytest.approx(np.mean(scored), abs=1e-3)
    assert log("run")[0]["settings"]["recipe"]["degradation"] == degradation
    assert load_model("run/model.safetensors").metadata["degradation"] == degradation
    words = {"zoom": "input, degraded by zoom", "bicubic-mirror": "bicubic, borders mirrored"}
    page = Path("run/report.md").read_text()
    assert f"| {words[degradation]} |" in page and f"| degradation | {degradation} |" in page


def test_a_degradation_that_there_is_not(pictures, tiny):
    with pytest.raises(MinisrcnnError, match="degradation is 'linear', want one of bicubic, "):
        train(settings(pictures, degradation="linear"), quiet)
    assert not Path("run").exists()


def test_log_has_a_line_for_each_epoch(pictures, tiny):
    result = train(settings(pictures), quiet)
    first, *epochs = log("run")
    assert first["event"] == "start" and not first["comparable"]
    assert first["settings"]["recipe"]["lr"] == 1e-3
    # (46 - 17) // 14 + 1 by (60 - 17) // 14 + 1 patches in two pictures of 46x60
    assert first["patches"] == 2 * 3 * 4
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert [line["step"] for line in epochs] == [6, 12, 18]
    assert result.finished and result.progress.step == 18
    assert all(math.isfinite(line["loss"]) for line in epochs)


def test_training_is_gradient_descent_on_the_patches(pictures, monkeypatch):
    """One epoch in one batch, by hand, from the definition."""
    monkeypatch.setitem(RECIPES, "plain", Recipe(
        "plain", "", input_size=17, stride=14, init="he", lr=0.05, last_lr=0.1, batch=24,
        epochs=1))
    result = train(settings(pictures, recipe="plain", seed=5), quiet)
    net = SRCNN("5-1-3", backend="numpy", seed=5, init="he")
    xs, ts = [], []
    for path in sorted((pictures / "T91").iterdir()):
        x, t = prepare(read_image(path), 2)
        for top in (0, 14, 28):
            for left in (0, 14, 28, 42):
                xs.append(x[top : top + 17, left : left + 17])
                ts.append(t[top + 3 : top + 14, left + 3 : left + 14])
    loss, grads = net.loss_and_gradients_by_layer(np.stack(xs)[:, None], np.stack(ts)[:, None])
    for name, value in net.parameters.items():
        rate = 0.005 if name.startswith("conv3") else 0.05
        np.testing.assert_allclose(result.net.parameters[name], value - rate * grads[name],
                                   rtol=1e-4, atol=1e-6)
    assert log("run")[-1]["loss"] == pytest.approx(loss, rel=1e-5)


def test_patches_and_labels_stay_together_when_turned(pictures, tiny, monkeypatch):
    """With input = label, a network that is the identity has no loss, however it is flipped."""
    result = train(settings(pictures), quiet)
    data = replace(result.data, inputs=[to_unit(label) for label in result.data.labels])
    net = SRCNN("5-1-3", (1, 1), backend="numpy")
    for value in net.parameters.values():
        value[...] = 0
        if value.ndim == 4:
            value[0, 0, value.shape[2] // 2, value.shape[3] // 2] = 1
    stepper = HostStepper(net, data, tiny, Ranks())
    stepper.begin_epoch(Shuffle(data.index, 0).epoch(0))
    stepper.set_rates({"conv1": 0.0, "conv2": 0.0, "conv3": 0.0})
    for _ in range(6):
        stepper.step()
    assert stepper.losses() == [0.0] * 6


def test_notes_recipe_trains_on_the_notes_own_arrays(pictures, monkeypatch):
    """Pillow's luma, SciPy's zoom down and up, 33 and 21 pixels, stride 14, from their formulas."""
    from PIL import Image
    from scipy.ndimage import zoom

    colours = np.stack([picture(i, 50, 68) for i in (7, 8, 9)], axis=2)
    write_image(pictures / "T91" / "1.png", colours)
    seen = []

    def look(self, x, t):
        seen.append((x.copy(), t.copy()))
        return 0.0, {name: np.zeros_like(value) for name, value in self.parameters.items()}

    monkeypatch.setattr(SRCNN, "loss_and_gradients", look)
    result = train(settings(pictures, recipe="notes", arch="9-1-5", scale=3, epochs=1,
                            batch_size=1), quiet)
    luma = np.asarray(Image.open(pictures / "T91" / "1.png").convert("YCbCr"))[..., 0]
    label = luma[:48, :66] / np.float32(255)
    blurred = zoom(zoom(label, 1 / 3, prefilter=False), 3, prefilter=False)
    wanted = [(blurred[y : y + 33, x : x + 33], label[y + 6 : y + 27, x + 6 : x + 27])
              for y in (0, 14) for x in (0, 14, 28)]
    found = 0
    for x, t in wanted:
        found += any(np.allclose(x, xx[0, 0], atol=1e-6) and np.allclose(t, tt[0, 0], atol=1e-6)
                     for xx, tt in seen)
    assert found == 6
    assert len(seen) == len(result.data.index)
    std = result.net.parameters["conv1.weight"].std()
    assert std == pytest.approx(1e-3, rel=0.1)
    assert not result.validation.comparable


def test_balance_evens_out_the_pictures_errors(pictures, tiny, monkeypatch):
    """Each picture's patches get one over its error; none more than 20 times the median's."""
    for name, amplitude in (("flat", 0.001), ("soft", 0.3)):
        write_image(pictures / "T91" / f"{name}.png",
                    np.uint8(128 + amplitude * (picture(5) - 128.0)))
    write_image(pictures / "T91" / "small.png", picture(5, 5, 90))  # nothing within its border
    monkeypatch.setitem(RECIPES, "tiny", replace(tiny, balance=1.0))
    data, _, plan = load_data(loop.new_plan(settings(pictures)), quiet)
    scale = plan.scale
    inside = (slice(scale, -scale), slice(scale, -scale))
    pairs = [(x, t) for x, t in zip(data.inputs, data.labels, strict=True) if len(t) > 4]
    assert len(pairs) == len(data.labels) - 1
    errors = np.array([np.mean((np.clip(np.round(255 * x[inside]), 0, 255) - t[inside]) ** 2)
                       for x, t in pairs])
    want = 1 / np.maximum(errors, np.median(errors) / 20)
    found = data.weights[data.weights > 0]
    np.testing.assert_allclose(found / found.sum(), want / want.sum(), rtol=1e-5)
    assert errors.min() < np.median(errors) / 20  # the flat one is held back
    plain, _, _ = load_data(loop.new_plan(replace(settings(pictures), recipe="paper")), quiet)
    assert plain.weights is None


def test_seed_decides_every_bit(pictures, tiny):
    nets = [train(settings(pictures, out=Path(f"run{i}"), seed=seed, epochs=1), quiet).net
            for i, seed in enumerate((1, 1, 2))]
    weights = [net.parameters["conv1.weight"] for net in nets]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_threads_do_not_change_a_bit(pictures, tiny):
    reason = unavailable_reason("numba")
    if reason:
        pytest.skip(reason)
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor")
    try:
        nets = [train(settings(pictures, backend="numba", out=Path(f"run{n}"), threads=n),
                      quiet).net for n in (1, 2)]
    finally:
        get_backend("numba").set_threads(2)
    for name, value in nets[0].parameters.items():
        np.testing.assert_array_equal(value, nets[1].parameters[name])


def test_on_a_device_as_on_the_host(pictures, tiny):
    """The device path, on the emulator: other summation order, so close, not equal."""
    reason = unavailable_reason("cupy-emulated")
    if reason:
        pytest.skip(reason)
    small = {"epochs": 2, "arch": "3-1-1"}
    host = train(settings(pictures, **small), quiet)
    device = train(settings(pictures, **small, backend="cupy-emulated", out=Path("run2")), quiet)
    for name, value in host.net.parameters.items():
        np.testing.assert_allclose(device.net.backend.to_numpy(device.net.parameters[name]), value,
                                   rtol=2e-2, atol=2e-5)
    assert log("run2")[-1]["loss"] == pytest.approx(log("run")[-1]["loss"], rel=1e-3)
    assert device.progress.psnr == pytest.approx(host.progress.psnr, abs=0.02)
    part = train(settings(pictures, **small, backend="cupy-emulated", out=Path("run3"),
                          max_minutes=0), quiet)
    assert part.progress.step == 1
    rest = train(settings(pictures, out=Path("run3"), recipe=None, arch=None, scale=None,
                          backend=None, resume=True), quiet)
    assert rest.progress.step == device.progress.step
    to_numpy = device.net.backend.to_numpy
    for name, value in device.net.parameters.items():
        np.testing.assert_array_equal(to_numpy(rest.net.parameters[name]), to_numpy(value))


# --- which pictures -----------------------------------------------------------------------------


def test_without_t91_it_goes_on_with_photographs_and_says_so(pictures, tiny, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", replace(tiny, stride=200))
    told = []
    backend = "numba" if unavailable_reason("numba") is None else "numpy"
    result = train(settings(pictures, data=None, epochs=1, backend=backend), told.append)
    assert any("NO T91" in line for line in told)
    assert any("PHOTOGRAPHS" in line and "do not compare" in line for line in told)
    assert not result.validation.comparable
    trained, scored = len(result.data.inputs), set(result.validation.titles)
    assert scored == {"astronaut", "chelsea", "coffee"} and trained >= 5
    assert not log("run")[0]["comparable"]
    assert "compare with no published" in report._page(result)


def test_t91_that_is_asked_for_and_missing_is_refused(pictures, tiny):
    with pytest.raises(MinisrcnnError, match="T91"):
        train(settings(pictures, data="T91"), quiet)
    assert not Path("run").exists()


def test_a_broken_picture_is_skipped(pictures, tiny):
    (pictures / "T91" / "0.png").write_bytes(PNG + b"broken")
    told = []
    result = train(settings(pictures, epochs=1), told.append)
    assert len(result.data.inputs) == 2
    assert any("Skipped" in line and "0.png" in line for line in told)


def test_pictures_smaller_than_a_patch(pictures, tiny):
    for path in (pictures / "T91").iterdir():
        write_image(path, picture(0, 12, 12))
    with pytest.raises(MinisrcnnError, match="T91: no picture has 17x17 pixels"):
        train(settings(pictures), quiet)


def test_fewer_patches_than_a_batch(pictures, tiny):
    told = []
    result = train(settings(pictures, batch_size=1000, epochs=2), told.append)
    assert "Only 24 patches" in told[0]
    assert result.plan.recipe.batch == 24 and result.progress.step == 2


def test_original_set5_is_comparable(data_root, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = Plan(str(data_root), 3, "9-1-5", 0, "numpy", RECIPES["fast"])
    _, validation, _ = load_data(plan, quiet)
    assert validation.comparable
    assert validation.bicubic == pytest.approx(30.394, abs=0.002)
    zoom = replace(plan, recipe=RECIPES["notes"])
    assert not load_validation(load_dataset("Set5", data_root), zoom,
                                    quiet).comparable


# --- refusals and failures ----------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    ({"recipe": "quick"}, "recipe is 'quick'"),
    ({"arch": "9-x-5"}, "arch is '9-x-5'"),
    ({"arch": "4-1-3"}, "--arch 4-1-3: training wants odd kernels"),
    ({"arch": "9-9-9"}, "--arch 9-9-9"),
    ({"backend": "abacus"}, "backend is 'abacus'"),
    ({"data": "nowhere"}, "nowhere: neither a folder"),
    ({"threads": 2}, "--threads is for the numba backend"),
])
def test_wrong_requests(pictures, tiny, changes, message):
    with pytest.raises(MinisrcnnError, match=message):
        train(settings(pictures, **changes), quiet)
    assert not Path("run").exists()


def test_a_folder_that_is_not_empty_is_never_written_to(pictures, tiny):
    Path("run").mkdir()
    (Path("run") / "thesis.txt").write_text("mine")
    with pytest.raises(MinisrcnnError, match=r"run: holds files already.*--out$"):
        train(settings(pictures), quiet)
    assert [p.name for p in Path("run").iterdir()] == ["thesis.txt"]
    with pytest.raises(MinisrcnnError, match="nothing to resume"):
        train(settings(pictures, resume=True), quiet)


def test_a_run_is_not_overwritten_and_resume_is_offered(pictures, tiny):
    train(settings(pictures, epochs=1), quiet)
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    with pytest.raises(MinisrcnnError, match="--resume"):
        train(settings(pictures, epochs=1), quiet)
    assert before == {p.name: p.read_bytes() for p in Path("run").iterdir()}


def test_a_file_in_the_way(pictures, tiny):
    Path("run").write_text("a file")
    with pytest.raises(MinisrcnnError, match="run: a file is in the way"):
        train(settings(pictures), quiet)


def test_folder_that_cannot_be_made_is_found_at_once(pictures, tiny):
    Path("file").write_text("")
    with pytest.raises(MinisrcnnError, match="file/run: cannot be"):
        train(settings(pictures, out=Path("file/run")), quiet)


def test_full_disk_is_found_before_the_first_step(pictures, tiny, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(HostStepper, "step", lambda self: pytest.fail("a step was made"))
    with pytest.raises(MinisrcnnError, match=r"run: cannot be written to \(No space left"):
        train(settings(pictures), quiet)
    assert [path.name for path in Path("run").iterdir()] == [".lock"]


def test_disk_that_fills_up_leaves_the_checkpoint_before(pictures, tiny, monkeypatch):
    save, saved = files.save_state, []

    def save_twice(path, arrays, metadata):
        if len(saved) == 3:
            raise MinisrcnnError(f"{path}: cannot be written (No space left on device)")
        saved.append({name: value.copy() for name, value in arrays.items()})
        save(path, arrays, metadata)

    monkeypatch.setattr(files, "save_state", save_twice)
    with pytest.raises(TrainingFailedError, match=r"No space left.*step 2, the checkpoint of step "
                                                  r"1 is kept.*--resume"):
        train(settings(pictures, checkpoint_seconds=0), quiet)
    arrays, _ = load_state("run/checkpoint.safetensors")
    for name, value in saved[-1].items():
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_with_the_step(pictures, tiny, monkeypatch, bad):
    true, calls = SRCNN.loss_and_gradients, []

    def wrong(self, x, t):
        calls.append(1)
        loss, grads = true(self, x, t)
        return (bad if len(calls) == 9 else loss), grads

    monkeypatch.setattr(SRCNN, "loss_and_gradients", wrong)
    with pytest.raises(TrainingFailedError, match=r"finite number at step 9 .*smaller "
                                                  r"learning rate.*checkpoint of step 0 is kept"):
        train(settings(pictures), quiet)
    arrays, _ = load_state("run/checkpoint.safetensors")
    assert all(np.isfinite(value).all() for value in arrays.values())


def test_a_learning_rate_that_is_too_high_diverges_and_is_told(pictures, monkeypatch):
    monkeypatch.setitem(RECIPES, "wild", Recipe(
        "wild", "", input_size=17, init="he", lr=1e6, batch=4, epochs=50))
    with np.errstate(all="ignore"), pytest.raises(TrainingFailedError, match="finite number at"):
        train(settings(pictures, recipe="wild"), quiet)
    arrays, _ = load_state("run/checkpoint.safetensors")
    assert all(np.isfinite(value).all() for value in arrays.values())


# --- the command --------------------------------------------------------------------------------


def command(*args, **options):
    return subprocess.run([sys.executable, "-m", "minisrcnn", "train", *map(str, args)],
                          capture_output=True, text=True, **options)


def test_command_line(pictures):
    flags = ["--data", pictures, "--backend", "numpy", "--epochs", 2, "--batch-size", 4,
             "--scale", 2, "--arch", "3-1-1", "--out", "run"]
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "minisrcnn evaluate --model run" in done.stdout
    assert "epoch 2/2" in done.stderr and "patches/s" in done.stderr
    again = command(*flags)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1 and "holds files already" in again.stderr
    other = command("--resume", "--out", "run", "--seed", 7)
    assert other.returncode == 2
    assert "--seed 7, but this run began with 0" in other.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(pictures):
    child = subprocess.Popen(
        [sys.executable, "-m", "minisrcnn", "train", "--data", pictures, "--backend", "numpy",
         "--arch", "3-1-1", "--epochs", "3000", "--batch-size", "4", "--out", "run"],
        stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(600, child.kill)
    watchdog.start()
    log = Path("run/log.jsonl")
    while not log.exists() or log.read_text().count("\n") < 2:  # the start, and an epoch
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate()
    assert child.returncode == 130
    watchdog.cancel()
    assert "interrupted and saved at step" in rest
    assert "minisrcnn train --out run --resume" in rest
    assert "Traceback" not in rest
    _, metadata = load_state("run/checkpoint.safetensors")
    assert json.loads(metadata["progress"])["step"] > 0
    assert load_model("run/model.safetensors").scale == 3


def test_max_minutes_stops_saved_and_goes_on(pictures, tiny):
    whole = train(settings(pictures, out=Path("whole")), quiet)
    told = []
    part = train(settings(pictures, max_minutes=0), told.append)
    assert not part.finished and part.progress.step == 1
    assert "Stopped by --max-minutes at step 1 of 18" in told[-1]
    assert "Stopped early" in report._page(part)
    rest = train(settings(pictures, resume=True), quiet)
    for name, value in whole.net.parameters.items():
        np.testing.assert_array_equal(rest.net.parameters[name], value)
    shutil.rmtree("whole")


def test_a_picture_with_nothing_left_to_score_is_skipped(pictures, tiny):
    """Cropped to 4x4, less two pixels on each side."""
    write_image(pictures / "Set5" / "5.png", np.zeros((5, 5), np.uint8))
    told = []
    _, validation, _ = load_data(Plan(str(pictures), 2, "5-1-3", 0, "numpy", tiny), told.append)
    assert len(validation.inputs) == 2 and len(told) == 1
    assert "5.png: too small for scale 2" in told[0]


# --- rescaled copies, and Muon ------------------------------------------------------------------


def test_rescaled_copies_follow_their_picture(pictures, tiny):
    """Made smaller by imresize, rounded, and degraded as any picture."""
    plain = Plan(str(pictures), 2, "5-1-3", 0, "numpy", tiny)
    both = replace(plain, recipe=replace(tiny, rescaled=(0.8, 0.01)))
    data, _, _ = load_data(plain, quiet)
    more, _, _ = load_data(both, quiet)
    assert len(more.inputs) == 2 * len(data.inputs)  # those of a hundredth are too small
    for i, path in enumerate(sorted((pictures / "T91").iterdir())):
        image = read_image(path)
        H, W = image.shape[:2]
        copy = imresize(image, output_size=(round(0.8 * H), round(0.8 * W)))
        x, t = prepare(copy, 2)
        np.testing.assert_array_equal(more.labels[2 * i], data.labels[i])
        np.testing.assert_array_equal(more.inputs[2 * i + 1], x)
        np.testing.assert_array_equal(to_unit(more.labels[2 * i + 1]), t)
    assert len(more.index) > len(data.index)


@pytest.mark.parametrize("backend", [
    "numpy", pytest.param("cupy-emulated", marks=pytest.mark.slow)])
def test_muon_resumes_bit_for_bit(pictures, tiny, monkeypatch, backend):
    reason = unavailable_reason(backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    monkeypatch.setitem(RECIPES, "tiny", replace(tiny, optimizer="muon", rescaled=(0.8,),
                                                 warmup=7, epochs=1))
    whole = train(settings(pictures, backend=backend), quiet)
    part = train(settings(pictures, backend=backend, out=Path("run2"), max_minutes=0), quiet)
    assert part.progress.step == 1
    rest = train(settings(pictures, backend=backend, out=Path("run2"), resume=True, recipe=None,
                          arch=None, scale=None), quiet)
    for name, value in whole.net.parameters.items():
        to_numpy = whole.net.backend.to_numpy
        np.testing.assert_array_equal(to_numpy(rest.net.parameters[name]), to_numpy(value))


@pytest.mark.parametrize("device", ["cupy-emulated",
                                    pytest.param("cupy", marks=pytest.mark.gpu)])
def test_batches_that_are_sent_give_the_bits_of_pictures_on_the_device(pictures, tiny, device,
                                                                       monkeypatch):
    if (reason := unavailable_reason(device)) is not None:
        pytest.skip(f"{device}: {reason}")
    plan = Plan(str(pictures), 2, "5-1-3", 0, device, tiny)
    data, _, _ = load_data(plan, quiet)
    numbers = np.arange(3 * tiny.batch) % len(data.index)
    found = []
    for kind, most in ((DeviceStepper, 1 << 28), (SentStepper, 1)):
        monkeypatch.setattr("minisrcnn.training.steppers._MOST_ON_DEVICE", most)
        said = []
        stepper = new_stepper(new_network(plan, get_backend(device)), data, tiny, Ranks(),
                              said.append)
        assert type(stepper) is kind and ("it is sent the batches" in str(said)) == (most == 1)
        stepper.begin_epoch(iter([Window(numbers, numbers % 8)]))
        for _ in range(3):
            stepper.step()
        found.append((stepper.losses(), stepper.arrays()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        np.testing.assert_array_equal(found[1][1][name], value)


def test_a_rank_without_a_chunk_is_sent_no_patches(pictures, tiny):
    """The last of five GPUs, of which the others have two of a batch's eight chunks each."""
    if (reason := unavailable_reason("cupy-emulated")) is not None:
        pytest.skip(reason)
    recipe = replace(tiny, batch=8)
    plan = Plan(str(pictures), 2, "5-1-3", 0, "cupy-emulated", recipe)
    data, _, _ = load_data(plan, quiet)
    ranks = Ranks()
    ranks.rank, ranks.size = 4, 5
    network = new_network(plan, get_backend("cupy-emulated"))
    stepper = SentStepper(network, data, recipe, ranks, lambda rows, stream: None)
    stepper.begin_epoch(iter([Window(np.arange(16), np.arange(16) % 8)]))
    for _ in range(2):
        stepper.step()
    assert stepper.trainer.images.size == 0 and stepper.losses() == [0]


@pytest.mark.parametrize(("optimizer", "device"), [
    ("muon", "cupy-emulated"), ("sgd", "cupy-emulated"),
    pytest.param("muon", "cupy", marks=pytest.mark.gpu),
])
def test_host_and_device_go_on_from_each_others_arrays(pictures, tiny, optimizer, device):
    reason = unavailable_reason(device)
    if reason is not None:
        pytest.skip(f"{device}: {reason}")
    recipe = replace(tiny, optimizer=optimizer, lr=1e-3)
    plan = Plan(str(pictures), 2, "5-1-3", 0, device, recipe)
    data, _, _ = load_data(plan, quiet)
    order, codes = np.arange(8), np.arange(8)

    def stepper(backend):
        made = new_stepper(new_network(plan, get_backend(backend)), data, recipe, Ranks(), quiet)
        made.begin_epoch(iter([Window(order, codes)]))
        made.set_rates(recipe.rates(("conv1", "conv2", "conv3"), 0, 10))
        return made

    halves = [stepper("numpy"), stepper(device)]
    assert [type(half) for half in halves] == [HostStepper, DeviceStepper]
    for half in halves:
        half.step()
    others = [stepper(device), stepper("numpy")]
    for half, other in zip(halves, others, strict=True):
        other.restore(half.arrays(), 1)
        for made in (half, other):
            made.begin_epoch(iter([Window(order[4:], codes[4:])]))
            made.step()
    want = halves[0].arrays()
    start = new_network(plan, get_backend("numpy")).parameters
    moved = {name: np.abs(want[name] - value).max() for name, value in start.items()}
    for made in (halves[1], *others):
        found = made.arrays()
        assert set(found) == set(want)
        for name in start:
            # Adam divides a gradient by its size: where that is hardly more than the rounding of
            # float32, the step is as large as any, and rounding decides where it goes.
            assert np.abs(found[name] - want[name]).max() < 5e-2 * moved[name], name
