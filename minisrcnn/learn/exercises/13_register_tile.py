"""A register tile: why a processor can be ten times faster than a loop.

A processor multiplies and adds a whole vector of numbers in one instruction, but only in its
registers. What makes a kernel fast is to use each loaded number often before it is dropped. A tile
of 4 rows x 1 vector of the product y = a b keeps its sums in four registers; for every k it loads
one vector of b and uses it four times:

    y[0..3, lanes] += a[0..3, k] * b[k, lanes]

`load(b, i)` gives the vector of numbers b[i], b[i+1], ... of a flat array, `broadcast(s)` a vector
with the number s in all lanes, `fma(x, y, z)` is x*y + z, `store(y, i, v)` writes a vector.
"""

import numpy as np
from minisrcnn.kernels.cpu.simd import broadcast, fma, load, store
from numba import njit


@njit
def tile(a, b, y, K, V):
    """a (4 * K,), b (K * V,), y (4 * V,), flat: y = a b, V being the lanes of a vector."""
    y0 = y1 = y2 = y3 = broadcast(np.float32(0))
    for k in range(K):
        # gap: load a row of b once, and add it to the four sums, times a[0,k] to a[3,k]
        row = load(b, k * V)
        y0 = fma(broadcast(a[k]), row, y0)
        y1 = fma(broadcast(a[K + k]), row, y1)
        y2 = fma(broadcast(a[2 * K + k]), row, y2)
        y3 = fma(broadcast(a[3 * K + k]), row, y3)
        # end of gap
    store(y, 0, y0)
    store(y, V, y1)
    store(y, 2 * V, y2)
    store(y, 3 * V, y3)


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.kernels.cpu import simd

from minisrcnn.learn.grading import expect

MISTAKES = [
    ("load(b, k * V)", "load(b, k)", "Row k of b starts at k * V: its V numbers lie side by side."),
    ("row, y1)", "row, y0)", "The second sum goes on from the first: each has a register of its "
     "own."),
    ("a[K + k]", "a[4 + k]", "Row 1 of a starts at K, not at 4: rows of a have K numbers."),
    ("y0 = fma(broadcast(a[k]), row, y0)", "y0 = fma(broadcast(a[k]), row, row)", "fma(x, y, z) adds "
     "z: the sum so far."),
]


def inputs():
    rng = np.random.default_rng(17)
    K, V = 7, simd.lanes(4)
    return rng.normal(size=(4, K)).astype(np.float32), rng.normal(size=(K, V)).astype(np.float32)


def run(student):
    a, b = inputs()
    y = np.zeros((4, b.shape[1]), np.float32)
    student.tile(a.ravel(), b.ravel(), y.ravel(), *b.shape)
    return y


def probe(student):
    return [run(student)]


def judge(student):
    try:
        got = run(student)
    except Exception as error:  # Numba wraps what it finds while it compiles
        if "not written yet" in str(error):
            raise NotImplementedError(str(error).splitlines()[0]) from None
        raise
    a, b = inputs()
    expect(got, a.astype(float) @ b, "y", 1e-5)
