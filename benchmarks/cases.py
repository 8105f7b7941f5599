"""What is measured: data, the right answer in float64, and how much work it is.

Cases are plain data that travel to the workers as JSON; data are drawn from seeds, so that every
process has the same. Operations are nominal: those of the plain sum, a multiply-add as two.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

Params = dict[str, Any]

OPERATIONS = ("forward", "input gradient", "weight gradient")
ARCHS = ("9-1-5", "9-5-5")

# C, F, kernel, size of the input: the layers of 9-1-5, 9-3-5 and 9-5-5 on a patch of 33x33.
LAYERS = ((1, 64, 9, 33), (64, 32, 1, 25), (32, 1, 5, 25), (64, 32, 3, 25), (64, 32, 5, 25))


class _Batch:
    """A case whose size is the number of patches."""

    N: int

    @property
    @abstractmethod
    def group(self) -> str:
        """What is the same for any batch."""

    @property
    def size(self) -> int:
        """Patches of the batch."""
        return self.N

    @property
    def label(self) -> str:
        """The case in words."""
        return f"{self.group}, {self.N} patches"


@dataclass(frozen=True)
class Convolution(_Batch):
    """A valid convolution of a batch, or one of its gradients, on its own."""

    suite: ClassVar[str] = "ops"
    operation: str
    N: int
    C: int
    F: int
    K: int
    H: int
    W: int

    @property
    def group(self) -> str:
        """The layer and operation; the batch is what varies."""
        return (f"{self.K}x{self.K} {self.C}->{self.F} on {self.H}x{self.W}, {self.operation}")

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.H - self.K + 1, self.W - self.K + 1

    @property
    def mflop(self) -> float:
        """Millions of operations of the plain sum."""
        OH, OW = self.output
        return 2e-6 * self.N * self.F * self.C * self.K**2 * OH * OW

    @property
    def mbyte(self) -> float:
        """Millions of bytes of the arrays in and out."""
        OH, OW = self.output
        return 4e-6 * (self.N * self.C * self.H * self.W + self.F * self.C * self.K**2
                       + self.N * self.F * OH * OW)

    @cached_property
    def data(self) -> dict[str, Any]:
        """x, w, b and dy in float32."""
        rng, shape = np.random.default_rng(0), (self.N, self.C, self.H, self.W)
        draw = {"x": shape, "w": (self.F, self.C, self.K, self.K), "b": (self.F,),
                "dy": (self.N, self.F, *self.output)}
        return {name: rng.standard_normal(s, np.float32) for name, s in draw.items()}

    @property
    def function(self) -> str:
        """The backend's function."""
        return "conv2d_" + {"forward": "forward", "input gradient": "backward_input",
                            "weight gradient": "backward_weight"}[self.operation]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Which of :attr:`data` that function takes."""
        return {"forward": ("x", "w", "b"), "input gradient": ("dy", "w"),
                "weight gradient": ("x", "dy")}[self.operation]

    def answer(self) -> dict[str, Any]:
        """Compute in float64 by the ``numpy`` backend, eight patches at a time for its memory."""
        from minisrcnn.engine.backends import get_backend

        function = getattr(get_backend("numpy"), self.function)
        arrays = [self.data[name].astype(np.float64) for name in self.arguments]
        parts = [function(*(a[n:n + 8] if name in ("x", "dy") else a
                            for name, a in zip(self.arguments, arrays, strict=True)))
                 for n in range(0, self.N, 8)]
        return {"result": sum(parts) if self.operation == "weight gradient"
                else np.concatenate(parts)}

    def results(self, got: Any) -> dict[str, Any]:
        """Name what an implementation returned, as in :meth:`answer`."""
        return {"result": got}


class _Network:
    """What training and inference share: weights that keep activations of order one."""

    arch: str
    channels: int

    @cached_property
    def params(self) -> Params:
        """``conv1.weight``, ``conv1.bias``, ... in float32."""
        rng, kernels = np.random.default_rng(0), [int(k) for k in self.arch.split("-")]
        hidden = [(64, 32)[i] if i < 2 else 16 for i in range(len(kernels) - 1)]
        widths = (self.channels, *hidden, self.channels)
        params = {}
        for i, size in enumerate(kernels):
            w = rng.standard_normal((widths[i + 1], widths[i], size, size))
            params[f"conv{i + 1}.weight"] = (w / np.sqrt(w[0].size)).astype(np.float32)
            params[f"conv{i + 1}.bias"] = np.full(widths[i + 1], 0.01, np.float32)
        return params

    @property
    def layers(self) -> list[tuple[Any, Any]]:
        """(weight, bias) of every layer."""
        values = list(self.params.values())
        return list(zip(values[::2], values[1::2], strict=True))

    @property
    def _weights_mbyte(self) -> float:
        return 4e-6 * sum(w.size + b.size for w, b in self.layers)


@dataclass(frozen=True)
class Training(_Batch, _Network):
    """Loss and all gradients of a batch of patches."""

    suite: ClassVar[str] = "training"
    arch: str
    N: int
    side: int = 33
    channels: int = 1

    @property
    def group(self) -> str:
        """The architecture; the batch is what varies."""
        colour = "" if self.channels == 1 else f", {self.channels} channels"
        return f"training step {self.arch}{colour}, {self.side}x{self.side}"

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution of the step; the image itself needs no gradient."""
        side = self.side
        for i, (w, _) in enumerate(self.layers):
            F, C, K, _ = w.shape
            for operation in OPERATIONS:
                if i > 0 or operation != "input gradient":
                    yield Convolution(operation, self.N, C, F, K, side, side)
            side -= K - 1

    @property
    def mflop(self) -> float:
        """Millions of operations of the plain sums: 22.76 a patch for 9-1-5 on 33x33."""
        return sum(c.mflop for c in self.convolutions())

    @property
    def mbyte(self) -> float:
        """Millions of bytes: patches, targets, weights and their gradients."""
        return sum(4e-6 * a.size for a in self.data.values()) + 2 * self._weights_mbyte

    @cached_property
    def data(self) -> dict[str, Any]:
        """Patches x and targets t in float32."""
        rng, lost = np.random.default_rng(1), sum(int(k) - 1 for k in self.arch.split("-"))
        shapes = {"x": self.side, "t": self.side - lost}
        return {name: rng.random((self.N, self.channels, s, s), np.float32)
                for name, s in shapes.items()}

    def answer(self) -> dict[str, Any]:
        """Compute layer by layer in float64, by the ``numpy`` backend."""
        from minisrcnn.engine.backends import get_backend

        return self.results(step_by_layer(get_backend("numpy"), self, np.float64))

    def results(self, got: Any) -> dict[str, Any]:
        """Name the loss and the gradients."""
        loss, grads = got
        return {"loss": loss, **{key: grads[key] for key in self.params}}


