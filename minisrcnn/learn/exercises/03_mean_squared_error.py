"""The loss, and where backpropagation begins.

    L = 1/M sum over k of (y[k] - t[k])^2,      M = how many numbers y has, images and pixels alike

Differentiate it with respect to one y[k]: all other terms of the sum are constants. The array of
these derivatives, dy = dL/dy, is what the last layer gets.
"""

import numpy as np


def mse(y, t):
    """y, t of one shape -> the loss, a number, and dy of the shape of y."""
    M = y.size
    difference = y - t
    loss = np.sum(difference**2) / M
    # gap: the derivative of the loss with respect to each y[k]
    dy = 2 * difference / M
    # end of gap
    return loss, dy


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.gradcheck import check_gradients

MISTAKES = [
    ("2 * difference / M", "difference / M", "The factor 2 is missing: the derivative of d^2 is "
     "2 d."),
    ("2 * difference / M", "2 * difference", "Not divided by M: the loss is a mean, and so is its "
     "derivative."),
    ("2 * difference / M", "2 * (t - y) / M", "The sign is wrong: L grows where y > t grows."),
    ("2 * difference / M", "2 * difference / len(y)", "Divided by the number of images: M counts "
     "all numbers of y."),
]


def inputs():
    rng = np.random.default_rng(4)
    return rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2, 4))


def probe(student):
    return student.mse(*inputs())


def judge(student):
    check_gradients(lambda y, t: student.mse(y, t)[0],
                    lambda dloss, y, t: dloss * student.mse(y, t)[1],
                    dict(zip("yt", inputs(), strict=True)), wrt=["y"], step=1, name="mse")
