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
from .backends.checks import check_writable
from .transforms import MUON_MOMENTUM, MUON_SIZE, NEWTON_SCHULZ, cosine_transform

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
        self._prepare()

    def _prepare(self) -> None:
        """Make what a kind of update needs of the parameters' shapes, once."""

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
        """Return grads; refuse a step that could not be taken whole."""
        check_writable(**self.parameters, **self.state)
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
        """Update every parameter by its gradient.

        Parameters
        ----------
        grads : mapping of str to array
            With the names of the parameters.

        Raises
        ------
        ValueError
            If the names differ or a parameter is read-only; then nothing is changed.
        """
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
        """Update every parameter by its gradient, as :meth:`SGD.step`."""
        grads = self._matching(grads)
        self.steps += 1
        for name, grad in grads.items():
            self._update(name, self.parameters[name], grad)

    def _update(self, name: str, value: Any, grad: Any) -> None:
        self.backend.adam_update(
            value, grad, self.state[f"{name}.m"], self.state[f"{name}.v"],
            self.steps, self.lr[name], *self.betas, self.eps,
        )


class DCTAdam(Adam):
    """Adam on the cosine coefficients of the filters instead of their taps.

    Neighbouring pixels of a picture are nearly equal, so the loss is steep along the smooth part
    of a filter and almost flat along the rest. Adam gives every coordinate a step size of its
    own, but this difference is between directions that no single tap is. The discrete cosine
    transform is close to the principal components of natural pictures (Rao and Yip 1990,
    chapter 2), and separates them. With its matrix D, see
    :func:`~minisrcnn.engine.transforms.cosine_transform`::

        w <- w + D^T Adam(D dw D^T) D

    where Adam(g) is the update for a gradient g. Biases and 1x1 kernels are updated as
    :class:`Adam` does.

    Parameters
    ----------
    parameters, lr, betas, eps, backend
        As :class:`Adam`. Kernels are square.

    Attributes
    ----------
    steps, state
        As of :class:`Adam`; the moments of a kernel are those of its coefficients.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, a name is unknown or a kernel is not square.
    """

    def _prepare(self) -> None:
        self._transforms: dict[str, Any] = {}
        for name, value in self.parameters.items():
            if value.ndim == 4 and value.shape[2:] != (1, 1):
                KH, KW = value.shape[2:]
                if KH != KW:
                    raise ValueError(f"{name} has kernels of {KH}x{KW}, want square ones")
                self._transforms[name] = self.backend.asarray(cosine_transform(KH), value.dtype)

    def _update(self, name: str, value: Any, grad: Any) -> None:
        D = self._transforms.get(name)
        if D is None:
            super()._update(name, value, grad)
            return
        # A product of small matrices for each kernel, rather than one of large ones: the bits
        # of the latter depend on the threads of the BLAS library.
        update = value * 0
        super()._update(name, update, D @ grad @ D.T)
        value += D.T @ update @ D


class Muon(DCTAdam):
    """Muon (Jordan et al. 2024) for the inner layers, :class:`DCTAdam` for the first and last.

    An inner layer mixes C features into F. With the momentum m of its gradient as a matrix
    of F rows, Muon steps along the nearest matrix whose singular values are all one: all
    directions among the features are learned at one speed, not the strongest first::

        m <- mu m + (1 - mu) dw
        w <- w - 0.4 lr sqrt(max(F, n)) orthogonalise(mu m + (1 - mu) dw)

    with n the inputs of a filter, C KH KW. The factor makes an update about as large as one of
    Adam's (Liu et al. 2025, who take 0.2; 0.4 was better here).

    Parameters
    ----------
    parameters, lr, betas, eps, backend
        As :class:`Adam`.
    momentum : float
        mu, in [0, 1).

    Attributes
    ----------
    steps, state
        As of :class:`DCTAdam`; of an inner layer's weight there is the momentum
        ``"<parameter>.m"`` alone.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, a name is unknown or a kernel is not square.
    """

    #: Root mean square of an update's numbers, in learning rates.
    SIZE = MUON_SIZE

    def __init__(
        self,
        parameters: dict[str, Any],
        lr: LearningRate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = MUON_MOMENTUM,
        backend: str | ModuleType = "auto",
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps, backend=backend)
        self.momentum = check_number("momentum", momentum, 0.0, 1.0)
        kernels = [name for name, value in parameters.items() if value.ndim == 4]
        self._inner = frozenset(kernels[1:-1])
        for name in self._inner:
            del self.state[f"{name}.v"]

    def _update(self, name: str, value: Any, grad: Any) -> None:
        if name not in self._inner:
            super()._update(name, value, grad)
            return
        mu, m = self.momentum, self.state[f"{name}.m"]
        m *= mu
        m += (1 - mu) * grad
        F, inputs = value.shape[0], value[0].size
        rate = self.SIZE * self.lr[name] * max(F, inputs) ** 0.5
        value -= rate * orthogonalise(mu * m + (1 - mu) * grad, self.backend)


def orthogonalise(w: Any, backend: ModuleType) -> Any:
    """Move the singular values of a weight, as a matrix of F rows, to about one.

    Five steps of a Newton-Schulz iteration with the coefficients of Jordan et al. (2024), which
    take singular values from 0.005 to 1 of the largest possible into [0.7, 1.2]::

        X <- (a I + b X X^T + c (X X^T)^2) X

    A step is a polynomial of X X^T, so they are multiplied out among matrices of F x F
    before the product with X is formed, once.

    Parameters
    ----------
    w : (F, C, KH, KW) array
    backend : module
        Whose array it is.

    Returns
    -------
    array of the same shape
    """
    a, b, c = NEWTON_SCHULZ
    # A matrix (F, C) for each tap: products too small for the BLAS library to use threads, whose
    # number would show in the last bits.
    taps = w.transpose(2, 3, 0, 1).copy()
    gram = (taps @ taps.swapaxes(2, 3)).sum(axis=(0, 1))
    square = gram.trace()  # of the Frobenius norm, which no singular value exceeds
    gram = gram / (square + 1e-30)
    identity = backend.asarray(np.eye(len(w)), w.dtype)
    product = identity
    for _ in range(5):
        step = a * identity + b * gram + c * (gram @ gram)
        product, gram = step @ product, step @ gram @ step
    product = product / (square + 1e-30) ** 0.5
    return (product @ taps).transpose(2, 3, 0, 1)
