"""ONNX: write a model as a graph, read a graph that is a chain of convolutions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import ModelFile
from ..errors import MinisrcnnError, reason
from ..imaging.files import atomic_open
from .upscaling import BLACK, LUMA, REACH, SPAN, bicubic_filters

PathLike = str | os.PathLike[str]

# Old enough for every runtime in use, new enough for pads as inputs.
_OPSET, _IR = 13, 8


def write_onnx(path: PathLike, model: ModelFile, *, rgb: bool = False) -> None:
    """Write a model as an ONNX graph, for pictures of any size.

    Parameters
    ----------
    path : path
    model : ModelFile
    rgb : bool
        False: the network alone, as :meth:`minisrcnn.SRCNN.predict`: ``"input"`` (N, C, H, W),
        already upscaled, to ``"output"`` of the same shape. True: a whole upscaler, as
        :func:`minisrcnn.upscale.upscale_image`: ``"rgb"`` (N, 3, H, W) in [0, 1] to
        ``"upscaled"`` (N, 3, s H, s W); H and W at least 2.

    Raises
    ------
    MinisrcnnError
        If the onnx package is missing, the model has no scale where one is needed, or the file
        cannot be written.
    """
    onnx = _onnx()
    graph = _Graph(onnx)
    if rgb:
        if model.scale is None:
            raise MinisrcnnError("the model does not say its scale, which an RGB upscaler has "
                                 "built in: give --scale")
        last = _upscaler(graph, model, model.scale)
        shapes = [["N", 3, "H", "W"], ["N", 3, "sH", "sW"]]
    else:
        last = _chain(graph, "input", model)
        shapes = [["N", model.channels, "H", "W"]] * 2
    names = ("rgb", "upscaled") if rgb else ("input", "output")
    graph.add("Identity", [last], out=names[1])
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes, "srcnn",
        [value(names[0], onnx.TensorProto.FLOAT, shapes[0])],
        [value(names[1], onnx.TensorProto.FLOAT, shapes[1])], graph.constants)
    proto = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR,
        producer_name="minisrcnn")
    onnx.helper.set_model_props(proto, {"arch": model.arch} | dict(model.metadata))
    onnx.checker.check_model(proto, full_check=True)
    try:
        with atomic_open(path) as file:
            file.write(proto.SerializeToString())
    except OSError as error:
        raise MinisrcnnError(f"{os.fspath(path)}: cannot be written ({reason(error)})") from None


def _onnx() -> ModuleType:
    try:
        import onnx
    except ImportError:
        raise MinisrcnnError("ONNX files need the onnx package: pip install onnx") from None
    return onnx


class _Graph:
    """Nodes and constants of a graph under construction."""

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.numbers = itertools.count()

    def constant(self, value: Any, dtype: str = "float32", name: str | None = None) -> str:
        """Add a constant; return its name."""
        name = name or f"constant{next(self.numbers)}"
        self.constants.append(self.onnx.numpy_helper.from_array(
            np.ascontiguousarray(value, dtype), name))
        return name

    def add(self, op: str, inputs: list[str], out: str | None = None, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        out = out or f"{op.lower()}{next(self.numbers)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [out], name=out, **attributes))
        return out


def _chain(graph: _Graph, x: str, model: ModelFile) -> str:
    """Add the network: each layer repeats the border, as wide as its kernel needs."""
    layers = len(model.parameters) // 2
    for i in range(1, layers + 1):
        w = model.parameters[f"conv{i}.weight"]
        K = w.shape[2]
        if K > 1:
            low, high = (K - 1) // 2, K // 2
            pads = graph.constant([0, 0, low, low, 0, 0, high, high], "int64")
            x = graph.add("Pad", [x, pads], mode="edge")
        weight = graph.constant(w, name=f"conv{i}.weight")
        bias = graph.constant(model.parameters[f"conv{i}.bias"], name=f"conv{i}.bias")
        x = graph.add("Conv", [x, weight, bias], kernel_shape=[K, K])
        if i < layers:
            x = graph.add("Relu", [x])
    return x


def _upscaler(graph: _Graph, model: ModelFile, scale: int) -> str:
    """Add bicubic enlargement of R, G and B, and the network's change, of Y or of each.

    The change of Y alone is the same change of R, G and B, by the inverse of the colour matrix:
    Cb and Cr stay, so all three move by (y - y_bicubic) / SPAN.
    """
    x = "rgb"
    for axis in (2, 3):
        x = _mirrored(graph, x, axis)
    filters = np.tile(bicubic_filters(scale)[:, None], (3, 1, 1, 1))
    x = graph.add("Conv", [x, graph.constant(filters)], group=3,
                  kernel_shape=list(filters.shape[2:]))
    x = graph.add("DepthToSpace", [x], blocksize=scale, mode="CRD")
    low, high = graph.constant(0), graph.constant(1)
    if model.channels == 3:
        return graph.add("Clip", [_chain(graph, x, model), low, high])
    y = graph.add("Conv", [x, graph.constant(LUMA.reshape(1, 3, 1, 1)),
                           graph.constant([BLACK])])
    restored = graph.add("Clip", [_chain(graph, y, model), low, high])
    change = graph.add("Div", [graph.add("Sub", [restored, y]), graph.constant(SPAN)])
    return graph.add("Clip", [graph.add("Add", [x, change]), low, high])


def _mirrored(graph: _Graph, x: str, axis: int) -> str:
    """Mirror the border of an axis, the border pixel repeated, which no mode of Pad does."""
    def part(start: int, stop: int) -> str:
        limits = [graph.constant([value], "int64") for value in (start, stop, axis)]
        return graph.add("Slice", [x, *limits])

    before = [part(i, i + 1) for i in range(REACH - 1, -1, -1)]
    after = [part(-i, -i + 1 if i > 1 else np.iinfo(np.int64).max) for i in range(1, REACH + 1)]
    return graph.add("Concat", [*before, x, *after], axis=axis)


def read_onnx(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read a graph that is a chain of Conv and Relu, with or without Pad.

    Returns
    -------
    arrays : dict
        ``"conv1.weight"``, ``"conv1.bias"``, ...
    notes : list of str
        How its borders differ from ours, which are repeated.

    Raises
    ------
    MinisrcnnError
        If the file is no ONNX graph, or has another node, named; a convolution with strides,
        dilations or groups; or weights outside of the file.
    """
    onnx = _onnx()
    try:
        return _read_chain(onnx, path)
    except MinisrcnnError as error:
        raise MinisrcnnError(f"{path}: {error}") from None
    except Exception as error:  # protocol buffers: a file can be wrong in any way
        raise MinisrcnnError(f"{path}: not an ONNX graph ({type(error).__name__})") from None


