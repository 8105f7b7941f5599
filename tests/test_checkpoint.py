"""Model files: what is written is read back; whatever else is found is one clear error."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minisrcnn import SRCNN, MinisrcnnError
from minisrcnn.checkpoint import (
    load_model,
    load_state,
    resolve_model,
    save_model,
    save_state,
    scale_from_name,
)
from minisrcnn.engine.backends import unavailable_reason

AUTHORS = next(
    (
        p
        for base in (os.environ.get("MINISRCNN_DATA", ""), "data", "../shared/data")
        if (p := Path(__file__).parent.parent / base / "authors/9-1-5_91_x3.mat").exists()
    ),
    None,
)


def small_net(**kwargs) -> SRCNN:
    options = {"arch": "5-1-3", "filters": (4, 2), "backend": "numpy", "init": "he", "seed": 1}
    return SRCNN(**(options | kwargs))


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# --- our own format -----------------------------------------------------------------------------


@pytest.mark.parametrize("arch, filters, channels", [
    ("9-1-5", (64, 32), 1), ("9-5-5", (8, 4), 1), ("3-1-1-5", (4, 3, 2), 3), ("7", (), 1),
])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, arch, filters, channels, dtype):
    net = small_net(arch=arch, filters=filters, channels=channels, dtype=dtype)
    save_model(tmp_path / "m.safetensors", net, {"scale": "3", "note": "naïve ☃"})
    model = load_model(tmp_path / "m.safetensors")
    assert (model.arch, model.filters, model.channels) == (arch, filters, channels)
    assert model.scale == 3 and model.metadata["note"] == "naïve ☃"
    assert list(model.parameters) == list(net.parameters)
    for name, value in net.parameters.items():
        assert model.parameters[name].dtype == dtype
        np.testing.assert_array_equal(model.parameters[name], value)


def test_net_saves_and_loads(tmp_path):
    net = small_net()
    net.save(tmp_path / "m.safetensors")
    again = SRCNN.load(tmp_path / "m.safetensors", backend="numpy")
    image = np.random.default_rng(0).random((9, 12), dtype=np.float32)
    np.testing.assert_array_equal(again.predict(image), net.predict(image))
    assert load_model(tmp_path / "m.safetensors").scale is None


def test_strings_are_read_in_one_order(tmp_path):
    """safetensors hands them out in another order each time, and ONNX files keep what they get."""
    path = tmp_path / "m.safetensors"
    save_state(path, {"a": np.zeros(1)}, {key: key for key in "hbecadgf"})
    assert {tuple(load_state(path)[1]) for _ in range(8)} == {tuple("abcdefgh")}


def test_the_file_is_read_by_safetensors_itself(tmp_path):
    from safetensors.numpy import load_file

    net = small_net()
    save_model(tmp_path / "m.safetensors", net)
    arrays = load_file(tmp_path / "m.safetensors")
    for name, value in net.parameters.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_metadata_cannot_overwrite_our_keys(tmp_path):
    with pytest.raises(ValueError, match="arch"):
        save_model(tmp_path / "m.safetensors", small_net(), {"arch": "9-1-5"})
    with pytest.raises(TypeError, match="scale"):
        save_model(tmp_path / "m.safetensors", small_net(), {"scale": 3})


def test_state_round_trip_of_any_layout(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "transposed": rng.random((3, 5)).T,
        "strided": np.arange(20)[::3],
        "scalar": np.array(7, np.uint64),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
    }
    save_state(tmp_path / "s.safetensors", arrays, {"step": "12"})
    back, metadata = load_state(tmp_path / "s.safetensors")
    assert metadata == {"step": "12"}
    for name, value in arrays.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
        np.testing.assert_array_equal(back[name], value)
        back[name][...] = 0  # writable: training goes on with these


@pytest.mark.parametrize("bad", [{"a": [1.0]}, {"a": np.array(["x"])}, {"a": np.array([None])}])
def test_state_refuses_what_is_no_array_of_numbers(tmp_path, bad):
    with pytest.raises(TypeError, match="'a'"):
        save_state(tmp_path / "s.safetensors", bad)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    save_state(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MinisrcnnError, match="No space left") as error:
        save_state(path, {"a": np.ones(3)})
    one_line(error)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_no_folder(tmp_path):
    with pytest.raises(MinisrcnnError, match="cannot be written") as error:
        save_model(tmp_path / "nowhere" / "m.safetensors", small_net())
    one_line(error)


# --- damaged, hostile, and other files ----------------------------------------------------------


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list, start: int, stop: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Bomb()], dtype=object))
    return buffer.getvalue()


def zip_with_pickle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


def numpy_object() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"these are not weights\n" * 9,
    "zeros": bytes(1000),
    "short": b"\x05",
    "huge header": safetensors_bytes({}, length=1 << 62),
    "header past the end": safetensors_bytes({}, length=1000),
    "not JSON": struct.pack("<Q", 4) + b"{{{{",
    "JSON of another kind": safetensors_bytes([1, 2]),
    "no tensors": safetensors_bytes({}),
    "data missing": safetensors_bytes({"conv1.weight": tensor([1, 1, 3, 3], 0, 36)}),
    "shape beyond the data": safetensors_bytes(
        {"conv1.weight": tensor([1 << 40, 1, 9, 9], 0, 36)}, bytes(36)),
    "negative shape": safetensors_bytes({"conv1.weight": tensor([-1, 1], 0, 4)}, bytes(4)),
    "offsets backwards": safetensors_bytes({"conv1.weight": tensor([1], 4, 0)}, bytes(4)),
    "overflowing shape": safetensors_bytes(
        {"conv1.weight": tensor([1 << 32, 1 << 32, 1 << 32], 0, 4)}, bytes(4)),
    "unknown dtype": safetensors_bytes({"conv1.weight": tensor([1], 0, 4, "Q4")}, bytes(4)),
    "bfloat16": safetensors_bytes(
        {"conv1.weight": tensor([1, 1, 1, 1], 0, 2, "BF16"),
         "conv1.bias": tensor([1], 2, 4, "BF16")}, bytes(4)),
    "integers": safetensors_bytes(
        {"conv1.weight": tensor([1, 1, 1, 1], 0, 4, "I32"), "conv1.bias": tensor([1], 4, 8)},
        bytes(8)),
    "empty kernel": safetensors_bytes(
        {"conv1.weight": tensor([1, 1, 0, 0], 0, 0), "conv1.bias": tensor([1], 0, 4)}, bytes(4)),
    "pickle": pickle.dumps(Bomb()),
    "old pickle": pickle.dumps(Bomb(), protocol=0),
    "npz with a pickle": archive(),
    "npy with a pickle": numpy_object(),
    "torch archive": zip_with_pickle(),
    "MATLAB 7.3": b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" ") + b"\x89HDF\r\n\x1a\n",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "MATLAB header alone": b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\x00\x01IM",
    "MATLAB half a header": b"MATLAB 5.0 MAT-file",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("name", ["m.safetensors", "m.mat"])
def test_hostile_files_are_one_clear_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MinisrcnnError) as error:
        load_model(tmp_path / name)
    assert one_line(error).startswith(str(tmp_path / name))


def test_missing_folder_and_special_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "a\0b", "/dev/zero"):
        with pytest.raises(MinisrcnnError) as error:
            load_model(path)
        one_line(error)


def arrays_of(net: SRCNN) -> dict:
    return {name: value.copy() for name, value in net.parameters.items()}


def without_bias(a):
    del a["conv2.bias"]


def wrong_bias(a):
    a["conv2.bias"] = np.zeros(3, np.float32)


def oblong(a):
    a["conv1.weight"] = np.zeros((4, 1, 5, 4), np.float32)


def broken_chain(a):
    a["conv2.weight"] = np.zeros((2, 5, 1, 1), np.float32)


def three_dimensions(a):
    a["conv1.weight"] = np.zeros((4, 5, 5), np.float32)


def other_channels_out(a):
    a["conv3.weight"], a["conv3.bias"] = np.zeros((2, 2, 3, 3), np.float32), np.zeros(2, np.float32)


def extra(a):
    a["optimizer"] = np.zeros(3)


def renumbered(a):
    a["conv4.weight"] = a.pop("conv3.weight")


def nan(a):
    a["conv3.weight"][0, 0, 1, 1] = np.nan


def infinity(a):
    a["conv1.bias"][2] = -np.inf


@pytest.mark.parametrize("damage", [
    without_bias, wrong_bias, oblong, broken_chain, three_dimensions, other_channels_out, extra,
    renumbered, nan, infinity,
], ids=lambda f: f.__name__)
def test_wrong_contents_are_one_clear_error(tmp_path, damage):
    arrays = arrays_of(small_net())
    damage(arrays)
    path = tmp_path / "m.safetensors"
    save_state(path, arrays)
    with pytest.raises(MinisrcnnError) as error:
        load_model(path)
    assert one_line(error).startswith(str(path))


def test_header_that_contradicts_the_filters(tmp_path):
    save_state(tmp_path / "m", arrays_of(small_net()), {"arch": "9-1-5"})
    with pytest.raises(MinisrcnnError, match=r"'9-1-5'.*5-1-3"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("scale", ["", "-3", "3.0", "0", "9" * 400, "three", "٣"])
def test_a_nonsense_scale_is_no_scale(tmp_path, scale):
    save_model(tmp_path / "m", small_net(), {"scale": scale})
    assert load_model(tmp_path / "m").scale is None


@pytest.mark.parametrize("keep", [1, 8, 50, 0.3, 0.9, 0.999])
def test_a_truncated_model(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    save_model(path, small_net())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(MinisrcnnError) as error:
        load_model(path)
    one_line(error)


# --- checksums ----------------------------------------------------------------------------------


def test_one_changed_bit_of_the_numbers_is_found(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, small_net(), {"scale": "3"})
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    rng = np.random.default_rng(0)
    for at in rng.integers(start, len(data), 150):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(MinisrcnnError, match="damaged") as error:
            load_model(path)
        one_line(error)


def test_a_changed_header_is_found(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, small_net(), {"scale": "3"})
    path.write_bytes(path.read_bytes().replace(b'"scale":"3"', b'"scale":"2"'))
    with pytest.raises(MinisrcnnError, match="SHA-256"):
        load_model(path)


def test_names_cannot_change_places(tmp_path):
    """Two tensors of one shape, their names exchanged in the header."""
    path = tmp_path / "s"
    save_state(path, {"aa": np.zeros(3), "bb": np.ones(3)}, {})
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"aa"', b'"cc"').replace(b'"bb"', b'"aa"')
                     .replace(b'"cc"', b'"bb"'))
    with pytest.raises(MinisrcnnError, match="SHA-256"):
        load_state(path)


def test_files_of_other_programs_have_no_checksum(tmp_path):
    from safetensors.numpy import save_file

    net = small_net()
    save_file(dict(net.parameters), tmp_path / "m")
    assert load_model(tmp_path / "m").arch == "5-1-3"
    with pytest.raises(MinisrcnnError, match="no SHA-256"):
        load_state(tmp_path / "m", want_checksum=True)


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e300, 1e38, 3e30])
def test_weights_that_overflow_float32_are_refused(tmp_path, value):
    arrays = {name: a.astype(np.float64) for name, a in arrays_of(small_net()).items()}
    arrays["conv2.weight"][0, 0, 0, 0] = value
    save_state(tmp_path / "m", arrays)
    with pytest.raises(MinisrcnnError, match="float32 could overflow") as error:
        load_model(tmp_path / "m")
    one_line(error)


@pytest.mark.parametrize("factor", [0.0, 1e-20])
def test_a_hidden_layer_that_overflows_is_refused(tmp_path, factor):
    """However small the next weights are: infinity times 0 is NaN."""
    net = small_net()
    net.parameters["conv1.weight"][:] = 1e38
    net.parameters["conv2.weight"][:] = factor
    save_model(tmp_path / "m", net)
    with pytest.raises(MinisrcnnError, match="float32 could overflow"):
        load_model(tmp_path / "m")


def test_the_bound_on_outputs_holds(tmp_path):
    """Just below the limit no image in range gives anything but finite numbers."""
    net = small_net(arch="9-5-5", filters=(8, 8))
    for name in ("conv1.weight", "conv2.weight", "conv3.weight"):
        net.parameters[name] *= 5e8
    save_model(tmp_path / "m", net)
    for backend in ("numpy", "numba"):
        if unavailable_reason(backend) is None:
            loaded = SRCNN.load(tmp_path / "m", backend=backend)
            for image in (np.ones((40, 50), np.float32),
                          np.random.default_rng(0).random((40, 50), np.float32)):
                assert np.isfinite(loaded.predict(image)).all()


def test_kernels_of_absurd_sizes_are_refused_before_they_are_allocated(tmp_path):
    arrays = {"conv1.weight": np.zeros((1, 1, 501, 501), np.float32),
              "conv1.bias": np.zeros(1, np.float32)}
    save_state(tmp_path / "m", arrays)
    with pytest.raises(MinisrcnnError, match="kernels of at most 63x63") as error:
        load_model(tmp_path / "m")
    one_line(error)
    for arch in ("7001-1-5", "-".join(["3"] * 65)):
        with pytest.raises(ValueError, match="want kernels of at most 63"):
            SRCNN(arch)


# --- files of other programs --------------------------------------------------------------------


def zipped(*names) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return buffer.getvalue()


@pytest.mark.parametrize("name, content, says", [
    ("m.pth", zipped("archive/data.pkl", "archive/version"), "a PyTorch file.*minisrcnn convert"),
    ("m.pth", pickle.dumps(Bomb(), protocol=2), "a pickle.*minisrcnn convert"),
    ("m.keras", zipped("config.json", "model.weights.h5"), "a Keras file.*ONNX"),
    ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5.*Keras.*ONNX"),
    ("m.npz", zipped("a.npy"), "a NumPy archive"),
    ("m.npy", numpy_object(), "a NumPy file"),
    ("m.zip", zipped("readme"), "a zip archive"),
    ("m.zip", b"PK\x03\x04" + bytes(9), "a damaged zip archive"),
    ("m.onnx", b"\x08\x08\x12\x07pytorch" + bytes(99), "an ONNX file.*minisrcnn convert"),
    ("saved_model.pb", b"\x08\x01\x12\x99" + bytes(99), "a TensorFlow SavedModel.*ONNX"),
    ("frozen.pb", b"\n\x30\n" + bytes(99), "a TensorFlow file.*ONNX"),
    ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite file.*ONNX"),
    ("m.index", bytes(99), "a TensorFlow file"),
])
def test_files_of_other_programs_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MinisrcnnError, match=says) as error:
        load_model(tmp_path / name)
    one_line(error)


def test_an_onnx_file_that_torch_or_onnx_wrote(tmp_path):
    onnx = pytest.importorskip("onnx", reason="writes the file that is to be recognised")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m")
    with pytest.raises(MinisrcnnError, match="an ONNX file"):
        load_model(tmp_path / "m")


def test_a_folder_of_tensorflow(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(MinisrcnnError, match="a TensorFlow SavedModel"):
        resolve_model(tmp_path / "net")


@pytest.mark.parametrize("names", [("first_part.0.weight", "mid_part.1.bias"),
                                   ("conv1.weight", "deconv.weight")])
def test_an_fsrcnn_is_named(tmp_path, names):
    from scipy.io import savemat

    save_state(tmp_path / "m", {name: np.zeros((2, 2), np.float32) for name in names})
    savemat(tmp_path / "m.mat", {"weights_conv1": np.ones((25, 2)), "prelu_conv1": np.ones((2, 1))})
    for file in ("m", "m.mat"):
        with pytest.raises(MinisrcnnError, match="an FSRCNN") as error:
            load_model(tmp_path / file)
        one_line(error)


@pytest.mark.parametrize("name, scale", [
    ("x2.mat", 2), ("9-5-5(ImageNet)/x3.mat", 3), ("9-1-5_91_x3.mat", 3), ("srcnn_X4.pth", 4),
    ("x2/model.mat", None), ("x1.mat", None), ("max3.mat", None), ("x2_x4.mat", None),
    ("fox3.mat", None), ("x16.mat", 16), ("x17.mat", None), ("3x3.mat", None), ("x32.mat", None),
    ("x2.5.mat", None),
])
def test_the_scale_that_a_name_hints_at(name, scale):
    assert scale_from_name(name) == scale


# --- the authors' layout ------------------------------------------------------------------------


def matlab_kernel(column: np.ndarray, f: int) -> np.ndarray:
    """What MATLAB's reshape(column, f, f) gives: columns fill first."""
    return column.reshape((f, f), order="F")


