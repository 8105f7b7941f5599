"""What convolutions and networks are checked against, and the arrays to check with.

Convolutions by SciPy, in float64, for comparing; by NumPy's sliding windows, in the dtype of their
arguments and quickly, for the gradient checker, which calls them thousands of times. Networks by
PyTorch's autograd.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import convolve, correlate

# N, C, H, W, F, KH, KW: the layers of SRCNN, one-pixel outputs, odd everything.
SHAPES = [
    (2, 1, 33, 33, 64, 9, 9),
    (2, 64, 13, 11, 32, 1, 1),
    (2, 32, 12, 13, 1, 5, 5),
    (1, 64, 9, 9, 32, 5, 5),
    (1, 1, 1, 1, 1, 1, 1),
    (3, 3, 5, 7, 5, 5, 7),
    (33, 2, 4, 6, 3, 2, 3),
    (2, 17, 6, 5, 33, 3, 2),
    (1, 40, 7, 4, 2, 4, 3),
    (1, 16, 10, 9, 19, 3, 3),
    (3, 21, 5, 6, 17, 5, 5),
    (3, 3, 14, 17, 18, 9, 9),
    (2, 1, 9, 12, 21, 9, 4),
    (35, 6, 8, 9, 9, 1, 1),
    (1, 5, 25, 131, 70, 1, 1),
]


def draw(shape, dtype="float64", seed=0):
    """Return x, w, b and dy for a shape (N, C, H, W, F, KH, KW)."""
    N, C, H, W, F, KH, KW = shape
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(s) for s in (
        (N, C, H, W), (F, C, KH, KW), (F,), (N, F, H - KH + 1, W - KW + 1)))
    return [a.astype(dtype) for a in arrays]


def conv2d_forward(x, w, b):
    """y by SciPy, in float64, one image and pair of channels at a time."""
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    return np.array([[b[f] + sum(correlate(x_c, w_c, "valid", "direct")
                                 for x_c, w_c in zip(x_n, w[f], strict=True))
                      for f in range(len(w))] for x_n in x])


def conv2d_backward_input(dy, w):
    """dx by SciPy, in float64."""
    dy, w = (a.astype(np.float64) for a in (dy, w))
    return np.array([[sum(convolve(dy_f, w_f[c], "full", "direct")
                          for dy_f, w_f in zip(dy_n, w, strict=True))
                      for c in range(w.shape[1])] for dy_n in dy])


def conv2d_backward_weight(x, dy):
    """dw by SciPy, in float64."""
    x, dy = (a.astype(np.float64) for a in (x, dy))
    return np.array([[sum(correlate(x_n[c], dy_n[f], "valid", "direct")
                          for x_n, dy_n in zip(x, dy, strict=True))
                      for c in range(x.shape[1])] for f in range(dy.shape[1])])


def all_three(x, w, b, dy):
    """y, dx and dw."""
    return conv2d_forward(x, w, b), conv2d_backward_input(dy, w), conv2d_backward_weight(x, dy)


@functools.cache
def drawn(shape, dtype):
    """The arrays of :func:`draw`, and of :func:`all_three` for them; nobody may write to either."""
    arrays = draw(shape, dtype)
    wanted = all_three(*arrays)
    for a in (*arrays, *wanted):
        a.flags.writeable = False
    return arrays, wanted


def windows_forward(x, w, b):
    """y by sliding windows."""
    windows = sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("ncijuv,fcuv->nfij", windows, w) + b[:, None, None]


def windows_backward_input(dy, w):
    """dx by sliding windows over dy within zeros."""
    KH, KW = w.shape[2:]
    dy = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    windows = sliding_window_view(dy, (KH, KW), axis=(2, 3))
    return np.einsum("nfijuv,fcuv->ncij", windows, w[:, :, ::-1, ::-1])


def windows_backward_weight(x, dy):
    """dw by sliding windows as large as dy."""
    windows = sliding_window_view(x, dy.shape[2:], axis=(2, 3))
    return np.einsum("ncuvij,nfij->fcuv", windows, dy)


def backward_bias(dy):
    """db: the sum over images and pixels."""
    return dy.sum(axis=(0, 2, 3))


def torch_network(leaves, x):
    """y of convolutions with a ReLU between them; ``leaves``: weights and biases in order."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    values = list(leaves.values())
    for i in range(0, len(values), 2):
        x = torch.nn.functional.conv2d(torch.relu(x) if i else x, values[i], values[i + 1])
    return x


def torch_gradients(params, x, t):
    """Mean squared error and its gradients by name; NumPy arrays of any dtype, all in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    x, t = (torch.tensor(np.asarray(a, np.float64)) for a in (x, t))
    leaves = {name: torch.tensor(np.asarray(value, np.float64), requires_grad=True)
              for name, value in params.items()}
    loss = torch.nn.functional.mse_loss(torch_network(leaves, x), t)
    loss.backward()
    return loss.item(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}