def _read_chain(onnx: ModuleType, path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name: _array(onnx, tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _array(
                onnx, next(a.t for a in node.attribute if a.name == "value"))
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise MinisrcnnError(f"has {len(inputs)} inputs and {len(graph.output)} outputs, "
                             "want one of each")
    arrays: dict[str, NDArray[Any]] = {}
    borders: set[str] = set()
    at, count, relu, pending = inputs[0], 0, True, False
    for number, node in enumerate(graph.node, 1):
        if node.op_type == "Constant":
            continue
        if node.op_type not in ("Conv", "Relu", "Pad", "Identity"):
            raise MinisrcnnError(f"node {number} is a {node.op_type}, want a chain of "
                                 "Conv and Relu")
        if node.input[0] != at:
            raise MinisrcnnError(f"node {number}, a {node.op_type}, branches, want a "
                                 "chain of Conv and Relu")
        at = node.output[0]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Pad":
            mode = attributes.get("mode", b"constant").decode()
            borders.add({"edge": "repeated", "constant": "zero"}.get(mode, mode))
            pending = True
        elif node.op_type == "Relu":
            relu = True
        elif node.op_type == "Conv":
            if not relu:
                raise MinisrcnnError(f"node {number}, a Conv, follows a Conv, want a Relu "
                                     "between them")
            count += 1
            if len(node.input) < 2 or any(name not in constants for name in node.input[1:]):
                raise MinisrcnnError(f"node {number}, a Conv, has computed weights, want "
                                     "constant ones")
            w = constants[node.input[1]]
            _check_conv(f"node {number}", attributes, w)
            arrays[f"conv{count}.weight"] = w
            arrays[f"conv{count}.bias"] = (constants[node.input[2]] if len(node.input) > 2
                                           else np.zeros(len(w), np.float32))
            padded = any(attributes.get("pads", [])) or attributes.get(
                "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
            if w.shape[2] > 1 and not pending:
                borders.add("zero" if padded else "none")
            relu, pending = False, False
    if at != graph.output[0].name or (relu and count):
        raise MinisrcnnError("does not end in a Conv, want a chain of Conv and Relu")
    borders.discard("repeated")
    kind = {"zero": "pads with zeros", "none": "does not pad: its output is smaller"}
    notes = [f"the graph {kind.get(border, f'pads by {border!r}')}; minisrcnn repeats the border, "
             "results differ near it" for border in sorted(borders)]
    return arrays, notes


def _check_conv(where: str, attributes: Mapping[str, Any], w: NDArray[Any]) -> None:
    for name in ("strides", "dilations"):
        if any(value != 1 for value in attributes.get(name, [])):
            raise MinisrcnnError(f"{where}, a Conv, has {name} {list(attributes[name])}, want 1")
    if attributes.get("group", 1) != 1:
        raise MinisrcnnError(f"{where}, a Conv, has {attributes['group']} groups, want 1")
    if w.ndim != 4:
        raise MinisrcnnError(f"{where}, a Conv, has weights of shape {w.shape}, want (F, C, K, K)")


def _array(onnx: ModuleType, tensor: Any) -> NDArray[Any]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise MinisrcnnError("keeps its weights in another file, want them in one")
    array = np.array(onnx.numpy_helper.to_array(tensor))
    return array.astype(np.float32) if array.dtype.kind == "f" else array
