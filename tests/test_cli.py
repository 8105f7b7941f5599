"""The commands as a newcomer uses them: from any folder, with wrong arguments and strange files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minisrcnn
from minisrcnn import SRCNN, cli
from minisrcnn.checkpoint import save_model
from minisrcnn.commands import terminal
from minisrcnn.engine import selfcheck
from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.imaging.prepare import DEGRADATIONS
from minisrcnn.models import default_model

ROOT = Path(__file__).parent.parent
HEAVY = ("numba", "scipy", "cupy", "skimage", "matplotlib", "imageio", "pooch", "torch", "PIL")


def _data() -> Path | None:
    for place in (os.environ.get("MINISRCNN_DATA"), ROOT / "data", ROOT / "../shared/data"):
        if place and Path(place, "Set5").is_dir() and Path(place, "Set14").is_dir():
            return Path(place).resolve()
    return None


DATA = _data()
needs_data = pytest.mark.skipif(DATA is None, reason="needs Set5 and Set14 (MINISRCNN_DATA)")
needs_authors = pytest.mark.skipif(
    DATA is None or not (DATA / "authors/9-1-5_91_x3.mat").exists(),
    reason="needs the authors' model, authors/9-1-5_91_x3.mat, beside Set5 and Set14",
)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command in an empty folder of its own; one line of complaint is the most allowed."""
    monkeypatch.chdir(tmp_path)
    if DATA is not None:
        monkeypatch.setenv("MINISRCNN_DATA", str(DATA))

    def run(*args: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in err and "\x1b" not in out + err
        return Result(stop.value.code, out, err)

    return run


@pytest.fixture
def refused(run):
    """Run a command that is wrong: exit code 2, one line, nothing else; return the line."""
    def refused(*args: object) -> str:
        result = run(*args)
        assert result.code == 2 and result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("minisrcnn: "), lines
        return lines[0]

    return refused


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def model(tmp_path) -> Path:
    """A small model of scale 3 in a folder of trainings, ./runs/mine."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    net = SRCNN("5-1-3", (4, 2), backend="numpy", init="he", seed=1)
    save_model(folder / "model.safetensors", net, {"scale": "3"})
    return folder / "model.safetensors"


@pytest.fixture
def few_checks(monkeypatch):
    """Half of what ``minisrcnn gradcheck`` checks; the tests of selfcheck have all."""
    monkeypatch.setattr(selfcheck, "CONVOLUTIONS", selfcheck.CONVOLUTIONS[2:])
    monkeypatch.setattr(selfcheck, "CHAINS", {})


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(noise(20, 24, 3)).save(folder / "a.png")
    Image.fromarray(noise(16, 30)).save(folder / "b.jpg")
    return folder


# --- the entry point -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [
    "import minisrcnn.cli",
    "from minisrcnn.cli import main; main(['--help'])",
    "from minisrcnn.cli import main; main(['upscale', '--help'])",
])
def test_help_and_import_load_nothing_heavy(tmp_path, command):
    code = f"""
import sys, atexit
atexit.register(lambda: print("LOADED", [m for m in {HEAVY} if m in sys.modules]))
{command}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_help_names_every_command(run):
    result = run("--help")
    assert result.code == 0
    for name in ("train", "evaluate", "upscale", "models", "gradcheck", "data", "info"):
        assert re.search(rf"\b{name}\b", result.out)
        assert run(name, "--help").code == 0
    for name in ("list", "fetch", "verify"):
        assert run("data", name, "--help").code == 0
    for name in DEGRADATIONS:
        assert re.search(rf"\b{name}\b", run("train", "--help").out)


def test_version(run):
    result = run("--version")
    assert (result.code, result.out) == (0, f"minisrcnn {minisrcnn.__version__}\n")


def test_no_command_shows_the_help(run):
    result = run()
    assert result.code == 2 and "Usage" in result.out


@pytest.mark.parametrize("args, words", [
    (["bogus"], "bogus"),
    (["--bogus"], "--bogus"),
    (["evaluate", "--scale", "x"], "--scale"),
    (["evaluate", "--scale", "1"], "--scale"),
    (["evaluate", "--scale", "3.5"], "--scale"),
    (["evaluate", "surplus"], "surplus"),
    (["evaluate", "--model"], "--model"),
    (["upscale"], "INPUT"),
    (["upscale", "a.png", "--scale", "-3"], "--scale"),
    (["upscale", "a.png", "--max-input", "nan"], "--max-input is nan, want a finite number"),
    (["upscale", "a.png", "--max-output", "inf"], "--max-output is inf, want a finite number"),
    (["upscale", "a.png", "--max-input", "-5"], "--max-input is -5.0, want a finite number"),
    (["data", "bogus"], "bogus"),
    (["data", "verify", "Set6"], "Set6"),
    (["gradcheck", "--backend", "fast"], "fast"),
    (["gradcheck", "--backend", "numpy", "fast"], "fast"),
    (["train", "--scale", "0"], "--scale"),
])
def test_wrong_arguments_are_one_line(refused, args, words):
    assert words in refused(*args)


def test_as_a_module_from_another_folder(tmp_path):
    done = subprocess.run([sys.executable, "-m", "minisrcnn", "evaluate", "--model", "nothing"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("minisrcnn: no model 'nothing': looked for nothing,")
    assert "runs/nothing/model.safetensors" in done.stderr and done.stderr.count("\n") == 1


def test_a_bug_shows_its_traceback(monkeypatch, model, tmp_path):
    """Known errors are one line; what nobody foresaw must not be hidden."""
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisrcnn.checkpoint.load_model", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["evaluate", "--model", str(model)])


def test_interrupting(run, monkeypatch, model):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("minisrcnn.checkpoint.load_model", interrupted)
    result = run("evaluate", "--model", model)
    assert (result.code, result.err) == (130, "minisrcnn: interrupted\n")


INTERRUPTED = """
import os, signal, sys
from minisrcnn import SRCNN, cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup
predict, strips = SRCNN.predict, []

def interrupt(net, image):
    strips.append(image)
    if len(strips) == 2:  # the first strip is written by now
        os.kill(os.getpid(), signal.SIGINT)
    return predict(net, image)

SRCNN.predict = interrupt
cli.main(sys.argv[1:])
"""


def test_ctrl_c_in_the_middle_of_a_picture(tmp_path, model):
    """The process interrupts itself, so that no clock decides where."""
    Image.fromarray(noise(1500, 1500, 3)).save(tmp_path / "big.png")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "upscale", "big.png", "--model", str(model),
         "--backend", "numpy"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["Backend: numpy", "minisrcnn: interrupted"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.png", "runs"]


@pytest.mark.parametrize("args, want", [
    (["--data", "A", "B", "--scale", "3"], ["--data", "A", "--data", "B", "--scale", "3"]),
    (["--data", "A", "--data", "B"], ["--data", "A", "--data", "B"]),
    (["--data=A", "B", "--json"], ["--data=A", "--data", "B", "--json"]),
    (["--scale", "3", "--data", "A"], ["--scale", "3", "--data", "A"]),
    (["x", "y"], ["x", "y"]),
    (["--data", "A", "--", "B"], ["--data", "A", "--", "B"]),
    (["--data"], ["--data"]),
])
def test_list_options_take_several_values(args, want):
    assert terminal._repeat(args, {"--data"}) == want


def test_a_reader_that_closes_early_is_no_error(tmp_path):
    """As in ``minisrcnn info | head -1``."""
    process = subprocess.Popen([sys.executable, "-m", "minisrcnn", "info"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


# --- evaluate -----------------------------------------------------------------------------------


@needs_authors
def test_evaluate_a_model(run):
    result = run("evaluate", "--model", DATA / "authors/9-1-5_91_x3.mat", "--data", "Set5",
                 "--scale", "3")
    assert result.code == 0 and "Set5, scale 3" in result.out
    assert re.search(r"mean +30\.394 +0\.8\d{3} +32\.39\d +0\.9\d{3} +\+2\.00", result.out)
    assert re.search(r"authors' 9-1-5, 91 images +30\.394 +32\.394 +\+2\.000", result.out)
    assert all(len(line) <= 80 for line in result.out.splitlines())


@needs_data
def test_evaluate_several_sets(run):
    result = run("evaluate", "--data", "Set5", "Set14", "--model", "bicubic")
    assert result.code == 0
    assert re.search(r"Set5, scale 3(.|\n)*mean +30\.394", result.out)
    assert re.search(r"Set14, scale 3(.|\n)*mean +27\.54", result.out)
    assert re.search(r"bridge +24\.40[345]", result.out)  # the grayscale one


@needs_data
def test_evaluate_json_is_all_that_is_printed(run, model):
    result = run("evaluate", "--model", "mine", "--data", "Set5", "--json")
    scores = json.loads(result.out)
    assert scores["scale"] == 3 and scores["model"]["arch"] == "5-1-3"
    assert scores["sets"][0]["mean"]["bicubic"]["psnr"] == pytest.approx(30.394, abs=0.001)
    assert len(scores["sets"][0]["images"]) == 5
    assert scores["sets"][0]["published_psnr"]["bicubic"] == 30.394


@needs_data
def test_evaluate_bicubic_alone(run):
    result = run("evaluate", "--data", "Set5", "--scale", "4", "--model", "bicubic")
    assert result.code == 0 and re.search(r"mean +28\.42\d", result.out)
    assert "model" not in result.out


@needs_data
def test_evaluate_without_a_model_scores_the_packages(run):
    result = run("evaluate", "--data", "Set5", "--scale", "4")
    model = default_model(4)
    assert result.code == 0 and f"Set5, scale 4, {model.name}" in result.out
    assert f"{model.psnr['Set5']:.3f}" in result.out
    refused = run("evaluate", "--data", "Set5", "--scale", "5")
    assert refused.code == 2 and "scale is 5, for which the package has no model" in refused.err


@needs_data
def test_evaluate_refuses_what_is_not_set5(refused, own_set5):
    Image.fromarray(noise(288, 288, 3)).save(own_set5 / "Set5/bird_GT.bmp")
    line = refused("evaluate", "--data", own_set5, "--model", "bicubic")
    assert "30.394 is known" in line and "bird_GT.bmp" in line


def test_evaluate_a_folder_of_ones_own(run, pictures, model):
    (pictures / "[red]c.png").write_bytes((pictures / "a.png").read_bytes())
    result = run("evaluate", "--data", pictures, "--model", model)
    assert result.code == 0 and "[red]c" in result.out
    assert "No published figures" in result.err


def test_evaluate_protocol(run, pictures, model):
    result = run("evaluate", "--data", pictures, "--model", model, "--protocol")
    assert result.code == 0 and "one choice made otherwise" in result.out
    for word in ("Y range", "resizer", "rounding", "border"):
        assert word in result.out
    result = run("evaluate", "--data", pictures, "--protocol", "--json", "--model", "bicubic")
    choices = json.loads(result.out)["protocol"][0]["choices"]
    assert choices[0]["bicubic_change"] == 0 and choices[0]["model"] is None


def test_evaluate_warns_of_another_scale(run, pictures, model):
    assert "trained for scale 3, not 2" in run("evaluate", "--data", pictures, "--model", model,
                                               "--scale", "2").err
    assert "Warning" not in run("evaluate", "--data", pictures, "--model", model).err


def test_the_scale_is_the_models_own(run, pictures, tmp_path):
    save_model(tmp_path / "two.safetensors", SRCNN("3", (), backend="numpy"), {"scale": "2"})
    result = run("evaluate", "--data", pictures, "--model", "two.safetensors")
    assert "scale 2" in result.out and "Warning" not in result.err


def test_evaluate_bad_data_and_bad_models(refused, pictures, model, tmp_path):
    assert "neither a folder nor one of T91" in refused("evaluate", "--data", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "without pictures" in refused("evaluate", "--data", "empty")
    (pictures / "c.png").write_text("not a picture")
    assert "c.png" in refused("evaluate", "--data", pictures, "--model", "bicubic")
    model.write_bytes(b"\x80\x04junk")
    assert "pickle" in refused("evaluate", "--data", pictures, "--model", "mine")
    save_model(tmp_path / "m", SRCNN("3", (), backend="numpy"), {"scale": "3"})
    assert "backend is 'abacus'" in refused(
        "evaluate", "--data", pictures, "--model", "m", "--backend", "abacus")


@pytest.mark.parametrize("more", [[], ["--protocol"]])
def test_perfect_scores_are_valid_json(run, tmp_path, more):
    """A picture of one colour is restored without error: its PSNR is infinite."""
    (tmp_path / "flat").mkdir()
    Image.new("L", (30, 30), 77).save(tmp_path / "flat" / "flat.png")
    assert " inf " in run("evaluate", "--data", "flat", "--model", "bicubic").out

    def number(text):
        raise AssertionError(text)

    scores = json.loads(run("evaluate", "--data", "flat", "--model", "bicubic", "--json",
                            *more).out,
                        parse_constant=number)
    if not more:
        assert scores["sets"][0]["mean"] == {
            "name": "mean", "bicubic": {"psnr": None, "ssim": pytest.approx(1)}, "model": None}


def test_a_model_without_a_scale(run, refused, pictures, tmp_path):
    """The authors' files hold none: the name is a hint, else the user is asked."""
    save_model(tmp_path / "net.safetensors", SRCNN("3", (), backend="numpy"))
    line = refused("evaluate", "--data", pictures, "--model", "net.safetensors")
    assert "net.safetensors" in line and "--scale" in line
    assert "--scale" in refused("upscale", pictures / "a.png", "--model", "net.safetensors")
    result = run("evaluate", "--data", pictures, "--model", "net.safetensors", "--scale", "2")
    assert result.code == 0
    shutil.copy("net.safetensors", "x2.safetensors")
    result = run("evaluate", "--data", pictures, "--model", "x2.safetensors")
    assert "scale 2" in result.out and "x2.safetensors is by its name for scale 2" in result.err
    result = run("evaluate", "--data", pictures, "--model", "x2.safetensors", "--scale", "3")
    assert "Warning: x2.safetensors was trained for scale 2, not 3" in result.err


@needs_authors
def test_evaluate_notices_a_model_of_another_scale(run, tmp_path):
    """The authors' x3 model under another name: 30.7 for 36.3 dB was once scored without a word."""
    shutil.copy(DATA / "authors/9-1-5_91_x3.mat", tmp_path / "net.mat")
    result = run("evaluate", "--data", "Set5", "--model", "net.mat", "--scale", "2")
    assert "Warning: the scores look like those of a model for scale 3, not 2" in result.err
    result = run("evaluate", "--data", "Set5", "--model", "net.mat", "--scale", "3")
    assert "Warning" not in result.err and "32.39" in result.out


# --- upscale ------------------------------------------------------------------------------------


def test_upscale_one_picture(run, pictures, model, tmp_path):
    result = run("upscale", pictures / "a.png", "-o", "out.png", "--scale", "3", "--model", "mine")
    assert (result.code, result.out) == (0, "out.png\n")
    assert result.err.startswith("Backend: ")
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.size, picture.mode) == ((72, 60), "RGB")


def test_upscale_takes_the_packages_model_even_where_there_are_trainings(run, pictures, model):
    result = run("upscale", pictures)
    assert result.code == 0
    assert result.out.split() == [str(pictures / "a_x3.png"), str(pictures / "b_x3.png")]
    with Image.open(pictures / "b_x3.png") as picture:
        assert (picture.size, picture.mode) == ((90, 48), "L")
    named = run("upscale", pictures / "a.png", "-o", "named.png", "--model", default_model(3).name)
    assert named.code == 0
    assert (pictures / "a_x3.png").read_bytes() == Path("named.png").read_bytes()


def test_upscale_to_a_folder_by_pattern(run, pictures, model, tmp_path):
    result = run("upscale", pictures / "*.png", pictures / "b.jpg", "-o", "new/folder",
                 "--model", model)
    assert result.code == 0
    assert sorted(p.name for p in (tmp_path / "new/folder").iterdir()) == ["a_x3.png", "b_x3.png"]


def test_one_bad_file_does_not_stop_the_rest(run, pictures, model):
    (pictures / "0text.png").write_text("not a picture")
    (pictures / "1empty.png").write_bytes(b"")
    data = (pictures / "b.jpg").read_bytes()
    (pictures / "2cut.jpg").write_bytes(data[: len(data) // 2])
    result = run("upscale", pictures, pictures / "missing.png", "--model", model)
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.startswith("minisrcnn:")]
    assert len(lines) == 4
    for name in ("0text.png", "1empty.png", "2cut.jpg", "missing.png"):
        assert sum(name in line for line in lines) == 1
    assert "4 of 6 inputs failed" in result.err
    assert result.out.split() == [str(pictures / "a_x3.png"), str(pictures / "b_x3.png")]


def test_nothing_to_upscale_is_a_wrong_request(refused, model):
    assert "no such file" in refused("upscale", "typo.png", "--model", model)


def test_upscale_twice_does_not_replace_or_repeat(run, pictures, model):
    assert run("upscale", pictures, "--model", model).code == 0
    before = (pictures / "a_x3.png").stat().st_mtime_ns
    result = run("upscale", pictures, "--model", model)
    assert result.code == 0 and result.out == ""
    assert "Skipping 2 pictures whose result exists" in result.err
    result = run("upscale", pictures / "a.png", "--model", model)
    assert result.code == 1 and "exists already" in result.err
    assert (pictures / "a_x3.png").stat().st_mtime_ns == before
    result = run("upscale", pictures, "--model", model, "--overwrite")
    assert result.code == 0 and len(result.out.split()) == 2
    assert not list(pictures.glob("*_x3_x3.png"))


def test_upscale_refuses_to_lose_a_picture(refused, pictures, model):
    a, b = pictures / "a.png", pictures / "b.jpg"
    assert "would be overwritten" in refused("upscale", a, "-o", a, "--model", model)
    assert "want a folder" in refused("upscale", a, b, "-o", "x.png", "--model", model)


def test_names_that_clash_are_changed_and_said(run, pictures, model):
    (pictures / "sub").mkdir()
    shutil.copy(pictures / "a.png", pictures / "sub/a.png")
    result = run("upscale", pictures / "a.png", pictures / "sub/a.png", "-o", "out",
                 "--model", model)
    assert result.code == 0 and "a_png_x3.png; a_x3.png is taken" in result.err
    assert result.out.split() == ["out/a_x3.png", "out/a_png_x3.png"]


def test_upscale_refuses_bad_places(refused, pictures, model):
    a = pictures / "a.png"
    assert "no such folder" in refused("upscale", a, "-o", "missing/x.png", "--model", model)
    assert "cannot write .doc" in refused("upscale", a, "-o", "x.doc", "--model", model)


def test_upscale_into_a_folder_without_permission(refused, pictures, model, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path))
    assert "locked: not allowed to write there" in refused(
        "upscale", pictures / "a.png", "-o", tmp_path / "locked", "--model", model)


def test_upscale_where_the_folder_cannot_take_a_file(refused, pictures, model):
    """For the administrator too: a file stands where the folder should be."""
    (pictures / "file").write_text("")
    assert "cannot make this folder" in refused(
        "upscale", pictures / "a.png", "-o", pictures / "file" / "sub", "--model", model)


def test_transparency_into_jpeg_is_one_clear_line(run, tmp_path, model):
    Image.fromarray(noise(9, 9, 4)).save(tmp_path / "t.png")
    result = run("upscale", "t.png", "-o", "t.jpg", "--model", model)
    assert result.code == 1 and "holds no transparency" in result.err
    assert not (tmp_path / "t.jpg").exists()


def test_a_model_of_another_kind(refused, pictures, tmp_path):
    save_model(tmp_path / "rgb", SRCNN("3-3", (2,), channels=2, backend="numpy"), {"scale": "3"})
    assert "has 2 channels" in refused("upscale", pictures / "a.png", "--model", "rgb")


# --- the rest -----------------------------------------------------------------------------------


def test_info(run):
    result = run("info")
    assert result.code == 0
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in result.out.splitlines())
    assert facts["minisrcnn"] == minisrcnn.__version__
    assert facts["numpy"] == np.__version__
    assert facts["backend reference"] == "works"
    for name in ("numpy", "numba", "cupy", "cupy-emulated"):
        reason = unavailable_reason(name)
        assert facts[f"backend {name}"].startswith("works" if reason is None else "not here: ")


def test_gradcheck_of_the_textbook_backend(run, few_checks):
    result = run("gradcheck", "--backend", "numpy")
    assert result.code == 0
    for word in ("numpy", "float32", "float64", "conv2d", "ReLU", "mse", "adjoint"):
        assert word in result.out
    assert "FAILED" not in result.out
    assert result.err.startswith("Checking the copy of minisrcnn in ")


def test_gradcheck_in_a_clone_says_that_it_checks_another_copy(run, tmp_path, monkeypatch):
    (tmp_path / "minisrcnn" / "engine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisrcnn.engine.selfcheck.run", lambda names: [])
    said = run("gradcheck", "--backend", "numpy").err.splitlines()
    assert said[1] == (f"The copy in {tmp_path / 'minisrcnn'} is another one: "
                       "python -m minisrcnn gradcheck checks it.")


def test_running_out_of_memory_is_one_line(run, monkeypatch):
    monkeypatch.setattr("minisrcnn.info.describe", lambda: np.empty(1 << 50))
    result = run("info")
    assert result.code == 1
    assert result.err.startswith("minisrcnn: not enough memory (Unable to allocate")
    assert len(result.err.splitlines()) == 1


def test_gradcheck_reports_a_wrong_gradient(run, monkeypatch, few_checks):
    from minisrcnn.engine.backends import numpy as backend

    right = backend.conv2d_backward_bias
    monkeypatch.setattr(backend, "conv2d_backward_bias", lambda dy: 1.001 * right(dy))
    result = run("gradcheck", "--backend", "numpy")
    assert result.code == 1 and "FAILED" in result.out


@needs_data
def test_data_list_and_verify(run, own_set5, monkeypatch):
    result = run("data", "list")
    assert result.code == 0
    assert re.search(r"Set5 +5 +5", result.out) and re.search(r"T91 +91 ", result.out)
    result = run("data", "verify", "Set5")
    assert (result.code, result.out) == (0, "Set5: 5 of 5 files are the originals\n")
    with open(own_set5 / "Set5/head_GT.bmp", "r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x01\x02\x03")
    monkeypatch.setenv("MINISRCNN_DATA", str(own_set5))
    result = run("data", "verify", "Set5")
    assert result.code == 1 and "4 of 5" in result.out and "head_GT.bmp: corrupt" in result.err


def test_where_no_thread_can_be_started(run, model, pictures, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    result = run("upscale", pictures / "a.png", "--model", model, "-o", "out.tif",
                 "--backend", "numpy")
    assert result.code == 1 and result.out == ""
    assert "minisrcnn: no thread can be started: " in result.err.splitlines()[-1]
    assert not [path for path in Path().iterdir() if "out" in path.name]


def test_data_fetch_without_a_network(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINISRCNN_DATA_URL", "http://127.0.0.1:9")  # nobody listens there
    result = run("data", "fetch", "Set5")
    assert result.code == 2 and result.out == ""
    assert len(result.err.splitlines()) == 1 and "no answer" in result.err
