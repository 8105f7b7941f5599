"""Optimizers: they change parameters in place, and keep nothing but what is in ``state``.

A learning rate may be given for each layer, as in Section 3.3 of the paper (1e-4 for the first two
layers, 1e-5 for the last)::

    SGD(net.parameters, lr={"conv1": 1e-4, "conv2": 1e-4, "conv3": 1e-5}, momentum=0.9)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ..arguments import check_number
from .backends import get_backend

LearningRate = float | Mapping[str, float]


class _Optimizer:
    """Common part of the optimizers: parameters, a learning rate for each of them, and state."""

    def __init__(
        self, parameters: dict[str, Any], lr: LearningRate, *, backend: str | ModuleType
    ) -> None:
        if not parameters:
            raise ValueError("parameters is empty, want a dict of names to arrays")
        self.backend = get_backend(backend)
        self.parameters = parameters
        self.lr = lr
        self.state: dict[str, Any] = {}

    @property
    def lr(self) -> dict[str, float]:
        """The learning rate of each parameter. Set it to one number, or to one for each layer."""
        return self._lr

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        if not isinstance(value, Mapping):
            value = dict.fromkeys(self.parameters, value)
        rates: dict[str, float] = {}
        unused = set(value)
        for name in self.parameters:
            layer = name.split(".")[0]
            key = name if name in value else layer
            if key not in value:
                raise ValueError(f"lr has the keys {list(value)}, want a key {layer}")
            rates[name] = check_number(f"lr of {name}", value[key], 0.0)
            unused.discard(key)
        if unused:
            raise ValueError(f"lr has the key {min(unused)!r}, want layers or parameters "
                             f"of {', '.join(self.parameters)}")
        self._lr = rates

    def _matching(self, grads: Mapping[str, Any]) -> Mapping[str, Any]:
        if set(grads) != set(self.parameters):
            raise ValueError(f"grads has the keys {sorted(grads)}, want {sorted(self.parameters)}")
        return grads

    def _zeros(self) -> dict[str, Any]:
        return {
            name: self.backend.asarray(np.zeros(value.shape), value.dtype)
            for name, value in self.parameters.items()
        }


class SGD(_Optimizer):
    """Gradient descent with momentum.

    ::

        velocity <- momentum velocity - lr dw
        w        <- w + velocity

    Equation (5) of the paper. With ``momentum=0`` this is plain gradient descent and keeps no
    state.

    Parameters
    ----------
    parameters : dict of str to array
        What to update, in place; for instance ``net.parameters``.
    lr : float or mapping
        At least 0: one number, or one for each layer or parameter by name.
    momentum : float
        In [0, 1).
    backend : str or module
        The backend of the parameters' arrays.

    Attributes
    ----------
    state : dict
        ``"<parameter>.velocity"`` arrays: save and restore them to go on bit for bit.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range or a name is unknown.
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        lr: LearningRate,
        *,
        momentum: float = 0.0,
        backend: str | ModuleType = "auto",
    ) -> None:
        super().__init__(parameters, lr, backend=backend)
        self.momentum = check_number("momentum", momentum, 0.0, 1.0)
        if self.momentum:
            self.state = {f"{name}.velocity": zero for name, zero in self._zeros().items()}

    def step(self, grads: Mapping[str, Any]) -> None:
        """Update every parameter by its gradient; ``grads`` has the parameters' names."""
        for name, grad in self._matching(grads).items():
            self.backend.sgd_update(
                self.parameters[name], grad, self.state.get(f"{name}.velocity"),
                self.lr[name], self.momentum,
            )


class Adam(_Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), with bias correction; see ``reference.adam_update``.

    Parameters
    ----------
    parameters, lr, backend
        As :class:`SGD`.
    betas : (float, float)
        Decay of the two moments, each in [0, 1).
    eps : float
        Added to the square root, at least 0.

    Attributes
    ----------
    steps : int
        Number of steps taken.
    state : dict
        ``"<parameter>.m"`` and ``"<parameter>.v"`` arrays: save and restore them, with ``steps``,
        to go on bit for bit.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range or a name is unknown.
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        lr: LearningRate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        backend: str | ModuleType = "auto",
    ) -> None:
        super().__init__(parameters, lr, backend=backend)
        self.betas = (check_number("betas[0]", betas[0], 0.0, 1.0),
                      check_number("betas[1]", betas[1], 0.0, 1.0))
        self.eps = check_number("eps", eps, 0.0)
        self.steps = 0
        self.state = {f"{name}.m": zero for name, zero in self._zeros().items()}
        self.state |= {f"{name}.v": zero for name, zero in self._zeros().items()}

    def step(self, grads: Mapping[str, Any]) -> None:
        """Update every parameter by its gradient; ``grads`` has the parameters' names."""
        grads = self._matching(grads)
        self.steps += 1
        for name, grad in grads.items():
            self.backend.adam_update(
                self.parameters[name], grad, self.state[f"{name}.m"], self.state[f"{name}.v"],
                self.steps, self.lr[name], *self.betas, self.eps,
            )
