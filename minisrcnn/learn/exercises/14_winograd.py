"""Winograd convolution F(2,3): two outputs of a 3-tap kernel with four multiplications, not six.

From four numbers d0..d3 of the signal and the taps g0..g2, the two outputs

    y0 = d0 g0 + d1 g1 + d2 g2          y1 = d1 g0 + d2 g1 + d3 g2

are also

    m1 = (d0 - d2) g0                   m2 = (d1 + d2) (g0 + g1 + g2) / 2
    m4 = (d1 - d3) g2                   m3 = (d2 - d1) (g0 - g1 + g2) / 2

    y0 = m1 + m2 + m3                   y1 = m2 - m3 - m4

Multiply it out once on paper. The sums over g are done once for all of the signal; what is left is
four multiplications. (In two directions, F(2x2,3x3): 16 for 36.)
"""

import numpy as np


def convolve(x, g):
    """x (N,), N even, g (3,) -> y (N - 2,)."""
    y = np.zeros(len(x) - 2)
    # gap: the two transformed taps, once for all of the signal
    plus, minus = (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2
    # end of gap
    for i in range(0, len(y), 2):
        d = x[i:i + 4]
        # gap: four products, then the two outputs y[i] and y[i + 1]
        m1 = (d[0] - d[2]) * g[0]
        m2 = (d[1] + d[2]) * plus
        m3 = (d[2] - d[1]) * minus
        m4 = (d[1] - d[3]) * g[2]
        y[i] = m1 + m2 + m3
        y[i + 1] = m2 - m3 - m4
        # end of gap
    return y


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.learn.grading import Wrong, expect

MISTAKES = [
    ("m2 - m3 - m4", "m2 - m3 + m4", "The sign of m4 in y1 is wrong: y1 = m2 - m3 - m4."),
    ("(g[0] - g[1] + g[2]) / 2", "(g[0] - g[1] + g[2])", "The factor 1/2 of m3 is missing."),
    ("(d[2] - d[1]) * minus", "(d[1] - d[2]) * minus", "The sign of m3: it takes d2 - d1."),
    ("(d[0] - d[2]) * g[0]", "(d[0] + d[2]) * g[0]", "m1 takes d0 - d2: what m2 and m3 add too much "
     "must go."),
    ("(d[1] - d[3]) * g[2]", "(d[1] - d[3]) * g[0]", "m4 takes the last tap, g2."),
]


class Counted:
    """A number that counts its multiplications with other Counted numbers."""

    products = 0

    def __init__(self, value):
        self.value = value

    def __add__(self, other):
        return Counted(self.value + getattr(other, "value", other))

    def __sub__(self, other):
        return Counted(self.value - getattr(other, "value", other))

    def __neg__(self):
        return Counted(-self.value)

    def __mul__(self, other):
        Counted.products += isinstance(other, Counted)
        return Counted(self.value * getattr(other, "value", other))

    def __truediv__(self, other):
        return Counted(self.value / other)

    def __float__(self):
        return float(self.value)

    __radd__, __rmul__ = __add__, __mul__


def inputs():
    rng = np.random.default_rng(18)
    return rng.normal(size=10), rng.normal(size=3)


def probe(student):
    return [student.convolve(*inputs())]


def judge(student):
    x, g = inputs()
    expect(student.convolve(x, g), np.correlate(x, g, "valid"), "y")
    Counted.products = 0
    student.convolve(np.array([Counted(v) for v in x]), np.array([Counted(v) for v in g]))
    if Counted.products > 16:
        raise Wrong(f"right, but by {Counted.products} multiplications for 8 outputs; Winograd "
                    "needs 16")
