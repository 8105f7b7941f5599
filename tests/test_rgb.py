"""Networks of three channels: trained on RGB, upscaled and scored with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.checkpoint import load_model
from minisrcnn.engine.backends import get_backend, unavailable_reason
from minisrcnn.evaluate import evaluate, explain_protocol
from minisrcnn.imaging.color import rgb2y
from minisrcnn.imaging.datasets import Dataset
from minisrcnn.imaging.files import read_image, write_image
from minisrcnn.imaging.metrics import psnr, to_uint8
from minisrcnn.imaging.prepare import prepare, prepare_rgb
from minisrcnn.imaging.resize import imresize
from minisrcnn.training.loop import train
from minisrcnn.training.network import initialise
from minisrcnn.training.order import Shuffle
from minisrcnn.training.pictures import load_data
from minisrcnn.training.ranks import Ranks
from minisrcnn.training.recipes import RECIPES, Recipe
from minisrcnn.training.settings import TrainSettings, new_plan, run_folder
from minisrcnn.training.steppers import new_stepper
from minisrcnn.upscale.pixels import upscale_image, upscale_strips

TINY = Recipe("tiny", "for tests", input_size=17, stride=14, augment=True, init="identity",
              optimizer="sgd", lr=1e-3, schedule="cosine", batch=4, epochs=2)


def picture(seed, H=33, W=38):
    """Return colours that change smoothly, each in its own way."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W, :1][:2] / 8
    waves = sum(np.sin(rng.normal(0, 2, 3) * y + rng.normal(0, 2, 3) * x + rng.normal(0, 2, 3))
                for _ in range(5))
    return np.uint8(np.clip(128 + 30 * waves, 0, 255))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    for name, seeds in (("T91", (1, 2)), ("Set5", (3,))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for seed in seeds:
            write_image(tmp_path / "pictures" / name / f"{seed}.png", picture(seed))
    return tmp_path / "pictures"


def settings(pictures, **changes):
    return TrainSettings(data=str(pictures), recipe="tiny", scale=2, arch="5-1-3", rgb=True,
                         backend="numpy", **changes)


def quiet(text):
    pass


def random_network(arch="5-1-3", scale=0.05, **options):
    rng = np.random.default_rng(5)
    net = SRCNN(arch, channels=3, backend="numpy", init="he", **options)
    initialise(net)
    net.load_parameters({k: v + scale * rng.normal(size=v.shape) for k, v in
                         net.parameters.items()})
    return net


def test_input_and_label_are_the_colours():
    image = picture(0, 31, 40)
    x, t = prepare_rgb(image, 3)
    cut = image[:30, :39].astype(np.float32) / 255
    small = imresize(cut, output_size=(10, 13), border="clamp")
    np.testing.assert_array_equal(t, np.moveaxis(cut, -1, 0))
    np.testing.assert_allclose(np.moveaxis(x, 0, -1),
                               imresize(small, output_size=(30, 39), border="clamp"), atol=1e-6)


def test_psnr_is_of_the_mean_square_over_all_channels():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = picture(0), picture(1)
    want = metrics.peak_signal_noise_ratio(a[2:-2, 2:-2], b[2:-2, 2:-2])
    assert psnr(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), 2) == pytest.approx(want, abs=1e-9)


def test_identity_start_gives_back_the_input():
    net = SRCNN("5-1-3", channels=3, backend="numpy", init="he")
    initialise(net)
    net.load_parameters(net.parameters | {"conv3.weight": np.where(
        np.abs(net.parameters["conv3.weight"]) == 1, 1, 0).astype(np.float32)})
    x, _ = prepare_rgb(picture(0), 3)
    np.testing.assert_allclose(net.predict(x.clip(0, 1)), x.clip(0, 1), atol=1e-6)


