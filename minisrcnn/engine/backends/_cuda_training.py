"""Training that never leaves the device: images, patches, step and loss.

A step of SRCNN takes tens of microseconds of arithmetic on a large GPU; launching its dozen
kernels from Python one by one takes longer than that. So the step is recorded once, as a CUDA
graph, and replayed. A recorded step takes no new arguments, hence all that changes from step
to step lies in device memory, and the kernels fetch it there: the learning rates, which patches
come next, how many steps were taken.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...arguments import check_integer, check_number
from ..transforms import MUON_MOMENTUM
from . import checks
from ._cuda import PATCHES, Array, CudaBackend, split_parameters
from ._cuda_optimizers import OPTIMIZERS, Training
from ._cuda_plan import CHUNKS, Share

_THREADS = 256


class DeviceTrainer:
    r"""Stochastic gradient descent on patches of images, wholly on the device.

    One :meth:`step` gathers a batch of patches, runs the chain forward and backward and updates
    the parameters:

    ================================= ===================================================
    ``gather_patches``                cut, mirror and rotate the patches of the batch
    ``conv_forward_fused``            once a layer: convolution, bias, ReLU
    ``mse_partial``                   the gradient of the loss, and partial sums of it
    ``conv_backward_weight_split``    once a layer: partial gradients of weights and biases
    ``conv_backward_input_fused``     once a layer but the first: gradient times ReLU mask
    ``mse_finish``                    add up the loss, count the step
    the optimizer's                   add up the partial gradients, update all parameters
    ================================= ===================================================

    For ``"sgd"`` and ``"adam"`` the last line is one launch (``reduce_sgd``, ``reduce_adam``), for
    ``"dct-adam"`` two (``reduce_gradient``, ``dct_adam_update``), for ``"muon"`` three more for
    each inner layer (``muon_gram``, ``muon_orthogonalise``, ``muon_update``).

    Several devices share out the chunks of a batch: each cuts and runs the patches of its own, adds
    up what each chunk has left (``reduce_chunks``), and gets those of the others by ``gather``.
    Then every device makes the same update for itself. The order of all sums is that of one device,
    so that the bits are the same.

    The first step is run launch by launch (which also compiles and loads the kernels), the second
    is recorded (in two records, before and after ``gather``, where devices share a batch), and from
    then on the record is replayed. Every sum has a fixed order: the same
    data and seeds give the same bits.

    Parameters
    ----------
    params : dict
        ``conv1.weight`` (F,C,KH,KW), ``conv1.bias`` (F,), ... in order; device arrays of one dtype.
        They are copied, not changed.
    inputs, labels : sequences of (C, H, W) and (F, H', W') NumPy arrays
        Images of any sizes, one label for each input: of the size of the input, or smaller by up
        to what the chain takes away, and centred on it. Each is asked for twice, so that a
        sequence can make them one by one.
    table : (P, 3) array of int
        Where patches may be cut: image, y, x of the top left corner in the input.
    batch_size : int
        Patches of a step.
    patch_size : int
        Rows and columns of an input patch.
    lr : float or mapping
        Learning rate, at least 0: one, or one for each layer (``"conv1"``) or parameter
        (``"conv1.bias"``).
    batches : int, optional
        Batches of a sequence given to :meth:`load_order`; as many whole ones as there are
        patches by default.
    optimizer : {"sgd", "adam", "dct-adam", "muon"}
        Equation (5) of the SRCNN paper; Kingma & Ba 2015, algorithm 1;
        :class:`~minisrcnn.engine.optim.DCTAdam`; :class:`~minisrcnn.engine.optim.Muon`.
    momentum : float, optional
        Of SGD, by default 0, or of Muon, by default 0.95; in [0, 1).
    betas, eps
        Of all but SGD.
    rank, ranks : int
        Of how many devices that share a batch of at least 8 patches this is which one.
    gather : callable, optional
        ``gather(rows, stream)`` fills ``rows`` (ranks, ...) on the device, in order with the work
        of ``stream``: ``rows[rank]`` is there, the others come from the other devices.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; patches that leave their image are refused here, for
        a kernel would read beyond its end.

    Notes
    -----
    Work is queued on a stream of its own, in order with what was queued on the caller's current
    stream before. :attr:`parameters`, :attr:`state`, :meth:`load_state` and :meth:`read_loss` wait
    for it, the host does not wait in :meth:`step`. What was loaded may be overwritten at once, if
    it does not lie in pinned memory. A trainer that is dropped waits for its work first.
    """

    backend: ClassVar[CudaBackend]
    chunks: ClassVar[int] = CHUNKS  # of a batch that devices share: it has as many patches or more

    def __init__(
        self,
        params: dict[str, Array],
        inputs: Sequence[NDArray[Any]],
        labels: Sequence[NDArray[Any]],
        table: NDArray[np.integer],
        *,
        batch_size: int,
        patch_size: int,
        lr: float | Mapping[str, float],
        batches: int | None = None,
        optimizer: str = "sgd",
        momentum: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rank: int = 0,
        ranks: int = 1,
        gather: Callable[[Array, Any], None] | None = None,
    ) -> None:
        pairs = checks.chain(params, self.backend.accepts)
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {optimizer!r}, want one of {', '.join(OPTIMIZERS)}")
        if momentum is None:
            momentum = MUON_MOMENTUM if optimizer == "muon" else 0.0
        momentum = check_number("momentum", momentum, 0.0, 1.0)
        betas = (check_number("betas[0]", betas[0], 0.0, 1.0),
                 check_number("betas[1]", betas[1], 0.0, 1.0))
        eps = check_number("eps", eps, 0.0)
        self.batch_size = check_integer("batch_size", batch_size)
        self.patch_size = check_integer("patch_size", patch_size)
        if gather is not None and self.batch_size < CHUNKS:
            raise ValueError(f"batch_size is {batch_size}, want at least {CHUNKS} for several "
                             "devices")
        if gather is None and ranks > 1:
            raise ValueError(f"gather is None, want one for {ranks} devices")
        share = Share.of_rank(self.batch_size, rank, ranks)
        #: Which patches of a batch are worked on here.
        self.images = np.array(share.images, np.intp)
        shrinkage = {sum(w.shape[axis] - 1 for w, _ in pairs) for axis in (2, 3)}
        if len(shrinkage) > 1:
            raise ValueError("params has kernels that are not square, want square ones: patches "
                             "are rotated")
        self.label_size = self.patch_size - shrinkage.pop()
        if self.label_size < 1:
            raise ValueError(f"patch_size is {patch_size}, want at least "
                             f"{patch_size - self.label_size + 1}: the chain leaves no output")
        C, F = pairs[0][0].shape[1], pairs[-1][0].shape[0]
        table = np.asarray(table)
        geometry = self._check_images(inputs, labels, C, F)
        self._check_table(table, geometry)
        self.patches = len(table)
        self.batches = (self.patches // self.batch_size if batches is None
                        else check_integer("batches", batches))
        if self.batches < 1:
            raise ValueError(f"batch_size is {batch_size}, want at most {self.patches}, the "
                             "number of patches")
        self._names = list(params)
        rates = self._rates(lr)

        xp, dtype = self.backend.xp, pairs[0][0].dtype
        self.stream = xp.cuda.Stream()
        weakref.finalize(self, self.stream.synchronize)  # memory is freed after its last use
        self._follow_caller()
        with self.stream:
            self._inputs = self._upload(inputs, dtype, geometry[:, :3], C)
            self._labels = self._upload(labels, dtype, geometry[:, 3:], F)
            self._geometry = xp.asarray(geometry)
            self._table = xp.asarray(np.ascontiguousarray(table, np.int32))
            self._order = xp.zeros((self.batches * len(self.images), 2), np.int32)
            self._counters = xp.zeros(2, np.int64)  # batches taken of the order; all steps
            self._total = xp.zeros(1, np.float64)   # sum of losses since the last reading
            self._lr = xp.asarray(rates.astype(dtype))
            N = len(self.images)
            x = xp.empty((N, C, self.patch_size, self.patch_size), dtype)
            self._t = xp.empty((N, F, self.label_size, self.label_size), dtype)
            size = sum(value.size for value in params.values())
            self._flat = xp.empty(size, dtype)
            self._params = split_parameters(self._flat, params)
            for name, value in params.items():
                self._params[name][...] = value
            self._pairs = checks.chain(self._params, self.backend.accepts)
            self._step = self.backend.prepare_step(self._pairs, x, share)
            self._elements = self.batch_size * F * self.label_size**2
            self._gather, self._sums = gather, self._step.sums
            if gather is not None:
                self._rows = xp.zeros((ranks, -(-CHUNKS // ranks), size + 1), dtype)
                self._mine = self._rows[rank, :share.count]
                self._sums = self.backend.sums_of_chunks(
                    self._step.plans, self._rows.reshape(-1, size + 1))
            self._optimizer = OPTIMIZERS[optimizer](Training(
                self.backend, self._sums, self._flat, self._params, self._lr, self._counters,
                momentum, betas, eps))
        self.stream.synchronize()  # from here on the caller may overwrite what was copied
        self._graphs: list[Any] = []
        self._warm = self._loaded = False
        self._since_reading = 0
        self.steps = 0

    def load_order(
        self, order: NDArray[np.integer], codes: NDArray[np.integer] | None = None
    ) -> None:
        """Say which patches the next steps take; for instance at the start of every epoch.

        Parameters
        ----------
        order : (batches * batch_size,) array of int
            Rows of the table, batch after batch. When all are taken they come again.
        codes : array of int in 0..7, of the same shape, optional
            Orientation of each: mirrored left to right where at least 4, then rotated by
            ``code % 4`` times 90 degrees anticlockwise. By default none is changed.
        """
        order = np.asarray(order)
        shape = (self.batches * self.batch_size,)
        codes = np.zeros(shape, np.int64) if codes is None else np.asarray(codes)
        for name, array, bound in (("order", order, self.patches), ("codes", codes, 8)):
            if array.shape != shape or array.dtype.kind not in "iu":
                raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, want "
                                 f"{shape} and integers")
            if array.min() < 0 or array.max() >= bound:
                raise ValueError(f"{name} has numbers from {array.min()} to {array.max()}, want 0 "
                                 f"to {bound - 1}")
        pairs = np.stack([order, codes], axis=1).reshape(self.batches, self.batch_size, 2)
        both = np.ascontiguousarray(pairs[:, self.images], np.int32).reshape(-1, 2)
        self._send(both, self._order)
        self._begin_order()
        self._loaded = True

    def load_images(self, inputs: NDArray[Any], labels: NDArray[Any]) -> None:
        """Replace the images by others, all of one size, as they were; begin the order again.

        ``inputs`` (I,C,H,W), ``labels`` (I,F,H',W').

        Raises
        ------
        ValueError
            If there are more or fewer numbers than in those before.
        """
        for name, flat, images in (("inputs", self._inputs, inputs),
                                   ("labels", self._labels, labels)):
            if images.size != flat.size:
                raise ValueError(f"{name} has {images.size} numbers, want {flat.size}")
            self._send(np.ascontiguousarray(images, flat.dtype).ravel(), flat)
        self._begin_order()

    def step(self) -> None:
        """Queue one training step; returns at once, unless gradients are gathered by the host.

        Raises
        ------
        ValueError
            If no order was loaded.
        """
        if not self._loaded:
            raise ValueError("no order is loaded, want load_order before the first step")
        self._follow_caller()
        if not self._warm:  # compiles and loads the kernels, which a recording must not
            with self.stream:
                self._launch_gradients()
                self._exchange()
                self._launch_update()
            self._warm = True
        else:
            if not self._graphs:
                self._graphs = self._record_step()
            for graph in self._graphs[:-1]:
                graph.launch(self.stream)
            self._exchange()
            self._graphs[-1].launch(self.stream)
        self.steps += 1
        self._since_reading += 1

    def set_learning_rate(self, lr: float | Mapping[str, float]) -> None:
        """Use another learning rate from the next step on; given as to the constructor."""
        self._send(self._rates(lr).astype(self._lr.dtype), self._lr)

    def read_loss(self) -> float:
        """Return the mean loss of the steps since the last reading; waits for the device.

        Raises
        ------
        ValueError
            If no step was taken since.
        """
        if not self._since_reading:
            raise ValueError("no step was taken since the last reading, want at least one")
        with self.stream:
            total = float(self._total[0])
            self._total.fill(0)
        mean, self._since_reading = total / self._since_reading, 0
        return mean

    @property
    def parameters(self) -> dict[str, Array]:
        """The parameters on the device, as they are trained: views, not copies."""
        self.stream.synchronize()
        return self._params

    @property
    def state(self) -> dict[str, Array]:
        """What the optimizer remembers: ``"<parameter>.velocity"``, or ``.m`` and ``.v``; views.

        The names are those of the optimizers in :mod:`minisrcnn.engine.optim`.
        """
        self.stream.synchronize()
        return dict(self._optimizer.state)

    def load_state(self, state: Mapping[str, Any], steps: int) -> None:
        """Go on where another trainer stopped: its ``state`` and ``steps``.

        Raises
        ------
        ValueError
            If the names or shapes are not those of :attr:`state`.
        """
        own = self.state
        if set(state) != set(own):
            raise ValueError(f"state has the keys {sorted(state)}, want {sorted(own)}")
        for name, value in state.items():
            if value.shape != own[name].shape:
                raise ValueError(f"state[{name!r}] has shape {value.shape}, want "
                                 f"{own[name].shape}")
        self._follow_caller()
        with self.stream:
            for name, value in state.items():
                own[name][...] = self.backend.asarray(value, own[name].dtype)
            self._counters[1:] = steps
        self.stream.synchronize()  # from here on the caller may overwrite what was copied
        self.steps = steps

    def _follow_caller(self) -> None:
        """Let the trainer's stream wait for what the caller's current stream holds so far.

        The legacy default stream (address 0) is waited for by itself, and waits for this stream.
        Any other, the default stream of a thread among them, is waited for through an event.
        """
        caller = self.backend.xp.cuda.get_current_stream()
        if caller.ptr != 0:
            self.stream.wait_event(caller.record())

    def _send(self, values: NDArray[Any], to: Array) -> None:
        """Copy from the host, which may overwrite ``values`` at once.

        CuPy copies them to pinned memory first (if they are not there already), which it keeps
        until they are on the device. With ``to.set(values)`` the driver would read them, and CUDA
        does not promise that it has done so when the call returns.
        """
        with self.stream:
            to[...] = self.backend.xp.asarray(values)

    def _begin_order(self) -> None:
        with self.stream:
            self._counters[:1] = 0

    def _record_step(self) -> list[Any]:
        """Record a step, as one graph; as two where gradients are gathered between them."""
        if self._gather is None:
            return [self._record(self._launch_gradients, self._launch_update)]
        return [*([self._record(self._launch_gradients)] if len(self.images) else []),
                self._record(self._launch_update)]

    def _record(self, *launches: Callable[[], None]) -> Any:
        """Record launches as a graph.

        On a stream that does not block the default one: else work that another thread queues there
        meanwhile would fail. A recording that is broken off is ended all the same, for a stream
        left in capture fails at whatever comes next.
        """
        recorder = self.backend.xp.cuda.Stream(non_blocking=True)
        with recorder:
            recorder.begin_capture()
            try:
                for launch in launches:
                    launch()
            except BaseException:
                with contextlib.suppress(Exception):  # it may be invalidated already
                    recorder.end_capture()
                raise
            return recorder.end_capture()

    def _launch_gradients(self) -> None:
        """Leave the partial sums of the batch, or those of this device's chunks."""
        if not len(self.images):  # there are more devices than chunks
            return
        launch, step = self.backend.launch, self._step
        x, t = step.activations[0], self._t
        N, C = x.shape[:2]
        launch(PATCHES, "gather_patches", (-(-(x.size + t.size) // _THREADS),), (_THREADS,),
               self._inputs, self._labels, self._geometry, self._table, self._order,
               self._counters, x, t, N, C, self.patch_size, t.shape[1], self.label_size,
               self.batches, real=x.dtype)
        self.backend.run_step(step, self._pairs, t)
        if self._gather is not None:
            self.backend.reduce_chunks(step, self._mine)

    def _exchange(self) -> None:
        """Get what the chunks of other devices have left."""
        if self._gather is not None:
            self._gather(self._rows, self.stream)

    def _launch_update(self) -> None:
        """Add up the partial sums of all; update the parameters."""
        self.backend.finish_loss(self._sums, self._step.loss, self._elements,
                                 (self._total, self._counters))
        self._optimizer.launch()

    def _rates(self, lr: float | Mapping[str, float]) -> NDArray[np.float64]:
        """Return the learning rate of every parameter, weights and biases in turn."""
        if not isinstance(lr, Mapping):
            lr = dict.fromkeys(self._names, lr)
        known = {*self._names, *(name.split(".")[0] for name in self._names)}
        for key in lr:
            if key not in known:
                raise ValueError(f"lr has the key {key!r}, want layers or parameters of "
                                 f"{', '.join(self._names)}")
        rates = []
        for name in self._names:
            key = name if name in lr else name.split(".")[0]
            if key not in lr:
                raise ValueError(f"lr has the keys {list(lr)}, want one for {key}")
            rates.append(check_number(f"lr of {name}", lr[key], 0.0))
        return np.array(rates)

    def _check_images(
        self, inputs: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]], C: int, F: int
    ) -> NDArray[np.int64]:
        """Return a row {start, H, W, start, H, W} for each input and its label."""
        if len(inputs) != len(labels) or not inputs:
            raise ValueError(f"got {len(inputs)} inputs and {len(labels)} labels, want as many of "
                             "both, at least one")
        rows, start, label_start = [], 0, 0
        shrinkage = self.patch_size - self.label_size
        for i, (image, label) in enumerate(zip(inputs, labels, strict=True)):
            if image.ndim != 3 or image.shape[0] != C:
                raise ValueError(f"inputs[{i}] has shape {image.shape}, want ({C}, H, W)")
            lost = image.shape[1] - label.shape[1] if label.ndim == 3 else -1
            even = lost % 2 == shrinkage % 2 or lost == 0
            if (not 0 <= lost <= shrinkage or not even or label.shape[0] != F
                    or image.shape[2] - label.shape[2] != lost):
                raise ValueError(f"labels[{i}] has shape {label.shape}, want ({F}, H, W) of the "
                                 f"size of inputs[{i}], {image.shape}, or smaller by up to "
                                 f"{shrinkage} pixels, as much in rows as in columns")
            rows.append((start, *image.shape[1:], label_start, *label.shape[1:]))
            start += image.size
            label_start += label.size
        return np.array(rows, np.int64)

    def _check_table(self, table: NDArray[Any], geometry: NDArray[np.int64]) -> None:
        if table.ndim != 2 or table.shape[1] != 3 or table.dtype.kind not in "iu" or not len(table):
            raise ValueError(f"table has shape {table.shape} and dtype {table.dtype}, want (P, 3) "
                             "and integers: image, y, x of at least one patch")
        image, y, x = table.astype(np.int64).T
        if image.min() < 0 or image.max() >= len(geometry):
            raise ValueError(f"table has images from {image.min()} to {image.max()}, want 0 to "
                             f"{len(geometry) - 1}")
        H, W = geometry[image, 1], geometry[image, 2]
        outside = (y < 0) | (x < 0) | (y + self.patch_size > H) | (x + self.patch_size > W)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise ValueError(f"table[{row}] is {table[row].tolist()}, want a patch of "
                             f"{self.patch_size}x{self.patch_size} within its image of "
                             f"{H[row]}x{W[row]} pixels")

    def _upload(
        self, images: Sequence[NDArray[Any]], dtype: Any, geometry: NDArray[np.int64],
        channels: int,
    ) -> Array:
        """Lay images one after another on the device; one at a time is held on the host."""
        start, H, W = geometry[-1].tolist()
        flat = self.backend.xp.empty(start + channels * H * W, dtype)
        for start, image in zip(geometry[:, 0].tolist(), images, strict=True):
            flat[start:start + image.size] = self.backend.xp.asarray(
                np.ascontiguousarray(image, dtype).ravel())
        return flat