def authors_arrays(f1, f2, f3, n1, n2, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "weights_conv1": rng.normal(size=(f1 * f1, n1)),
        "biases_conv1": rng.normal(size=(n1, 1)),
        "weights_conv2": rng.normal(size=(n1, f2 * f2, n2)),
        "biases_conv2": rng.normal(size=(n2, 1)),
        "weights_conv3": rng.normal(size=(n2, f3 * f3)),
        "biases_conv3": rng.normal(size=(1, 1)),
    }


@pytest.mark.parametrize("sizes", [
    (9, 1, 5, 64, 32), (9, 3, 5, 8, 6), (9, 5, 5, 6, 4), (11, 1, 7, 3, 2), (5, 3, 3, 3, 1),
    (3, 1, 1, 1, 1),
])
@pytest.mark.parametrize("compress", [True, False])
def test_the_authors_layout_against_scipy(tmp_path, sizes, compress):
    """Their test code, written with scipy's correlate and MATLAB's reshape, agrees with ours."""
    from scipy.io import savemat
    from scipy.ndimage import correlate

    f1, f2, f3, n1, n2 = sizes
    raw = authors_arrays(*sizes)
    path = tmp_path / "x.mat"
    if n2 == 1:  # as MATLAB itself saves it: a last dimension of 1 is dropped
        raw_saved = raw | {"weights_conv2": raw["weights_conv2"][:, :, 0]}
    else:
        raw_saved = raw
    savemat(path, raw_saved, do_compression=compress)
    net = SRCNN.load(path, backend="numpy", dtype="float64")
    assert net.arch == f"{f1}-{f2}-{f3}" and net.filters == (n1, n2)

    image = np.random.default_rng(1).random((14, 17))
    h1 = [np.maximum(0, correlate(image, matlab_kernel(raw["weights_conv1"][:, i], f1),
                                  mode="nearest") + raw["biases_conv1"][i, 0]) for i in range(n1)]
    h2 = []
    for j in range(n2):
        total = sum(correlate(h1[i], matlab_kernel(raw["weights_conv2"][i, :, j], f2),
                              mode="nearest") for i in range(n1))
        h2.append(np.maximum(0, total + raw["biases_conv2"][j, 0]))
    want = raw["biases_conv3"][0, 0] + sum(
        correlate(h2[j], matlab_kernel(raw["weights_conv3"][j], f3), mode="nearest")
        for j in range(n2))
    np.testing.assert_allclose(net.predict(image), want, rtol=1e-10, atol=1e-10)


