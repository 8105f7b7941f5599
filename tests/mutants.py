"""A small correct engine in plain NumPy, and a zoo of everything that goes wrong in one.

Each mutant is a pair (forward, backward) whose forward is right. ``says`` is a part of the
diagnosis that a known mistake must get; None where the mistake has no name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from oracles import backward_bias as conv_db
from oracles import windows_backward_input as conv_dx
from oracles import windows_backward_weight as conv_dw
from oracles import windows_forward as conv

CONV = {"x": (3, 2, 5, 4), "w": (3, 2, 3, 2), "b": (3,)}
SQUARE = {"x": (2, 3, 4, 4), "w": (3, 3, 3, 3), "b": (3,)}  # C = F, KH = KW: shapes tell nothing


def conv_back(dy, x, w, b):
    return {"x": conv_dx(dy, w), "w": conv_dw(x, dy), "b": conv_db(dy)}


def relu(x):
    return np.maximum(x, 0)


def relu_back(dy, x):
    return dy * (x > 0)


def mse(y, t):
    return np.mean((y - t) ** 2)


def mse_back(dloss, y, t):
    return dloss * 2 * (y - t) / y.size


def replaced(**wrong: Callable[..., Any]) -> Callable[..., Any]:
    """The right backward of conv, with one gradient replaced by ``wrong(dy, x, w, b, right)``."""
    def backward(dy, x, w, b):
        grads = conv_back(dy, x, w, b)
        return grads | {key: f(dy, x, w, b, grads[key]) for key, f in wrong.items()}
    return backward


class Accumulating:
    """Adds every gradient to the one before, as a framework's ``.grad`` does."""

    def __init__(self):
        self.dw = 0.0

    def __call__(self, dy, x, w, b):
        self.dw = self.dw + conv_dw(x, dy)
        return conv_back(dy, x, w, b) | {"w": self.dw.copy()}


def in_place_dy(dy, x):
    dy *= x > 0
    return dy


def in_place_x(x):
    return np.maximum(x, 0, out=x)


def cached(x):
    return relu(x), {"mask": x > 0}


def in_place_cache(dy, cache):
    cache["mask"] &= dy > 0
    return dy * cache["mask"]


@dataclass
class Mutant:
    name: str
    backward: Callable[..., Any]
    says: str | None
    inputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: CONV)
    forward: Callable[..., Any] = conv
    wrong: str = ""       # the argument that must be marked
    wrt: tuple[str, ...] | None = None
    only_full: bool = False  # named only where every entry of the Jacobian is looked at


