"""Lesson 7: one patch through the whole network, without leaving the cache.

In lesson 6 a layer of 128 patches writes 20 MB, and the next one reads it back from memory, four
times in a training step. But the activations of one patch are 260 KB: they fit a core's L2 cache.
So the loops change places, the patches outside and the layers inside:

    lesson 6:   for each layer:                 this lesson:   for each patch:
                    for each patch: ...                            for each layer: ...

    x -> [a0] -> conv1, ReLU -> [a1] -> conv2, ReLU -> [a2] -> conv3 -> y - t     all of it in L2,
          |                      |                      |         |               overwritten by
         dw1 <--- mask [e1] <-- dw2 <--- mask [e2] <-- dw3 <---- [d3]             the next patch

Nothing is transposed between layers either; x and y, of one channel, have nothing to transpose.
The tile is that of lesson 6, now taken from simd.py, on [pixel][channel], filters padded to whole
pairs of vectors. So is conv3's one filter: its 25 taps are filters of 1x1, then added up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from ..jit import const, inner, kernel
from ..simd import TILE, lanes, load_rows, store_rows, tile, whole

Array = Any
P = TILE  # pixels that a tile takes at once, and room for what it does beyond the last
CHUNKS = 16  # of a batch, each with gradients of its own: no thread waits for another


@inner
def convolve(x, W, C, w, K, b, y, OH, OW):
    """Y = b + x * w; x is W pixels of C channels wide, w [(u,v,c)][filter] is K x K."""
    F, V = b.size, lanes(x.itemsize)
    for i in range(OH):
        for j in range(0, OW, P):  # what goes beyond the row is overwritten by the next one
            for f in range(0, F, 2 * V):
                for at in range((i * OW + j) * F + f, (i * OW + j + P) * F + f, F):
                    store_rows(y, at, V, load_rows(b, f, V, 1, 2), 2)
                tile(x, (i * W + j) * C, C, K, W * C, K * C, 1, w, f, F, y, (i * OW + j) * F + f)


@inner
def add_gradient(x, W, C, dy, F, K, OH, OW, dw):
    """dw[u, (v,c), f] += sum over pixels of dy of x[i+u, j+v, c] dy[i, j, f]."""
    for u in range(K):
        for r in range(0, K * C, P):
            for f in range(0, F, 2 * lanes(x.itemsize)):
                tile(x, u * W * C + r, 1, OH, W * C, OW, C, dy, f, F,
                     dw, (u * (K * C + P) + r) * F + f)


@inner
def through_relu(dy, y, OH, OW, F, border, padded, db):
    """Set dy to 0 where y was; add it up in db; copy it to within a border of zeros, if any."""
    for i in range(OH):
        for j in range(OW):
            at = (i * OW + j) * F
            to = ((i + border) * (OW + 2 * border) + j + border) * F
            for f in range(F):
                dy[at + f] = dy[at + f] if y[at + f] > 0 else 0
                db[f] += dy[at + f]
                padded[to + f] = dy[at + f]


@inner
def compare(z, Z, b, t, K, scale, padded, db):
    """Y = b + the taps in z; dy = scale (y - t), put within zeros; return sum (y - t)^2."""
    F, OH, OW = t.shape
    loss = 0.0
    for i in range(OH):
        for j in range(OW):
            for f in range(F):
                y = b[f]
                for u in range(K):
                    for v in range(K):
                        y += z[((i + u) * (OW + K - 1) + j + v) * Z + (u * K + v) * F + f]
                loss += np.float64(y - t[f, i, j]) ** 2
                to = ((i + K - 1) * (OW + 2 * K - 2) + j + K - 1) * F + f
                padded[to] = scale * (y - t[f, i, j])
                db[f] += padded[to]
    return loss


@kernel(lambda t: (const(t, 4), const(t, 4), t, *[const(t, 1)] * 8, *[t[:, ::1]] * 6,
                   types.float64[::1], *[types.int64] * 3), parallel=True)
def train(x, t, scale, w1, b1, w2, b2, taps3, b3, back2, back3, dw1, dw2, dw3, db1, db2, db3,
          losses, K1, K2, K3):
    """Add each patch's gradients to those of its chunk; one chunk is one turn of a thread."""
    N, C, H, W = x.shape
    F1, F2, F3, Z = b1.size, b2.size, b3.size, taps3.size // b2.size
    H1, W1, H2, W2 = H - K1 + 1, W - K1 + 1, H - K1 - K2 + 2, W - K1 - K2 + 2
    WP2, WP3 = W2 + 2 * K2 - 2, W2 + K3 - 1
    zero = np.zeros(max(F1, F2, Z), x.dtype)
    for chunk in prange(losses.size):
        a0 = np.zeros((H * W + P) * C, x.dtype)
        a1, e1 = np.zeros((H1 * W1 + P) * F1, x.dtype), np.zeros((H1 * W1 + P) * F1, x.dtype)
        a2, e2 = np.zeros((H2 * W2 + P) * F2, x.dtype), np.zeros((H2 * W2 + P) * F2, x.dtype)
        d2 = np.zeros(((H2 + 2 * K2 - 2) * WP2 + P) * F2, x.dtype)
        d3 = np.zeros(((H2 + K3 - 1) * WP3 + P) * F3, x.dtype)
        z = np.zeros((H2 * W2 + P) * Z, x.dtype)
        for n in range(chunk, N, losses.size):
            for c in range(C):
                for p in range(H * W):
                    a0[p * C + c] = x[n, c, p // W, p % W]
            convolve(a0, W, C, w1, K1, b1, a1, H1, W1)
            np.maximum(a1, 0, a1)
            convolve(a1, W1, F1, w2, K2, b2, a2, H2, W2)
            np.maximum(a2, 0, a2)
            convolve(a2, W2, F2, taps3, 1, zero[:Z], z, H2, W2)
            losses[chunk] += compare(z, Z, b3, t[n], K3, scale, d3, db3[chunk])
            add_gradient(d3, WP3, F3, a2, F2, K3, H2, W2, dw3[chunk])
            convolve(d3, WP3, F3, back3, K3, zero[:F2], e2, H2, W2)
            through_relu(e2, a2, H2, W2, F2, K2 - 1, d2, db2[chunk])
            add_gradient(a1, W1, F1, e2, F2, K2, H2, W2, dw2[chunk])
            convolve(d2, WP2, F2, back2, K2, zero[:F1], e1, H1, W1)
            through_relu(e1, a1, H1, W1, F1, 0, e1, db1[chunk])
            add_gradient(a0, W, C, e1, F1, K1, H1, W1, dw1[chunk])


def chain_loss_and_gradients(params: dict[str, Array], x: Array, t: Array) -> Any:
    """Mean squared error of a network of three layers, and the gradients of its parameters.

    ``params``: weights (F,C,K,K) and biases (F,) in order; x (N,C,H,W); t (N,C,OH,OW).
    """
    def pad(a: Array, *axes: int) -> Array:
        return np.pad(a, [(0, axis in axes and whole(size, a.itemsize) - size)
                          for axis, size in enumerate(a.shape)])

    def rows(w: Array) -> Array:  # [(u, v, channel)][filter]
        return w.transpose(2, 3, 1, 0).ravel()

    def back(w: Array) -> Array:
        return w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)

    w1, b1, w2, b2, w3, b3 = params.values()
    w1, b1, w2, b2, w3 = pad(w1, 0), pad(b1, 0), pad(w2, 0, 1), pad(b2, 0), pad(w3, 1)
    taps3 = pad(w3.transpose(2, 3, 0, 1).reshape(-1, len(b2), 1, 1), 0)
    layers, chunks = (w1, w2, back(w3)), min(len(x), CHUNKS)
    sums = [np.zeros((chunks, K * (K * C + P) * F), x.dtype) for F, C, K, _ in
            (w.shape for w in layers)] + [np.zeros((chunks, b.size), x.dtype) for b in (b1, b2, b3)]
    losses = np.zeros(chunks)
    train.compile(x.dtype)(
        x, t, x.dtype.type(2 / t.size), rows(w1), b1, rows(w2), b2, rows(taps3), b3,
        rows(back(w2)), rows(back(w3)), *sums, losses, *(w.shape[2] for w in layers))
    *dws, db1, db2, db3 = (each.sum(axis=0) for each in sums)
    dw1, dw2, dw3 = (
        dw.reshape(K, -1, F)[:, :K * C].reshape(K, K, C, F).transpose(3, 2, 0, 1)
        for dw, (F, C, K, _) in zip(dws, (w.shape for w in layers), strict=True))
    grads = zip(params.items(), (dw1, db1, dw2, db2, back(dw3), db3), strict=True)
    return float(losses.sum()) / t.size, {
        name: np.ascontiguousarray(d[tuple(map(slice, p.shape))]) for (name, p), d in grads}


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#   training step 9-1-5: 36 / 56
#
# What is slow: what is not the tile, which alone reaches 150 on 5x5 in lesson 6: filters padded to
# whole vectors, the shifted sum of conv3, its single filter. And there is a way to multiply less.
