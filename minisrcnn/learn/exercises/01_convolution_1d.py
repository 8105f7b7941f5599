"""Slide a kernel along a line.

A valid convolution, as deep learning means the word (the kernel is not flipped), of a signal x of
N numbers with a kernel w of K numbers gives N - K + 1 numbers:

    y[i] = b + sum over u of x[i + u] w[u],    i = 0 .. N - K,  u = 0 .. K - 1

Write it with plain loops. By hand first: x = 1 2 3 4, w = 1 0 -1, b = 0 gives y = -2 -2.
"""

import numpy as np


def convolve(x, w, b):
    """x (N,), w (K,), a number b -> y (N - K + 1,)."""
    N, K = len(x), len(w)
    y = np.zeros(N - K + 1)
    # gap: for each output i, add up the K products and the bias
    for i in range(N - K + 1):
        y[i] = b
        for u in range(K):
            y[i] += x[i + u] * w[u]
    # end of gap
    return y


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.learn.grading import expect

MISTAKES = [
    ("w[u]", "w[K - 1 - u]", "The kernel is flipped: w[0] belongs to x[i], w[K - 1] to "
     "x[i + K - 1]. (That is a mathematician's convolution; deep learning does not flip.)"),
    ("y[i] = b", "y[i] = 0", "The bias is missing."),
    ("y[i] = b", "y[i] = K * b", "The bias is added once for each tap, not once for each output."),
    ("range(K)", "range(K - 1)", "The last tap of the kernel is left out: u runs from 0 to K - 1."),
    ("y[i] += x[i + u]", "y[i] = x[i + u]", "Each product replaces the sum: add to it."),
]


def inputs():
    rng = np.random.default_rng(1)
    return rng.normal(size=9), rng.normal(size=4), 0.7


def probe(student):
    return [student.convolve(*inputs())]


def judge(student):
    expect(student.convolve(np.array([1.0, 2, 3, 4]), np.array([1.0, 0, -1]), 0.0), [-2, -2],
           "y of the example")
    x, w, b = inputs()
    expect(student.convolve(x, w, b), np.correlate(x, w, "valid") + b, "y")