def test_a_step_is_that_of_pytorch(pictures):
    torch = pytest.importorskip("torch")
    plan = new_plan(settings(pictures, seed=3))
    data, _, plan = load_data(plan, quiet)
    net = SRCNN("5-1-3", channels=3, backend="numpy", init="he", seed=4)
    weights = {k: torch.tensor(v.astype(np.float64), requires_grad=True)
               for k, v in net.parameters.items()}
    stepper = new_stepper(net, data, plan.recipe, Ranks(), print)
    (window,) = Shuffle(data.index, 3).epoch(0)
    order, codes = window.numbers, window.codes
    stepper.begin_epoch(iter([window]))
    stepper.set_rates({"conv1": 0.1, "conv2": 0.1, "conv3": 0.1})
    stepper.step()
    xs, ts = [], []
    labels = [label / np.float32(255) for label in data.labels]
    for (n, top, left), code in zip(data.index[order[:4]], codes[:4], strict=True):
        for images, size, off, out in ((data.inputs, 17, 0, xs), (labels, 11, 3, ts)):
            part = images[n][:, top + off : top + off + size, left + off : left + off + size]
            part = part[..., ::-1] if code >= 4 else part
            out.append(np.rot90(part, code % 4, axes=(1, 2)).copy())
    y = torch.tensor(np.stack(xs).astype(np.float64))
    for i in (1, 2, 3):
        y = torch.nn.functional.conv2d(y, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"])
        y = torch.relu(y) if i < 3 else y
    ((y - torch.tensor(np.stack(ts).astype(np.float64))) ** 2).mean().backward()
    for name, weight in weights.items():
        want = (weight - 0.1 * weight.grad).detach().numpy()
        np.testing.assert_allclose(net.parameters[name], want, atol=1e-6)


@pytest.mark.slow
def test_on_a_device_as_on_the_host(pictures):
    reason = unavailable_reason("cupy-emulated")
    if reason is not None:
        pytest.skip(reason)
    plan = new_plan(settings(pictures))
    data, _, plan = load_data(plan, quiet)
    found = []
    for backend in ("numpy", "cupy-emulated"):
        net = SRCNN("5-1-3", channels=3, backend=get_backend(backend), init="he")
        stepper = new_stepper(net, data, plan.recipe, Ranks(), print)
        stepper.begin_epoch(Shuffle(data.index, 0).epoch(0, 0, len(data.index) // 4 * 4))
        stepper.set_rates({"conv1": 0.1, "conv2": 0.1, "conv3": 0.1})
        for _ in range(2):
            stepper.step()
        found.append(stepper.arrays())
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-6, err_msg=name)


def test_training_leaves_a_model_of_three_channels(pictures):
    told = []
    out = run_folder(settings(pictures))
    assert out.name == "tiny-5-1-3-x2-rgb"
    result = train(settings(pictures), told.append)
    model = load_model(out / "model.safetensors")
    assert (model.channels, result.validation.comparable) == (3, False)
    assert "PSNR on RGB" in (out / "report.md").read_text()
    x, label = prepare_rgb(read_image(pictures / "Set5" / "3.png"), 2)
    net = SRCNN.from_file(model, backend="numpy")
    assert result.progress.psnr == pytest.approx(psnr(net.predict(x), label, 2))
    assert result.progress.psnr > psnr(x, label, 2) - 1  # it begins with bicubic


def test_resumes_as_it_began(pictures, tmp_path):
    whole = train(settings(pictures, out=tmp_path / "whole"), quiet)
    train(settings(pictures, out=tmp_path / "run", max_minutes=0), quiet)
    with pytest.raises(MinisrcnnError, match="--rgb True, but"):
        train(settings(pictures, out=train(
            replace(settings(pictures, out=tmp_path / "y"), rgb=None), quiet).out, resume=True),
            quiet)
    resumed = train(TrainSettings(out=tmp_path / "run", resume=True), quiet)
    for name, value in whole.net.parameters.items():
        np.testing.assert_array_equal(resumed.net.parameters[name], value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_upscaled_colours_are_the_networks(dtype):
    net = random_network()
    top = np.iinfo(dtype).max
    image = (picture(7, 9, 12).astype(np.float64) / 255 * top).astype(dtype)
    got = upscale_image(image, net, 3)
    x = imresize(image.astype(np.float64) / top, output_size=(27, 36))
    want = net.predict(np.moveaxis(x, -1, 0).astype(np.float32)).clip(0, 1) * np.float64(top)
    assert got.dtype == dtype
    difference = np.abs(got - np.moveaxis(want, 0, -1))
    assert difference.max() <= 0.5 + 2e-6 * top


def test_upscaled_in_strips_as_whole():
    net = random_network(dtype="float32")
    image = picture(8, 30, 12)
    whole = upscale_image(image, net, 2)
    strips = np.concatenate(list(upscale_strips(image, net, 2, pixels=200)))
    assert np.abs(strips.astype(int) - whole).max() <= 1  # BLAS may round otherwise


def test_transparency_and_grayscale_with_a_network_of_colours():
    net, image = random_network(), picture(9, 9, 12)
    alpha = np.full((9, 12, 1), 255, np.uint8)
    with_alpha = upscale_image(np.concatenate([image, alpha], 2), net, 2)
    np.testing.assert_array_equal(with_alpha[..., :3], upscale_image(image, net, 2))
    assert (with_alpha[..., 3] == 255).all()
    gray = upscale_image(image[..., 0], net, 2)
    colours = upscale_image(np.repeat(image[..., :1], 3, axis=2), net, 2).astype(float)
    luma = colours @ [0.299, 0.587, 0.114]
    assert gray.shape == (18, 24)
    assert np.abs(gray - luma).max() <= 1.01


def test_scores_are_of_y_and_of_rgb(pictures):
    net, path = random_network(scale=0.01), pictures / "Set5" / "3.png"
    result = evaluate(Dataset("own", (path,)), 2, net)
    image = read_image(path)[:32, :38]
    x, label = prepare_rgb(image, 2)
    y = np.moveaxis(net.predict(x).clip(0, 1), 0, -1)
    row = result.mean
    assert row.model.rgb == pytest.approx(psnr(np.moveaxis(y, -1, 0), label, 2))
    assert row.bicubic.rgb == pytest.approx(psnr(x, label, 2))
    assert row.model.psnr == pytest.approx(psnr(to_uint8(rgb2y(y)), rgb2y(image), 2))
    assert row.bicubic.psnr == pytest.approx(psnr(*prepare(image, 2), 2))
    assert result.as_dict()["mean"]["model"]["rgb"] == row.model.rgb
    with pytest.raises(MinisrcnnError, match="3 channels, want 1"):
        explain_protocol(Dataset("own", (path,)), 2, net)
