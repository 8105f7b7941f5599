"""The convolution of a layer: images, channels, filters.

x has N images of C channels, w has F filters, each over all C channels:

    y[n,f,i,j] = b[f] + sum over c,u,v of x[n, c, i+u, j+v] w[f, c, u, v]

The indices on the left are loops; those that stand on the right alone are the sum. Write the seven
loops, or let NumPy do the sum over a window: x[n, :, i:i+KH, j:j+KW] has the shape of w[f].
"""

import numpy as np


def conv2d_forward(x, w, b):
    """x (N,C,H,W), w (F,C,KH,KW), b (F,) -> y (N,F,OH,OW), OH = H-KH+1, OW = W-KW+1."""
    N, C, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = H - KH + 1, W - KW + 1
    y = np.zeros((N, F, OH, OW))
    for n, f, i, j in np.ndindex(N, F, OH, OW):
        # gap: the output pixel (i, j) of filter f of image n
        y[n, f, i, j] = b[f] + np.sum(x[n, :, i:i + KH, j:j + KW] * w[f])
        # end of gap
    return y


# ---- grading -----------------------------------------------------------------------------------
from scipy.signal import correlate

from minisrcnn.learn.grading import expect

MISTAKES = [
    ("* w[f])", "* w[f, :, ::-1, ::-1])", "The kernel is flipped: tap (u, v) belongs to pixel "
     "(i + u, j + v)."),
    ("x[n, :, i:i + KH, j:j + KW] * w[f])", "x[n, 0, i:i + KH, j:j + KW] * w[f, 0])",
     "Only the first channel contributes: the sum runs over c as well."),
    ("b[f] + ", "", "The bias is missing."),
    ("b[f]", "b[0]", "Every filter gets the first bias: b has one number for each filter."),
    ("x[n,", "x[0,", "Every image is computed from the first one: use x[n]."),
    ("i:i + KH, j:j + KW", "j:j + KH, i:i + KW", "Rows and columns are exchanged: i goes with the "
     "third axis (height), j with the fourth (width)."),
]


def inputs():
    rng = np.random.default_rng(2)
    return rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)


def probe(student):
    return [student.conv2d_forward(*inputs())]


def judge(student):
    rng = np.random.default_rng(3)
    for x, w, b in (inputs(), (rng.normal(size=(2, 2, 7, 5)), rng.normal(size=(3, 2, 2, 4)),
                               rng.normal(size=3))):
        want = np.stack([[correlate(image, kernel, "valid")[0] + bias
                          for kernel, bias in zip(w, b, strict=True)] for image in x])
        expect(student.conv2d_forward(x, w, b), want, "y")
