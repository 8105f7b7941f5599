"""Who makes a training step: one stepper for any backend, one wholly on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.optim import SGD, Adam, DCTAdam, Muon
from ..errors import MinisrcnnError
from ..imaging.prepare import to_unit
from ..srcnn import SRCNN
from .gather import Gather, choose_gather
from .order import Numbers, Stream, Window
from .pictures import Data
from .ranks import Ranks
from .recipes import Recipe
from .settings import Say

# Of pictures that stay on a device, which has 8 bytes for each; beyond, it is sent the batches.
_MOST_ON_DEVICE = 1 << 28

_ADAMS = {"adam": Adam, "dct-adam": DCTAdam, "muon": Muon}


class Stepper(Protocol):
    """Makes training steps; the loop sees no more of a backend than this."""

    def begin_epoch(self, windows: Iterator[Window]) -> None:
        """Take the patches of these windows, batch by batch."""

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
        rate = recipe.lr
        self.optimizer: SGD | Adam
        if recipe.optimizer in _ADAMS:
            self.optimizer = _ADAMS[recipe.optimizer](net.parameters, rate, backend=net.backend)
        else:
            self.optimizer = SGD(net.parameters, rate, momentum=recipe.momentum,
                                 backend=net.backend)
        self._losses: list[Any] = []

    def begin_epoch(self, windows: Iterator[Window]) -> None:
        """Take these patches from the next step on."""
        self.stream = Stream(windows, self.data.expect)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Use these learning rates."""
        self.optimizer.lr = rates

    def step(self) -> None:
        """Make one step."""
        numbers, codes = self.stream.take(self.recipe.batch)
        loss, grads = (self._loss_and_gradients(numbers, codes) if self.ranks.size == 1
                       else self._shared_loss_and_gradients(numbers, codes))
        self._losses.append(loss)
        self.optimizer.step(grads)

    def _patches(self, numbers: Numbers, codes: Numbers) -> tuple[Any, Any]:
        """Return inputs and targets, on the backend."""
        x, t = self.data.patches(numbers, codes if self.recipe.augment else None,
                                 self.recipe.input_size, self.padding)
        asarray, dtype = self.net.backend.asarray, self.net.dtype
        return asarray(x, dtype), asarray(t, dtype)

    def _loss_and_gradients(
        self, numbers: Numbers, codes: Numbers
    ) -> tuple[Any, dict[str, Any]]:
        return self.net.loss_and_gradients(*self._patches(numbers, codes))

    def _shared_loss_and_gradients(
        self, numbers: Numbers, codes: Numbers
    ) -> tuple[Any, dict[str, Any]]:
        """Compute this rank's chunks of a batch, and add up those of all: the same bits."""
        backend, params = self.net.backend, self.net.parameters
        N = len(numbers)
        size = backend.chunk_size(N)
        chunks = -(-N // size)
        first, last = self.ranks.share(chunks)
        # A rank without a chunk computes one for nothing, so that it knows the layout.
        some = slice(first * size, min(max(last, first + 1) * size, N))
        x, t = self._patches(numbers[some], codes[some])
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


class _Made(Sequence[Any]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, make: Callable[[int], Any], length: int) -> None:
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._length:
            raise IndexError(number)
        return self._make(number)


class DeviceStepper:
    """Steps of a backend's ``DeviceTrainer``: pictures, patches and loss stay on the device."""

    def __init__(
        self, net: SRCNN, data: Data, recipe: Recipe, ranks: Ranks, gather: Gather | None
    ) -> None:
        self.net, self.data, self.recipe = net, data, recipe
        self.trainer = net.backend.DeviceTrainer(
            net.parameters, *self._pictures(),
            batch_size=recipe.batch, patch_size=recipe.input_size, lr=recipe.lr,
            optimizer=recipe.optimizer,
            momentum=recipe.momentum if recipe.optimizer == "sgd" else None,
            rank=ranks.rank, ranks=ranks.size, gather=gather,
        )
        self._read = 0

    def _pictures(self) -> tuple[Sequence[Any], Sequence[Any], NDArray[Any]]:
        """Return inputs, labels, and where patches may be cut."""
        inputs, labels = self.data.inputs, self.data.labels
        return (_Made(lambda i: _channels_first(inputs[i]), len(inputs)),
                _Made(lambda i: _channels_first(to_unit(labels[i])), len(labels)),
                self.data.index[:])

    def begin_epoch(self, windows: Iterator[Window]) -> None:
        """Take these patches from the next step on."""
        parts = list(windows)
        order = np.concatenate([window.numbers for window in parts])
        codes = np.concatenate([window.codes for window in parts])
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


class SentStepper(DeviceStepper):
    """The same, of more pictures than the device has room for: the host sends it the patches.

    They are the device's pictures, of one patch each, and are replaced before each step.
    """

    def __init__(
        self, net: SRCNN, data: Data, recipe: Recipe, ranks: Ranks, gather: Gather | None
    ) -> None:
        self.padding = net.shrinkage // 2
        size = recipe.input_size
        self._x = np.zeros((recipe.batch, net.channels, size, size), net.dtype)
        self._t = np.zeros((recipe.batch, net.channels, *[size - net.shrinkage] * 2), net.dtype)
        super().__init__(net, data, recipe, ranks, gather)
        self.trainer.load_order(np.arange(recipe.batch))

    def _pictures(self) -> tuple[Sequence[Any], Sequence[Any], NDArray[Any]]:
        table = np.zeros((self.recipe.batch, 3), np.int64)
        table[:, 0] = np.arange(self.recipe.batch)
        return list(self._x), list(self._t), table

    def begin_epoch(self, windows: Iterator[Window]) -> None:
        """Take these patches from the next step on."""
        self.stream = Stream(windows, self.data.expect)

    def step(self) -> None:
        """Make one step."""
        numbers, codes = self.stream.take(self.recipe.batch)
        own = self.trainer.images  # of this rank: no others are looked at
        self._x[own], self._t[own] = self.data.patches(
            numbers[own], codes[own] if self.recipe.augment else None, self.recipe.input_size,
            self.padding)
        self.trainer.load_images(self._x, self._t)
        super().step()


def _channels_first(image: NDArray[Any]) -> NDArray[Any]:
    """Return (C, H, W) for (H, W) or (C, H, W)."""
    return image.reshape(-1, *image.shape[-2:])


def new_stepper(
    net: SRCNN, data: Data, recipe: Recipe, ranks: Ranks, say: Say
) -> Stepper:
    """Return the stepper for a network's backend.

    Raises
    ------
    MinisrcnnError
        If there are several ranks, and the backend cannot share out the batch.
    """
    if not hasattr(net.backend, "DeviceTrainer"):
        if ranks.size > 1 and not hasattr(net.backend, "chain_partials"):
            raise MinisrcnnError(f"backend is {net.backend.NAME}, want numba or cupy for "
                                 f"{ranks.size} ranks of MPI")
        return HostStepper(net, data, recipe, ranks)
    gather = None
    if ranks.size > 1:
        if recipe.batch < (least := net.backend.DeviceTrainer.chunks):
            raise MinisrcnnError(f"--batch-size is {recipe.batch}, want at least {least} for "
                                 f"{ranks.size} ranks of MPI on GPUs")
        gather = choose_gather(net.backend, ranks, say)
    pixels = net.channels * int(data.index.shapes.prod(axis=1).sum())
    kind = DeviceStepper if pixels <= _MOST_ON_DEVICE else SentStepper
    if kind is SentStepper:
        say(f"The pictures have {pixels / 1e6:,.0f} million pixels, and up to "
            f"{_MOST_ON_DEVICE / 1e6:,.0f} million stay on the device: it is sent the batches.")
    # A picture may be damaged on one rank alone; all else above is the same on all ranks.
    return ranks.run_everywhere(lambda: kind(net, data, recipe, ranks, gather))
