"""The gradient of the weights.

    y[n,f,i,j] = b[f] + sum over c,u,v of x[n, c, i+u, j+v] w[f, c, u, v]

Pick one weight, w[f,c,u,v]. It stands in every output (n,i,j) of filter f, once, and what it is
multiplied by there is x[n, c, i+u, j+v]. So nudging it moves all of these outputs, each by that
pixel, and the chain rule adds up:

    dw[f,c,u,v] = sum over n,i,j of dy[n,f,i,j] x[n, c, i+u, j+v]

As the forward it slides over x: a tap (u,v) sees the OH x OW pixels from (u,v) on.
"""

import numpy as np


def conv2d_backward_weight(x, dy):
    """x (N,C,H,W), dy (N,F,OH,OW) -> dw (F,C,KH,KW), KH = H-OH+1, KW = W-OW+1."""
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    dw = np.zeros((F, C, KH, KW))
    for f, c, u, v in np.ndindex(F, C, KH, KW):
        # gap: all the outputs that this weight went into
        dw[f, c, u, v] = np.sum(dy[:, f] * x[:, c, u:u + OH, v:v + OW])
        # end of gap
    return dw


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.engine.backends import reference
from minisrcnn.gradcheck import check_gradients

MISTAKES = [
    ("dw[f, c, u, v] =", "dw[f, c, KH - 1 - u, KW - 1 - v] =", "The kernel is flipped: tap (u, v) "
     "meets the pixels from (u, v) on, in the forward as here."),
    ("np.sum(dy[:, f] * x[:, c,", "np.sum(dy[0, f] * x[0, c,", "Not summed over the batch: every "
     "image uses the same weights."),
    ("np.sum(", "1 / N * np.sum(", "Divided by the number of images: the 1/M is in the loss "
     "already."),
    ("u:u + OH, v:v + OW", "v:v + OH, u:u + OW", "Rows and columns are exchanged: u goes with the "
     "height, v with the width."),
    ("dy[:, f] * x[:, c,", "dy[:, F - 1 - f] * x[:, c,", "The filters are in the wrong order: dw[f] "
     "comes from dy[:, f]."),
    ("dy[:, f]", "abs(dy[:, f])", "The sign of dy is lost."),
]


def inputs():
    rng = np.random.default_rng(8)
    return rng.normal(size=(2, 2, 5, 5)), rng.normal(size=(2, 3, 3, 3))


def probe(student):
    return [student.conv2d_backward_weight(*inputs())]


def judge(student):
    check_gradients(lambda x, w: reference.conv2d_forward(x, w, np.zeros(len(w))),
                    lambda dy, x, w: student.conv2d_backward_weight(x, dy),
                    {"x": (2, 2, 5, 4), "w": (3, 2, 3, 2)}, wrt=["w"], step=1, name="dw")
