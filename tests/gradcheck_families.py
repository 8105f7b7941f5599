"""Right functions of many families, each with planted mistakes: what checkers are held against.

A family is a pair and its inputs; a mutant replaces its backward. The forwards are written for
clearness, the backwards by hand, as users write them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minisrcnn.gradcheck import check_gradients

EPS = 1e-5


@dataclass
class Family:
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: dict[str, Any]
    mutants: dict[str, Callable[..., Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {}


def family(name, forward, backward, inputs, mutants=(), **options):
    FAMILIES[name] = Family(forward, backward, inputs, dict(mutants), options)


def wrong(backward, key, change):
    """The backward with one gradient changed."""

    def mutant(*args, **kwargs):
        grads = dict(backward(*args, **kwargs))
        grads[key] = change(grads[key])
        return grads

    return mutant


rng = np.random.default_rng(7)


# Elementwise ----------------------------------------------------------------------------------


def _times(d):
    return lambda dy, x: {"x": dy * d(x)}


def elementwise(name, f, df, mutants=(), inputs=(4, 5), **options):
    family(
        name,
        f,
        lambda dy, x: {"x": dy * df(x)},
        {"x": inputs},
        {what: _times(d) for what, d in dict(mutants).items()},
        **options,
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dgelu(x, c=0.044715, three=3.0):
    t = np.tanh(math.sqrt(2 / math.pi) * (x + c * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * math.sqrt(2 / math.pi) * (1 + three * c * x**2)


elementwise(
    "sigmoid",
    sigmoid,
    lambda x: sigmoid(x) * (1 - sigmoid(x)),
    {
        "of y twice": lambda x: sigmoid(sigmoid(x)) * (1 - sigmoid(sigmoid(x))),
        "square missing": lambda x: sigmoid(x) ** 2,
    },
)
elementwise(
    "gelu",
    gelu,
    dgelu,
    {
        "the 3 missing": lambda x: dgelu(x, three=1.0),
        "0.04472": lambda x: dgelu(x, c=0.044),
        "second term missing": lambda x: 0.5 * (1 + np.tanh(0.79788456 * (x + 0.044715 * x**3))),
    },
)
elementwise(
    "softplus",
    lambda x: np.logaddexp(0, x).astype(x.dtype),
    sigmoid,
    {"sigmoid of -x": lambda x: sigmoid(-x)},
)
elementwise(
    "silu",
    lambda x: x * sigmoid(x),
    lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    {"x missing": lambda x: sigmoid(x) * (2 - sigmoid(x)), "no product rule": sigmoid},
)
elementwise(
    "elu",
    lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))).astype(x.dtype),
    {"y for y + 1": lambda x: np.where(x > 0, 1, np.expm1(np.minimum(x, 0)))},
)
elementwise(
    "leaky relu",
    lambda x: np.where(x > 0, x, x * x.dtype.type(0.1)),
    lambda x: np.where(x > 0, 1, 0.1).astype(x.dtype),
    {
        "slope forgotten": lambda x: (x > 0).astype(x.dtype),
        "slope of 0.01": lambda x: np.where(x > 0, 1, 0.01).astype(x.dtype),
    },
)
elementwise("abs", np.abs, np.sign, {"one": np.ones_like})
elementwise(
    "hardtanh",
    lambda x: np.clip(x, -1, 1),
    lambda x: (abs(x) < 1).astype(x.dtype),
    {"one side": lambda x: (x < 1).astype(x.dtype)},
)
elementwise(
    "hard sigmoid",
    lambda x: np.clip(x / 6 + x.dtype.type(0.5), 0, 1),
    lambda x: (abs(x) < 3).astype(x.dtype) / 6,
    {"no 6": lambda x: (abs(x) < 3) * x.dtype.type(1)},
)
elementwise(
    "sqrt of square plus",
    lambda x: np.sqrt(x * x + 1),
    lambda x: x / np.sqrt(x * x + 1),
    {"half": lambda x: x / np.sqrt(x * x + 1) / 2},
)
elementwise(
    "large x only",
    lambda x: np.where(x > 4, 8 * x - 16, x * x),
    lambda x: np.where(x > 4, 8, 2 * x).astype(x.dtype),
    {"wrong above 4": lambda x: np.where(x > 4, 16, 2 * x).astype(x.dtype)},
)
elementwise("log", np.log, lambda x: 1 / x, {"x": lambda x: x}, rng.uniform(0.5, 2, (4, 5)))
elementwise(
    "square of ones",
    lambda x: x * x,
    lambda x: 2 * x,
    {"power one too many": lambda x: 2 * x * x},
    np.ones((3, 4)),
)
elementwise(
    "image",
    lambda x: (x / 255) ** 2,
    lambda x: 2 * x / 255**2,
    {"255 once": lambda x: 2 * x / 255},
    rng.uniform(0, 255, (6, 6)),
)
elementwise(
    "tiny",
    lambda x: np.sin(1000 * x),
    lambda x: 1000 * np.cos(1000 * x),
    {"no 1000": lambda x: np.cos(1000 * x)},
    rng.normal(0, 1e-3, (4, 3)),
)

# Reductions -----------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_back(dy, x):
    p = softmax(x)
    return {"x": p * (dy - (dy * p).sum(axis=-1, keepdims=True))}


family(
    "softmax",
    softmax,
    softmax_back,
    {"x": (3, 5)},
    {
        "no sum": lambda dy, x: {"x": softmax(x) * dy},
        "sum without p": lambda dy, x: {"x": softmax(x) * (dy - dy.sum(axis=-1, keepdims=True))},
        "sum over the batch": lambda dy, x: {
            "x": softmax(x) * (dy - (dy * softmax(x)).sum(axis=0))
        },
        "diagonal alone": lambda dy, x: {"x": dy * softmax(x) * (1 - softmax(x))},
    },
)


def logsumexp(x):
    m = x.max(axis=1, keepdims=True)
    return (m + np.log(np.exp(x - m).sum(axis=1, keepdims=True)))[:, 0]


family(
    "logsumexp",
    logsumexp,
    lambda dy, x: {"x": dy[:, None] * softmax(x)},
    {"x": (3, 5)},
    {
        "exp alone": lambda dy, x: {"x": dy[:, None] * np.exp(x)},
        "over the other axis": lambda dy, x: {"x": dy[:, None] * softmax(x.T).T},
    },
)
LABELS = np.array([0, 2, 1, 4])
family(
    "cross entropy",
    lambda x, labels: -np.log(softmax(x)[np.arange(4), labels]).mean(dtype=x.dtype),
    lambda dy, x, labels: {"x": dy * (softmax(x) - np.eye(5, dtype=x.dtype)[labels]) / 4},
    {"x": (4, 5), "labels": LABELS},
    {
        "not divided": lambda dy, x, labels: {
            "x": dy * (softmax(x) - np.eye(5, dtype=x.dtype)[labels])
        },
        "no one-hot": lambda dy, x, labels: {"x": dy * softmax(x) / 4},
        "sign": lambda dy, x, labels: {
            "x": dy * (np.eye(5, dtype=x.dtype)[labels] - softmax(x)) / 4
        },
    },
)
family(
    "bce with logits",
    lambda x, t: np.mean(np.logaddexp(0, x) - t * x, dtype=x.dtype),
    lambda dy, x, t: {"x": dy * (sigmoid(x) - t) / x.size, "t": -dy * x / x.size},
    {"x": (4, 3), "t": rng.uniform(0.1, 0.9, (4, 3))},
    {"t sign": lambda dy, x, t: {"x": dy * (sigmoid(x) - t) / x.size, "t": dy * x / x.size}},
)


def huber(y, t):
    r = abs(y - t)
    return np.where(r < 1, r * r / 2, r - 0.5).sum(dtype=y.dtype)


family(
    "huber",
    huber,
    lambda dy, y, t: {"y": dy * np.clip(y - t, -1, 1), "t": dy * np.clip(t - y, -1, 1)},
    {"y": (4, 5), "t": (4, 5)},
    {
        "not clipped": lambda dy, y, t: {"y": dy * (y - t), "t": dy * (t - y)},
        "t the same": lambda dy, y, t: {
            "y": dy * np.clip(y - t, -1, 1),
            "t": dy * np.clip(y - t, -1, 1),
        },
    },
)
SIGNS = np.where(rng.random((6, 4)) > 0.5, 1.0, -1.0)
family(
    "hinge",
    lambda y, s: np.maximum(0, 1 - s * y).mean(dtype=y.dtype),
    lambda dy, y, s: {"y": dy * -s * (s * y < 1) / y.size},
    {"y": (6, 4), "s": SIGNS},
    {
        "s missing": lambda dy, y, s: {"y": -dy * (s * y < 1) / y.size},
        "mask missing": lambda dy, y, s: {"y": -dy * s / y.size},
    },
    wrt="y",
)
family(
    "norm",
    lambda x: np.sqrt((x * x).sum(axis=1) + x.dtype.type(EPS)),
    lambda dy, x: {
        "x": dy[:, None] * x / np.sqrt((x * x).sum(axis=1, keepdims=True) + x.dtype.type(EPS))
    },
    {"x": (3, 4)},
    {"no root": lambda dy, x: {"x": dy[:, None] * x}},
)
family(
    "mean and variance",
    lambda x: (x.mean(axis=0), x.var(axis=0)),
    lambda dy, x: {"x": (dy[0] + 2 * dy[1] * (x - x.mean(axis=0))) / len(x)},
    {"x": (5, 3)},
    {
        "variance left out": lambda dy, x: {"x": np.broadcast_to(dy[0] / len(x), x.shape).copy()},
        "mean left out": lambda dy, x: {"x": 2 * dy[1] * (x - x.mean(axis=0)) / len(x)},
        "no 2": lambda dy, x: {"x": (dy[0] + dy[1] * (x - x.mean(axis=0))) / len(x)},
    },
)
family(
    "cumsum",
    lambda x: np.cumsum(x, axis=1, dtype=x.dtype),
    lambda dy, x: {"x": np.cumsum(dy[:, ::-1], axis=1)[:, ::-1]},
    {"x": (3, 5)},
    {
        "forward": lambda dy, x: {"x": np.cumsum(dy, axis=1)},
        "exclusive": lambda dy, x: {"x": np.cumsum(dy[:, ::-1], axis=1)[:, ::-1] - dy},
    },
)
family(
    "max",
    lambda x: x.max(axis=1),
    lambda dy, x: {"x": dy[:, None] * (x == x.max(axis=1, keepdims=True))},
    {"x": (4, 6)},
    {
        "spread": lambda dy, x: {"x": dy[:, None] * np.ones_like(x)},
        "argmin": lambda dy, x: {"x": dy[:, None] * (x == x.min(axis=1, keepdims=True))},
    },
)


def sort_back(dy, x):
    dx = np.empty_like(x)
    np.put_along_axis(dx, np.argsort(x, axis=1), dy, axis=1)
    return {"x": dx}


family(
    "sort",
    lambda x: np.sort(x, axis=1),
    sort_back,
    {"x": (3, 6)},
    {
        "taken instead of put": lambda dy, x: {
            "x": np.take_along_axis(dy, np.argsort(x, axis=1), axis=1)
        },
        "not at all": lambda dy, x: {"x": dy.copy()},
    },
)

# Normalisations -------------------------------------------------------------------------------


def normal(axis):
    def forward(x, g, b):
        s = np.sqrt(x.var(axis=axis, keepdims=True) + x.dtype.type(EPS))
        return g * (x - x.mean(axis=axis, keepdims=True)) / s + b

    def backward(dy, x, g, b, mean=True, var=True, eps=None):
        s = np.sqrt(x.var(axis=axis, keepdims=True) + x.dtype.type(EPS))
        if eps == "outside":
            s = np.sqrt(x.var(axis=axis, keepdims=True)) + x.dtype.type(EPS)
        h = (x - x.mean(axis=axis, keepdims=True)) / s
        d = dy * g
        dx = d
        if mean:
            dx = dx - d.mean(axis=axis, keepdims=True)
        if var:
            dx = dx - h * (d * h).mean(axis=axis, keepdims=True)
        return {"x": dx / s, "g": (dy * h).sum(axis=0), "b": dy.sum(axis=0)}

    return forward, backward


for name, axis in (("batch norm", 0), ("layer norm", 1)):
    f, back = normal(axis)
    family(
        name,
        f,
        back,
        {"x": (6, 4), "g": (4,), "b": (4,)},
        {
            "mean term missing": lambda *a, back=back: back(*a, mean=False),
            "variance term missing": lambda *a, back=back: back(*a, var=False),
            "both missing": lambda *a, back=back: back(*a, mean=False, var=False),
            "eps outside": lambda *a, back=back: back(*a, eps="outside"),
            "b keepdims": wrong(back, "b", lambda g: g[None]),
            "g of x": lambda dy, x, g, b, back=back: (
                back(dy, x, g, b) | {"g": (dy * x).sum(axis=0)}
            ),
            "g and b swapped": lambda *a, back=back: (lambda r: r | {"g": r["b"], "b": r["g"]})(
                back(*a)
            ),
        },
    )


def bn_after_bias(x, w, b):
    z = x @ w + b
    return (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + z.dtype.type(EPS))


def bn_after_bias_back(dy, x, w, b):
    z = x @ w + b
    s = np.sqrt(z.var(axis=0) + z.dtype.type(EPS))
    h = (z - z.mean(axis=0)) / s
    dz = (dy - dy.mean(axis=0) - h * (dy * h).mean(axis=0)) / s
    return {"x": dz @ w.T, "w": x.T @ dz, "b": dz.sum(axis=0)}


family(
    "bias before batch norm",
    bn_after_bias,
    bn_after_bias_back,
    {"x": (8, 3), "w": (3, 4), "b": (4,)},
    {"bias not zero": lambda dy, x, w, b: bn_after_bias_back(dy, x, w, b) | {"b": dy.sum(axis=0)}},
    zero=["b"],
)
family(
    "rms norm",
    lambda x, g: g * x / np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(EPS)),
    lambda dy, x, g: (
        lambda r: {
            "x": (dy * g - x * (dy * g * x).mean(axis=1, keepdims=True) / r**2) / r,
            "g": (dy * x / r).sum(axis=0),
        }
    )(np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(EPS))),
    {"x": (3, 5), "g": (5,)},
    {
        "term missing": lambda dy, x, g: (
            lambda r: {"x": dy * g / r, "g": (dy * x / r).sum(axis=0)}
        )(np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(EPS)))
    },
)

# Attention and recurrence -----------------------------------------------------------------------


def attention(x, wq, wk, wv, bk):
    q, k, v = x @ wq, x @ wk + bk, x @ wv
    return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])).astype(x.dtype) @ v


def attention_back(dy, x, wq, wk, wv, bk, scale=True, v_of_dy=True, softmaxed=True):
    q, k, v = x @ wq, x @ wk + bk, x @ wv
    root = math.sqrt(q.shape[-1])
    a = softmax(q @ k.swapaxes(-1, -2) / root)
    dv, da = a.swapaxes(-1, -2) @ dy, dy @ v.swapaxes(-1, -2)
    dz = a * (da - (da * a).sum(axis=-1, keepdims=True)) if softmaxed else a * da
    dz = dz / root if scale else dz
    dq, dk = dz @ k, dz.swapaxes(-1, -2) @ q
    if not v_of_dy:
        dv = a @ dy
    grads = {
        "x": dq @ wq.T + dk @ wk.T + dv @ wv.T,
        "wq": np.einsum("nti,ntj->ij", x, dq),
        "wk": np.einsum("nti,ntj->ij", x, dk),
        "wv": np.einsum("nti,ntj->ij", x, dv),
        "bk": dk.sum(axis=(0, 1)),
    }
    return {key: g.astype(x.dtype) for key, g in grads.items()}


family(
    "attention",
    attention,
    attention_back,
    {"x": (2, 4, 3), "wq": (3, 3), "wk": (3, 3), "wv": (3, 3), "bk": (3,)},
    {
        "no scale": lambda *a: attention_back(*a, scale=False),
        "v not transposed": lambda *a: attention_back(*a, v_of_dy=False),
        "no softmax sum": lambda *a: attention_back(*a, softmaxed=False),
        "q and k swapped": lambda *a: (lambda r: r | {"wq": r["wk"], "wk": r["wq"]})(
            attention_back(*a)
        ),
        "x of q alone": wrong(attention_back, "x", lambda g: g / 3),
    },
)


def lstm(x, h, c, w, u, b):
    z = x @ w + h @ u + b
    i, f, o, g = np.split(z, 4, axis=1)
    i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
    c_new = f * c + i * g
    t = np.tanh(c_new)
    return o * t, c_new, (x, h, c, w, u, i, f, o, g, t)


def lstm_back(dh, dc, cache, through=True, f_of_c=True):
    x, h, c, w, u, i, f, o, g, t = cache
    dc = dc + dh * o * (1 - t * t) if through else dc
    dz = np.concatenate(
        [
            dc * g * i * (1 - i),
            dc * (c if f_of_c else g) * f * (1 - f),
            dh * t * o * (1 - o),
            dc * i * (1 - g * g),
        ],
        axis=1,
    )
    return {
        "x": dz @ w.T,
        "h": dz @ u.T,
        "c": dc * f,
        "w": x.T @ dz,
        "u": h.T @ dz,
        "b": dz.sum(axis=0),
    }


LSTM = {"x": (3, 2), "h": (3, 4), "c": (3, 4), "w": (2, 16), "u": (4, 16), "b": (16,)}
family(
    "lstm cell",
    lstm,
    lstm_back,
    LSTM,
    {
        "not through h": lambda *a: lstm_back(*a, through=False),
        "forget gate of g": lambda *a: lstm_back(*a, f_of_c=False),
        "w averaged": wrong(lstm_back, "w", lambda g: g / 3),
    },
)
family(
    "lstm cell from zeros",
    lstm,
    lstm_back,
    LSTM | {"h": np.zeros((3, 4)), "c": np.zeros((3, 4))},
    {"u of x": lambda dh, dc, cache: (lambda r: r | {"u": -r["u"]})(lstm_back(dh, dc, cache))},
)


def gru(x, h, w, u):
    r, z = np.split(sigmoid(x @ w[:, :8] + h @ u[:, :8]), 2, axis=1)
    n = np.tanh(x @ w[:, 8:] + (r * h) @ u[:, 8:])
    return (1 - z) * n + z * h


def gru_back(dy, x, h, w, u, reset=True):
    r, z = np.split(sigmoid(x @ w[:, :8] + h @ u[:, :8]), 2, axis=1)
    n = np.tanh(x @ w[:, 8:] + (r * h) @ u[:, 8:])
    dn = dy * (1 - z) * (1 - n * n)
    drh = dn @ u[:, 8:].T
    dr, dz = drh * h * r * (1 - r), dy * (h - n) * z * (1 - z)
    both = np.concatenate([dr, dz], axis=1)
    dh = dy * z + drh * (r if reset else 1) + both @ u[:, :8].T
    return {
        "x": both @ w[:, :8].T + dn @ w[:, 8:].T,
        "h": dh,
        "w": np.concatenate([x.T @ both, x.T @ dn], axis=1),
        "u": np.concatenate([h.T @ both, (r * h).T @ dn], axis=1),
    }


family(
    "gru cell",
    gru,
    gru_back,
    {"x": (3, 2), "h": (3, 4), "w": (2, 12), "u": (4, 12)},
    {
        "reset forgotten": lambda *a: gru_back(*a, reset=False),
        "u of h": lambda dy, x, h, w, u: (
            gru_back(dy, x, h, w, u) | {"u": gru_back(dy, x, h, w, u)["w"][[0, 1, 0, 1]]}
        ),
    },
)

# Images -----------------------------------------------------------------------------------------


def conv(x, w, stride=1, pad=0, dilation=1, groups=1):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    (N, _, H, W), (F, G, KH, KW) = x.shape, w.shape
    OH, OW = ((size - dilation * (k - 1) - 1) // stride + 1 for size, k in ((H, KH), (W, KW)))
    y = np.zeros((N, F, OH, OW), x.dtype)
    for f in range(F):
        first = f // (F // groups) * G
        for u in range(KH):
            for v in range(KW):
                i, j = u * dilation, v * dilation
                part = x[
                    :, first : first + G, i : i + stride * OH : stride, j : j + stride * OW : stride
                ]
                y[:, f] += np.einsum("nchw,c->nhw", part, w[f, :, u, v])
    return y


def conv_back(dy, x, w, stride=1, pad=0, dilation=1, groups=1, lost=0):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    (F, G, KH, KW), (OH, OW) = w.shape, dy.shape[2:]
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for f in range(F):
        first = f // (F // groups) * G
        for u in range(KH):
            for v in range(KW):
                i, j = u * dilation, v * dilation
                at = (
                    slice(None),
                    slice(first, first + G),
                    slice(i, i + stride * OH, stride),
                    slice(j, j + stride * OW, stride),
                )
                dx[at] += dy[:, f, None] * w[f, :, u, v][None, :, None, None]
                dw[f, :, u, v] = (x[at] * dy[:, f, None]).sum(axis=(0, 2, 3))
    H, W = dx.shape[2:]
    dx = dx[:, :, pad : H - pad, pad : W - pad].copy()
    if lost:
        dx[:, :, 0] = 0
    return {"x": dx, "w": dw}


for name, shapes, settings in (
    ("conv", {"x": (2, 2, 4, 5), "w": (3, 2, 2, 3)}, {}),
    ("conv padded", {"x": (2, 2, 4, 4), "w": (2, 2, 3, 3)}, {"pad": 1}),
    ("conv strided", {"x": (1, 2, 5, 5), "w": (2, 2, 3, 3)}, {"stride": 2}),
    ("conv dilated", {"x": (1, 1, 6, 6), "w": (2, 1, 2, 2)}, {"dilation": 2}),
    ("conv grouped", {"x": (1, 4, 4, 4), "w": (4, 2, 2, 2)}, {"groups": 2}),
):
    family(
        name,
        conv,
        conv_back,
        shapes,
        {
            "flipped": wrong(conv_back, "w", lambda g: g[:, :, ::-1, ::-1].copy()),
            "batch": wrong(conv_back, "w", lambda g: g * 2),
            "first row lost": lambda *a, **k: conv_back(*a, lost=1, **k),
            "x in reverse": wrong(conv_back, "x", lambda g: g[:, :, ::-1].copy()),
            "w of 0.05 %": wrong(conv_back, "w", lambda g: g * g.dtype.type(1.0005)),
        },
        kwargs=settings,
    )


def max_pool(x):
    N, C, H, W = x.shape
    return x.reshape(N, C, H // 2, 2, W // 2, 2).max(axis=(3, 5))


def max_pool_back(dy, x):
    big = max_pool(x).repeat(2, axis=2).repeat(2, axis=3)
    return {"x": dy.repeat(2, axis=2).repeat(2, axis=3) * (x == big)}


family(
    "max pool",
    max_pool,
    max_pool_back,
    {"x": (2, 2, 4, 6)},
    {
        "spread": lambda dy, x: {"x": dy.repeat(2, axis=2).repeat(2, axis=3)},
        "averaged": lambda dy, x: {"x": dy.repeat(2, axis=2).repeat(2, axis=3) / 4},
    },
)
family(
    "max pool with ties",
    max_pool,
    max_pool_back,
    {"x": rng.integers(0, 3, (2, 2, 4, 4)).astype(float) + 1},
    {},
)
family(
    "average pool",
    lambda x: x.reshape(2, 3, 2, 3, 2).mean(axis=(2, 4)),
    lambda dy, x: {"x": dy.repeat(2, axis=1).repeat(2, axis=2) / 4},
    {"x": (2, 6, 6)},
    {
        "not divided": lambda dy, x: {"x": dy.repeat(2, axis=1).repeat(2, axis=2)},
        "one of four": lambda dy, x: {"x": np.kron(dy, np.array([[[1, 0], [0, 0]]], dy.dtype))},
    },
)
family(
    "pad",
    lambda x: np.pad(x, ((1, 2), (0, 1))),
    lambda dy, x: {"x": dy[1:-2, :-1]},
    {"x": (3, 4)},
    {"off by one": lambda dy, x: {"x": dy[2:-1, :-1]}},
)
family(
    "reflect",
    lambda x: np.pad(x, 1, mode="reflect"),
    lambda dy, x: {
        "x": np.einsum(
            "ij,jk->ik",
            *(lambda P, Q: (P.T @ dy, Q))(
                *(
                    np.pad(np.eye(n, dtype=x.dtype), ((1, 1), (0, 0)), mode="reflect")
                    for n in x.shape
                )
            ),
        )
    },
    {"x": (4, 5)},
    {"crop": lambda dy, x: {"x": dy[1:-1, 1:-1].copy()}},
)
family(
    "upsample",
    lambda x: x.repeat(2, axis=0).repeat(3, axis=1),
    lambda dy, x: {"x": dy.reshape(3, 2, 4, 3).sum(axis=(1, 3))},
    {"x": (3, 4)},
    {
        "mean": lambda dy, x: {"x": dy.reshape(3, 2, 4, 3).mean(axis=(1, 3))},
        "first": lambda dy, x: {"x": dy[::2, ::3].copy()},
    },
)
family(
    "pixel shuffle",
    lambda x: x.reshape(2, 2, 3, 4).transpose(2, 0, 3, 1).reshape(6, 8),
    lambda dy, x: {"x": dy.reshape(3, 2, 4, 2).transpose(1, 3, 0, 2).reshape(4, 3, 4)},
    {"x": (4, 3, 4)},
    {"axes": lambda dy, x: {"x": dy.reshape(3, 2, 4, 2).transpose(3, 1, 0, 2).reshape(4, 3, 4)}},
)

# Indexing, linear algebra, others ---------------------------------------------------------------

IDS = np.array([[1, 3, 1], [0, 1, 4]])


def embedding_back(dy, table, ids):
    d = np.zeros_like(table)
    np.add.at(d, ids, dy)
    return {"table": d}


def embedding_overwrites(dy, table, ids):
    d = np.zeros_like(table)
    d[ids] = dy
    return {"table": d}


family(
    "embedding",
    lambda table, ids: table[ids],
    embedding_back,
    {"table": (6, 3), "ids": IDS},
    {
        "overwrites": embedding_overwrites,
        "dense": wrong(embedding_back, "table", lambda g: g + 1e-3),
    },
)
MASK = (rng.random((4, 5)) > 0.4) / 0.6
family(
    "dropout",
    lambda x, mask: x * mask.astype(x.dtype),
    lambda dy, x, mask: {"x": dy * mask.astype(x.dtype)},
    {"x": (4, 5), "mask": MASK},
    {
        "not scaled": lambda dy, x, mask: {"x": dy * (mask > 0)},
        "no mask": lambda dy, x, mask: {"x": dy.copy()},
    },
    wrt=["x"],
)
family(
    "einsum",
    lambda a, b: np.einsum("ijk,kl->ijl", a, b),
    lambda dy, a, b: {"a": dy @ b.T, "b": np.einsum("ijk,ijl->kl", a, dy)},
    {"a": (2, 3, 4), "b": (4, 4)},
    {
        "b transposed": lambda dy, a, b: {"a": dy @ b, "b": np.einsum("ijk,ijl->kl", a, dy)},
        "db transposed": lambda dy, a, b: {"a": dy @ b.T, "b": np.einsum("ijk,ijl->lk", a, dy)},
    },
)
family(
    "broadcast",
    lambda x, b, s: x * s + b,
    lambda dy, x, b, s: {
        "x": dy * s,
        "b": dy.sum(axis=0),
        "s": (dy * x).sum(axis=1, keepdims=True),
    },
    {"x": (3, 4), "b": (4,), "s": (3, 1)},
    {
        "s wide": lambda dy, x, b, s: {"x": dy * s, "b": dy.sum(axis=0), "s": dy * x},
        "b mean": lambda dy, x, b, s: {
            "x": dy * s,
            "b": dy.mean(axis=0),
            "s": (dy * x).sum(axis=1, keepdims=True),
        },
    },
)
family(
    "inverse",
    np.linalg.inv,
    lambda dy, a: {"a": -np.linalg.inv(a).T @ dy @ np.linalg.inv(a).T},
    {"a": rng.standard_normal((4, 4)) + 4 * np.eye(4)},
    {
        "sign": lambda dy, a: {"a": np.linalg.inv(a).T @ dy @ np.linalg.inv(a).T},
        "not transposed": lambda dy, a: {"a": -np.linalg.inv(a) @ dy @ np.linalg.inv(a)},
    },
)
family(
    "fft of real",
    lambda x: np.fft.fft(x, axis=-1).astype(np.result_type(x, np.complex64)),
    lambda dy, x: {"x": (np.fft.ifft(dy, axis=-1).real * x.shape[-1]).astype(x.dtype)},
    {"x": (2, 6)},
    {
        "not scaled": lambda dy, x: {"x": np.fft.ifft(dy, axis=-1).real.astype(x.dtype)},
        "fft": lambda dy, x: {"x": np.fft.fft(dy, axis=-1).real.astype(x.dtype)},
    },
)


def complex_input(shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


family(
    "complex matrix",
    lambda x, a: a @ x,
    lambda dy, x, a: {"x": a.conj().T @ dy, "a": dy @ x.conj().T},
    {"x": complex_input((3, 2)), "a": complex_input((4, 3))},
    {
        "not conjugated": lambda dy, x, a: {"x": a.T @ dy, "a": dy @ x.T},
        "conjugate": lambda dy, x, a: {"x": (a.conj().T @ dy).conj(), "a": dy @ x.conj().T},
    },
)
family(
    "modulus",
    lambda z: (z * z.conj()).real,
    lambda dy, z: {"z": 2 * dy * z},
    {"z": complex_input((3, 4))},
    {"no 2": lambda dy, z: {"z": dy * z}},
)


def sum_and_product(x, w):
    return {"sum": x + w, "product": x * w}


family(
    "dict of outputs",
    sum_and_product,
    lambda dy, x, w: {"x": dy["sum"] + dy["product"] * w, "w": dy["sum"] + dy["product"] * x},
    {"x": (3, 2), "w": (3, 2)},
    {
        "product left out": lambda dy, x, w: {"x": dy["sum"].copy(), "w": dy["sum"].copy()},
        "swapped": lambda dy, x, w: {
            "w": dy["sum"] + dy["product"] * w,
            "x": dy["sum"] + dy["product"] * x,
        },
    },
)
family(
    "list of outputs",
    lambda x: [x[:2], x[2:] * 3],
    lambda dy, x: {"x": np.concatenate([dy[0], dy[1] * 3])},
    {"x": (5, 2)},
    {"second alone": lambda dy, x: {"x": np.concatenate([0 * dy[0], dy[1] * 3])}},
)


def cast(value, dtype):
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
        return value
    return value.astype(
        {"c": {"float32": "complex64", "float64": "complex128"}[dtype], "f": dtype}[
            value.dtype.kind
        ]
    )


def run(case, backward, dtype, **options):
    inputs = {key: cast(value, dtype) for key, value in case.inputs.items()}
    return check_gradients(
        case.forward, backward, inputs, dtype=dtype, raises=False, **case.options, **options
    )


MUTANTS = [(name, what) for name, case in FAMILIES.items() for what in case.mutants]
