"""Loops over single numbers: ReLU, loss, bias gradient, optimizers.

Bound by memory, not by arithmetic, and a few per cent of a training step even layer by layer;
so they are plain loops on one thread, which LLVM turns into vector code.
"""

from __future__ import annotations

import numpy as np
from numba import types

from ..jit import const, kernel


@kernel(lambda t: (const(t, 1), t[::1]))
def relu(x, y):
    """Y = max(0, x); NaN stays NaN."""
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = zero if x[i] <= zero else x[i]


@kernel(lambda t: (const(t, 1), const(t, 1), t[::1]))
def relu_gradient(dy, y, dx):
    """Dx = dy where y > 0, else 0."""
    zero = y.dtype.type(0)
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > zero else zero


@kernel(lambda t: (const(t, 1), const(t, 1), t[::1]))
def mse(y, t, dy):
    """Mean of (y - t)^2, summed in float64; dy = 2 (y - t) / size."""
    scale = y.dtype.type(2.0 / y.size)
    loss = 0.0
    for i in range(y.size):
        difference = y[i] - t[i]
        loss += np.float64(difference) * np.float64(difference)
        dy[i] = scale * difference
    return loss / y.size


@kernel(lambda t: (const(t, 4), t[::1]))
def bias_gradient(dy, db):
    """db[f] = sum of dy[n, f, i, j] over n, i, j, in float64."""
    N, F, OH, OW = dy.shape
    for f in range(F):
        total = 0.0
        for n in range(N):
            for i in range(OH):
                for j in range(OW):
                    total += dy[n, f, i, j]
        db[f] = total


@kernel(lambda t: (t[::1], const(t, 1), types.float64))
def sgd(param, grad, lr):
    """Param -= lr grad."""
    rate = param.dtype.type(lr)
    for i in range(param.size):
        param[i] -= rate * grad[i]


@kernel(lambda t: (t[::1], const(t, 1), t[::1], types.float64, types.float64))
def sgd_momentum(param, grad, velocity, lr, momentum):
    """Velocity = momentum velocity - lr grad; param += velocity."""
    rate, keep = param.dtype.type(lr), param.dtype.type(momentum)
    for i in range(param.size):
        velocity[i] = keep * velocity[i] - rate * grad[i]
        param[i] += velocity[i]


@kernel(lambda t: (t[::1], const(t, 1), t[::1], t[::1], types.int64, types.float64,
                   types.float64, types.float64, types.float64))
def adam(param, grad, m, v, step, lr, beta1, beta2, eps):
    """One step of Adam with bias correction, in float64 inside."""
    to_m_hat = 1.0 / (1.0 - beta1**step)
    to_v_hat = 1.0 / (1.0 - beta2**step)
    for i in range(param.size):
        g = np.float64(grad[i])
        m_i = beta1 * m[i] + (1.0 - beta1) * g
        v_i = beta2 * v[i] + (1.0 - beta2) * g * g
        m[i], v[i] = m_i, v_i
        param[i] -= lr * (m_i * to_m_hat) / (np.sqrt(v_i * to_v_hat) + eps)
