"""The ``numpy`` backend: the same equations as matrix products (im2col and GEMM).

:func:`im2col` writes every patch that the kernel covers as one column; then a convolution is one
matrix product for each image, and so is each of its gradients. Most libraries began like this, and
version 2 of the CUDA kernels does the same. Any float dtype is accepted, and complex for
complex-step differentiation.

The equations and the indices are those of ``reference``; ``(c,u,v)`` is one index that runs over
all c, u and v.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from . import checks

NAME = "numpy"

Array = NDArray[Any]

_ACCEPTS = checks.Accepts(
    np.ndarray,
    ("float16", "float32", "float64", str(np.dtype(np.longdouble)), "complex64", "complex128"),
    contiguous=False,
)


def im2col(x: Array, KH: int, KW: int) -> Array:
    """Write the KH x KW patches of every image as columns.

    ::

        cols[n,(c,u,v),(i,j)] = x[n,c,i+u,j+v]

    Parameters
    ----------
    x : (N, C, H, W) array
    KH, KW : int
        Size of the kernel, at most H x W.

    Returns
    -------
    cols : (N, C*KH*KW, OH*OW) array
        A copy; KH * KW times as large as the input.
    """
    N, C, H, W = x.shape
    windows = sliding_window_view(x, (KH, KW), axis=(2, 3))  # (N, C, OH, OW, KH, KW), a view
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(
        N, C * KH * KW, (H - KH + 1) * (W - KW + 1)
    )


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution (cross-correlation: the kernel is not flipped) plus bias.

    ::

        y[n,f,(i,j)] = b[f] + sum_{(c,u,v)} w[f,(c,u,v)] cols[n,(c,u,v),(i,j)]

    Shapes and errors as ``reference.conv2d_forward``.
    """
    checks.conv2d_forward(x, w, b, _ACCEPTS)
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    y = w.reshape(F, -1) @ im2col(x, KH, KW)  # (F, CKK) @ (N, CKK, OH*OW)
    y += b[:, None]
    return y.reshape(N, F, H - KH + 1, W - KW + 1)


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Return the gradient of the loss with respect to the input of a valid convolution.

    Substitute u = KH-1-u' and v = KW-1-v' in the equation of ``reference``, and the minus signs
    become plus signs::

        dx[n,c,p,q] = sum_{f,u,v} dy[n,f,p-u,q-v] w[f,c,u,v]
                    = sum_{f,u',v'} padded[n,f,p+u',q+v'] w[f,c,KH-1-u',KW-1-v']

    a valid convolution of ``padded``, which is ``dy`` with KH-1 rows and KW-1 columns of zeros on
    every side, with the flipped filters, where channels and filters have changed places. Each
    input pixel gathers its own sum; nothing is scattered.

    Shapes and errors as ``reference.conv2d_backward_input``.
    """
    checks.conv2d_backward_input(dy, w, _ACCEPTS)
    _, C, KH, KW = w.shape
    padded = np.pad(dy, ((0, 0), (0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1)))
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)  # (C, F, KH, KW)
    return conv2d_forward(padded, flipped, np.zeros(C, w.dtype))


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Return the gradient of the loss with respect to the filters of a valid convolution.

    ::

        dw[f,(c,u,v)] = sum_n sum_{(i,j)} dy[n,f,(i,j)] cols[n,(c,u,v),(i,j)]

    Shapes and errors as ``reference.conv2d_backward_weight``.
    """
    checks.conv2d_backward_weight(x, dy, _ACCEPTS)
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    per_image = dy.reshape(N, F, OH * OW) @ im2col(x, KH, KW).transpose(0, 2, 1)
    return per_image.sum(axis=0).reshape(F, C, KH, KW)


def conv2d_backward_bias(dy: Array) -> Array:
    """Return the gradient of the loss with respect to the biases of a convolution.

    ::

        db[f] = sum_{n,i,j} dy[n,f,i,j]

    Shapes and errors as ``reference.conv2d_backward_bias``.
    """
    checks.conv2d_backward_bias(dy, _ACCEPTS)
    return dy.sum(axis=(0, 2, 3))


def relu_forward(x: Array) -> Array:
    """Compute ``y = max(0, x)``; shapes and errors as ``reference.relu_forward``."""
    checks.relu_forward(x, _ACCEPTS)
    return np.where(x.real <= 0, x.dtype.type(0), x)


def relu_backward(dy: Array, y: Array) -> Array:
    """Return ``dx = dy where y > 0, else 0``; shapes and errors as ``reference.relu_backward``."""
    checks.relu_backward(dy, y, _ACCEPTS)
    return np.where(y.real > 0, dy, dy.dtype.type(0))


def mse(y: Array, t: Array) -> tuple[Any, Array]:
    """Return the mean squared error over all M elements, and its gradient.

    ::

        loss = 1/M sum_k (y[k] - t[k])^2
        dy[k] = 2/M (y[k] - t[k])

    Shapes and errors as ``reference.mse``.
    """
    checks.mse(y, t, _ACCEPTS)
    difference = y - t
    loss = np.mean(np.square(difference, dtype=np.result_type(y.dtype, np.float64)))
    dy = difference * difference.dtype.type(2 / y.size)
    return loss.item(), dy


def sgd_update(
    param: Array, grad: Array, velocity: Array | None, lr: float, momentum: float
) -> None:
    """Take one step of gradient descent with momentum, in place.

    ::

        velocity <- momentum velocity - lr grad
        param    <- param + velocity

    Arguments and errors as ``reference.sgd_update``.
    """
    checks.sgd_update(param, grad, velocity, lr, momentum, _ACCEPTS)
    lr, momentum = float(lr), float(momentum)  # a NumPy float64 would widen float32 arrays
    if velocity is None:
        param -= lr * grad
    else:
        velocity *= momentum
        velocity -= lr * grad
        param += velocity


def adam_update(
    param: Array, grad: Array, m: Array, v: Array,
    step: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:
    """Take one step of Adam, in place; equations and errors as ``reference.adam_update``."""
    checks.adam_update(param, grad, m, v, step, lr, beta1, beta2, eps, _ACCEPTS)
    m *= beta1
    m += (1 - beta1) * grad
    v *= beta2
    v += (1 - beta2) * np.square(grad)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    param -= lr * m_hat / (np.sqrt(v_hat) + eps)


def asarray(a: Any, dtype: DTypeLike) -> Array:
    """Return ``a`` as a C-contiguous NumPy array of ``dtype``; no copy where none is needed."""
    return np.ascontiguousarray(a, dtype)


def to_numpy(a: Array) -> Array:
    """Return ``a`` as a NumPy array; here it is one already."""
    return a
