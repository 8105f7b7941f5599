"""The models of the package: their files, what they score, and which one a factor gets."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import pytest

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.checkpoint import load_model, resolve_model
from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.evaluate import evaluate
from minisrcnn.imaging.datasets import load_dataset
from minisrcnn.models import FOLDER, default_model, find_model, models_for, shipped_models

MODELS = [pytest.param(model, id=model.name) for model in shipped_models()]


@pytest.mark.parametrize("model", MODELS)
def test_file_is_what_the_registry_and_the_card_say(model):
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == model.sha256
    loaded = load_model(model.path)
    assert (loaded.scale, loaded.arch, loaded.channels) == (model.scale, model.arch, model.channels)
    assert loaded.metadata["data"] == "T91"
    card = model.card.read_text(encoding="utf-8")
    assert card.startswith(f"# {model.name}\n")
    assert model.sha256 in card
    for psnr in model.psnr.values():
        assert f"{psnr:.3f}" in card
    assert "minisrcnn train --data T91" in card and "Licence" in card


def test_every_file_of_the_folder_is_in_the_registry():
    files = {path.stem for path in FOLDER.glob("*.safetensors")}
    assert files == {model.name for model in shipped_models()}


@pytest.mark.parametrize("model", MODELS)
def test_score_on_set5_is_the_cards(model, data_root):
    quick = "numpy" if unavailable_reason("numba") else "numba"
    net = SRCNN.from_file(load_model(model.path), backend=quick)
    result = evaluate(load_dataset("Set5", data_dir=data_root), model.scale, net)
    score = result.mean.model
    assert (score.psnr if model.channels == 1 else score.rgb) == pytest.approx(
        model.psnr["Set5"], abs=0.005)
    authors = result.published.of("9-1-5").get("authors' 9-1-5, 91 images")
    assert result.mean.model.psnr > authors  # trained on the same pictures


def test_defaults_are_one_a_scale():
    defaults = [model.scale for model in shipped_models() if model.default]
    assert sorted(defaults) == sorted(set(defaults)) == [2, 3, 4]
    assert default_model(3).scale == 3 and default_model(7) is None


@pytest.mark.parametrize(("factor", "scales"), [
    (1, [2]), (2 + 1e-12, [2]),
    (2, [2]), (2.5, [3]), (3, [3]), (4, [4]), (4.01, [3, 2]), (6, [3, 2]),
    (8, [4, 2]), (9, [3, 3]), (10, [4, 3]), (16, [4, 4]),
])
def test_fewest_models_for_a_factor(factor, scales):
    assert [model.scale for model in models_for(factor)] == scales


@pytest.mark.parametrize("factor", [0, 0.5, 16.1, float("nan")])
def test_factor_out_of_range(factor):
    with pytest.raises(ValueError, match="want 1 to 16"):
        models_for(factor)


def test_a_name_is_found_from_any_folder_and_a_run_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = default_model(3)
    assert resolve_model(model.name) == model.path
    run = tmp_path / "runs" / model.name
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(model.path.read_bytes())
    assert resolve_model(model.name).resolve() == (run / "model.safetensors").resolve()
    with pytest.raises(MinisrcnnError, match=f"the package has .*{re.escape(model.name)}"):
        resolve_model("9-9-9-x9")


def command(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "minisrcnn", *arguments], cwd=cwd,
                          capture_output=True, text=True, check=False)


def test_models_command(tmp_path):
    listed = command("models", cwd=tmp_path)
    assert listed.returncode == 0
    for model in shipped_models():
        assert model.name in listed.stdout
    entries = json.loads(command("models", "--json", cwd=tmp_path).stdout)
    assert [entry["sha256"] for entry in entries] == [m.sha256 for m in shipped_models()]
    name = shipped_models()[0].name
    assert command("models", name, cwd=tmp_path).stdout == find_model(name).card.read_text()
    wrong = command("models", "best", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("minisrcnn: NAME is 'best', want one of 9-1-5-x2")


def test_upscale_with_no_model_named_takes_the_packages(tmp_path):
    import numpy as np

    from minisrcnn.imaging.files import read_image, write_image
    from minisrcnn.upscale import upscale_image

    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype("uint8")
    write_image(tmp_path / "a.png", picture)
    for scale in (2, 4):
        done = command("upscale", "a.png", "-o", f"x{scale}.png", "--scale", str(scale),
                       "--backend", "numpy", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        net = SRCNN.load(default_model(scale).path, backend="numpy")
        np.testing.assert_array_equal(read_image(tmp_path / f"x{scale}.png"),
                                      upscale_image(picture, net, scale))
