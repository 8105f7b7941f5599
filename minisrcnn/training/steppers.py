"""Who makes a training step: one stepper for any backend, one wholly on a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.optim import SGD, Adam, DCTAdam, Muon
from ..errors import MinisrcnnError
from ..imaging.patches import augment, gather
from ..srcnn import SRCNN
from .pictures import Data
from .ranks import Ranks
from .recipes import Recipe

_ADAMS = {"adam": Adam, "dct-adam": DCTAdam, "muon": Muon}


class Stepper(Protocol):
    """Makes training steps; the loop sees no more of a backend than this."""

    def begin_epoch(self, order: NDArray[np.intp], codes: NDArray[np.intp]) -> None:
        """Take these rows of the patch index, batch by batch, rotated or flipped by ``codes``."""

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Use these learning rates, one for each layer, from the next step on."""

    def step(self) -> None:
        """Make one step."""

    def losses(self) -> list[float]:
        """Return the losses of the steps since the last call, or one in place of several.

        Their sum is the sum of the losses of all steps.
        """

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the parameters and the optimizer's state."""

    def restore(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Go on from what ``arrays`` returned after ``steps`` steps."""

    def update(self, net: SRCNN) -> None:
        """Bring the network's parameters up to date."""


def check_state(found: Mapping[str, NDArray[Any]], want: Mapping[str, Any]) -> None:
    """Refuse arrays of other names, shapes or dtypes than a training's own: NumPy broadcasts.

    Raises
    ------
    MinisrcnnError
    """
    if set(found) != set(want):
        raise MinisrcnnError(f"the checkpoint has the arrays {', '.join(sorted(found))}, "
                             f"want {', '.join(sorted(want))}")
    for name, value in want.items():
        a = found[name]
        if a.shape != value.shape or a.dtype != value.dtype:
            raise MinisrcnnError(f"the checkpoint's {name} has shape {a.shape}, dtype {a.dtype}, "
                                 f"want {value.shape}, {value.dtype}")


class HostStepper:
    """Steps through :class:`SRCNN` and an optimizer, on any backend."""

    def __init__(self, net: SRCNN, data: Data, recipe: Recipe, ranks: Ranks) -> None:
        self.net, self.data, self.recipe, self.ranks = net, data, recipe, ranks
        self.padding = net.shrinkage // 2
        self._inputs, self._labels = _channels(data.inputs), _channels(data.labels)
        rate = recipe.lr
        self.optimizer: SGD | Adam
        if recipe.optimizer in _ADAMS:
            self.optimizer = _ADAMS[recipe.optimizer](net.parameters, rate, backend=net.backend)
        else:
            self.optimizer = SGD(net.parameters, rate, momentum=recipe.momentum,
                                 backend=net.backend)
        self._losses: list[Any] = []

    def begin_epoch(self, order: NDArray[np.intp], codes: NDArray[np.intp]) -> None:
        """Take these patches from the next step on."""
        self.order, self.codes, self.at = order, codes, 0

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Use these learning rates."""
        self.optimizer.lr = rates

    def step(self) -> None:
        """Make one step."""
        batch = slice(self.at, self.at + self.recipe.batch)
        self.at = batch.stop
        loss, grads = (self._loss_and_gradients(batch) if self.ranks.size == 1
                       else self._shared_loss_and_gradients(batch))
        self._losses.append(loss)
        self.optimizer.step(grads)

    def _patches(self, batch: slice) -> tuple[Any, Any]:
        """Return inputs and targets, on the backend."""
        rows, codes = self.data.index[self.order[batch]], self.codes[batch]
        size = self.recipe.input_size

        def cut(images: Sequence[NDArray[Any]], size: int, offset: int) -> Any:
            patches = gather(images, rows, size, offset=offset)
            return augment(patches, codes) if self.recipe.augment else patches

        x = [cut(images, size, 0) for images in self._inputs]
        t = [cut(images, size - 2 * self.padding, self.padding) for images in self._labels]
        asarray, dtype = self.net.backend.asarray, self.net.dtype
        return asarray(np.stack(x, axis=1), dtype), asarray(np.stack(t, axis=1), dtype)

    def _loss_and_gradients(self, batch: slice) -> tuple[Any, dict[str, Any]]:
        return self.net.loss_and_gradients(*self._patches(batch))

    def _shared_loss_and_gradients(self, batch: slice) -> tuple[Any, dict[str, Any]]:
        """Compute this rank's chunks of a batch, and add up those of all: the same bits."""
        backend, params = self.net.backend, self.net.parameters
        N = len(self.order[batch])
        size = backend.chunk_size(N)
        chunks = -(-N // size)
        first, last = self.ranks.share(chunks)
        # A rank without a chunk computes one for nothing, so that it knows the layout.
        some = slice(batch.start + first * size,
                     batch.start + min(max(last, first + 1) * size, N))
        x, t = self._patches(some)
        elements = t.size // len(t) * N
        partial, losses = backend.chain_partials(params, x, t, size, elements)
        partial, losses = backend.to_numpy(partial)[:last - first], losses[:last - first]

        def add(rows: NDArray[Any]) -> NDArray[Any]:
            return backend.to_numpy(backend.add_partials(backend.asarray(rows, rows.dtype)))

        total = backend.asarray(self.ranks.add_in_order(partial, chunks, add), partial.dtype)
        return backend.chain_total(params, x, total, self.ranks.gather(losses, chunks), elements)

    def losses(self) -> list[float]:
        """Return the losses since the last call."""
        losses, self._losses = [float(loss) for loss in self._losses], []
        return losses

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies, on the host."""
        to_numpy = self.net.backend.to_numpy
        both = {**self.net.parameters, **self.optimizer.state}
        return {name: to_numpy(value) for name, value in both.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Go on from ``arrays``."""
        own = {**self.net.parameters, **self.optimizer.state}
        check_state(arrays, own)
        for name, value in own.items():
            value[...] = self.net.backend.asarray(arrays[name], value.dtype)
        if isinstance(self.optimizer, Adam):
            self.optimizer.steps = steps

    def update(self, net: SRCNN) -> None:
        """Do nothing: the optimizer works on the network's own arrays."""


class DeviceStepper:
    """Steps of a backend's ``DeviceTrainer``: pictures, patches and loss stay on the device."""

    def __init__(self, net: SRCNN, data: Data, recipe: Recipe) -> None:
        self.net, self.recipe = net, recipe
        self.trainer = net.backend.DeviceTrainer(
            net.parameters, [x.reshape(-1, *x.shape[-2:]) for x in data.inputs],
            [t.reshape(-1, *t.shape[-2:]) for t in data.labels],
            data.index, batch_size=recipe.batch, patch_size=recipe.input_size, lr=recipe.lr,
            optimizer=recipe.optimizer,
            momentum=recipe.momentum if recipe.optimizer == "sgd" else None,
        )
        self._read = 0

    def begin_epoch(self, order: NDArray[np.intp], codes: NDArray[np.intp]) -> None:
        """Take these patches from the next step on."""
        # The order comes round again when it is through: what this epoch has had already may
        # stand at its end.
        gap = self.trainer.batches * self.recipe.batch - len(order)
        pad = np.zeros(gap, order.dtype)
        codes = codes if self.recipe.augment else np.zeros_like(codes)
        self.trainer.load_order(np.concatenate([order, pad]), np.concatenate([codes, pad]))

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Use these learning rates."""
        self.trainer.set_learning_rate(rates)

    def step(self) -> None:
        """Make one step."""
        self.trainer.step()
        self._read += 1

    def losses(self) -> list[float]:
        """Return the sum since the last call: the device adds them up."""
        steps, self._read = self._read, 0
        return [self.trainer.read_loss() * steps] if steps else []

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies, on the host."""
        both = {**self.trainer.parameters, **self.trainer.state}
        return {name: self.net.backend.to_numpy(value) for name, value in both.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Go on from ``arrays``."""
        check_state(arrays, {**self.trainer.parameters, **self.trainer.state})
        with self.trainer.stream:  # so that no step overtakes it
            for name, value in self.trainer.parameters.items():
                value[...] = self.net.backend.asarray(arrays[name], value.dtype)
        state = {name: arrays[name] for name in self.trainer.state}
        self.trainer.load_state(state, steps)

    def update(self, net: SRCNN) -> None:
        """Copy the parameters."""
        for name, value in self.trainer.parameters.items():
            net.parameters[name][...] = value


def _channels(images: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
    """Return the pictures of each channel, from pictures (H, W) or (C, H, W)."""
    return [list(planes) for planes in zip(*(x.reshape(-1, *x.shape[-2:]) for x in images),
                                           strict=True)]


def new_stepper(net: SRCNN, data: Data, recipe: Recipe, ranks: Ranks) -> Stepper:
    """Return the stepper for a network's backend.

    Raises
    ------
    MinisrcnnError
        If there are several ranks, and the backend cannot share out a batch.
    """
    if ranks.size > 1 and not hasattr(net.backend, "chain_partials"):
        raise MinisrcnnError(f"backend is {net.backend.NAME}, want numba or cupy for {ranks.size} "
                             "ranks of MPI")
    if ranks.size == 1 and hasattr(net.backend, "DeviceTrainer"):
        return DeviceStepper(net, data, recipe)
    return HostStepper(net, data, recipe, ranks)
