"""The same work by PyTorch, ONNX Runtime, OpenVINO, ncnn and LiteRT, each at its best settings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case, Convolution, Inference, Training
from .ours import Call, Implementation, NotOffered, Prepared

Params = dict[str, Any]


def torch_chain(torch: Any, values: list[Any], x: Any, padding: bool = False) -> Any:
    """Run weights and biases, in turn, over ``x``, with ReLU between them."""
    for i in range(0, len(values), 2):
        pad = values[i].shape[2] // 2 if padding else 0
        x = torch.nn.functional.conv2d(x, values[i], values[i + 1], padding=pad)
        if i < len(values) - 2:
            x = torch.nn.functional.relu(x, inplace=True)
    return x


def torch_convolution(torch: Any, case: Convolution, put: Callable[[Any], Any]) -> Call:
    """Return a call of one convolution or gradient on tensors that ``put`` has placed."""
    x, w, dy = (put(case.data[name]) for name in ("x", "w", "dy"))
    b = torch.tensor(case.data["b"], device=x.device)
    if case.operation == "forward":
        return lambda: torch.nn.functional.conv2d(x, w, b)
    which = case.operation == "input gradient"
    return lambda: torch.ops.aten.convolution_backward(
        dy, x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [which, not which, False],
    )[0 if which else 1]


def torch_step(torch: Any, case: Training, put: Callable[[Any], Any], group: int,
               run: Callable[..., Any]) -> Call:
    """Return a call of loss and gradients, in groups of patches whose gradients add up."""
    leaves = [put(v) if v.ndim == 4 else put(v[None, :, None, None])[0, :, 0, 0]
              for v in case.params.values()]
    leaves = [v.detach().clone(memory_format=torch.preserve_format).requires_grad_()
              for v in leaves]
    x, t = put(case.data["x"]), put(case.data["t"])

    def step() -> Any:
        for leaf in leaves:
            leaf.grad = None
        total = 0.0
        for first in range(0, case.N, group):
            y = run(leaves, x[first:first + group])
            difference = y - t[first:first + group]
            loss = (difference * difference).sum() / t.numel()
            loss.backward()
            total = total + loss.detach()
        return total, {key: v.grad for key, v in zip(case.params, leaves, strict=True)}

    return step


def _torch(case: Case, threads: int, layout: str, compiled: bool) -> Prepared:
    import torch

    torch.set_num_threads(threads)
    memory_format = getattr(torch, layout)

    def put(a: Any) -> Any:
        return torch.tensor(a).contiguous(memory_format=memory_format)

    def fetch(result: Any) -> Any:
        if isinstance(result, tuple):
            return float(result[0]), {key: v.numpy() for key, v in result[1].items()}
        return result.detach().numpy()

    if isinstance(case, Convolution):
        if compiled:
            raise NotOffered
        return Prepared({layout: torch_convolution(torch, case, put)}, fetch)
    run = partial(torch_chain, torch)
    if isinstance(case, Training):
        run = _compile(torch, run) if compiled else run
        groups = [g for g in (128, 64, 32, 16) if case.N % g == 0] or [case.N]
        groups = groups[:1] if compiled else groups  # each takes half a minute to compile
        return Prepared({f"groups of {g}": torch_step(torch, case, put, g, run) for g in groups},
                        fetch)
    if not isinstance(case, Inference):
        raise NotOffered
    values = [put(v) if v.ndim == 4 else torch.tensor(v) for v in case.params.values()]
    x = put(case.data["image"][None])
    whole = partial(torch_chain, torch, padding=True)
    whole = _compile(torch, whole) if compiled else whole

    def predict() -> Any:
        with torch.inference_mode():
            return whole(values, x)[0]

    return Prepared({layout: predict}, fetch)


def _compile(torch: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the very shapes; forget those of the last case, of which only eight are kept."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def _onnx_model(case: Inference) -> bytes:
    """Return the chain as an ONNX model with zero padding, for the image's very size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "x"
    for i, (w, b) in enumerate(case.layers):
        weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Conv", [name, f"w{i}", f"b{i}"], [f"c{i}"],
                                      pads=[w.shape[2] // 2] * 4))
        name = f"c{i}"
        if i < len(case.layers) - 1:
            nodes.append(helper.make_node("Relu", [name], [f"r{i}"]))
            name = f"r{i}"
    shape = [1, case.channels, case.H, case.W]
    graph = helper.make_graph(
        nodes, "srcnn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)], weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _onnxruntime(case: Case, threads: int) -> Prepared:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(_onnx_model(case), options,
                                           providers=["CPUExecutionProvider"])
    feed = {"x": case.data["image"][None]}
    return Prepared({"": lambda: session.run(None, feed)[0][0]})


def _openvino(case: Case, threads: int) -> Prepared:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(_onnx_model(case)), "CPU", {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    })
    request = compiled.create_infer_request()
    x = np.ascontiguousarray(case.data["image"][None])

    def predict() -> Any:
        request.infer([x], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data[0]

    return Prepared({"": predict})


def _ncnn(case: Case, threads: int) -> Prepared:
    import ncnn

    layers = case.layers
    text = ["7767517", f"{len(layers) + 1} {len(layers) + 1}", "Input x 0 1 x"]
    weights = b""
    for i, (w, b) in enumerate(layers):
        F, _, K, _ = w.shape
        text.append(f"Convolution conv{i} 1 1 {f'y{i - 1}' if i else 'x'} y{i} 0={F} 1={K} "
                    f"4={K // 2} 5=1 6={w.size} 9={int(i < len(layers) - 1)}")
        weights += bytes(4) + w.tobytes() + b.tobytes()  # four zeros: float32 follows
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        if hasattr(net.opt, f"use_{option}"):
            setattr(net.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.param").write_text("\n".join(text) + "\n")
        (Path(folder) / "net.bin").write_bytes(weights)
        if net.load_param(f"{folder}/net.param") or net.load_model(f"{folder}/net.bin"):
            raise RuntimeError("ncnn refuses the model")
    x, last = ncnn.Mat(case.data["image"]).clone(), f"y{len(layers) - 1}"  # else it is a view

    def predict() -> Any:
        extractor = net.create_extractor()
        extractor.input("x", x)
        return extractor.extract(last)[1]

    return Prepared({"": predict}, np.array)


def _litert_model(case: Inference) -> bytes:
    """Return the chain as a TFLite model, zero padding, channels last."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    model, graph = s.ModelT(), s.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [s.BufferT()]
    graph.tensors, graph.operators = [], []
    code = s.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = s.BuiltinOperator.CONV_2D
    model.operatorCodes = [code]

    def tensor(shape: tuple[int, ...], values: Any = None) -> int:
        t = s.TensorT()
        t.shape, t.type, t.buffer = list(shape), s.TensorType.FLOAT32, 0
        t.name = f"t{len(graph.tensors)}"
        if values is not None:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values, "<f4").tobytes(), np.uint8)
            t.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(t)
        return len(graph.tensors) - 1

    x = tensor((1, case.H, case.W, case.channels))
    graph.inputs = [x]
    for i, (w, b) in enumerate(case.layers):
        op, how = s.OperatorT(), s.Conv2DOptionsT()
        how.padding, how.strideW, how.strideH = s.Padding.SAME, 1, 1
        how.dilationWFactor = how.dilationHFactor = 1
        last = i == len(case.layers) - 1
        how.fusedActivationFunction = (s.ActivationFunctionType.NONE if last
                                       else s.ActivationFunctionType.RELU)
        ohwi = w.transpose(0, 2, 3, 1)
        y = tensor((1, case.H, case.W, w.shape[0]))
        op.opcodeIndex, op.inputs, op.outputs = 0, [x, tensor(ohwi.shape, ohwi),
                                                    tensor(b.shape, b)], [y]
        op.builtinOptionsType, op.builtinOptions = s.BuiltinOptions.Conv2DOptions, how
        graph.operators.append(op)
        x = y
    graph.outputs = [x]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _litert(case: Case, threads: int) -> Prepared:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=_litert_model(case), num_threads=threads)
    interpreter.allocate_tensors()
    x, y = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    image = np.ascontiguousarray(case.data["image"].transpose(1, 2, 0)[None])

    def predict() -> Any:
        interpreter.set_tensor(x, image)
        interpreter.invoke()
        return interpreter.get_tensor(y)

    return Prepared({"": predict}, lambda result: result[0].transpose(2, 0, 1))


def implementations() -> list[Implementation]:
    """Return the peers on the CPU."""
    def torch(layout: str, compiled: bool = False) -> Callable[[Case, int], Prepared]:
        return partial(_torch, layout=layout, compiled=compiled)

    peer = partial(Implementation, kind="peer")
    images = {"suites": ("inference",)}
    return [
        peer("PyTorch", torch("contiguous_format"), needs="torch"),
        peer("PyTorch channels-last", torch("channels_last"), needs="torch"),
        peer("PyTorch compile", torch("channels_last", compiled=True),
             suites=("training", "inference"), needs="torch"),
        peer("ONNX Runtime", _onnxruntime, **images),
        peer("OpenVINO", _openvino, **images),
        peer("ncnn", _ncnn, **images),
        peer("LiteRT", _litert, **images),
    ]