@dataclass(frozen=True)
class Inference(_Network):
    """A whole image, every layer keeping its size."""

    suite: ClassVar[str] = "inference"
    arch: str
    H: int
    W: int
    channels: int = 1

    @property
    def group(self) -> str:
        """The architecture; the image's size is what varies."""
        colour = "" if self.channels == 1 else f", {self.channels} channels"
        return f"image through {self.arch}{colour}"

    @property
    def size(self) -> int:
        """Pixels of the image."""
        return self.H * self.W

    @property
    def label(self) -> str:
        """The case in words."""
        return f"{self.group}, {self.H}x{self.W}"

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution of the pass, its input with the border that it needs."""
        for w, _ in self.layers:
            F, C, K, _ = w.shape
            yield Convolution("forward", 1, C, F, K, self.H + K - 1, self.W + K - 1)

    @property
    def mflop(self) -> float:
        """Millions of operations of the plain sums."""
        return sum(c.mflop for c in self.convolutions())

    @property
    def mbyte(self) -> float:
        """Millions of bytes: the image in and out, and the weights."""
        return 8e-6 * self.channels * self.size + self._weights_mbyte

    @cached_property
    def data(self) -> dict[str, Any]:
        """The image, (C, H, W) in float32."""
        return {"image": np.random.default_rng(1).random((self.channels, self.H, self.W),
                                                         np.float32)}

    @cached_property
    def _windows(self) -> list[tuple[int, int]]:
        side = min(self.H, self.W, 64)
        ends = self.H - side, self.W - side
        return sorted({(0, 0), (ends[0] // 2, ends[1] // 2), ends})

    def answer(self) -> dict[str, Any]:
        """Compute three windows in float64: two corners and the middle."""
        from minisrcnn.engine.backends import get_backend

        ops, answer, side = get_backend("numpy"), {}, min(self.H, self.W, 64)
        for top, left in self._windows:
            y = self.data["image"][None, :, top:top + side, left:left + side].astype(np.float64)
            for i, (w, b) in enumerate(self.layers):
                y = ops.conv2d_forward(y, w.astype(np.float64), b.astype(np.float64))
                y = ops.relu_forward(y) if i < len(self.layers) - 1 else y
            answer[f"window {top},{left}"] = y[0]
        return answer

    def results(self, got: Any) -> dict[str, Any]:
        """Cut the same windows, without the pixels that depend on how borders are padded."""
        edge = sum(int(k) // 2 for k in self.arch.split("-"))
        inner = min(self.H, self.W, 64) - 2 * edge
        return {f"window {top},{left}":
                got[:, top + edge:top + edge + inner, left + edge:left + edge + inner]
                for top, left in self._windows}


@dataclass(frozen=True)
class Transfer:
    """An array copied between the host and the device."""

    suite: ClassVar[str] = "transfer"
    direction: str  # "to the device" or "to the host"
    kbyte: int

    mflop: ClassVar[float] = 0.0

    @property
    def group(self) -> str:
        """The direction; the size is what varies."""
        return f"copy {self.direction}"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.kbyte * 1024

    @property
    def label(self) -> str:
        """The case in words."""
        return f"{self.group}, {self.kbyte} KB"

    @property
    def mbyte(self) -> float:
        """Millions of bytes."""
        return self.size * 1e-6

    @cached_property
    def data(self) -> dict[str, Any]:
        """The array."""
        return {"a": np.random.default_rng(0).random(self.size // 4, np.float32)}

    def answer(self) -> dict[str, Any]:
        """Return what must arrive."""
        return {"copy": self.data["a"]}

    def results(self, got: Any) -> dict[str, Any]:
        """Name what arrived."""
        return {"copy": got}


@dataclass(frozen=True)
class Roof:
    """What the machine can do at most: ``sgemm``, ``fma`` (no memory), ``triad`` (only memory)."""

    suite: ClassVar[str] = "roofs"
    name: str
    size: int = 0  # rows of the matrices; rounds of the loop; numbers of an array

    @property
    def group(self) -> str:
        """The roof's name."""
        return self.name

    @property
    def label(self) -> str:
        """The case in words."""
        return {"sgemm": f"sgemm, {self.size}x{self.size}", "fma": "multiply-adds in registers",
                "triad": f"triad, arrays of {self.size * 4e-6:.0f} MB"}[self.name]

    @property
    def mflop(self) -> float:
        """Millions of operations; those of the loop are known to who runs it."""
        return {"sgemm": 2e-6 * self.size**3, "triad": 2e-6 * self.size}.get(self.name, 0.0)

    @property
    def mbyte(self) -> float:
        """Millions of bytes, each array counted once (as STREAM does)."""
        return {"sgemm": 12e-6 * self.size**2, "triad": 12e-6 * self.size}.get(self.name, 0.0)

    def answer(self) -> dict[str, Any]:
        """No answer is compared: these are yardsticks."""
        return {}

    def results(self, got: Any) -> dict[str, Any]:
        """Nothing."""
        return {}


