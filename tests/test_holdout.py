"""The tool by which recipes are chosen: every kind of experiment runs, on pictures of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from minisrcnn.imaging.datasets import Dataset
from minisrcnn.imaging.files import write_image
from minisrcnn.training.recipes import RECIPES, Recipe

TOOL = Path(__file__).parent.parent / "docs" / "curves" / "holdout.py"

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="not a clone of the repository")


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Load the tool, with nine smooth pictures in place of T91; t36 and t65 are the same."""
    spec = importlib.util.spec_from_file_location("holdout", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "holdout", module)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:27, :31] / 6
    paths = []
    for number in (1, 2, 3, 4, 36, 65, 66, 67, 68):
        waves = sum(np.sin(a * y + b * x + c) for a, b, c in rng.normal(0, 1.5, (5, 3)))
        paths.append(tmp_path / "all" / f"t{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        write_image(paths[-1], np.uint8(np.clip(128 + 25 * waves, 0, 255)))
    every = Dataset("T91", tuple(paths))
    monkeypatch.setattr(module, "load_dataset", lambda name, download: every)
    monkeypatch.setattr(module, "HELD_OUT", 3)
    monkeypatch.setitem(RECIPES, "tiny", Recipe(
        "tiny", "for tests", input_size=17, stride=3, augment=True, init="identity",
        optimizer="muon", lr=1e-3, schedule="cosine", batch=4, epochs=2))
    return module


def test_pictures_are_on_one_side_alone(tool, tmp_path):
    (tmp_path / "some").mkdir()
    held_out = set(tool.split(tmp_path / "some").titles)
    trained_on = {path.stem for path in (tmp_path / "some").iterdir()}
    assert len(held_out) == 3 and len(trained_on) == 6 and not held_out & trained_on
    assert {"t36", "t65"} <= trained_on


@pytest.mark.slow
def test_every_kind_of_experiment(tool, tmp_path, monkeypatch, capsys):
    plain = {"recipe": "tiny", "arch": "5-1-3", "scale": 2, "points": 2}
    experiments = [
        plain | {"name": "first", "averages": [0.5], "lbfgs": 2, "lbfgs_patches": 20},
        plain | {"name": "second", "init_from": "first", "redraw": [0.9], "weight_decay": 0.1,
                 "balance": 1.0},
        plain | {"name": "rgb", "rgb": True, "epochs": 1, "points": 1},
        plain | {"name": "wrong", "init_from": "what there is not"},
    ]
    (tmp_path / "list").write_text("\n".join(map(json.dumps, experiments)) + "\n")
    arguments = ["holdout.py", str(tmp_path / "list"), str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--backend", "numpy", "--minutes", "3"])
    tool.main()
    first, second, rgb = map(json.loads, (tmp_path / "results").read_text().splitlines())
    assert first["name"] == "first" and first["finished"]
    assert first["averages"]["0.5"] > 30
    assert first["lbfgs"]["iterations"] == 2
    assert first["lbfgs"]["psnr"] > 30
    assert second["psnr"] > 30 and len(second["redrawn"]) == 1
    assert second["experiment"]["recipe"]["epochs"] == 2
    assert rgb["psnr"] > 10 and set(rgb["silent"]) == {"conv1", "conv2"}
    assert "wrong" in capsys.readouterr().err
    tool.main()  # what is there already is not done again
    assert len((tmp_path / "results").read_text().splitlines()) == 3
