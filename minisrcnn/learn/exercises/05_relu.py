"""ReLU, and what passes through it backwards.

    y = max(0, x)          dx = dy where x > 0, else 0

The derivative is 1 above zero, 0 below; at zero itself there is none (a kink), and the usual choice is
0. Since y > 0 exactly where x > 0, the backward can do with y, which the next layer keeps anyway.
"""

import numpy as np


def relu_forward(x):
    """x of any shape -> y of the same."""
    # gap: negative numbers become zero
    return np.maximum(x, 0)
    # end of gap


def relu_backward(dy, y):
    """The gradient with respect to x, from the gradient dy and the output y of the forward."""
    # gap: let dy through where the forward let x through
    return dy * (y > 0)
    # end of gap


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.gradcheck import check_gradients
from minisrcnn.learn.grading import Wrong, expect

MISTAKES = [
    ("dy * (y > 0)", "dy * (dy > 0)", "The mask is that of dy: what counts is where the *forward* "
     "let x through, y > 0."),
    ("dy * (y > 0)", "dy * (y >= 0)", "At y = 0 the gradient is 0: with >= everything passes, since "
     "y is never negative."),
    ("dy * (y > 0)", "dy * y", "The derivative is 1, not y: dy passes unchanged."),
    ("dy * (y > 0)", "dy * (y <= 0)", "The mask is inverted."),
    ("dy * (y > 0)", "(y > 0) * 1.0", "dy is forgotten: that is the derivative of y alone; the chain "
     "rule multiplies it by dy."),
    ("np.maximum(x, 0)", "abs(x)", "|x| is not max(0, x): negative numbers become 0."),
]


def inputs():
    rng = np.random.default_rng(6)
    return rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4, 5))


def probe(student):
    x, dy = inputs()
    return [student.relu_forward(x), student.relu_backward(dy, np.maximum(x, 0))]


def judge(student):
    x, _ = inputs()
    expect(student.relu_forward(x), np.where(x > 0, x, 0), "y")
    check_gradients(student.relu_forward,
                    lambda dy, x: student.relu_backward(dy, student.relu_forward(x)), {"x": x},
                    name="relu")
    if np.any(student.relu_backward(np.ones(3), np.zeros(3))):
        raise Wrong("at the kink, where x = 0, the gradient is not 0")