Case = Convolution | Training | Inference | Transfer | Roof
_KINDS = {kind.__name__: kind for kind in (Convolution, Training, Inference, Transfer, Roof)}

# The loop of multiply-adds takes about 10 ms, the triad is larger than a cache.
ROOFS = (Roof("sgemm", 2048), Roof("fma", 6_000_000), Roof("triad", 16 << 20))


def to_json(case: Case) -> dict[str, Any]:
    """Return a case as JSON."""
    return {"kind": type(case).__name__, **asdict(case)}


def from_json(data: dict[str, Any]) -> Case:
    """Return the case that :func:`to_json` wrote."""
    return _KINDS[data["kind"]](**{key: value for key, value in data.items() if key != "kind"})


def step_by_layer(ops: Any, case: Training, dtype: Any) -> tuple[float, Params]:
    """Loss and gradients by a backend's single operations, eight patches at a time.

    (The columns of im2col take memory.)
    """
    x, t = case.data["x"], case.data["t"]
    layers = [(w.astype(dtype), b.astype(dtype)) for w, b in case.layers]
    loss, grads = 0.0, {key: np.zeros(value.shape, dtype) for key, value in case.params.items()}
    for first in range(0, len(x), 8):
        y, inputs = x[first:first + 8].astype(dtype), []
        for i, (w, b) in enumerate(layers):
            inputs.append(y)
            y = ops.conv2d_forward(y, w, b)
            if i < len(layers) - 1:
                y = ops.relu_forward(y)
        difference = y - t[first:first + 8]
        loss += float((difference**2).sum()) / t.size
        dy = (2 / t.size * difference).astype(dtype)
        for i in range(len(layers) - 1, -1, -1):
            grads[f"conv{i + 1}.weight"] += ops.conv2d_backward_weight(inputs[i], dy)
            grads[f"conv{i + 1}.bias"] += ops.conv2d_backward_bias(dy)
            if i > 0:
                dy = ops.relu_backward(ops.conv2d_backward_input(dy, layers[i][0]), inputs[i])
    return loss, grads


