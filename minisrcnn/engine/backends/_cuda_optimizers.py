"""The optimizers of ``DeviceTrainer``: from partial gradients to new parameters, on the device.

Each launches a few kernels and never looks at a number, so that a step can be recorded. The
formulas, and the names of the state, are those of :mod:`minisrcnn.engine.optim`: either can go on
where the other stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..transforms import MUON_SIZE, NEWTON_SCHULZ, cosine_transform
from ._cuda import DCT_ADAM, MUON, Array, CudaBackend, Sums, dct_options, split_parameters

_RUN = 128                            # RUN_THREADS in dct_adam.cu
_GRAM_COLUMNS, _GRAM_THREADS = 64, 256  # in muon.cu
_ORTHO_THREADS = 512                  # in muon.cu
_UPDATE_THREADS = 128                 # of muon_update


@dataclass(frozen=True)
class Training:
    """What an optimizer works on.

    Attributes
    ----------
    backend : CudaBackend
    sums : Sums
        The partial gradients that come in.
    flat : array
        All parameters, layer after layer.
    params : dict
        Views of them by name, weights and biases in turn.
    lr : array
        A learning rate for each.
    counters : array
        The second number counts the steps, from 1 while a step is on its way.
    momentum : float
    betas : (float, float)
    eps : float
        Settings, as far as the optimizer has them.
    """

    backend: CudaBackend
    sums: Sums
    flat: Array
    params: dict[str, Array]
    lr: Array
    counters: Array
    momentum: float
    betas: tuple[float, float]
    eps: float

    def zeros(self) -> Array:
        """Return a zero for each parameter."""
        return self.backend.xp.zeros(self.flat.size, self.flat.dtype)

    def named(self, kind: str, numbers: Array) -> dict[str, Array]:
        """Return views of ``numbers``, one for each parameter: ``"conv1.weight.m"`` and so on."""
        return {f"{name}.{kind}": view
                for name, view in split_parameters(numbers, self.params).items()}


class Optimizer(Protocol):
    """Updates all parameters."""

    state: dict[str, Array]

    def launch(self) -> None:
        """Queue one update."""


class SGD:
    """Equation (5) of the SRCNN paper: one launch. Without momentum there is no state."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.velocity = training.zeros()
        self.state = training.named("velocity", self.velocity) if training.momentum else {}

    def launch(self) -> None:
        """Queue one update."""
        t = self.training
        t.backend.reduce("reduce_sgd", t.sums, t.flat, self.velocity, t.lr, t.momentum,
                         size=t.flat.size)


class Adam:
    """Kingma & Ba 2015, algorithm 1: one launch."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.m, self.v = training.zeros(), training.zeros()
        self.state = training.named("m", self.m) | training.named("v", self.v)

    def launch(self) -> None:
        """Queue one update."""
        t = self.training
        t.backend.reduce("reduce_adam", t.sums, t.flat, self.m, self.v, t.lr, t.counters,
                         *t.betas, t.eps, size=t.flat.size)


class DCTAdam(Adam):
    """Adam on the cosine coefficients of the kernels: two launches.

    Raises
    ------
    ValueError
        If a kernel is not square.
    """

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        xp, dtype = training.backend.xp, training.flat.dtype
        self.grad = xp.empty(training.flat.size, dtype)
        sides = {1: 0}  # side of a kernel: where its transform starts
        matrices = [cosine_transform(1).ravel()]
        runs, first = [], 0
        for kind, (name, value) in enumerate(training.params.items()):
            KH, KW = value.shape[2:] if value.ndim == 4 else (1, 1)
            if KH != KW:
                raise ValueError(f"{name} has kernels of {KH}x{KW}, want square ones")
            if KH not in sides:
                sides[KH] = sum(matrix.size for matrix in matrices)
                matrices.append(cosine_transform(KH).ravel())
            if not self._elsewhere(name):
                longest = max(1, _RUN // KH**2) * KH**2  # whole kernels
                runs += [(first + at, min(longest, value.size - at), KH, kind, sides[KH])
                         for at in range(0, value.size, longest)]
            first += value.size
        self.runs = xp.asarray(np.array(runs, np.int32))
        self.transforms = xp.asarray(np.concatenate(matrices).astype(dtype))
        self.options = dct_options(max(sides))

    def _elsewhere(self, name: str) -> bool:
        """Say whether a parameter is left to another rule."""
        return False

    def launch(self) -> None:
        """Queue one update."""
        t = self.training
        t.backend.reduce("reduce_gradient", t.sums, self.grad, size=t.flat.size)
        t.backend.launch(DCT_ADAM, "dct_adam_update", (len(self.runs),), (_RUN,), self.grad, t.flat,
                         self.m, self.v, t.lr, t.counters, self.runs, self.transforms, *t.betas,
                         t.eps, real=t.flat.dtype, options=self.options)


class Muon(DCTAdam):
    """Muon for the inner layers, three launches each; :class:`DCTAdam` for the others.

    Raises
    ------
    ValueError
        If a kernel is not square.
    """

    def __init__(self, training: Training) -> None:
        kernels = [name for name, value in training.params.items() if value.ndim == 4]
        self.inner = [_Inner(name, training) for name in kernels[1:-1]]
        super().__init__(training)
        for layer in self.inner:
            del self.state[f"{layer.name}.v"]

    def _elsewhere(self, name: str) -> bool:
        return any(layer.name == name for layer in self.inner)

    def launch(self) -> None:
        """Queue one update."""
        super().launch()
        for layer in self.inner:
            layer.launch(self.grad, self.m)


class _Inner:
    """The weights of an inner layer, as a matrix (F, n)."""

    def __init__(self, name: str, training: Training) -> None:
        self.name, self.training = name, training
        names, w = list(training.params), training.params[name]
        self.kind = names.index(name)
        start = sum(training.params[before].size for before in names[:self.kind])
        self.span = slice(start, start + w.size)
        self.F, self.n = w.shape[0], w.size // w.shape[0]
        self.S = -(-self.F // 4) * 4
        self.parts = -(-self.n // _GRAM_COLUMNS)
        xp = training.backend.xp
        self.grams = xp.empty((self.parts, self.S, self.S), w.dtype)
        self.work = xp.empty((5, self.S, self.S), w.dtype)

    def launch(self, grad: Array, m: Array) -> None:
        t, launch, real = self.training, self.training.backend.launch, self.grams.dtype
        F, n, S = self.F, self.n, self.S
        launch(MUON, "muon_gram", (self.parts,), (_GRAM_THREADS,), m[self.span], grad[self.span],
               self.grams, F, n, S, t.momentum, 1 - t.momentum, real=real)
        launch(MUON, "muon_orthogonalise", (1,), (_ORTHO_THREADS,), self.grams, self.work,
               self.parts, S, *NEWTON_SCHULZ, real=real)
        launch(MUON, "muon_update", (-(-F * n // _UPDATE_THREADS),), (_UPDATE_THREADS,),
               t.flat[self.span], grad[self.span], self.work, t.lr, self.kind,
               MUON_SIZE * max(F, n) ** 0.5, F, n, S, real=real)


OPTIMIZERS: dict[str, Callable[[Training], Optimizer]] = {
    "sgd": SGD, "adam": Adam, "dct-adam": DCTAdam, "muon": Muon,
}
