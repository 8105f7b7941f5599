"""Models of other programs, read and written: each against that program itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.checkpoint import load_model, save_model, save_state
from minisrcnn.exchange import convert, read_model
from minisrcnn.exchange.reading import studio_range
from minisrcnn.exchange.upscaling import bicubic_filters
from minisrcnn.imaging.resize import imresize
from minisrcnn.models import default_model
from minisrcnn.upscale import upscale_image

# Float32 sums in another order; pixels in [0, 1].
CLOSE = 2e-6


def network(arch="9-1-5", filters=(64, 32), channels=1, seed=0):
    return SRCNN(arch, filters, channels, backend="numpy", seed=seed, init="he")


def arrays(net):
    return {name: np.array(value) for name, value in net.parameters.items()}


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "ours.safetensors"
    save_model(path, network(), {"scale": "3"})
    return path


def plane(shape=(23, 31), seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


# --- the numbers of the RGB upscaler ------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_bicubic_filters_are_imresize(scale):
    x = plane().astype(np.float64)
    padded = np.pad(x, 2, mode="symmetric")
    want = imresize(x, scale)
    got = np.empty_like(want)
    for n, w in enumerate(bicubic_filters(scale)):
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
        got[n // scale :: scale, n % scale :: scale] = (windows * w).sum(axis=(2, 3))
    np.testing.assert_allclose(got, want, atol=1e-13)


# --- ONNX ---------------------------------------------------------------------------------------


def run_onnx(path, **inputs):
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, inputs)[0]


@pytest.mark.parametrize(("arch", "filters", "channels"), [
    ("9-1-5", (64, 32), 1), ("9-5-5", (64, 32), 1), ("5-4-3-3", (6, 5, 4), 1), ("9-1-5", (8, 4), 3),
])
def test_onnx_graph_is_predict(tmp_path, arch, filters, channels):
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    net = network(arch, filters, channels)
    save_model(tmp_path / "m.safetensors", net)
    convert(tmp_path / "m.safetensors", tmp_path / "m.onnx", scale=3)
    for H, W in ((23, 31), (5, 40)):
        x = plane((channels, H, W))
        want = net.predict(x if channels == 3 else x[0])
        got = run_onnx(tmp_path / "m.onnx", input=x[None])[0]
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=CLOSE * np.abs(want).max())


def test_onnx_comes_back(tmp_path, ours):
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    convert(ours, tmp_path / "m.onnx")
    read = read_model(tmp_path / "m.onnx", scale=3)
    assert not [note for note in read.notes if "border" in note]
    for name, value in load_model(ours).parameters.items():
        np.testing.assert_array_equal(read.model.parameters[name], value)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(17, 24), (2, 3)])
def test_rgb_graph_is_upscale_image(tmp_path, scale, shape):
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    model = default_model(scale)
    convert(model.name, tmp_path / "rgb.onnx", rgb=True)
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    want = upscale_image(image, SRCNN.load(model.path), scale)
    x = (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    got = run_onnx(tmp_path / "rgb.onnx", rgb=x)[0].transpose(1, 2, 0)
    assert got.shape == want.shape
    # To the nearest level, and a tie may fall either way.
    assert np.abs(got * 255 - want).max() <= 0.51


def test_openvino_runs_both_graphs(tmp_path):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    model = default_model(3)
    net = SRCNN.load(model.path)
    convert(model.name, tmp_path / "y.onnx")
    convert(model.name, tmp_path / "rgb.onnx", rgb=True)
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    x = plane()
    y = core.compile_model(str(tmp_path / "y.onnx"), "CPU", exact)([x[None, None]])[0][0, 0]
    np.testing.assert_allclose(y, net.predict(x), atol=1e-5)
    image = np.random.default_rng(1).integers(0, 256, (17, 24, 3), dtype=np.uint8)
    rgb = (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    got = core.compile_model(str(tmp_path / "rgb.onnx"), "CPU", exact)([rgb])[0][0]
    assert np.abs(got.transpose(1, 2, 0) * 255 - upscale_image(image, net, 3)).max() <= 0.51


def graph(onnx, path, nodes, constants, shape=("N", 1, "H", "W")):
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, shape)], [value("y", 1, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()])
    onnx.save(onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("nodes", "words"), [
    ([("BatchNormalization", "x w w w w", "y", {})], "node 1 is a BatchNormalization"),
    ([("Conv", "x w", "a", {}), ("Conv", "a w", "y", {})], "node 2, a Conv, follows a Conv"),
    ([("Conv", "x w", "y", {"strides": [2, 2]})], r"has strides \[2, 2\], want 1"),
    ([("Conv", "x w", "y", {"group": 2})], "has 2 groups"),
    ([("Conv", "x w", "a", {}), ("Relu", "x", "y", {})], "node 2, a Relu, branches"),
    ([("Conv", "x w", "a", {}), ("Relu", "a", "y", {})], "does not end in a Conv"),
    ([("Conv", "x x", "y", {})], "has computed weights"),
])
def test_other_graphs_are_refused_by_name(tmp_path, nodes, words):
    onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
    made = [onnx.helper.make_node(op, ins.split(), outs.split(), **more)
            for op, ins, outs, more in nodes]
    path = graph(onnx, tmp_path / "g.onnx", made, {"w": np.zeros((1, 1, 3, 3), np.float32)})
    with pytest.raises(MinisrcnnError, match=words) as error:
        read_model(path)
    assert "\n" not in str(error.value)


def test_padding_of_a_graph_is_said(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
    w = np.full((1, 1, 3, 3), 1 / 9, np.float32)
    for pads, words in (([1, 1, 1, 1], "pads with zeros"), ([0, 0, 0, 0], "does not pad")):
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=pads)
        read = read_model(graph(onnx, tmp_path / "g.onnx", [node], {"w": w}), scale=2)
        assert words in read.notes[0]
        assert read.model.parameters["conv1.bias"].tolist() == [0]


@pytest.mark.parametrize("change", [
    {"op_type": "Conv", "output": ["y"]}, {"op_type": "Conv", "input": ["x", "w"]},
    {"op_type": "Relu"}, {"strides": 2}, {"dilations": 2.5}, {"pads": 1},
    {"op_type": "Pad", "mode": 3}, {"op_type": "Pad", "mode": b"\xff"}, {"op_type": "C\x1b\nv"},
])
def test_graphs_of_the_wrong_kind_are_one_line(tmp_path, change):
    """Whatever a node lacks or has too much: protocol buffers check no types."""
    onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
    change = dict(change)
    if "op_type" in change and len(change) < 3 and "mode" not in change:
        node = onnx.helper.make_node(change.pop("op_type"), change.get("input", []),
                                     change.get("output", []))
    else:
        node = onnx.helper.make_node(change.pop("op_type", "Conv"), ["x", "w"], ["y"], **change)
    path = graph(onnx, tmp_path / "g.onnx", [node], {"w": np.zeros((1, 1, 3, 3), np.float32)})
    with pytest.raises(MinisrcnnError, match=r"g\.onnx: (not an ONNX|node 1 is)") as error:
        read_model(path)
    assert str(error.value).isprintable()


def test_what_is_not_onnx(tmp_path):
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    (tmp_path / "m.onnx").write_bytes(b"junk" * 100)
    with pytest.raises(MinisrcnnError, match=r"m\.onnx: (not an ONNX graph|has 0 inputs)"):
        read_model(tmp_path / "m.onnx")


# --- PyTorch ------------------------------------------------------------------------------------


def torch_twin(torch, net):
    """The public implementations' network, with their zero padding or ours."""
    from minisrcnn.exchange.torch_srcnn import from_state_dict

    return from_state_dict({k: torch.tensor(v) for k, v in arrays(net).items()})