def error_of(case: Case, got: Any, want: dict[str, Any]) -> float:
    """Return the largest deviation over the largest number, the worst of the case's results."""
    worst = 0.0
    for name, result in case.results(got).items():
        true = np.asarray(want[name], np.float64)
        result = np.asarray(result, np.float64)
        if result.shape != true.shape:
            raise ValueError(f"{name} has shape {result.shape}, want {true.shape}")
        error = float(np.abs(result - true).max() / np.abs(true).max())
        worst = float(np.maximum(worst, error))  # a NaN stays
    return worst


def standard(suite: str, quick: bool = False) -> list[Case]:
    """Return the cases of a suite."""
    if suite == "roofs":
        return list(ROOFS)
    if suite == "ops":
        layers = LAYERS[1:2] if quick else LAYERS
        small = [Convolution(operation, 2, 3, 8, 3, 12, 12) for operation in OPERATIONS]
        # All layers once before the larger batch: a run that is cut short has a row for each.
        return small + [Convolution(operation, N, C, F, K, side, side)
                        for N in ((32,) if quick else (32, 128))
                        for C, F, K, side in layers for operation in OPERATIONS]
    if suite == "training":
        return [Training(arch, N) for arch in (ARCHS[:1] if quick else ARCHS)
                for N in ((16, 128) if quick else (16, 32, 128, 512))]
    if suite == "inference":
        return [Inference(arch, side, side) for arch in (ARCHS[:1] if quick else ARCHS)
                for side in ((256, 512) if quick else (256, 512, 1024, 2048, 4096))]
    return [Transfer(direction, kbyte) for direction in ("to the device", "to the host")
            for kbyte in ((64, 4096) if quick else (4, 64, 1024, 16384, 131072))]
