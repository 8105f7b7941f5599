"""Argument checks shared by every backend, so that all of them refuse the same mistakes alike.

Each function raises ``TypeError`` (wrong kind of thing) or ``ValueError`` (wrong shape or
number) with one line that names the argument, says what it got and what it wants.
What a backend takes is told by an :class:`Accepts`; the shapes are the same for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Accepts:
    """What a backend takes: its array type, its dtypes, and whether it needs C order."""

    array_type: Any  # a class, such as numpy.ndarray
    dtypes: tuple[str, ...]
    contiguous: bool = True


def check_conv2d_forward(x: Any, w: Any, b: Any, accepts: Accepts) -> None:
    """Check ``x`` (N,C,H,W), ``w`` (F,C,KH,KW) and ``b`` (F,) for a valid convolution."""
    _check_array("x", x, ("N", "C", "H", "W"), accepts)
    _check_array("w", w, ("F", "C", "KH", "KW"), accepts)
    _check_array("b", b, ("F",), accepts)
    _check_same_dtype(x=x, w=w, b=b)
    _, C, H, W = x.shape
    F, WC, KH, KW = w.shape
    if WC != C:
        raise ValueError(f"w has shape {w.shape}, want (F, {C}, KH, KW): x has {C} channels")
    if KH > H or KW > W:
        raise ValueError(
            f"w has a {KH}x{KW} kernel, want at most {H}x{W}: a valid convolution needs a "
            f"kernel no larger than x, of shape {x.shape}"
        )
    if b.shape != (F,):
        raise ValueError(f"b has shape {b.shape}, want ({F},): w has {F} filters")


def check_conv2d_backward_input(dy: Any, w: Any, accepts: Accepts) -> None:
    """Check ``dy`` (N,F,OH,OW) against ``w`` (F,C,KH,KW)."""
    _check_array("dy", dy, ("N", "F", "OH", "OW"), accepts)
    _check_array("w", w, ("F", "C", "KH", "KW"), accepts)
    _check_same_dtype(dy=dy, w=w)
    N, F, OH, OW = dy.shape
    if w.shape[0] != F:
        raise ValueError(f"dy has shape {dy.shape}, want ({N}, {w.shape[0]}, {OH}, {OW}): "
                         f"w has {w.shape[0]} filters")


def check_conv2d_backward_weight(x: Any, dy: Any, accepts: Accepts) -> None:
    """Check ``x`` (N,C,H,W) against ``dy`` (N,F,OH,OW); the kernel is (H-OH+1, W-OW+1)."""
    _check_array("x", x, ("N", "C", "H", "W"), accepts)
    _check_array("dy", dy, ("N", "F", "OH", "OW"), accepts)
    _check_same_dtype(x=x, dy=dy)
    N, _, H, W = x.shape
    DN, F, OH, OW = dy.shape
    if DN != N:
        raise ValueError(f"dy has shape {dy.shape}, want ({N}, {F}, {OH}, {OW}): x has {N} images")
    if OH > H or OW > W:
        raise ValueError(
            f"dy has {OH}x{OW} outputs, want at most {H}x{W}: a valid convolution of x, of "
            f"shape {x.shape}, cannot give more"
        )


def check_conv2d_backward_bias(dy: Any, accepts: Accepts) -> None:
    """Check ``dy`` (N,F,OH,OW)."""
    _check_array("dy", dy, ("N", "F", "OH", "OW"), accepts)


def check_relu_forward(x: Any, accepts: Accepts) -> None:
    """Check ``x`` of any shape."""
    _check_array("x", x, None, accepts)


def check_relu_backward(dy: Any, y: Any, accepts: Accepts) -> None:
    """Check ``dy`` and ``y`` of one shape."""
    _check_array("dy", dy, None, accepts)
    _check_array("y", y, None, accepts)
    _check_same_dtype(dy=dy, y=y)
    _check_same_shape(dy=dy, y=y)


def check_mse(y: Any, t: Any, accepts: Accepts) -> None:
    """Check ``y`` and ``t`` of one shape."""
    _check_array("y", y, None, accepts)
    _check_array("t", t, None, accepts)
    _check_same_dtype(y=y, t=t)
    _check_same_shape(y=y, t=t)


def check_sgd_update(
    param: Any, grad: Any, velocity: Any, lr: float, momentum: float, accepts: Accepts
) -> None:
    """Check one parameter, its gradient, its velocity and the two numbers of plain SGD."""
    _check_array("param", param, None, accepts)
    _check_array("grad", grad, None, accepts)
    _check_same_dtype(param=param, grad=grad)
    _check_same_shape(param=param, grad=grad)
    check_number("lr", lr, 0.0, math.inf)
    check_number("momentum", momentum, 0.0, 1.0)
    if velocity is None:
        if momentum != 0:
            raise ValueError(f"velocity is None, want an array of shape {param.shape}: "
                             f"momentum is {momentum}")
        return
    _check_array("velocity", velocity, None, accepts)
    _check_same_dtype(param=param, velocity=velocity)
    _check_same_shape(param=param, velocity=velocity)


def check_adam_update(
    param: Any, grad: Any, m: Any, v: Any,
    step: int, lr: float, beta1: float, beta2: float, eps: float, accepts: Accepts,
) -> None:
    """Check one parameter, its gradient and moments, and the numbers of Adam."""
    for name, array in (("param", param), ("grad", grad), ("m", m), ("v", v)):
        _check_array(name, array, None, accepts)
    _check_same_dtype(param=param, grad=grad, m=m, v=v)
    for name, array in (("grad", grad), ("m", m), ("v", v)):
        _check_same_shape(**{"param": param, name: array})
    check_size("step", step)
    check_number("lr", lr, 0.0, math.inf)
    check_number("beta1", beta1, 0.0, 1.0)
    check_number("beta2", beta2, 0.0, 1.0)
    check_number("eps", eps, 0.0, math.inf)


def check_chain(params: dict[str, Any], accepts: Accepts) -> list[tuple[Any, Any]]:
    """Check the parameters of a conv-ReLU chain; return them as (weight, bias) pairs in order."""
    if not isinstance(params, dict):
        raise TypeError(f"params is {_kind(params)}, want a dict of conv1.weight, conv1.bias, ...")
    layers, rest = divmod(len(params), 2)
    wanted = [f"conv{i + 1}.{kind}" for i in range(layers) for kind in ("weight", "bias")]
    if rest or not params or list(params) != wanted:
        raise ValueError(f"params has the keys {list(params)}, want conv1.weight, conv1.bias, "
                         "conv2.weight, conv2.bias, ... in that order")
    pairs = []
    C = None
    for i in range(1, layers + 1):
        w, b = params[f"conv{i}.weight"], params[f"conv{i}.bias"]
        _check_array(f"conv{i}.weight", w, ("F", "C", "KH", "KW"), accepts)
        _check_array(f"conv{i}.bias", b, ("F",), accepts)
        _check_same_dtype(**{"conv1.weight": params["conv1.weight"], f"conv{i}.weight": w,
                             f"conv{i}.bias": b})
        if C is not None and w.shape[1] != C:
            raise ValueError(f"conv{i}.weight has shape {w.shape}, want "
                             f"({w.shape[0]}, {C}, {w.shape[2]}, {w.shape[3]}): "
                             f"conv{i - 1} gives {C} channels")
        if b.shape != w.shape[:1]:
            raise ValueError(f"conv{i}.bias has shape {b.shape}, want {w.shape[:1]}")
        C = w.shape[0]
        pairs.append((w, b))
    return pairs


def check_chain_loss(
    params: dict[str, Any], x: Any, t: Any, accepts: Accepts
) -> list[tuple[Any, Any]]:
    """Check a chain with its batch ``x`` (N,C,H,W) and target ``t`` (N,F,OH,OW)."""
    pairs = check_chain(params, accepts)
    _check_array("x", x, ("N", "C", "H", "W"), accepts)
    _check_array("t", t, ("N", "F", "OH", "OW"), accepts)
    _check_same_dtype(**{"conv1.weight": pairs[0][0], "x": x, "t": t})
    N, C, H, W = x.shape
    if pairs[0][0].shape[1] != C:
        raise ValueError(f"x has shape {x.shape}, want ({N}, {pairs[0][0].shape[1]}, {H}, {W}): "
                         f"conv1 takes {pairs[0][0].shape[1]} channels")
    OH = H - sum(w.shape[2] - 1 for w, _ in pairs)
    OW = W - sum(w.shape[3] - 1 for w, _ in pairs)
    if OH < 1 or OW < 1:
        raise ValueError(f"x has shape {x.shape}, want at least {H - OH + 1}x{W - OW + 1} pixels: "
                         "the kernels of the chain leave no output")
    want = (N, pairs[-1][0].shape[0], OH, OW)
    if t.shape != want:
        raise ValueError(f"t has shape {t.shape}, want {want}: that is what the chain gives for x")
    return pairs


def check_chain_predict(
    params: dict[str, Any], image: Any, accepts: Accepts
) -> list[tuple[Any, Any]]:
    """Check a chain with an image (C,H,W)."""
    pairs = check_chain(params, accepts)
    _check_array("image", image, ("C", "H", "W"), accepts)
    _check_same_dtype(**{"conv1.weight": pairs[0][0], "image": image})
    C, H, W = image.shape
    if pairs[0][0].shape[1] != C:
        raise ValueError(f"image has shape {image.shape}, want ({pairs[0][0].shape[1]}, {H}, {W}): "
                         f"conv1 takes {pairs[0][0].shape[1]} channels")
    return pairs


def check_size(name: str, value: Any) -> int:
    """Return ``value`` as an int of at least 1, or raise naming ``name``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}, want a whole number of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}, want a whole number of at least 1")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a finite float in [low, high), or raise naming ``name``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {_kind(value)}, want a number")
    if not (math.isfinite(value) and low <= value < high):
        bound = f"of at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise ValueError(f"{name} is {value}, want a finite number {bound}")
    return float(value)


