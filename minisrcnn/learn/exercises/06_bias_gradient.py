"""The easiest gradient of a convolution: the bias.

    y[n,f,i,j] = b[f] + ...

One number b[f] is added to every pixel of every image of its channel. Nudge it by h and all of
these outputs move by h: so its gradient collects all of their gradients,

    db[f] = sum over n,i,j of dy[n,f,i,j] * 1
"""

import numpy as np


def conv2d_backward_bias(dy):
    """dy (N,F,OH,OW) -> db (F,)."""
    # gap: everything that b[f] was added to
    return dy.sum(axis=(0, 2, 3))
    # end of gap


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.gradcheck import check_gradients

MISTAKES = [
    ("dy.sum(axis=(0, 2, 3))", "dy[0].sum(axis=(1, 2))", "Not summed over the batch: only the first "
     "image contributes."),
    ("dy.sum(axis=(0, 2, 3))", "dy.mean(axis=(0, 2, 3))", "A mean: the 1/M is in the loss already, "
     "here everything is added up."),
    ("dy.sum(axis=(0, 2, 3))", "dy.sum(axis=(0, 2, 3)) / len(dy)", "Divided by the number of images: "
     "the 1/M is in the loss already."),
    ("dy.sum(axis=(0, 2, 3))", "dy.sum(axis=(1, 2, 3))", "Summed over the filters, not the images: "
     "keep axis 1."),
    ("dy.sum(axis=(0, 2, 3))", "dy.sum(axis=0)[:, 0, 0]", "Not summed over the pixels: only the top "
     "left one contributes."),
]


def probe(student):
    return [student.conv2d_backward_bias(np.random.default_rng(7).normal(size=(3, 3, 4, 4)))]


def judge(student):
    def forward(x, b):
        return x + b[:, None, None]

    check_gradients(forward, lambda dy, x, b: student.conv2d_backward_bias(dy),
                    {"x": (3, 4, 3, 5), "b": (4,)}, wrt=["b"], step=1, name="bias")
