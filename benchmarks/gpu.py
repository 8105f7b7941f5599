"""CUDA versions, the ``cupy`` backend and PyTorch on CUDA; timing by events.

With the backend ``cupy-emulated`` the same code runs on the CPU, at toy sizes: that proves the
benchmark, its times mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from .cases import Case, Convolution, Inference, Roof, Training, Transfer
from .machine import ROOT
from .ours import Call, Implementation, NotOffered, Prepared
from .peers import torch_chain, torch_convolution, torch_step

SUITES = ("roofs", "ops", "training", "inference", "transfer")
_FLUSH_BYTES = 256 << 20  # more than any second-level cache
_TF32_GATE = 1e-2


class Clock:
    """Times calls on a device by events, with caches warm or overwritten.

    Parameters
    ----------
    xp : module
        CuPy, or something with its ``cuda``, ``zeros`` and ``get_elapsed_time``.
    """

    def __init__(self, xp: Any) -> None:
        self.cuda = xp.cuda
        self._flush = xp.zeros(_FLUSH_BYTES if xp.__name__ == "cupy" else 1 << 10, np.int8)

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        self.cuda.Device().synchronize()

    def milliseconds(self, call: Call, calls: int, cold: bool) -> float:
        """Return the time of a call, the mean of ``calls`` in a row; of one, if ``cold``."""
        if cold:
            self._flush.fill(1)
        start, stop = self.cuda.Event(), self.cuda.Event()
        start.record()
        for _ in range(1 if cold else calls):
            call()
        stop.record()
        stop.synchronize()
        return self.cuda.get_elapsed_time(start, stop) / (1 if cold else calls)


class TorchClock(Clock):
    """The same by PyTorch's events."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self._flush = torch.zeros(_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        self.torch.cuda.synchronize()

    def milliseconds(self, call: Call, calls: int, cold: bool) -> float:
        """Return the time of a call, the mean of ``calls`` in a row; of one, if ``cold``."""
        if cold:
            self._flush.fill_(1)
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(1 if cold else calls):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / (1 if cold else calls)


def make_clock(implementation: Implementation) -> Clock:
    """Return the clock of an implementation on a device."""
    if implementation.name.startswith("PyTorch"):
        return TorchClock()
    return Clock(_device("cupy-emulated" if "emulated" in implementation.name else "cupy")
                 .conv2d_forward.__self__.xp)


@cache
def _device(name: str) -> Any:
    from minisrcnn.engine.backends import get_backend, unavailable_reason

    reason = unavailable_reason(name)
    if reason is not None:
        raise ImportError(reason)
    return get_backend(name)


def _version(name: str, title: str) -> Any:
    """Return a CUDA version as a module with a backend's functions."""
    from minisrcnn.engine.backends import _cuda_ladder

    device = _device(name)
    version = next(v for v in _cuda_ladder.versions(device.conv2d_forward.__self__)
                   if v.name == title)
    return SimpleNamespace(
        conv2d_forward=version.forward, conv2d_backward_input=version.backward_input,
        conv2d_backward_weight=version.backward_weight, asarray=device.asarray,
        to_numpy=device.to_numpy)


def _prepare(backend: str, version: str, case: Case, threads: int) -> Prepared:
    """Prepare a case for a CUDA version, or for the backend itself where that is empty."""
    device = _device(backend)
    module = _version(backend, version) if version else device
    put, fetch = partial(device.asarray, dtype="float32"), device.to_numpy
    if isinstance(case, Convolution):
        function = getattr(module, case.function)
        host = [case.data[name] for name in case.arguments]
        there = [put(a) for a in host]
        return Prepared({"": lambda: function(*there)}, fetch,
                        lambda: fetch(function(*(put(a) for a in host))))
    if version:
        raise NotOffered
    if isinstance(case, Roof):
        return _roof(device.conv2d_forward.__self__.xp, case)
    if isinstance(case, Transfer):
        a = case.data["a"]
        if case.direction == "to the device":
            return Prepared({"": lambda: put(a)}, fetch)
        there = put(a)
        return Prepared({"": lambda: fetch(there)})
    params = {key: put(value) for key, value in case.params.items()}
    if isinstance(case, Inference):
        image = put(case.data["image"])
        predict = device.chain_predict
        return Prepared({"fused": lambda: predict(params, image)}, fetch,
                        lambda: fetch(predict(params, put(case.data["image"]))))
    return _training(device, params, case, put, fetch)


def _training(device: Any, params: Any, case: Training, put: Callable[[Any], Any],
              fetch: Callable[[Any], Any]) -> Prepared:
    x, t = put(case.data["x"]), put(case.data["t"])

    def to_host(result: Any) -> Any:
        loss, grads = result
        return float(loss), {key: fetch(value) for key, value in grads.items()}

    def step(x: Any, t: Any) -> Any:
        return device.chain_loss_and_gradients(params, x, t)

    return Prepared({"fused": lambda: step(x, t)}, to_host,
                    lambda: to_host(step(put(case.data["x"]), put(case.data["t"]))))


