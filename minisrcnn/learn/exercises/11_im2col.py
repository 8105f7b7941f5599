"""A convolution is a product of matrices.

Write every window of the image as a column of C*KH*KW numbers, one row for each tap (c,u,v), one
column for each output pixel (i,j):

    columns[(c,u,v), (i,j)] = x[c, i+u, j+v]

Then y = w columns, with w as a matrix (F, C*KH*KW): one large product, which the fastest libraries
of the world are made for. Rows and columns are numbered in C order: row (c,u,v) is number
(c*KH + u)*KW + v.
"""

import numpy as np


def im2col(x, KH, KW):
    """x (C,H,W) -> columns (C*KH*KW, OH*OW)."""
    C, H, W = x.shape
    OH, OW = H - KH + 1, W - KW + 1
    columns = np.zeros((C * KH * KW, OH * OW))
    for c, u, v in np.ndindex(C, KH, KW):
        # gap: the row of tap (c, u, v): the pixels that it meets, one for each output
        columns[(c * KH + u) * KW + v] = x[c, u:u + OH, v:v + OW].ravel()
        # end of gap
    return columns


def convolve(x, w):
    """x (C,H,W), w (F,C,KH,KW) -> y (F,OH,OW), by one product of matrices."""
    C, H, W = x.shape
    F, _, KH, KW = w.shape
    # gap: w as a matrix, times the columns, as images again
    y = w.reshape(F, -1) @ im2col(x, KH, KW)
    return y.reshape(F, H - KH + 1, W - KW + 1)
    # end of gap


# ---- grading -----------------------------------------------------------------------------------
from scipy.signal import correlate

from minisrcnn.learn.grading import expect

MISTAKES = [
    ("(c * KH + u) * KW + v]", "(c * KW + v) * KH + u]", "Rows in another order than the weights': "
     "(c, u, v) in C order is (c*KH + u)*KW + v."),
    ("u:u + OH, v:v + OW]", "u:u + OH, u:u + OW]", "The tap's column v is not used: its pixels begin "
     "at row u and column v."),
    (".ravel()", ".T.ravel()", "The pixels of a row in column order: output (i, j) is column "
     "i*OW + j."),
    ("= x[c, u", "= x[0, u", "Every channel is copied from the first one."),
]


def inputs():
    rng = np.random.default_rng(13)
    return rng.normal(size=(2, 5, 5)), rng.normal(size=(3, 2, 3, 3))


def probe(student):
    x, w = inputs()
    return [student.im2col(x, 3, 3), student.convolve(x, w)]


def judge(student):
    columns = student.im2col(np.arange(12.0).reshape(1, 3, 4), 2, 2)
    expect(columns[0], [0, 1, 2, 4, 5, 6], "row of tap (0,0) of a 3x4 image: columns")
    expect(columns[1], [1, 2, 3, 5, 6, 7], "row of tap (0,1) of a 3x4 image: columns")
    expect(columns[2], [4, 5, 6, 8, 9, 10], "row of tap (1,0) of a 3x4 image: columns")
    rng = np.random.default_rng(14)
    for x, w in (inputs(), (rng.normal(size=(3, 6, 4)), rng.normal(size=(2, 3, 2, 3)))):
        want = np.stack([correlate(x, kernel, "valid")[0] for kernel in w])
        expect(student.convolve(x, w), want, "y")
