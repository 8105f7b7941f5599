"""The gradient of the input: where the flipped kernel comes from.

    y[n,f,i,j] = b[f] + sum over c,u,v of x[n, c, i+u, j+v] w[f, c, u, v]

Pick one pixel, x[n,c,p,q]. It went into the output (i,j) through the tap (u,v) with i + u = p and
j + v = q: into as many outputs as there are taps, as far as these outputs exist. So

    dx[n,c,p,q] = sum over f,u,v of dy[n, f, p-u, q-v] w[f, c, u, v],   0 <= p-u < OH, 0 <= q-v < OW

Growing tap, shrinking output: seen from dy the kernel is flipped. Either gather, pixel by pixel,
and skip the outputs that do not exist; or let each output give back what it took:

    dx[n, :, i:i+KH, j:j+KW] += dy[n,f,i,j] * w[f]          for all n,f,i,j
"""

import numpy as np


def conv2d_backward_input(dy, w):
    """dy (N,F,OH,OW), w (F,C,KH,KW) -> dx (N,C,H,W), H = OH+KH-1, W = OW+KW-1."""
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    dx = np.zeros((N, C, OH + KH - 1, OW + KW - 1))
    for n, f, i, j in np.ndindex(N, F, OH, OW):
        # gap: what the output (i, j) of filter f gives back to the window that it came from
        dx[n, :, i:i + KH, j:j + KW] += dy[n, f, i, j] * w[f]
        # end of gap
    return dx


# ---- grading -----------------------------------------------------------------------------------
from minisrcnn.engine.backends import reference
from minisrcnn.gradcheck import check_gradients

MISTAKES = [
    ("* w[f]", "* w[f, :, ::-1, ::-1]", "The kernel is flipped the wrong way: dy[n,f,i,j] goes back "
     "to pixel (i+u, j+v) through the very tap (u, v) that it came through."),
    ("+= dy", "= dy", "Each output overwrites what others gave: a pixel went into many outputs, add "
     "them up."),
    ("* w[f]", "* w[0]", "Every filter gives back through the first kernel: use w[f]."),
    ("dx[n, :, i:i + KH, j:j + KW] += dy[n, f, i, j] * w[f]",
     "dx[n, :, i:i + KH, j:j + KW] += dy[n, f, i, j] * w[f, ::-1]", "Input channels are in the wrong "
     "order: dx[:, c] comes through w[:, c]."),
    ("i:i + KH, j:j + KW", "j:j + KH, i:i + KW", "Rows and columns are exchanged: output (i, j) came "
     "from the window whose corner is pixel (i, j)."),
    ("dy[n, f, i, j] * w[f]", "dy[n, f, i, j] * w[f].swapaxes(1, 2)", "The kernel's height and width "
     "are exchanged."),
]


def inputs():
    rng = np.random.default_rng(9)
    return rng.normal(size=(2, 3, 3, 3)), rng.normal(size=(3, 2, 3, 3))


def probe(student):
    return [student.conv2d_backward_input(*inputs())]


def judge(student):
    check_gradients(lambda x, w: reference.conv2d_forward(x, w, np.zeros(len(w))),
                    lambda dy, x, w: student.conv2d_backward_input(dy, w),
                    {"x": (2, 2, 5, 4), "w": (3, 2, 3, 2)}, wrt=["x"], step=1, name="dx")
