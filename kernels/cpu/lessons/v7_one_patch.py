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
The tile is that of lesson 6, on [pixel][channel], filters padded to whole pairs of vectors. So is
conv3 with its one filter: a 1x1 convolution with the 25 taps as filters, then added up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from ..jit import const, inner, kernel
from ..simd import broadcast, fma, lanes, load, store

Array = Any
CHUNKS = 16  # of a batch, each with gradients of its own: no thread waits for another
P = 6  # rows of the tile


@inner
def load2(a, i):
    """Return two neighbouring vectors; what follows stores them, and multiplies and adds."""
    return load(a, i), load(a, i + lanes(a.itemsize))


@inner
def store2(a, i, pair):  # noqa: D103
    store(a, i, pair[0]), store(a, i + lanes(a.itemsize), pair[1])


@inner
def fma2(number, b, c):  # noqa: D103
    x = broadcast(number)
    return fma(x, b[0], c[0]), fma(x, b[1], c[1])


@inner
def tile(a, at, step, R, step_r, K, step_k, b, bt, F, c, ct):
    """C[i] += sum over r < R and k < K of a[at + i step + r step_r + k step_k] B[r K + k]."""
    c0, c1, c2 = load2(c, ct), load2(c, ct + F), load2(c, ct + 2 * F)
    c3, c4, c5 = load2(c, ct + 3 * F), load2(c, ct + 4 * F), load2(c, ct + 5 * F)
    for r in range(R):
        s = at + r * step_r
        for _ in range(K):
            row = load2(b, bt)
            c0, c1 = fma2(a[s], row, c0), fma2(a[s + step], row, c1)
            c2, c3 = fma2(a[s + 2 * step], row, c2), fma2(a[s + 3 * step], row, c3)
            c4, c5 = fma2(a[s + 4 * step], row, c4), fma2(a[s + 5 * step], row, c5)
            bt += F
            s += step_k
    store2(c, ct, c0), store2(c, ct + F, c1), store2(c, ct + 2 * F, c2)
    store2(c, ct + 3 * F, c3), store2(c, ct + 4 * F, c4), store2(c, ct + 5 * F, c5)


@inner
def convolve(x, W, C, w, K, b, y, OH, OW):
    """Y = b + x * w; x is W pixels of C channels wide, w [(u,v,c)][filter] is K x K."""
    F = b.size
    for i in range(OH):
        for j in range(0, OW, P):  # what goes beyond the row is overwritten by the next one
            for f in range(0, F, 2 * lanes(x.itemsize)):
                for p in range(P):
                    store2(y, (i * OW + j + p) * F + f, load2(b, f))
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
    """Set dy to 0 where y was; add it up in db, and copy it to within a border of zeros."""
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
        d1, d2 = np.zeros_like(e1), np.zeros(((H2 + 2 * K2 - 2) * WP2 + P) * F2, x.dtype)
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
            through_relu(e1, a1, H1, W1, F1, 0, d1, db1[chunk])
            add_gradient(a0, W, C, e1, F1, K1, H1, W1, dw1[chunk])


def chain_loss_and_gradients(params: dict[str, Array], x: Array, t: Array) -> Any:
    """Mean squared error of a network of three layers, and the gradients of its parameters.

    ``params``: weights (F,C,K,K) and biases (F,) in order; x (N,C,H,W); t (N,C,OH,OW).
    """
    w1, b1, w2, b2, w3, b3 = params.values()
    V2, dtype = 2 * lanes(x.itemsize), x.dtype
    F1, F2 = (-(-w.shape[0] // V2) * V2 for w in (w1, w2))
    (K1, K2, K3), (F3, _, _, C) = (w.shape[2] for w in (w1, w2, w3)), (*w3.shape[:3], x.shape[1])

    def rows(w: Array, last: int, columns: int) -> Array:
        """Return w (columns, channels, K, K) as [(u, v, channel)][column], padded by zeros."""
        wide = np.zeros((w.shape[2], w.shape[3], last, columns), dtype)
        wide[:, :, :w.shape[1], :w.shape[0]] = w.transpose(2, 3, 1, 0)
        return wide.ravel()

    def back(w: Array) -> Array:
        return w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)

    taps3 = w3.transpose(2, 3, 0, 1).reshape(K3 * K3 * F3, -1, 1, 1)
    chunks = min(len(x), CHUNKS)
    sizes = (K1 * (K1 * C + P) * F1, K2 * (K2 * F1 + P) * F2, K3 * (K3 * F3 + P) * F2, F1, F2, F3)
    grads, losses = [np.zeros((chunks, size), dtype) for size in sizes], np.zeros(chunks)
    train.compile(dtype.name)(
        x, t, dtype.type(2 / t.size), rows(w1, C, F1), np.pad(b1, (0, F1 - len(b1))),
        rows(w2, F1, F2), np.pad(b2, (0, F2 - len(b2))),
        rows(taps3, F2, -(-len(taps3) // V2) * V2), b3, rows(back(w2), F2, F1),
        rows(back(w3), F3, F2), *grads, losses, K1, K2, K3)
    dw1, dw2, dw3, db1, db2, db3 = (g.sum(axis=0) for g in grads)

    def planes(dw: Array, K: int, channels: int, w: Array) -> Array:
        dw = dw.reshape(K, K * channels + P, -1)[:, :K * channels].reshape(K, K, channels, -1)
        return np.ascontiguousarray(dw.transpose(3, 2, 0, 1)[:w.shape[0], :w.shape[1]])

    dw3 = np.ascontiguousarray(back(planes(dw3, K3, F3, w3.transpose(1, 0, 2, 3))))
    new = (planes(dw1, K1, C, w1), db1[:len(b1)], planes(dw2, K2, F1, w2), db2[:len(b2)], dw3, db3)
    return float(losses.sum()) / t.size, dict(zip(params, new, strict=True))


# MEASURED, GFLOP/s, one thread / 2 threads (python -m benchmarks.lessons):
#
#   training step 9-1-5:               84 /  165
#
# What is slow: what is not the tile, which alone reaches 150 on 5x5 in lesson 6: filters padded to
# whole vectors, the shifted sum of conv3, its single filter. And there is a way to multiply less.
