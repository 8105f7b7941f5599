"""Run the real CUDA kernels through their backend, on small cases; print a hash of every result.

``python tests/emulated_cases.py [--all]``: used by the test of schedules, and under sanitizers.
"""

from __future__ import annotations

import hashlib
import sys
from unittest import mock

import numpy as np

from minisrcnn import SRCNN, BackendUnavailableError
from minisrcnn.engine.backends import _cuda_plan
from minisrcnn.engine.backends import cupy_emulated as device
from minisrcnn.engine.backends._cuda_ladder import col2im, im2col, versions
from minisrcnn.engine.emulator import cupy_standin
from minisrcnn.engine.layers import ACTIVATIONS

# N, C, H, W, F, KH, KW
QUICK = [(2, 3, 9, 38, 5, 3, 3)]  # more than one tile in every direction
ALL = [*QUICK, (2, 3, 13, 38, 9, 4, 3), (3, 5, 9, 8, 2, 2, 5), (1, 66, 6, 5, 70, 1, 1)]
LAUNCHED = set()
ATOMIC = "col2im atomic"  # the one result that may depend on the schedule


def draw(rng, *shape, dtype):
    return device.asarray(rng.normal(size=shape), dtype)


def ladder(shape, dtype):
    """Every version of the convolution and its gradients."""
    N, C, H, W, F, KH, KW = shape
    rng = np.random.default_rng(0)
    x, w, b = (draw(rng, *s, dtype=dtype) for s in ((N, C, H, W), (F, C, KH, KW), (F,)))
    dy = draw(rng, N, F, H - KH + 1, W - KW + 1, dtype=dtype)
    backend = device.conv2d_forward.__self__
    for version in versions(backend):
        yield f"{version.name} forward", version.forward(x, w, b)
        yield f"{version.name} backward_input", version.backward_input(dy, w)
        yield f"{version.name} backward_weight", version.backward_weight(x, dy)
    with mock.patch.object(_cuda_plan, "_MOST_PARTS", 3):  # blocks with several jobs each
        yield "backward_weight in three parts", device.conv2d_backward_weight(x, dy)
    cols = im2col(backend, x, KH, KW)
    yield "im2col", cols
    yield "col2im", col2im(backend, cols, (N, C, H, W), KH, KW)
    yield ATOMIC, col2im(backend, cols, (N, C, H, W), KH, KW, atomic=True)
    yield "backward_bias", device.conv2d_backward_bias(dy)


def pointwise(dtype):
    rng = np.random.default_rng(1)
    y, t = (draw(rng, 3, 7, 211, dtype=dtype) for _ in range(2))
    for kind in ACTIVATIONS:
        try:
            layer = kind(backend=device)
        except BackendUnavailableError:  # no kernel for it yet
            continue
        result, cache = layer.forward(y)
        yield f"{kind.__name__} forward", result
        yield f"{kind.__name__} backward", layer.backward(t, cache)[0]
    loss, dy = device.mse(y, t)
    yield "mse loss", loss
    yield "mse gradient", dy
    for momentum in (0.0, 0.9):
        param, velocity = draw(rng, 301, dtype=dtype), draw(rng, 301, dtype=dtype)
        grad = draw(rng, 301, dtype=dtype)
        device.sgd_update(param, grad, velocity if momentum else None, 0.1, momentum)
        yield f"sgd_update {momentum}", param
    m, v = (device.asarray(np.ones(301), dtype) for _ in range(2))
    device.adam_update(param, grad, m, v, 3, 1e-3, 0.9, 0.999, 1e-8)
    yield "adam_update", param


def chain(dtype, arch, filters, channels):
    """The fused step, the prediction, and training on the device."""
    rng = np.random.default_rng(2)
    net = SRCNN(
        arch, filters, channels, backend="cupy-emulated", dtype=dtype, init="he", seed=0
    )
    margin = sum(int(k) - 1 for k in arch.split("-"))
    size = margin + 5
    x = draw(rng, 2, channels, size, size, dtype=dtype)
    t = draw(rng, 2, channels, size - margin, size - margin, dtype=dtype)
    loss, grads = device.chain_loss_and_gradients(net.parameters, x, t)
    yield "chain loss", loss
    for name, grad in grads.items():
        yield f"chain {name}", grad
    yield "predict", device.chain_predict(
        net.parameters, draw(rng, channels, 14, 17, dtype=dtype)
    )
    images = [rng.random((channels, size + 4, size + 3)) for _ in range(2)]
    table = np.array([(0, 0, 0), (1, 4, 3), (0, 2, 1), (1, 3, 0)])
    alone = {"gather": lambda rows, stream: None}  # one device of those that share a batch
    for optimizer, batch, sharing in (("sgd", 2, {}), ("adam", 2, {}), ("muon", 8, alone)):
        trainer = device.DeviceTrainer(
            net.parameters, images, images, np.tile(table, (batch // 2, 1)), batch_size=batch,
            patch_size=size, lr=1e-3, optimizer=optimizer,
            momentum=0.9 if optimizer == "sgd" else None, **sharing,
        )
        trainer.load_order(np.tile([2, 0, 3, 1], batch // 2), np.tile([0, 3, 5, 6], batch // 2))
        for _ in range(3):
            trainer.step()
        yield f"{optimizer} loss", device.asarray(np.array(trainer.read_loss()), "float64")
        for name, parameter in trainer.parameters.items():
            yield f"{optimizer} {name}", parameter


def results(everything=False):
    """Run all cases and return the bytes of every result, by name."""
    found = {}
    for dtype in ("float32", "float64") if everything else ("float32",):
        groups = {str(shape): ladder(shape, dtype) for shape in (ALL if everything else QUICK)}
        groups["pointwise"] = pointwise(dtype)
        groups["3-1-3"] = chain(dtype, "3-1-3", (5, 34), 1)  # more than a tile of muon_gram
        if everything:
            groups["5-3-5, colour"] = chain(dtype, "5-3-5", (8, 6), 3)
        for group, cases in groups.items():
            for name, array in cases:
                host = device.to_numpy(array)
                assert np.isfinite(host).all(), f"{group} {name} is not finite"
                found[f"{dtype} {group} {name}"] = host.tobytes()
    return found


def watch_launches():
    launch = cupy_standin.RawKernel.__call__

    def note(self, *args, **kwargs):
        LAUNCHED.add(self.name)
        return launch(self, *args, **kwargs)

    cupy_standin.RawKernel.__call__ = note


if __name__ == "__main__":
    watch_launches()
    for case, data in results("--all" in sys.argv).items():
        print(f"{hashlib.sha256(data).hexdigest()[:16]} {case}", flush=True)
    print("launched:", *sorted(LAUNCHED))