def without(name):
    def change(raw):
        del raw[name]
    return change


def replaced(name, value):
    def change(raw):
        raw[name] = value
    return change


@pytest.mark.parametrize("change", [
    without("weights_conv2"),
    without("biases_conv3"),
    replaced("weights_conv1", np.zeros((80, 6))),        # 80 taps: not a square
    replaced("weights_conv2", np.zeros((5, 1, 4))),      # other n1
    replaced("weights_conv3", np.zeros((3, 25))),        # other n2
    replaced("biases_conv1", np.zeros((5, 1))),
    replaced("weights_conv1", np.zeros((81, 6), np.int32)),
    replaced("weights_conv1", np.zeros((81, 6)) + 1j),
    replaced("weights_conv1", "text"),
    replaced("weights_conv1", np.array([[1, "a"]], dtype=object)),
    replaced("weights_conv1", {"field": 1.0}),
    replaced("weights_conv1", np.full((81, 6), np.nan)),
    replaced("weights_conv1", np.zeros((0, 6))),
    replaced("weights_conv2", np.zeros((6, 1, 4, 2))),
])
def test_mat_files_that_are_no_model(tmp_path, change):
    from scipy.io import savemat

    raw = authors_arrays(9, 1, 5, 6, 4)
    change(raw)
    savemat(tmp_path / "x.mat", raw)
    with pytest.raises(MinisrcnnError) as error:
        load_model(tmp_path / "x.mat")
    assert one_line(error).startswith(str(tmp_path / "x.mat"))


