"""Argument checks shared by every backend, so that all of them refuse the same mistakes alike.

There is one function for each function of a backend, of the same name. It raises ``TypeError``
(wrong type or dtype) or ``ValueError`` (wrong shape or number) with one line: the argument, what it
is or has, what is wanted. An :class:`Accepts` says what differs between backends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from ...arguments import check_integer, check_number, describe


@dataclass(frozen=True)
class Accepts:
    """What a backend accepts: its array type, its dtypes, and whether it needs C order."""

    array_type: Any  # a class, such as numpy.ndarray
    dtypes: tuple[str, ...]
    contiguous: bool = True


#: No argument and no result has more elements: the CUDA kernels index with 32-bit integers.
MOST_ELEMENTS = 2**31 - 1


def conv2d_forward(x: Any, w: Any, b: Any, accepts: Accepts) -> None:
    """Check ``x`` (N,C,H,W), ``w`` (F,C,KH,KW) and ``b`` (F,) for a valid convolution."""
    check_array("x", x, ("N", "C", "H", "W"), accepts)
    check_array("w", w, ("F", "C", "KH", "KW"), accepts)
    check_array("b", b, ("F",), accepts)
    check_same_dtype(x=x, w=w, b=b)
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
    check_elements("y", (x.shape[0], F, H - KH + 1, W - KW + 1))


def conv2d_backward_input(dy: Any, w: Any, accepts: Accepts) -> None:
    """Check ``dy`` (N,F,OH,OW) against ``w`` (F,C,KH,KW)."""
    check_array("dy", dy, ("N", "F", "OH", "OW"), accepts)
    check_array("w", w, ("F", "C", "KH", "KW"), accepts)
    check_same_dtype(dy=dy, w=w)
    N, F, OH, OW = dy.shape
    if w.shape[0] != F:
        raise ValueError(f"dy has shape {dy.shape}, want ({N}, {w.shape[0]}, {OH}, {OW}): "
                         f"w has {w.shape[0]} filters")
    check_elements("dx", (N, w.shape[1], OH + w.shape[2] - 1, OW + w.shape[3] - 1))


def conv2d_backward_weight(x: Any, dy: Any, accepts: Accepts) -> None:
    """Check ``x`` (N,C,H,W) against ``dy`` (N,F,OH,OW); the kernel is (H-OH+1, W-OW+1)."""
    check_array("x", x, ("N", "C", "H", "W"), accepts)
    check_array("dy", dy, ("N", "F", "OH", "OW"), accepts)
    check_same_dtype(x=x, dy=dy)
    N, C, H, W = x.shape
    DN, F, OH, OW = dy.shape
    if DN != N:
        raise ValueError(f"dy has shape {dy.shape}, want ({N}, {F}, {OH}, {OW}): x has {N} images")
    if OH > H or OW > W:
        raise ValueError(
            f"dy has {OH}x{OW} outputs, want at most {H}x{W}: a valid convolution of x, of "
            f"shape {x.shape}, cannot give more"
        )
    check_elements("dw", (F, C, H - OH + 1, W - OW + 1))


def conv2d_backward_bias(dy: Any, accepts: Accepts) -> None:
    """Check ``dy`` (N,F,OH,OW)."""
    check_array("dy", dy, ("N", "F", "OH", "OW"), accepts)


def relu_forward(x: Any, accepts: Accepts) -> None:
    """Check ``x`` of any shape."""
    check_array("x", x, None, accepts)


def relu_backward(dy: Any, y: Any, accepts: Accepts) -> None:
    """Check ``dy`` and ``y`` of one shape."""
    check_array("dy", dy, None, accepts)
    check_array("y", y, None, accepts)
    check_same_dtype(dy=dy, y=y)
    check_same_shape(dy=dy, y=y)


def mse(y: Any, t: Any, accepts: Accepts) -> None:
    """Check ``y`` and ``t`` of one shape."""
    check_array("y", y, None, accepts)
    check_array("t", t, None, accepts)
    check_same_dtype(y=y, t=t)
    check_same_shape(y=y, t=t)


def sgd_update(
    param: Any, grad: Any, velocity: Any, lr: float, momentum: float, accepts: Accepts
) -> None:
    """Check one parameter, its gradient, its velocity and the two numbers of gradient descent."""
    check_array("param", param, None, accepts)
    check_array("grad", grad, None, accepts)
    check_same_dtype(param=param, grad=grad)
    check_same_shape(param=param, grad=grad)
    check_number("lr", lr, 0.0)
    check_number("momentum", momentum, 0.0, 1.0)
    check_writable(param=param)
    if velocity is None:
        if momentum != 0:
            raise ValueError(f"velocity is None, want an array of shape {param.shape}: "
                             f"momentum is {momentum}")
        return
    check_array("velocity", velocity, None, accepts)
    check_same_dtype(param=param, velocity=velocity)
    check_same_shape(param=param, velocity=velocity)
    check_writable(velocity=velocity)


def adam_update(
    param: Any, grad: Any, m: Any, v: Any,
    step: int, lr: float, beta1: float, beta2: float, eps: float, accepts: Accepts,
) -> None:
    """Check one parameter, its gradient and moments, and the numbers of Adam."""
    for name, array in (("param", param), ("grad", grad), ("m", m), ("v", v)):
        check_array(name, array, None, accepts)
    check_same_dtype(param=param, grad=grad, m=m, v=v)
    check_writable(param=param, m=m, v=v)
    for name, array in (("grad", grad), ("m", m), ("v", v)):
        check_same_shape(**{"param": param, name: array})
    check_integer("step", step)
    check_number("lr", lr, 0.0)
    check_number("beta1", beta1, 0.0, 1.0)
    check_number("beta2", beta2, 0.0, 1.0)
    check_number("eps", eps, 0.0)


def chain(params: dict[str, Any], accepts: Accepts) -> list[tuple[Any, Any]]:
    """Check the parameters of a conv-ReLU chain; return them as (weight, bias) pairs in order."""
    if not isinstance(params, dict):
        raise TypeError(f"params is {describe(params)}, "
                        "want a dict of conv1.weight, conv1.bias, ...")
    layers, rest = divmod(len(params), 2)
    wanted = [f"conv{i + 1}.{kind}" for i in range(layers) for kind in ("weight", "bias")]
    if rest or not params or list(params) != wanted:
        raise ValueError(f"params has the keys {list(params)}, want conv1.weight, conv1.bias, "
                         "conv2.weight, conv2.bias, ... in that order")
    pairs = []
    C = None
    for i in range(1, layers + 1):
        w, b = params[f"conv{i}.weight"], params[f"conv{i}.bias"]
        check_array(f"conv{i}.weight", w, ("F", "C", "KH", "KW"), accepts)
        check_array(f"conv{i}.bias", b, ("F",), accepts)
        check_same_dtype(**{"conv1.weight": params["conv1.weight"], f"conv{i}.weight": w,
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


def chain_loss_and_gradients(
    params: dict[str, Any], x: Any, t: Any, accepts: Accepts
) -> list[tuple[Any, Any]]:
    """Check a chain with its batch ``x`` (N,C,H,W) and target ``t`` (N,F,OH,OW)."""
    pairs = chain(params, accepts)
    check_array("x", x, ("N", "C", "H", "W"), accepts)
    check_array("t", t, ("N", "F", "OH", "OW"), accepts)
    check_same_dtype(**{"conv1.weight": pairs[0][0], "x": x, "t": t})
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
    for i, (w, _) in enumerate(pairs, 1):
        H, W = H - w.shape[2] + 1, W - w.shape[3] + 1
        if N * w.shape[0] * H * W > MOST_ELEMENTS:
            check_elements(f"the output of conv{i}", (N, w.shape[0], H, W))
    return pairs


def chain_predict(
    params: dict[str, Any], image: Any, accepts: Accepts
) -> list[tuple[Any, Any]]:
    """Check a chain with an image (C,H,W)."""
    pairs = chain(params, accepts)
    check_array("image", image, ("C", "H", "W"), accepts)
    check_same_dtype(**{"conv1.weight": pairs[0][0], "image": image})
    C, H, W = image.shape
    if pairs[0][0].shape[1] != C:
        raise ValueError(f"image has shape {image.shape}, want ({pairs[0][0].shape[1]}, {H}, {W}): "
                         f"conv1 takes {pairs[0][0].shape[1]} channels")
    check_elements("the result", (pairs[-1][0].shape[0], H, W))
    return pairs


# A dtype works its name out anew each time: with six parameters a step, a tenth of small steps.
_name_of = lru_cache(maxsize=64)(str)


def check_elements(name: str, shape: tuple[int, ...]) -> None:
    """Refuse an array of more than ``MOST_ELEMENTS`` elements, before it is allocated."""
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"{name} has shape {shape}, {math.prod(shape):,} elements, "
                         f"want at most {MOST_ELEMENTS:,}")


def check_array(name: str, a: Any, dims: tuple[str, ...] | None, accepts: Accepts) -> None:
    """Check type, dtype, dimensions (None: any), size and order of one array."""
    if not isinstance(a, accepts.array_type):
        public = takewhile(lambda part: part[0] != "_", accepts.array_type.__module__.split("."))
        wanted = ".".join([*public, accepts.array_type.__name__])
        raise TypeError(f"{name} is {describe(a)}, want a {wanted}")
    if _name_of(a.dtype) not in accepts.dtypes:
        raise TypeError(f"{name} has dtype {a.dtype}, want {' or '.join(accepts.dtypes)}")
    if dims is not None and a.ndim != len(dims):
        want = f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"
        raise ValueError(f"{name} has shape {a.shape}, want {want}")
    if a.size == 0:
        raise ValueError(f"{name} has shape {a.shape}, want every size to be at least 1")
    if a.size > MOST_ELEMENTS:
        check_elements(name, a.shape)
    if accepts.contiguous and not a.flags.c_contiguous:
        raise ValueError(f"{name} has shape {a.shape} and strides {a.strides}, want a "
                         "C-contiguous array (numpy.ascontiguousarray makes one)")


def check_writable(**arrays: Any) -> None:
    """Refuse arrays that are to be changed in place and cannot be."""
    for name, array in arrays.items():
        if not getattr(array.flags, "writeable", True):  # CuPy's have no such flag
            raise ValueError(f"{name} is read-only, want an array that can be changed in place")


def check_same_dtype(**arrays: Any) -> None:
    """Check that all arrays have the dtype of the first."""
    (first, a), *rest = arrays.items()
    for name, other in rest:
        if other.dtype != a.dtype:
            raise TypeError(f"{name} has dtype {other.dtype}, want {a.dtype}, the dtype of {first}")


def check_same_shape(**arrays: Any) -> None:
    """Check that all arrays have the shape of the first."""
    (first, a), *rest = arrays.items()
    for name, other in rest:
        if other.shape != a.shape:
            raise ValueError(f"{name} has shape {other.shape}, want {a.shape}, "
                             f"the shape of {first}")
