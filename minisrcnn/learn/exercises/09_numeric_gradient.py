"""A gradient checker of your own.

How does one know that a gradient is right? By nudging. For a function L of an array x, the central
difference

    dL/dx[k]  ~  (L(x + h e_k) - L(x - h e_k)) / 2 h

is off by about h^2, and by rounding errors divided by h: h = 1e-5 is a good middle for functions of
order 1 in float64. Change one number of x at a time, and put it back.
"""

import numpy as np


def numeric_gradient(function, x, h=1e-5):
    """A function of an array that gives a number, and the array -> the gradient, of its shape."""
    gradient = np.zeros(x.shape)
    for k in np.ndindex(x.shape):
        kept = x[k]
        # gap: the central difference for x[k]; leave x as it was
        x[k] = kept + h
        above = function(x)
        x[k] = kept - h
        below = function(x)
        x[k] = kept
        gradient[k] = (above - below) / (2 * h)
        # end of gap
    return gradient


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.learn.grading import Wrong, expect

MISTAKES = [
    ("(2 * h)", "h", "Twice too large: from x - h to x + h it is 2 h."),
    ("        x[k] = kept\n", "", "x is not put back: the next number is measured at a point that "
     "has moved."),
    ("above - below", "below - above", "The sign is wrong: (above - below)."),
    ("x[k] = kept - h", "x[k] = kept", "A forward difference: its error is of order h, not h^2. Take "
     "x - h below."),
    ("(above - below) / (2 * h)", "(above - below) / 2", "Not divided by the step h."),
]


def cubic(x):
    return float(np.sum(np.arange(1, x.size + 1).reshape(x.shape) * x**3))


def probe(student):
    x = np.random.default_rng(10).normal(size=(2, 3))
    return [student.numeric_gradient(cubic, x, 1e-3), x]


def judge(student):
    rng = np.random.default_rng(11)
    x = rng.normal(size=(3, 2))
    kept = x.copy()
    got = student.numeric_gradient(cubic, x)
    if not np.array_equal(x, kept):
        raise Wrong("x is not what it was before the call")
    expect(got, 3 * np.arange(1, 7).reshape(3, 2) * x**2, "gradient", 1e-7)
    expect(student.numeric_gradient(lambda a: float(np.sin(a).sum()), x), np.cos(x), "gradient",
           1e-8)