def test_a_compressed_mat_cannot_ask_for_gigabytes(tmp_path):
    header = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\x00\x01IM"
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    bomb = b"".join(packer.compress(block) for _ in range(300)) + packer.flush()
    (tmp_path / "x.mat").write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(MinisrcnnError, match="unpacks to more than") as error:
        load_model(tmp_path / "x.mat")
    one_line(error)


def mat_bytes(compress: bool) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, authors_arrays(3, 1, 3, 2, 2), do_compression=compress)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(compress=st.booleans(), cut=st.floats(0, 1), where=st.floats(0, 1),
       junk=st.binary(min_size=1, max_size=8))
@example(compress=False, cut=1.0, where=0.17, junk=b"\xff\xff\xff\x7f")
def test_damaged_mat_files_never_raise_anything_else(tmp_path, compress, cut, where, junk):
    data = bytearray(mat_bytes(compress))
    position = int(where * (len(data) - len(junk)))
    data[position : position + len(junk)] = junk
    path = tmp_path / "x.mat"
    path.write_bytes(data[: int(cut * len(data))])
    try:
        model = load_model(path)
    except MinisrcnnError as error:
        assert "\n" not in str(error)
    else:  # the damage hit a number or a comment
        assert model.arch == "3-1-3"


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), where=st.floats(0, 1), junk=st.binary(min_size=1, max_size=8))
def test_damaged_models_never_raise_anything_else(tmp_path, cut, where, junk):
    path = tmp_path / "m.safetensors"
    save_model(path, small_net(), {"scale": "3"})
    data = bytearray(path.read_bytes())
    position = int(where * (len(data) - len(junk)))
    data[position : position + len(junk)] = junk
    path.write_bytes(data[: int(cut * len(data))])
    try:
        model = load_model(path)
    except MinisrcnnError as error:
        assert "\n" not in str(error)
    else:
        assert model.arch == "5-1-3"


