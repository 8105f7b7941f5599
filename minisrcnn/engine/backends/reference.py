"""The ``reference`` backend: the equations as they are written, never optimised.

Every function is its equation: one loop over the indices of the left-hand side, one loop over the
indices of the sum. One index, one letter:

====== ============================ ======= ==================================
``n``  image of the batch, 0..N-1   ``u``   kernel row, 0..KH-1
``c``  input channel, 0..C-1        ``v``   kernel column, 0..KW-1
``f``  output channel (filter)      ``i``   output row, 0..OH-1
``p``  input row, 0..H-1            ``j``   output column, 0..OW-1
``q``  input column, 0..W-1         ``k``   any element of an array
====== ============================ ======= ==================================

``dx`` is the gradient of the loss with respect to ``x``, an array of the shape and dtype of ``x``;
so for every name.

Sums are taken in float64 (complex128 for complex input) and rounded once at the end, so that a
float32 result is as good as float32 can be. Complex numbers are accepted so that the gradients can
be checked by complex-step differentiation: every function here is analytic where it is smooth (no
absolute values, no conjugates), and ReLU branches on the real part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import checks

NAME = "reference"

Array = NDArray[Any]

_ACCEPTS = checks.Accepts(np.ndarray, ("float32", "float64", "complex128"), contiguous=False)


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution (cross-correlation: the kernel is not flipped) plus bias.

    ::

        y[n,f,i,j] = b[f] + sum_{c,u,v} x[n,c,i+u,j+v] w[f,c,u,v]

    Parameters
    ----------
    x : (N, C, H, W) array
        Images.
    w : (F, C, KH, KW) array
        Filters, no larger than the images.
    b : (F,) array
        Biases.

    Returns
    -------
    y : (N, F, OH, OW) array
        ``OH = H - KH + 1``, ``OW = W - KW + 1``.

    Raises
    ------
    TypeError
        If an argument is not an array or its dtype is not accepted, or the dtypes differ.
    ValueError
        If shapes do not fit or the kernel is larger than the image.

    Notes
    -----
    Section 3.1 of the SRCNN paper, equations (1) to (3), writes this as ``W * Y + B``.
    """
    checks.conv2d_forward(x, w, b, _ACCEPTS)
    N, C, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = H - KH + 1, W - KW + 1
    dtype, (x, w, b) = x.dtype, _wide(x, w, b)
    y = np.zeros((N, F, OH, OW), x.dtype)
    for n, f, i, j in np.ndindex(N, F, OH, OW):
        y[n, f, i, j] = b[f]
        for c, u, v in np.ndindex(C, KH, KW):
            y[n, f, i, j] += x[n, c, i + u, j + v] * w[f, c, u, v]
    return y.astype(dtype)


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Return the gradient of the loss with respect to the input of a valid convolution.

    Differentiate the forward equation by one input pixel. Output (i, j) sees input (p, q) through
    the one tap (u, v) = (p - i, q - j), so dy[n,f,i,j] contributes with the factor w[f,c,p-i,q-j].
    By the chain rule, summed over the taps instead of the outputs (i = p - u, j = q - v)::

        dx[n,c,p,q] = sum_{f,i,j} dy[n,f,i,j] (d y[n,f,i,j] / d x[n,c,p,q])
                    = sum_{f,u,v} dy[n,f,p-u,q-v] w[f,c,u,v]
                      over all u, v with 0 <= p - u < OH and 0 <= q - v < OW

    The minus signs are the flipped kernel of the textbooks. This is the gather form: each input
    pixel collects its own sum, so that no two sums are added to the same element.

    Parameters
    ----------
    dy : (N, F, OH, OW) array
        Gradient with respect to the output.
    w : (F, C, KH, KW) array
        The filters of the forward pass.

    Returns
    -------
    dx : (N, C, H, W) array
        ``H = OH + KH - 1``, ``W = OW + KW - 1``.

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d_forward`.
    """
    checks.conv2d_backward_input(dy, w, _ACCEPTS)
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    H, W = OH + KH - 1, OW + KW - 1
    dtype, (dy, w) = dy.dtype, _wide(dy, w)
    dx = np.zeros((N, C, H, W), dy.dtype)
    for n, c, p, q in np.ndindex(N, C, H, W):
        for f, u, v in np.ndindex(F, KH, KW):
            if 0 <= p - u < OH and 0 <= q - v < OW:
                dx[n, c, p, q] += dy[n, f, p - u, q - v] * w[f, c, u, v]
    return dx.astype(dtype)


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Return the gradient of the loss with respect to the filters of a valid convolution.

    The weight w[f,c,u,v] takes part in every output of its filter, each time multiplied by the
    input at the offset (u, v)::

        dw[f,c,u,v] = sum_{n,i,j} dy[n,f,i,j] (d y[n,f,i,j] / d w[f,c,u,v])
                    = sum_{n,i,j} dy[n,f,i,j] x[n,c,i+u,j+v]

    itself a valid convolution, of the input with ``dy`` as the kernel.

    Parameters
    ----------
    x : (N, C, H, W) array
        The input of the forward pass.
    dy : (N, F, OH, OW) array
        Gradient with respect to the output.

    Returns
    -------
    dw : (F, C, KH, KW) array
        ``KH = H - OH + 1``, ``KW = W - OW + 1``.

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d_forward`.
    """
    checks.conv2d_backward_weight(x, dy, _ACCEPTS)
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    dtype, (x, dy) = x.dtype, _wide(x, dy)
    dw = np.zeros((F, C, KH, KW), x.dtype)
    for f, c, u, v in np.ndindex(F, C, KH, KW):
        for n, i, j in np.ndindex(N, OH, OW):
            dw[f, c, u, v] += dy[n, f, i, j] * x[n, c, i + u, j + v]
    return dw.astype(dtype)


def conv2d_backward_bias(dy: Array) -> Array:
    """Return the gradient of the loss with respect to the biases of a convolution.

    The bias is added to every output of its filter in every image, so ::

        db[f] = sum_{n,i,j} dy[n,f,i,j]

    Parameters
    ----------
    dy : (N, F, OH, OW) array
        Gradient with respect to the output.

    Returns
    -------
    db : (F,) array

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d_forward`.
    """
    checks.conv2d_backward_bias(dy, _ACCEPTS)
    N, F, OH, OW = dy.shape
    dtype, (dy,) = dy.dtype, _wide(dy)
    db = np.zeros(F, dy.dtype)
    for f in range(F):
        for n, i, j in np.ndindex(N, OH, OW):
            db[f] += dy[n, f, i, j]
    return db.astype(dtype)


def relu_forward(x: Array) -> Array:
    """Compute the rectified linear unit, element by element.

    ::

        y[k] = max(0, x[k])

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    y : array of the shape of ``x``
        A NaN stays a NaN, so that a broken number stays visible.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not an array, its dtype is not accepted, or it is empty.
    """
    checks.relu_forward(x, _ACCEPTS)
    y = np.zeros_like(x)
    for k in np.ndindex(*x.shape):
        y[k] = 0 if x[k].real <= 0 else x[k]  # not "x > 0", which a NaN would fail
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """Return the gradient of the loss with respect to the input of a ReLU.

    ::

        dx[k] = dy[k] if y[k] > 0 else 0

    ``y > 0`` exactly where ``x > 0``, so the output is all that needs to be kept. At the kink,
    ``x = 0``, the derivative is taken as 0, the usual choice.

    Parameters
    ----------
    dy : array of any shape
        Gradient with respect to the output.
    y : array of the same shape
        The output of the forward pass.

    Returns
    -------
    dx : array of the same shape

    Raises
    ------
    TypeError, ValueError
        If the arguments are not arrays of one shape and dtype.
    """
    checks.relu_backward(dy, y, _ACCEPTS)
    dx = np.zeros_like(dy)
    for k in np.ndindex(*dy.shape):
        dx[k] = dy[k] if y[k].real > 0 else 0
    return dx


def mse(y: Array, t: Array) -> tuple[Any, Array]:
    """Return the mean squared error over all M elements, and its gradient.

    ::

        loss = 1/M sum_k (y[k] - t[k])^2
        dy[k] = d loss / d y[k] = 2/M (y[k] - t[k])

    M counts every element: batch, channels, rows and columns. (The paper's equation (4) averages
    over the images only and sums over the pixels.) Only the term k of the sum contains y[k], so
    the gradient has no sum.

    Parameters
    ----------
    y, t : arrays of one shape
        Output and target.

    Returns
    -------
    loss : float
    dy : array of the same shape

    Raises
    ------
    TypeError, ValueError
        If the arguments are not arrays of one shape and dtype.
    """
    checks.mse(y, t, _ACCEPTS)
    M = y.size
    dtype, (y, t) = y.dtype, _wide(y, t)
    loss: Any = 0.0
    dy = np.zeros_like(y)
    for k in np.ndindex(*y.shape):
        loss += (y[k] - t[k]) ** 2 / M
        dy[k] = 2 * (y[k] - t[k]) / M
    return (complex(loss) if np.iscomplexobj(y) else float(loss)), dy.astype(dtype)


def sgd_update(
    param: Array, grad: Array, velocity: Array | None, lr: float, momentum: float
) -> None:
    """Take one step of gradient descent with momentum, in place.

    ::

        velocity[k] <- momentum velocity[k] - lr grad[k]
        param[k]    <- param[k] + velocity[k]

    Section 3.3, equation (5) of the SRCNN paper, with the sign of the gradient that makes it a
    descent.

    Parameters
    ----------
    param : array
        Updated in place.
    grad : array of the same shape
        Gradient of the loss with respect to ``param``.
    velocity : array of the same shape or None
        Updated in place; may be None where ``momentum`` is 0.
    lr : float
        Learning rate, at least 0.
    momentum : float
        In [0, 1).

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ, or a number is out of its range.
    """
    checks.sgd_update(param, grad, velocity, lr, momentum, _ACCEPTS)
    for k in np.ndindex(*param.shape):
        delta = -lr * grad[k]
        if velocity is not None:
            delta = momentum * velocity[k] + delta
            velocity[k] = delta
        param[k] = param[k] + delta


def adam_update(
    param: Array, grad: Array, m: Array, v: Array,
    step: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:
    """Take one step of Adam, in place (Kingma & Ba 2015, algorithm 1).

    ::

        m[k]     <- beta1 m[k] + (1 - beta1) grad[k]
        v[k]     <- beta2 v[k] + (1 - beta2) grad[k]^2
        param[k] <- param[k] - lr m_hat[k] / (sqrt(v_hat[k]) + eps)

        m_hat[k] = m[k] / (1 - beta1^step),    v_hat[k] = v[k] / (1 - beta2^step)

    Parameters
    ----------
    param, m, v : arrays of one shape
        Parameter and its two moments, updated in place.
    grad : array of the same shape
        Gradient of the loss with respect to ``param``.
    step : int
        Counted from 1.
    lr, beta1, beta2, eps : float
        As in the paper.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ, or a number is out of its range.
    """
    checks.adam_update(param, grad, m, v, step, lr, beta1, beta2, eps, _ACCEPTS)
    for k in np.ndindex(*param.shape):
        m[k] = beta1 * m[k] + (1 - beta1) * grad[k]
        v[k] = beta2 * v[k] + (1 - beta2) * grad[k] ** 2
        m_hat = m[k] / (1 - beta1**step)
        v_hat = v[k] / (1 - beta2**step)
        param[k] = param[k] - lr * m_hat / (np.sqrt(v_hat) + eps)


def asarray(a: Any, dtype: DTypeLike) -> Array:
    """Return ``a`` as a C-contiguous NumPy array of ``dtype``; no copy where none is needed."""
    return np.ascontiguousarray(a, dtype)


def to_numpy(a: Array) -> Array:
    """Return ``a`` as a NumPy array; here it is one already."""
    return a


def _wide(*arrays: Array) -> list[Array]:
    """Return the arrays in the precision in which sums are taken."""
    return [a.astype(np.complex128 if np.iscomplexobj(a) else np.float64) for a in arrays]
