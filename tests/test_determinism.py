"""The same numbers bit for bit: from run to run, and for any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

# Trains for a few steps and predicts; prints a digest of everything that came out.
PROGRAM = """
import hashlib, sys
import numpy as np
import minisrcnn
from minisrcnn.engine.backends import numba as backend

def digest(dtype, filters):
    rng = np.random.default_rng(0)
    widths = (1, *filters, 1)
    params = {}
    for i, size in enumerate((9, 3, 5)):
        w = rng.standard_normal((widths[i + 1], widths[i], size, size)) / (3 * size)
        params[f"conv{i + 1}.weight"] = w.astype(dtype)
        params[f"conv{i + 1}.bias"] = np.zeros(widths[i + 1], dtype)
    x = rng.random((45, 1, 20, 21)).astype(dtype)
    t = rng.random((45, 1, 6, 7)).astype(dtype)
    result = hashlib.sha256()
    velocity = {key: np.zeros_like(value) for key, value in params.items()}
    for _ in range(4):
        loss, grads = backend.chain_loss_and_gradients(params, x, t)
        result.update(repr(loss).encode())
        for key in params:
            backend.sgd_update(params[key], grads[key], velocity[key], 0.05, 0.9)
            result.update(params[key].tobytes())
    image = rng.random((1, 130, 270)).astype(dtype)
    result.update(backend.chain_predict(params, image).tobytes())
    b = params["conv2.bias"]
    for w in (params["conv2.weight"], params["conv2.weight"][:, :, :1, :1].copy()):
        maps = rng.standard_normal((35, w.shape[1], 8, 9)).astype(dtype)
        y = backend.conv2d_forward(maps, w, b)
        result.update(y.tobytes())
        result.update(backend.conv2d_backward_input(y, w).tobytes())
        result.update(backend.conv2d_backward_weight(maps, y).tobytes())
    return result.hexdigest()

for threads in map(int, sys.argv[1:]):
    minisrcnn.set_threads(threads)
    print(threads, digest("float32", (64, 32)), digest("float64", (20, 5)))
"""


def run(*threads, **env):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, threads)], capture_output=True, text=True,
        env={**os.environ, **env}, check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split()[1:] for line in done.stdout.splitlines()]


def test_threads_and_runs_change_no_bit():
    first = run(1, 2, 3, 8, 8, NUMBA_NUM_THREADS="8")
    assert len(first) == 5 and len(set(first[0])) == 2
    assert all(line == first[0] for line in first), "the number of threads changed the result"
    again = run(2, NUMBA_NUM_THREADS="2")
    assert again[0] == first[0], "another run gave another result"