@pytest.mark.skipif(AUTHORS is None, reason="needs authors/9-1-5_91_x3.mat in ../shared/data")
def test_the_authors_own_file():
    model = load_model(AUTHORS)
    assert (model.arch, model.filters, model.channels) == ("9-1-5", (64, 32), 1)
    assert model.scale is None
    assert {a.dtype for a in model.parameters.values()} == {np.dtype(np.float64)}


# --- names --------------------------------------------------------------------------------------


def test_what_a_model_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    save_model(run / "model.safetensors", small_net(), {"scale": "3"})
    want = run / "model.safetensors"
    for name in ("mine", "runs/mine", str(run), "runs/mine/model.safetensors"):
        assert resolve_model(name).resolve() == want
    with pytest.raises(MinisrcnnError, match=r"runs/yours/model\.safetensors") as error:
        resolve_model("yours")
    one_line(error)
    with pytest.raises(MinisrcnnError, match="looked for"):
        resolve_model("runs")  # a folder without a model


def test_the_same_contents_are_the_same_file(tmp_path):
    """Written by two processes: the library orders strings by a hash that differs in each."""
    code = ("import sys, numpy as np; from minisrcnn.checkpoint import save_state; "
            "save_state(sys.argv[1], {'b': np.arange(3.0), 'a': np.ones(2)}, "
            "{str(i): 'x' * i for i in range(12)})")
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files:
        subprocess.run([sys.executable, "-c", code, file], check=True)
    assert len({file.read_bytes() for file in files}) == 1
    arrays, metadata = load_state(files[0])
    assert sorted(arrays) == ["a", "b"] and metadata["3"] == "xxx"