def test_our_file_is_a_pytorch_state_dict(ours, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file

    from minisrcnn.exchange.torch_srcnn import SRCNN as TorchSRCNN

    net = TorchSRCNN((9, 1, 5), (64, 32))
    net.load_state_dict(load_file(ours))
    x = plane()
    with torch.no_grad():
        y = net(torch.tensor(x[None, None]))[0, 0].numpy()
    np.testing.assert_allclose(y, network().predict(x), atol=CLOSE * np.abs(y).max())


@pytest.mark.parametrize("scale", [2, 3])
def test_pytorch_upscaler_is_upscale_image(scale):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from minisrcnn.exchange.torch_srcnn import Upscaler

    net = SRCNN.load(default_model(scale).path, backend="numpy")
    image = np.random.default_rng(1).integers(0, 256, (17, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        x = torch.tensor(image.transpose(2, 0, 1)[None] / np.float32(255))
        got = Upscaler(torch_twin(torch, net), scale)(x)[0].numpy().transpose(1, 2, 0)
    assert np.abs(got * 255 - upscale_image(image, net, scale)).max() <= 0.51


LAYOUTS = {
    "plain": ("", ("conv1", "conv2", "conv3"), 1),
    "parallel": ("module.", ("conv1", "conv2", "conv3"), 1),
    "features": ("", ("features.0", "map.0", "reconstruction"), 1),
    "mmagic": ("generator.", ("conv1", "conv2", "conv3"), 3),
}


def in_layout(net, layout):
    prefix, names, _ = LAYOUTS[layout]
    return {f"{prefix}{names[int(key[4]) - 1]}.{key[6:]}": value
            for key, value in arrays(net).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("nested", [None, "state_dict"])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "old pth"])
def test_public_layouts(tmp_path, layout, nested, kind):
    net = network("9-5-5", channels=LAYOUTS[layout][2])
    theirs = in_layout(net, layout)
    path = tmp_path / f"srcnn_x3.{kind.split()[-1]}"
    if kind == "safetensors":
        if nested:
            pytest.skip("safetensors does not nest")
        from safetensors.numpy import save_file

        save_file(theirs, path)
    else:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        state = {k: torch.tensor(v) for k, v in theirs.items()} | {
            "step_counter": torch.tensor(7)}
        torch.save({"epoch": 3, nested: state} if nested else state, path,
                   _use_new_zipfile_serialization=kind == "pth")
    read = read_model(path)
    assert read.model.scale == 3 and read.model.arch == "9-5-5"
    for name, value in arrays(net).items():
        np.testing.assert_array_equal(read.model.parameters[name], value)
    said = " ".join(read.notes)
    assert "pad with zeros" in said and "within 8 pixels" in said and "file's name" in said
    assert ("--y-range full" in said) == (LAYOUTS[layout][2] == 1)


def test_parameters_of_a_module(tmp_path):
    """Of ``dict(net.named_parameters())``, which remember their gradients."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = network("3-1", (2,))
    torch.save({name: torch.nn.Parameter(torch.tensor(value)) for name, value in
                arrays(net).items()}, tmp_path / "m.pth")
    read = read_model(tmp_path / "m.pth", scale=2)
    for name, value in arrays(net).items():
        np.testing.assert_array_equal(read.model.parameters[name], value)


@pytest.mark.parametrize(("kind", "words"), [
    ("sparse", "conv1.weight cannot be read"), ("meta", "conv1.weight cannot be read"),
    ("repeated", "makes it 65,028,096,016 bytes, want at most 268,435,456"),
])
def test_tensors_that_are_no_plain_numbers(tmp_path, kind, words):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = {"sparse": lambda: torch.ones(2, 1, 3, 3).to_sparse(),
         "meta": lambda: torch.empty(2, 1, 3, 3, device="meta"),
         # 4 bytes in the file, and as many in memory: a view of one number
         "repeated": lambda: torch.zeros(1).half().expand(4096, 1000, 63, 63)[..., :63]}[kind]()
    torch.save({"conv1.bias": torch.zeros(4), "conv1.weight": w}, tmp_path / "m.pth")
    with pytest.raises(MinisrcnnError, match=words):
        read_model(tmp_path / "m.pth")


def test_an_archive_that_unpacks_to_too_much(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"")
        with archive.open("m/data/0", "w") as file:
            for _ in range(17):
                file.write(bytes(16 << 20))
    with pytest.raises(MinisrcnnError, match="285,212,672 bytes unpacked, want at most 268,"):
        read_model(tmp_path / "m.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on this system")
@pytest.mark.parametrize("name", ["m.onnx", "m.safetensors", "m.pth"])
def test_a_fifo_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(MinisrcnnError, match="not a plain file"):
        read_model(tmp_path / name)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_pth_does_not_run(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(MinisrcnnError, match="refused by PyTorch's weights-only loader"):
        read_model(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(("state", "words"), [
    ({"deconv.weight": np.ones((1, 1, 9, 9))}, "an FSRCNN"),
    ({"body.0.weight": np.ones((4, 1, 3, 3))}, "not a model: holds body.0.weight"),
    ({"conv1.weight": np.ones((4, 1, 3, 3)), "conv1.bias": np.ones(4)}, "gives 4"),
])
def test_other_networks_are_refused_by_name(tmp_path, state, words):
    from safetensors.numpy import save_file

    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(MinisrcnnError, match=words):
        read_model(tmp_path / "other.safetensors")


def test_full_range_is_rewritten_exactly(tmp_path):
    """A network of full-range Y, wrapped by hand, is the rewritten one; borders included."""
    net = network("5-1-3", (6, 4))
    k, o = 219 / 255, 16 / 255
    x = plane() * k + o
    x = x.astype(np.float32)
    want = net.predict(((x - o) / k).astype(np.float32)) * k + o
    save_state(tmp_path / "full_x2.safetensors", arrays(net))
    model = read_model(tmp_path / "full_x2.safetensors", y_range="full").model
    got = SRCNN.from_file(model, backend="numpy").predict(x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert set(studio_range(arrays(net))) == set(arrays(net))
    with pytest.raises(ValueError, match="y_range is 'tv', want one of studio, full"):
        read_model(tmp_path / "full_x2.safetensors", y_range="tv")


# --- Hugging Face, spandrel, the command --------------------------------------------------------


def test_hugging_face_folder(tmp_path, ours):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file

    from minisrcnn.exchange.torch_srcnn import SRCNN as TorchSRCNN

    convert(ours, f"{tmp_path}/hub/")
    names = {path.name for path in (tmp_path / "hub").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "hub/config.json").read_text())
    net = TorchSRCNN(config["kernels"], config["filters"], config["channels"])
    net.load_state_dict(load_file(tmp_path / "hub/model.safetensors"))
    assert config["scale"] == 3
    assert (tmp_path / "hub/README.md").read_text().startswith("---\nlibrary_name: minisrcnn\n")
    again = read_model(tmp_path / "hub").model
    for name, value in load_model(ours).parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)
    with pytest.raises(MinisrcnnError, match="holds files already"):
        convert(ours, tmp_path / "hub")


@pytest.mark.parametrize("dtype, named", [("bfloat16", "BF16"), ("complex64", "complex64"),
                                          ("bool", "bool"), ("int32", "int32")])
def test_other_numbers_than_floats_are_refused_by_name(tmp_path, dtype, named):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    shapes = {"conv1.weight": (4, 1, 5, 5), "conv1.bias": (4,), "conv2.weight": (1, 4, 3, 3),
              "conv2.bias": (1,)}
    path = tmp_path / "m.safetensors"
    save_file({name: torch.ones(shape).to(getattr(torch, dtype)) for name, shape in shapes.items()},
              path)
    for read in (read_model, load_model):
        with pytest.raises(MinisrcnnError, match=rf"conv[12]\.\w+ has dtype {named}, want "):
            read(path)


def test_half_a_folder_is_not_left(tmp_path, ours, monkeypatch):
    from minisrcnn.exchange import folders

    def full(*arguments):
        raise MinisrcnnError("no room")

    with monkeypatch.context() as patch, pytest.raises(MinisrcnnError, match="no room"):
        patch.setattr(folders, "save_state", full)
        convert(ours, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
    convert(ours, tmp_path / "hub")


def test_what_a_killed_convert_left_is_removed_or_gone_on_with(tmp_path, ours):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True).stdout.strip()
    hub = tmp_path / "hub"
    convert(ours, hub)
    whole = {path.name: path.read_bytes() for path in hub.iterdir()}
    (hub / "model.safetensors").replace(hub / f".model.safetensors.{gone}-0123abcd.part")
    convert(ours, hub)
    assert {path.name: path.read_bytes() for path in hub.iterdir()} == whole
    (hub / "model.safetensors").unlink()
    (hub / "config.json").write_text("{}")  # the user's
    with pytest.raises(MinisrcnnError, match="holds files already"):
        convert(ours, hub)
    assert (hub / "config.json").read_text() == "{}"
    dead, alive = (tmp_path / f".copy.safetensors.{pid}-0123abcd.part"
                   for pid in (gone, os.getpid()))
    other = tmp_path / f".other.safetensors.{gone}-0123abcd.part"
    for path in (dead, alive, other):
        path.write_bytes(b"half")
    convert(ours, tmp_path / "copy.safetensors")
    assert not dead.exists() and alive.exists() and other.exists()


def test_spandrel_loads_and_runs(tmp_path):
    pytest.importorskip("spandrel", reason="spandrel is not installed")
    import spandrel
    import torch

    from minisrcnn.exchange.spandrel import register

    model = default_model(3)
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader().load_from_file(model.path)
    register(scale=3)
    loaded = spandrel.ModelLoader().load_from_file(model.path)
    assert (loaded.architecture.id, loaded.scale, loaded.tags) == ("SRCNN", 3, ["9-1-5"])
    image = np.random.default_rng(1).integers(0, 256, (17, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        got = loaded(torch.tensor(image.transpose(2, 0, 1)[None] / np.float32(255)))[0]
    want = upscale_image(image, SRCNN.load(model.path), 3)
    assert np.abs(got.numpy().transpose(1, 2, 0) * 255 - want).max() <= 0.51


def command(*arguments, cwd):
    done = subprocess.run([sys.executable, "-m", "minisrcnn", "convert", *map(str, arguments)],
                          cwd=cwd, capture_output=True, text=True, check=False)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr.splitlines())


def test_command(tmp_path, ours):
    assert command(ours, "copy.safetensors", cwd=tmp_path).code == 0
    assert (tmp_path / "copy.safetensors").read_bytes() == ours.read_bytes()
    for arguments, words in (
        ((ours, "m.tflite"), "ends in .tflite, want .onnx, .safetensors or a folder"),
        ((ours, "m", "--rgb"), "--rgb is for .onnx alone"),
        (("nothing", "m.onnx"), "no model 'nothing'"),
        ((ours, "m.onnx", "--y-range", "tv"), "y_range is 'tv'"),
        ((ours, "no/such/folder/m.safetensors"), "cannot be written"),
    ):
        done = command(*arguments, cwd=tmp_path)
        assert done.code == 2 and len(done.err) == 1 and words in done.err[0], done


def test_authors_files_convert(tmp_path, data_root):
    source = data_root / "authors" / "9-1-5_91_x3.mat"
    if not source.exists():
        pytest.skip("the authors' .mat is not here")
    done = command(source, "theirs.safetensors", cwd=tmp_path)
    assert done.code == 0 and "taken for scale 3, from the file's name" in done.err[0]
    x = plane()
    want = SRCNN.load(source, backend="numpy").predict(x)
    got = SRCNN.load(tmp_path / "theirs.safetensors", backend="numpy").predict(x)
    np.testing.assert_array_equal(got, want)


def test_ncnn_runs_the_graph_of_y(tmp_path):
    """By way of pnnx, ncnn's own converter. (Its Crop takes no negative start: not the RGB one.)"""
    ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed")
    pnnx = pytest.importorskip("pnnx", reason="pnnx, the converter of ncnn, is not installed")
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    model = default_model(3)
    convert(model.name, tmp_path / "y.onnx")
    subprocess.run([pnnx.EXEC_PATH, "y.onnx", "inputshape=[1,1,48,40]", "inputshape2=[1,1,64,80]",
                    "fp16=0"], cwd=tmp_path, check=True, capture_output=True, timeout=900)
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic",
                   "use_bf16_storage", "use_vulkan_compute"):
        setattr(net.opt, option, False)
    net.load_param(str(tmp_path / "y.ncnn.param"))
    net.load_model(str(tmp_path / "y.ncnn.bin"))
    x = plane((30, 41))
    with net.create_extractor() as run:
        run.input("in0", ncnn.Mat(x[None]).clone())
        got = np.array(run.extract("out0")[1])[0]
    want = SRCNN.load(model.path, backend="numpy").predict(x)
    np.testing.assert_allclose(got, want, atol=1e-4)
