"""The chain rule, layer by layer.

A small net: convolution, ReLU, convolution, and the mean squared error. Forwards each layer hands
its result up; backwards each layer takes the gradient of its output and hands the gradient of its
input down:

    x --conv1--> a --relu--> r --conv2--> y --mse--> loss
                 da <-relu-- dr <-conv2-- dy <-mse--

The functions of the single layers are given (yours from the last exercises, or these). Write the
backward pass: the gradients of both weights.
"""

from minisrcnn.engine.backends.numpy import (
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    mse,
    relu_backward,
    relu_forward,
)


def loss_and_gradients(x, t, w1, b1, w2, b2):
    """The loss, dw1 and dw2."""
    a = conv2d_forward(x, w1, b1)
    r = relu_forward(a)
    y = conv2d_forward(r, w2, b2)
    loss, dy = mse(y, t)
    # gap: from dy downwards: dw2, dr, da, dw1
    dw2 = conv2d_backward_weight(r, dy)
    dr = conv2d_backward_input(dy, w2)
    da = relu_backward(dr, r)
    dw1 = conv2d_backward_weight(x, da)
    # end of gap
    return loss, dw1, dw2


# ---- grading -----------------------------------------------------------------------------------
import numpy as np

from minisrcnn.gradcheck import check_gradients

MISTAKES = [
    ("conv2d_backward_weight(x, da)", "conv2d_backward_weight(x, dr)", "The ReLU is skipped on the "
     "way down: conv1 gets da, not dr."),
    ("da = relu_backward(dr, r)", "da = relu_backward(dr, dr)", "The mask of the ReLU is that of its "
     "output r, not of a gradient."),
    ("dw2 = conv2d_backward_weight(r, dy)", "dw2 = conv2d_backward_weight(a, dy)", "conv2 has seen r, "
     "not a: its weight gradient takes what the layer was given."),
]


def inputs():
    rng = np.random.default_rng(12)
    return {"x": rng.normal(size=(2, 1, 6, 6)), "t": rng.normal(size=(2, 1, 2, 2)),
            "w1": rng.normal(size=(3, 1, 3, 3)), "b1": rng.normal(size=3) / 10,
            "w2": rng.normal(size=(1, 3, 3, 3)), "b2": rng.normal(size=1)}


def probe(student):
    return student.loss_and_gradients(**inputs())


def judge(student):
    def backward(dloss, **arrays):
        _, dw1, dw2 = student.loss_and_gradients(**arrays)
        return {"w1": dloss * dw1, "w2": dloss * dw2}

    names = list(inputs())
    check_gradients(
        lambda *arrays: student.loss_and_gradients(*arrays)[0],
        lambda dloss, *arrays: backward(dloss, **dict(zip(names, arrays, strict=True))),
        inputs(), wrt=["w1", "w2"], name="chain")