def _one_off(dy, x, w, b, right):
    right = right.copy()
    right.flat[right.size // 2] *= 1.01
    return right


def _relu(name, backward, says, forward=relu):
    return Mutant(name, backward, says, {"x": (3, 5, 4)}, forward, "x")


def _mse(name, backward, says):
    return Mutant(name, backward, says, {"y": (3, 2, 4), "t": (3, 2, 4)}, mse, "y", ("y",))


MUTANTS = [
    # conv, with respect to the input
    Mutant("dx, kernel not flipped", replaced(
        x=lambda dy, x, w, b, right: conv_dx(dy, w[:, :, ::-1, ::-1])),
        "kernel flipped", wrong="x"),
    Mutant("dx, H and W of the kernel swapped", replaced(
        x=lambda dy, x, w, b, right: conv_dx(dy, w.swapaxes(2, 3))),
        "H and W swapped", SQUARE, wrong="x"),
    Mutant("dx, channels of the kernel swapped", replaced(
        x=lambda dy, x, w, b, right: conv_dx(dy, w.swapaxes(0, 1))),
        "in/out channels swapped", SQUARE, wrong="x"),
    Mutant("dx, H and W of the result swapped", replaced(
        x=lambda dy, x, w, b, right: right.swapaxes(2, 3)), "H and W swapped", SQUARE, wrong="x"),
    Mutant("dx, transposed shape", replaced(
        x=lambda dy, x, w, b, right: right.swapaxes(2, 3)), "H and W swapped", wrong="x"),
    Mutant("dx, the border forgotten", replaced(
        x=lambda dy, x, w, b, right: np.pad(right[:, :, 1:-1, 1:-1],
                                            ((0, 0), (0, 0), (1, 1), (1, 1)))),
        "entries left out", wrong="x"),
    Mutant("dx, scatter overwrites instead of adding", replaced(
        x=lambda dy, x, w, b, right: _overwriting_dx(dy, x, w)), "entries left out", wrong="x",
        only_full=True),
    # conv, with respect to the weights
    Mutant("dw, kernel flipped", replaced(
        w=lambda dy, x, w, b, right: right[:, :, ::-1, ::-1]), "kernel flipped", wrong="w"),
    Mutant("dw, H and W swapped", replaced(
        w=lambda dy, x, w, b, right: right.swapaxes(2, 3)), "H and W swapped", SQUARE, wrong="w"),
    Mutant("dw, channels swapped", replaced(
        w=lambda dy, x, w, b, right: right.swapaxes(0, 1)),
        "in/out channels swapped", SQUARE, wrong="w"),
    Mutant("dw, channels swapped in a shape that shows it", replaced(
        w=lambda dy, x, w, b, right: right.swapaxes(0, 1)), "in/out channels swapped", wrong="w"),
    Mutant("dw, mean over the batch", replaced(
        w=lambda dy, x, w, b, right: right / 3), "a factor N (N = 3, the batch size)", wrong="w"),
    Mutant("dw, only the first sample", replaced(
        w=lambda dy, x, w, b, right: conv_dw(x[:1], dy[:1])), "not summed over axis 0", wrong="w"),
    Mutant("dw, the last row of dy left out", replaced(
        w=lambda dy, x, w, b, right: conv_dw(x[:, :, :-1], dy[:, :, :-1])),
        "index 2 of axis 2 of dy is left out", wrong="w"),
    Mutant("dw, one element off by one percent", replaced(w=_one_off), None, wrong="w"),
    Mutant("dw, off by 0.05 percent", replaced(
        w=lambda dy, x, w, b, right: right * 1.0005), "a factor of 0.9995", wrong="w"),
    Mutant("dw, one row up", replaced(
        w=lambda dy, x, w, b, right: np.roll(right, 1, axis=2)),
        "shifted: right if rolled by -1 along axis 2", wrong="w"),
    Mutant("dw, accumulated", Accumulating, "accumulated instead of overwritten", wrong="w"),
    Mutant("dw, flipped and halved", replaced(
        w=lambda dy, x, w, b, right: right[:, :, ::-1, ::-1] / 2),
        "kernel flipped: right if reversed along axes (2, 3) and a factor 2", wrong="w"),
    # conv, with respect to the bias
    Mutant("db, not summed over the batch", replaced(
        b=lambda dy, x, w, b, right: dy.sum(axis=(2, 3))),
        "not summed over axes (0,), axis 0 is the batch", wrong="b"),
    Mutant("db, not summed at all", replaced(
        b=lambda dy, x, w, b, right: dy), "not summed over axes (0, 2, 3)", wrong="b"),
    Mutant("db, the first sample's", replaced(
        b=lambda dy, x, w, b, right: dy[0].sum(axis=(1, 2))),
        "not summed over axis 0 of dy (the batch)", wrong="b"),
    Mutant("db, mean over the pixels", replaced(
        b=lambda dy, x, w, b, right: dy.mean(axis=(2, 3)).sum(axis=0)),
        "a factor P (P = 9, the number of pixels)", wrong="b"),
    Mutant("db, zero", replaced(
        b=lambda dy, x, w, b, right: np.zeros_like(b)), "zero everywhere", wrong="b"),
    Mutant("db, NaN", replaced(
        b=lambda dy, x, w, b, right: right * np.nan), None, wrong="b"),
    Mutant("db, forgotten", lambda dy, x, w, b: {
        "x": conv_dx(dy, w), "w": conv_dw(x, dy)}, None, wrong="b"),
    Mutant("db, in another precision", replaced(
        b=lambda dy, x, w, b, right: right.astype(np.float16)), None, wrong="b"),
    # ReLU
    _relu("relu, mask missing", lambda dy, x: dy.copy(), "mask missing"),
    _relu("relu, mask inverted", lambda dy, x: dy * (x <= 0), "mask inverted"),
    _relu("relu, mask of dy", lambda dy, x: dy * (dy > 0), None),
    _relu("relu, mask too strict", lambda dy, x: dy * (x > 0.5), "entries left out"),
    _relu("relu, sign", lambda dy, x: -dy * (x > 0), "sign wrong"),
    _relu("relu, y instead of its mask", lambda dy, x: dy * relu(x), None),
    _relu("relu, backward writes to dy", in_place_dy, None),
    _relu("relu, forward writes to x", relu_back, None, in_place_x),
    _relu("relu, backward changes its cache", in_place_cache, None, cached),
    # the loss
    _mse("mse, no factor 2", lambda dl, y, t: dl * (y - t) / y.size, "a factor 2 is missing"),
    _mse("mse, not divided", lambda dl, y, t: dl * 2 * (y - t),
         "a factor 1/M (M = 24, the number of elements) is missing"),
    _mse("mse, neither", lambda dl, y, t: dl * (y - t), "a factor 2/M (M = 24"),
    _mse("mse, divided by the batch", lambda dl, y, t: dl * 2 * (y - t) / len(y),
         "a factor of 0.125 is missing"),
    _mse("mse, t - y", lambda dl, y, t: dl * 2 * (t - y) / y.size, "sign wrong"),
    _mse("mse, the loss's own dy ignored", lambda dl, y, t: 2 * (y - t) / y.size,
         "not multiplied by dy"),
    _mse("mse, absolute value", lambda dl, y, t: dl * 2 * abs(y - t) / y.size, None),
]


def _overwriting_dx(dy, x, w):
    dx = np.zeros_like(x)
    for i in range(dy.shape[2]):
        for j in range(dy.shape[3]):
            dx[:, :, i:i + w.shape[2], j:j + w.shape[3]] = np.einsum(
                "nf,fcuv->ncuv", dy[:, :, i, j], w)
    return dx


# Gradient descent with momentum, and its mutants ---------------------------------------------

LR, MU = 0.1, 0.9
SGD_STATE = {"param": (4, 3), "grad": (4, 3), "velocity": (4, 3)}


def sgd(param, grad, velocity):
    velocity *= MU
    velocity -= LR * grad
    param += velocity


def sgd_formula(param, grad, velocity):
    new = MU * velocity - LR * grad
    return {"param": param + new, "velocity": new}


def _sgd_ascends(param, grad, velocity):
    velocity[...] = MU * velocity + LR * grad
    param += velocity


def _sgd_without_momentum(param, grad, velocity):
    velocity[...] = -LR * grad
    param += velocity


def _sgd_velocity_forgotten(param, grad, velocity):
    param += MU * velocity - LR * grad


def _sgd_lr_twice(param, grad, velocity):
    velocity[...] = MU * velocity - LR * LR * grad
    param += velocity


def _sgd_not_in_place(param, grad, velocity):
    velocity = MU * velocity - LR * grad
    param = param + velocity
    return param, velocity


def _sgd_scales_grad(param, grad, velocity):
    grad *= LR
    velocity *= MU
    velocity -= grad
    param += velocity


def _sgd_old_velocity(param, grad, velocity):
    param += velocity
    velocity[...] = MU * velocity - LR * grad


def _sgd_dampened(param, grad, velocity):
    velocity[...] = MU * velocity - (1 - MU) * LR * grad
    param += velocity


def _sgd_decays(param, grad, velocity):
    velocity[...] = MU * velocity - LR * grad - 0.01 * param
    param += velocity


SGD_MUTANTS = {
    "ascends": (_sgd_ascends, "velocity", "the term in grad: sign wrong"),
    "no momentum": (_sgd_without_momentum, "param", "the term in velocity: term missing"),
    "velocity not kept": (_sgd_velocity_forgotten, "velocity", "not updated in place"),
    "learning rate twice": (_sgd_lr_twice, "param", "the term in grad: off by the factor 0.1"),
    "not in place": (_sgd_not_in_place, "param", "param is not updated in place"),
    "writes to grad": (_sgd_scales_grad, "grad", "grad is written to"),
    "steps along the old velocity": (_sgd_old_velocity, "param", "the term in grad: term missing"),
    "dampened": (_sgd_dampened, "velocity", "the term in grad: off by the factor 0.1"),
    "weight decay": (_sgd_decays, "param", "the term in param: term too many"),
}
