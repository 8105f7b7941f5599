"""Recipes against the formulas that they come from."""

from __future__ import annotations

import numpy as np
import pytest

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.imaging.prepare import DEGRADATIONS
from minisrcnn.training.network import initialise
from minisrcnn.training.recipes import RECIPES, Recipe, get_recipe
from minisrcnn.training.settings import TrainSettings, new_plan


def test_unknown_recipe():
    with pytest.raises(MinisrcnnError, match="recipe is 'slow', want one of fast, deep, adam"):
        get_recipe("slow")


def test_recipe_comes_back_from_its_dictionary():
    from dataclasses import asdict

    for recipe in RECIPES.values():
        assert Recipe.from_dict(asdict(recipe)) == recipe
    with pytest.raises(MinisrcnnError, match=r"another version.*colour"):
        Recipe.from_dict(asdict(RECIPES["fast"]) | {"colour": 1})


@pytest.mark.parametrize("layer, lr_caffe", [("conv1", 1e-4), ("conv2", 1e-4), ("conv3", 1e-5)])
def test_paper_rate_makes_the_step_of_the_authors_loss(layer, lr_caffe):
    """A step on 1/(2B) sum (y - t)^2 with the authors' rate is our step on the mean.

    The gradient of theirs is measured by differences of that very sum, not from our gradients.
    """
    net = SRCNN("9-1-5", (3, 2), backend="numpy", dtype="float64", init="he")
    rng = np.random.default_rng(0)
    B = 3
    x, t = rng.random((B, 1, 33, 33)), rng.random((B, 1, 21, 21))
    _, grads = net.loss_and_gradients(x, t)
    w, h = net.parameters[f"{layer}.weight"], 1e-6
    sums = []
    for sign in (+1, -1):
        w[0, 0, 0, 0] += sign * h
        sums.append(np.sum((net(x) - t) ** 2) / (2 * B))
        w[0, 0, 0, 0] -= sign * h
    theirs = lr_caffe * (sums[0] - sums[1]) / (2 * h)
    rates = RECIPES["paper"].rates(["conv1", "conv2", "conv3"], 0, 100)
    assert rates[layer] * grads[f"{layer}.weight"][0, 0, 0, 0] == pytest.approx(theirs, rel=1e-6)


def test_paper_and_notes_are_what_they_are_called_for():
    paper, notes = RECIPES["paper"], RECIPES["notes"]
    assert (paper.degradation, paper.batch, paper.momentum) == ("bicubic", 128, 0.9)
    assert (notes.degradation, notes.optimizer, notes.momentum) == ("zoom", "sgd", 0.0)
    assert (notes.input_size, notes.stride, notes.init, notes.last_lr) == (33, 14, "normal", 1.0)
    assert not notes.augment


def test_filters_of_the_identity_start_answer_to_both_sides():
    """Zero-mean filters are above zero on about half of a picture, whatever its brightness."""
    net = SRCNN("9-1-5", backend="numpy", init="he")
    initialise(net)
    y, x = np.mgrid[:60, :60] / 9
    image = (0.6 + 0.3 * np.sin(x + 2 * np.cos(y))).astype(np.float32)
    y, _ = net.chain.layers["conv1"].forward(image[None, None])
    above = (y[0, 1:] > 0).mean(axis=(1, 2))
    assert above.min() > 0.2 and above.max() < 0.8


@pytest.mark.parametrize("changes, says", [
    ({"batch": 0}, "batch is 0, want an integer from 1 to"),
    ({"lr": float("nan")}, "lr is nan, want a finite number of at least 0"),
    ({"rescaled": (0.5, 1.0)}, r"rescaled is 1.0, want a finite number in \[0, 1\)"),
    ({"optimizer": "adamw"}, "optimizer is 'adamw', want one of sgd, adam, dct-adam, muon"),
])
def test_values_that_no_recipe_can_have(changes, says):
    with pytest.raises(ValueError, match=says):
        Recipe("r", "", **changes)
    assert all(Recipe("r", "", degradation=name) for name in DEGRADATIONS)


@pytest.mark.parametrize("changes, says", [
    ({"epochs": 10**12}, "epochs is 1000000000000, want"), ({"batch_size": 0}, "batch is 0, want"),
    ({"degradation": "x"}, "degradation is 'x', want one of bicubic, bicubic-mirror, zoom"),
])
def test_settings_that_no_recipe_can_have(changes, says):
    with pytest.raises(MinisrcnnError, match=says):
        new_plan(TrainSettings(**changes))


def test_cosine_falls_from_one_to_zero():
    recipe = Recipe("r", "", lr=2.0, schedule="cosine")
    assert recipe.rate(0, 100) == 2.0
    assert recipe.rate(50, 100) == pytest.approx(1.0)
    assert recipe.rate(25, 100) == pytest.approx(1 + np.sqrt(0.5))
    assert recipe.rate(100, 100) == pytest.approx(0.0)


def test_rate_rises_over_the_warmup():
    recipe = Recipe("r", "", lr=2.0, warmup=10)
    assert [recipe.rate(step, 100) for step in (0, 4, 9, 50)] == pytest.approx([0.2, 1, 2, 2])
    assert Recipe("r", "", lr=2.0).rate(99, 100) == 2.0


def test_rates_single_out_the_last_layer():
    layers = [f"conv{i}" for i in (1, 2, 3, 4)]
    rates = Recipe("r", "", lr=1.0, last_lr=0.25).rates(layers, 0, 1)
    assert rates == {"conv1": 1.0, "conv2": 1.0, "conv3": 1.0, "conv4": 0.25}


@pytest.mark.parametrize("arch", ["9-1-5", "9-5-5", "9-1-1-5", "5"])
def test_identity_network_gives_its_input_back(arch):
    """Without its random part the network is the identity; with it, all but."""
    net = SRCNN(arch, backend="numpy", dtype="float64", init="he")
    initialise(net)
    image = np.random.default_rng(0).random((23, 19))
    error = net.predict(image) - image
    assert np.abs(error).max() < 0.2
    *_, last, _ = net.parameters
    net.parameters[last][:, 1:] = 0  # all features but the image itself
    if arch == "5":
        net.parameters[last][...] = np.where(net.parameters[last] == 1, 1.0, 0.0)
    np.testing.assert_array_equal(net.predict(image), image)