def _prepare_recorded(backend: str, case: Case, threads: int) -> Prepared:
    """Prepare a step that is recorded as a CUDA graph, gathering and update included.

    The gradients to check are what the first step took from the parameters, at a rate of 1.
    """
    device = _device(backend)
    if not isinstance(case, Training):
        raise NotOffered
    order = np.arange(case.N)
    table = np.stack([order, np.zeros_like(order), np.zeros_like(order)], axis=1)
    trainer = device.DeviceTrainer(
        {key: device.asarray(value, "float32") for key, value in case.params.items()},
        list(case.data["x"]), list(case.data["t"]), table, batch_size=case.N,
        patch_size=case.side, lr=1.0, momentum=0.9)
    trainer.load_order(order)
    trainer.step()
    loss = trainer.read_loss()
    grads = {key: case.params[key] - device.to_numpy(value)
             for key, value in trainer.parameters.items()}
    trainer.set_learning_rate(1e-6)
    first = [(float(loss), grads)]

    def step() -> Any:
        trainer.step()
        return first[0]

    return Prepared({"recorded": step}, stream=trainer.stream)


def _roof(xp: Any, case: Roof) -> Prepared:
    if xp.__name__ != "cupy" or case.name == "fma":
        raise NotOffered
    if case.name == "sgemm":
        a, b = (xp.random.rand(case.size, case.size, dtype=np.float32) for _ in range(2))
        return Prepared({"": lambda: a @ b})
    a, b, c = (xp.ones(case.size, np.float32) for _ in range(3))
    triad = xp.ElementwiseKernel("float32 b, float32 c", "float32 a", "a = b + 0.5f * c", "triad")
    return Prepared({"": lambda: triad(b, c, a)})


def _torch(tf32: bool, case: Case, threads: int) -> Prepared:
    """Prepare a case for PyTorch and cuDNN: eager and, for a training step, as a CUDA graph."""
    import torch

    if not torch.cuda.is_available():
        raise ImportError("PyTorch has no CUDA device")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32

    def put(a: Any, layout: Any = torch.contiguous_format) -> Any:
        return torch.tensor(a, device="cuda").contiguous(memory_format=layout)

    def fetch(result: Any) -> Any:
        if isinstance(result, tuple):
            return float(result[0]), {key: v.cpu().numpy() for key, v in result[1].items()}
        return result.detach().cpu().numpy()

    layouts = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
    if isinstance(case, Roof) and case.name == "sgemm":
        a, b = (torch.rand(case.size, case.size, device="cuda") for _ in range(2))
        return Prepared({"": lambda: a @ b})
    if isinstance(case, Transfer):
        a = case.data["a"]
        pinned = torch.tensor(a).pin_memory()
        there = put(a)
        if case.direction == "to the device":
            return Prepared({"pageable": lambda: torch.from_numpy(a).cuda(),
                             "pinned": lambda: pinned.cuda(non_blocking=True)}, fetch)
        return Prepared({"pageable": lambda: there.cpu(),
                         "pinned": lambda: pinned.copy_(there)}, fetch)
    if isinstance(case, Convolution):
        def convolve(layout: Any) -> Call:
            return torch_convolution(torch, case, partial(put, layout=layout))
        return Prepared({name: convolve(layout) for name, layout in layouts.items()}, fetch)
    if isinstance(case, Inference):
        def predict(layout: Any, image: Any) -> Any:
            values = [put(v, layout) if v.ndim == 4 else put(v) for v in case.params.values()]

            def call(x: Any = None) -> Any:
                with torch.inference_mode():
                    return torch_chain(torch, values, image if x is None else x, padding=True)[0]
            return call
        calls = {name: predict(layout, put(case.data["image"][None], layout))
                 for name, layout in layouts.items()}
        host = torch.tensor(case.data["image"][None])
        return Prepared(calls, fetch, lambda: fetch(calls["contiguous"](host.cuda())))
    if not isinstance(case, Training):
        raise NotOffered
    run = partial(torch_chain, torch)
    calls = {f"{name}, eager": torch_step(torch, case, partial(put, layout=layout), case.N, run)
             for name, layout in layouts.items()}
    calls |= {f"{name}, graph": _torch_graph(torch, calls[f"{name}, eager"]) for name in layouts}
    return Prepared(calls, fetch)


def _torch_graph(torch: Any, step: Call) -> Call:
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())  # the operands may be on their way
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def implementations(backend: str) -> list[Implementation]:
    """Return the CUDA versions and the backend as columns."""
    prefix = "CUDA" if backend == "cupy" else "emulated"
    sources = sorted((ROOT / "kernels" / "cuda").glob("conv_v*.cu"))
    versions = [path.stem.removeprefix("conv_").replace("_", " ") for path in sources]
    return [
        *(Implementation(f"{prefix} {name}", partial(_prepare, backend, name), ("ops",), "gpu",
                         kind="lesson", needs=backend) for name in versions),
        Implementation(backend, partial(_prepare, backend, ""), SUITES, "gpu", needs=backend),
        Implementation(f"{backend} recorded step", partial(_prepare_recorded, backend),
                       ("training",), "gpu", needs=backend),
    ]


def peers() -> list[Implementation]:
    """Return PyTorch on CUDA as columns: float32, and TF32 with a gate of its own."""
    return [Implementation("PyTorch CUDA", partial(_torch, False), SUITES, "gpu", kind="peer",
                           needs="PyTorch with CUDA"),
            Implementation("PyTorch CUDA TF32", partial(_torch, True), SUITES[:-1], "gpu",
                           kind="peer", gate=_TF32_GATE, needs="PyTorch with CUDA")]
