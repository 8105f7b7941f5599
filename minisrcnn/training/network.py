"""The network that a training begins with."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..srcnn import SRCNN
from .settings import Plan


def new_network(plan: Plan, backend: ModuleType) -> SRCNN:
    """Return the network of a plan, with the weights that its seed draws."""
    init = "normal" if plan.recipe.init == "normal" else "he"
    net = SRCNN(plan.arch, channels=plan.channels, backend=backend, seed=plan.seed,
                init=init)  # type: ignore[arg-type]
    if plan.recipe.init == "identity":
        initialise(net)
    return net


def initialise(net: SRCNN) -> None:
    """Turn He's random weights into a network that starts as the identity.

    Filter f of every layer, for each channel f of the image, passes on channel f, and nothing
    else, unchanged:

        w[f,c,u,v] = 1 where c = f and (u, v) is the centre, else 0

    The other filters of the first layer have a mean of zero: neighbouring pixels are nearly equal,
    so a filter answers to brightness above all, and one whose taps add up to less than zero would
    never be above it, and learn nothing.

    An image in [0, 1] is not changed by ReLU, so the output is the input, bicubic, plus what the
    last layer makes of the other, random, features; those weights are made a hundred times
    smaller. What is left to learn is the difference that SRCNN makes, from the first step on.

    Parameters
    ----------
    net : SRCNN
        Of odd kernels and as many filters as channels, at least; drawn with ``init="he"``.
        Changed in place.
    """
    changed: dict[str, Any] = {}
    names = list(net.parameters)
    first, last = names[0], names[-2]
    for name, value in net.parameters.items():
        changed[name] = w = np.array(net.backend.to_numpy(value))
        if w.ndim == 4:
            if name == first:
                w -= w.mean(axis=(1, 2, 3), keepdims=True)
            if name == last:
                w *= 0.01
                w[:, :net.channels] = 0
            else:
                w[:net.channels] = 0
            for c in range(net.channels):
                w[c, c, w.shape[2] // 2, w.shape[3] // 2] = 1
    net.load_parameters(changed)