# A dtype works its name out anew each time: with six parameters a step, a tenth of small steps.
_name_of = lru_cache(maxsize=64)(str)


def _check_array(name: str, a: Any, dims: tuple[str, ...] | None, accepts: Accepts) -> None:
    if not isinstance(a, accepts.array_type):
        wanted = f"{accepts.array_type.__module__.split('.')[0]}.{accepts.array_type.__name__}"
        raise TypeError(f"{name} is {_kind(a)}, want a {wanted}")
    if _name_of(a.dtype) not in accepts.dtypes:
        raise TypeError(f"{name} has dtype {a.dtype}, want {' or '.join(accepts.dtypes)}")
    if dims is not None and a.ndim != len(dims):
        raise ValueError(f"{name} has shape {a.shape}, want {len(dims)} dimensions "
                         f"({', '.join(dims)})")
    if a.size == 0:
        raise ValueError(f"{name} has shape {a.shape}, want every size to be at least 1")
    if accepts.contiguous and not a.flags.c_contiguous:
        raise ValueError(f"{name}, of shape {a.shape}, has strides {a.strides}, want a "
                         "C-contiguous array (numpy.ascontiguousarray makes one)")


def _check_same_dtype(**arrays: Any) -> None:
    (first, a), *rest = arrays.items()
    for name, other in rest:
        if other.dtype != a.dtype:
            raise TypeError(f"{name} has dtype {other.dtype}, want {a.dtype}, the dtype of {first}")


def _check_same_shape(**arrays: Any) -> None:
    (first, a), *rest = arrays.items()
    for name, other in rest:
        if other.shape != a.shape:
            raise ValueError(f"{name} has shape {other.shape}, want {a.shape}, "
                             f"the shape of {first}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"
