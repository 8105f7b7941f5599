"""The way back: col2im, as a gather.

The transpose of im2col gives every number of the columns back to the pixel that it was copied from,
and adds up: the input gradient of a convolution is col2im(w^T dy). Written as a scatter, many
columns add to one pixel; on a GPU, where they do so at once, that takes atomic additions. Written as
a gather there is no conflict: each pixel (p,q) collects from the columns that hold it,

    x[c,p,q] = sum over u,v of columns[(c,u,v), (p-u, q-v)],    0 <= p-u < OH, 0 <= q-v < OW
"""

import numpy as np


def col2im(columns, C, H, W, KH, KW):
    """columns (C*KH*KW, OH*OW) -> x (C,H,W)."""
    OH, OW = H - KH + 1, W - KW + 1
    columns = columns.reshape(C, KH, KW, OH, OW)
    x = np.zeros((C, H, W))
    for c, p, q in np.ndindex(C, H, W):
        # gap: collect what the windows that hold pixel (p, q) have of it
        for u in range(KH):
            for v in range(KW):
                i, j = p - u, q - v
                if 0 <= i < OH and 0 <= j < OW:
                    x[c, p, q] += columns[c, u, v, i, j]
        # end of gap
    return x


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.learn.grading import expect

MISTAKES = [
    ("i, j = p - u, q - v", "i, j = p + u, q + v", "The wrong direction: pixel (p, q) lies under tap "
     "(u, v) of the window whose corner is (p - u, q - v)."),
    ("if 0 <= i < OH and 0 <= j < OW:", "if i < OH and j < OW:", "Negative indices: NumPy counts them "
     "from the end, so windows that do not exist are read on the other side. Ask for 0 <= i too."),
    ("+= columns", "= columns", "The last window overwrites the others: a pixel lies in many, add "
     "them up."),
]


def probe(student):
    columns = np.random.default_rng(15).normal(size=(18, 9))
    return [student.col2im(columns, 2, 5, 5, 3, 3)]


def judge(student):
    expect(student.col2im(np.ones((4, 4)), 1, 3, 3, 2, 2)[0], [[1, 2, 1], [2, 4, 2], [1, 2, 1]],
           "columns of ones count the windows that a pixel lies in: x")
    rng = np.random.default_rng(16)
    C, H, W, KH, KW = 2, 6, 5, 3, 2
    OH, OW = H - KH + 1, W - KW + 1
    x, columns = rng.normal(size=(C, H, W)), rng.normal(size=(C * KH * KW, OH * OW))
    windows = np.lib.stride_tricks.sliding_window_view(x, (KH, KW), (1, 2))
    taken = windows.transpose(0, 3, 4, 1, 2).reshape(C * KH * KW, OH * OW)
    # <im2col(x), columns> = <x, col2im(columns)> for every x: what a transpose is
    expect(np.sum(x * student.col2im(columns, C, H, W, KH, KW)), np.sum(taken * columns),
           "<x, col2im(columns)>", 1e-12)
