"""The functions of a backend over CUDA kernels: one body for CuPy and for the emulator.

``cupy.py`` and ``cupy_emulated.py`` are the backends. Each makes one :class:`CudaBackend`, over
CuPy or over the stand-in that executes the same sources on the CPU, and exports its bound methods
as the functions of a backend module. So what is tested without a GPU is the very code that runs on
one: these lines and the files in ``kernels/cuda``.

All work is queued on the current stream and nothing here waits for it: a loss stays on the device
as an array with no dimensions until somebody asks for its number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import checks
from ._cuda_launch import Launcher, compile_options, list_sources
from ._cuda_plan import CHUNKS, ConvPlan, Share, layer_options, plan_convolution

Array = Any  # a cupy.ndarray, or the stand-in's

CONV = "conv_v6_fused.cu"
CONV_WEIGHT = "conv_v5_split.cu"
POINTWISE = "pointwise.cu"
PATCHES = "patches.cu"
DCT_ADAM = "dct_adam.cu"
MUON = "muon.cu"

DTYPES = ("float32", "float64")
_THREADS = 256          # of a block of an elementwise kernel, and SUM_THREADS in pointwise.cu
_REDUCE = (32, 256)     # REDUCE_PARAMS and REDUCE_THREADS in pointwise.cu
_PREDICT_BYTES = 1 << 28  # activations of a strip of an image in chain_predict
_SUM_BLOCKS = 256       # of mse_partial, at most


@dataclass
class Sums:
    """Partial sums over a batch: of the gradients of all layers, and of the loss.

    Attributes
    ----------
    numbers : array
        All of them, one layer after another, the loss at the end.
    layers : (L + 1, 6) int64 array
        The table of ``reduce_gradient`` in ``pointwise.cu``; its last row is the loss.
    loss : array
        View of ``numbers`` from the first partial sum of the loss on.
    loss_parts, loss_stride : int
        How many there are, and how far apart.
    """

    numbers: Array
    layers: Array
    loss: Array
    loss_parts: int
    loss_stride: int


@dataclass
class Step:
    """The buffers of one forward and backward pass through a conv-ReLU chain.

    Attributes
    ----------
    plans : list of ConvPlan
        One a layer.
    activations : list of array
        The input, then what each layer gives (after its ReLU): one more than there are layers.
    gradients : list of array
        Of the loss with respect to what each layer gives before its ReLU.
    sums : Sums
        What the pass leaves.
    loss : array
        The loss, with no dimensions.
    parts : list of int
        How many partial gradients each layer leaves.
    share : Share
        What part of a batch the input is.
    """

    plans: list[ConvPlan]
    activations: list[Array]
    gradients: list[Array]
    sums: Sums
    loss: Array
    parts: list[int]
    share: Share

    @property
    def size(self) -> int:
        """Parameters of all layers."""
        return sum(plan.count for plan in self.plans)

    @property
    def elements(self) -> int:
        """Of the targets of the whole batch: the loss is a mean over them."""
        return self.share.batch * math.prod(self.activations[-1].shape[1:])

    def partials_of(self, layer: int) -> Array:
        """Return the partial gradients of one layer, a view (parts, count)."""
        sizes = [parts * plan.count for parts, plan in zip(self.parts, self.plans, strict=True)]
        start = sum(sizes[:layer])
        return self.sums.numbers[start:start + sizes[layer]]


class CudaBackend:
    """The functions of a backend, over CuPy or its stand-in.

    Parameters
    ----------
    load : callable
        Returns the array library; called on first use.
    """

    def __init__(self, load: Callable[[], ModuleType]) -> None:
        self.launch = Launcher(load)
        self._tables: dict[tuple[Any, ...], Array] = {}

    @property
    def xp(self) -> Any:
        """The array library."""
        return self.launch.xp

    @cached_property
    def accepts(self) -> checks.Accepts:
        """What the functions take."""
        return checks.Accepts(self.xp.ndarray, DTYPES)

    # ---- convolution ------------------------------------------------------------------------

    def conv2d_forward(self, x: Array, w: Array, b: Array) -> Array:
        """Compute a valid convolution (cross-correlation: the kernel is not flipped) plus bias.

        ::

            y[n,f,i,j] = b[f] + sum_{c,u,v} x[n,c,i+u,j+v] w[f,c,u,v]

        Parameters
        ----------
        x : (N, C, H, W) device array
        w : (F, C, KH, KW) device array
        b : (F,) device array
            All C-contiguous, of one dtype, float32 or float64.

        Returns
        -------
        y : (N, F, OH, OW) device array
            ``OH = H - KH + 1``, ``OW = W - KW + 1``.

        Raises
        ------
        TypeError
            If an argument is not a device array, or its dtype is not accepted.
        ValueError
            If shapes do not fit, an array is not contiguous or lies on another device, or the
            kernel is larger than the image.
        """
        checks.conv2d_forward(x, w, b, self.accepts)
        N, _, H, W = x.shape
        F, _, KH, KW = w.shape
        y = self.xp.empty((N, F, H - KH + 1, W - KW + 1), x.dtype)
        self._forward(x, w, b, y, relu=False)
        return y

    def conv2d_backward_input(self, dy: Array, w: Array) -> Array:
        """Return the gradient of the loss with respect to the input of a valid convolution.

        ::

            dx[n,c,p,q] = sum_{f,u,v} dy[n,f,p-u,q-v] w[f,c,u,v]

        ``dy`` (N,F,OH,OW), ``w`` (F,C,KH,KW) give ``dx`` (N,C,H,W); errors as
        :meth:`conv2d_forward`.
        """
        checks.conv2d_backward_input(dy, w, self.accepts)
        N, _, OH, OW = dy.shape
        _, C, KH, KW = w.shape
        dx = self.xp.empty((N, C, OH + KH - 1, OW + KW - 1), dy.dtype)
        self._backward_input(dy, w, None, dx)
        return dx

    def conv2d_backward_weight(self, x: Array, dy: Array) -> Array:
        """Return the gradient of the loss with respect to the filters of a valid convolution.

        ::

            dw[f,c,u,v] = sum_{n,i,j} dy[n,f,i,j] x[n,c,i+u,j+v]

        ``x`` (N,C,H,W), ``dy`` (N,F,OH,OW) give ``dw`` (F,C,KH,KW); errors as
        :meth:`conv2d_forward`. The sum is cut into parts, by the shapes alone, that are added in
        a fixed order: the same bits in every run.
        """
        checks.conv2d_backward_weight(x, dy, self.accepts)
        N, C, H, W = x.shape
        _, F, OH, OW = dy.shape
        plan = plan_convolution((F, C, H - OH + 1, W - OW + 1), x.dtype)
        share = Share.of_rank(N)
        parts = plan.parts(share, OH, OW)
        partials = self.xp.empty(parts * plan.count, x.dtype)
        self._backward_weight(plan, x, dy, partials, parts, share)
        dw = self.xp.empty(plan.shape, x.dtype)
        table = self._table((plan.count, parts, 0, F, plan.count))
        self._reduce("reduce_gradient", partials, table, dw, size=dw.size)
        return dw

    def conv2d_backward_bias(self, dy: Array) -> Array:
        """Return the gradient with respect to the biases: ``db[f] = sum_{n,i,j} dy[n,f,i,j]``.

        ``dy`` (N,F,OH,OW) gives ``db`` (F,); errors as :meth:`conv2d_forward`.
        """
        checks.conv2d_backward_bias(dy, self.accepts)
        N, F, OH, OW = dy.shape
        db = self.xp.empty(F, dy.dtype)
        self.launch(POINTWISE, "bias_gradient", (F,), (_THREADS,), dy, db, N, F, OH * OW,
                    real=dy.dtype)
        return db

    # ---- element by element, loss, updates --------------------------------------------------

    def relu_forward(self, x: Array) -> Array:
        """Compute ``y = max(0, x)``, of any shape; a NaN stays a NaN."""
        checks.relu_forward(x, self.accepts)
        y = self.xp.empty(x.shape, x.dtype)
        self._each("relu_forward", x.size, x, y, x.size, real=x.dtype)
        return y

    def relu_backward(self, dy: Array, y: Array) -> Array:
        """Return ``dx = dy where y > 0, else 0``, of any shape."""
        checks.relu_backward(dy, y, self.accepts)
        dx = self.xp.empty(y.shape, y.dtype)
        self._each("relu_backward", y.size, dy, y, dx, y.size, real=y.dtype)
        return dx

    def mse(self, y: Array, t: Array) -> tuple[Array, Array]:
        """Return the mean squared error over all M elements, and its gradient.

        ::

            loss = 1/M sum_k (y[k] - t[k])^2
            dy[k] = 2/M (y[k] - t[k])

        Parameters
        ----------
        y, t : device arrays of one shape and dtype

        Returns
        -------
        loss : device array with no dimensions
            ``float(loss)`` waits for the device.
        dy : device array of the shape of ``y``
        """
        checks.mse(y, t, self.accepts)
        dy = self.xp.empty(y.shape, y.dtype)
        loss = self.xp.empty((), y.dtype)
        blocks = _sum_blocks(y.size)
        partial = self.xp.empty(blocks, y.dtype)
        self._mse(y, t, dy, partial, blocks, (1, 1, y.size, y.size))
        self._finish_loss(partial, blocks, 1, loss, y.size)
        return loss, dy

    def sgd_update(
        self, param: Array, grad: Array, velocity: Array | None, lr: float, momentum: float
    ) -> None:
        """Take one step of gradient descent with momentum; see ``reference.sgd_update``.

        In place on ``param`` and ``velocity``, which may be None where ``momentum`` is 0.
        """
        checks.sgd_update(param, grad, velocity, lr, momentum, self.accepts)
        moving = velocity is not None
        # A kernel takes no None: without velocity it gets param, and leaves that alone.
        self._each("sgd_update", param.size, param, grad, velocity if moving else param, lr,
                   momentum, param.size, int(moving), real=param.dtype)

    def adam_update(
        self, param: Array, grad: Array, m: Array, v: Array,
        step: int, lr: float, beta1: float, beta2: float, eps: float,
    ) -> None:
        """Take one step of Adam, in place; see ``reference.adam_update``."""
        checks.adam_update(param, grad, m, v, step, lr, beta1, beta2, eps, self.accepts)
        self._each("adam_update", param.size, param, grad, m, v, lr, beta1, beta2, eps,
                   1 - beta1, 1 - beta2, 1 - beta1**step, 1 - beta2**step, param.size,
                   real=param.dtype)

    def asarray(self, a: Any, dtype: DTypeLike) -> Array:
        """Return ``a`` on the device, C-contiguous, of ``dtype``; no copy where none is needed."""
        return self.xp.ascontiguousarray(self.xp.asarray(a, dtype))

    def to_numpy(self, a: Array) -> np.ndarray[Any, Any]:
        """Return a NumPy copy of ``a``; waits for the device."""
        return self.xp.asnumpy(a)

    # ---- fused: a whole chain ---------------------------------------------------------------

    def chain_loss_and_gradients(
        self, params: dict[str, Array], x: Array, t: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Loss of a conv-ReLU chain and its gradients, the layers fused.

        Bias and ReLU happen inside the forward convolutions, the mask of a ReLU inside the input
        gradient of the layer above, and one kernel adds up the partial weight gradients of
        all layers. For a chain of L layers that is 3 L + 2 launches and no wait.

        Parameters
        ----------
        params : dict
            ``conv1.weight`` (F,C,KH,KW), ``conv1.bias`` (F,), ``conv2.weight``, ... in order.
        x : (N, C, H, W) device array
        t : (N, F, OH, OW) device array
            Of the size that the chain's valid convolutions leave.

        Returns
        -------
        loss : device array with no dimensions
        grads : dict
            With the keys of ``params``; new arrays (parts of one new array).
        """
        pairs = checks.chain_loss_and_gradients(params, x, t, self.accepts)
        step = self.prepare_step(pairs, x)
        self.run_step(step, pairs, t)
        self.finish_loss(step.sums, step.loss, step.elements)
        grads = self.xp.empty(step.size, x.dtype)
        self.reduce("reduce_gradient", step.sums, grads, size=step.size)
        return step.loss, split_parameters(grads, params)

    def use_device(self, number: int) -> None:
        """Use one of the devices from now on, the first again after the last."""
        cuda = self.xp.cuda
        cuda.Device(number % cuda.runtime.getDeviceCount()).use()

    def device_address(self) -> str:
        """Return the address of the current device on the PCI bus.

        Processes of a machine that have the same device see it there, whatever its number.
        """
        return str(self.xp.cuda.Device().pci_bus_id)

    def chain_predict(self, params: dict[str, Array], image: Array) -> Array:
        """Run a conv-ReLU chain on an image, every layer 'same'-sized with replicated borders.

        Parameters
        ----------
        params : dict
            As for :meth:`chain_loss_and_gradients`.
        image : (C, H, W) device array

        Returns
        -------
        (F, H, W) device array

        Notes
        -----
        The image is worked on in strips of rows, so that the activations take a bounded amount
        of memory. A strip carries along the rows that its pixels depend on, layer by layer; where
        these end at the border of the image, and only there, the kernel repeats the last row.
        The order of every sum is that of the whole image, so the bits are the same.
        """
        pairs = checks.chain_predict(params, image, self.accepts)
        _, H, W = image.shape
        widest = max(w.shape[0] + w.shape[1] for w, _ in pairs)
        rows = max(1, _PREDICT_BYTES // (widest * W * image.dtype.itemsize))
        if rows >= H:
            return self._predict_strip(pairs, image, 0, H)
        result = self.xp.empty((pairs[-1][0].shape[0], H, W), image.dtype)
        for start in range(0, H, rows):
            stop = min(start + rows, H)
            result[:, start:stop] = self._predict_strip(pairs, image, start, stop)
        return result

    def _predict_strip(
        self, pairs: list[tuple[Array, Array]], image: Array, start: int, stop: int
    ) -> Array:
        H = image.shape[1]
        spans = [(start, stop)]  # rows of the image that each layer must give, from the last one
        for w, _ in reversed(pairs):
            KH = w.shape[2]
            low, high = spans[0]
            spans.insert(0, (max(0, low - (KH - 1) // 2), min(H, high + KH // 2)))
        x = self.xp.ascontiguousarray(image[None, :, slice(*spans[0])])
        for layer, (w, b) in enumerate(pairs):
            F, _, KH, KW = w.shape
            (have, _), (low, high) = spans[layer], spans[layer + 1]
            y = self.xp.empty((1, F, high - low, image.shape[2]), image.dtype)
            self._forward(x, w, b, y, relu=layer + 1 < len(pairs),
                          top=low - have - (KH - 1) // 2, left=-((KW - 1) // 2))
            x = y
        return x[0]

    # ---- parts of a training step, also used by DeviceTrainer --------------------------------

    def prepare_step(
        self, pairs: list[tuple[Array, Array]], x: Array, share: Share | None = None
    ) -> Step:
        """Allocate what a pass of ``x``, a batch or a share of one, through a chain needs."""
        xp, dtype = self.xp, x.dtype
        share = share or Share.of_rank(x.shape[0])
        plans = [plan_convolution(w.shape, dtype) for w, _ in pairs]
        shapes = [x.shape]
        parts = []
        for plan in plans:
            N, _, H, W = shapes[-1]
            F, _, KH, KW = plan.shape
            shapes.append((N, F, H - KH + 1, W - KW + 1))
            parts.append(plan.parts(share, *shapes[-1][2:]))
        blocks = share.parts(_sum_blocks(
            share.chunks * share.length * math.prod(shapes[-1][1:])))
        start = [0, *itertools.accumulate(
            n * plan.count for n, plan in zip(parts, plans, strict=True))]
        layers = [(plan.count, n, first, plan.shape[0], plan.count)
                  for plan, n, first in zip(plans, parts, start, strict=False)]
        numbers = xp.empty(start[-1] + blocks, dtype)
        return Step(
            plans=plans,
            activations=[x, *(xp.empty(shape, dtype) for shape in shapes[1:])],
            gradients=[xp.empty(shape, dtype) for shape in shapes[1:]],
            sums=Sums(numbers, self._table(*layers, (1, blocks, start[-1], 0, 1)),
                      numbers[start[-1]:], blocks, 1),
            loss=xp.empty((), dtype),
            parts=parts,
            share=share,
        )

    def sums_of_chunks(self, plans: list[ConvPlan], rows: Array) -> Sums:
        """Return what the chunks of a batch leave as partial sums: a row each, the loss last.

        ``rows`` (at least 8, parameters + 1) is filled by :meth:`reduce_chunks`.
        """
        columns = rows.shape[1]
        start = [0, *itertools.accumulate(plan.count for plan in plans)]
        layers = [(plan.count, CHUNKS, first, plan.shape[0], columns)
                  for plan, first in zip(plans, start, strict=False)]
        numbers = rows.reshape(-1)
        return Sums(numbers, self._table(*layers, (1, CHUNKS, start[-1], 0, columns)),
                    numbers[start[-1]:], CHUNKS, columns)

    def run_step(self, step: Step, pairs: list[tuple[Array, Array]], t: Array) -> None:
        """Forward, loss and backward: leaves partial sums of loss and gradients in ``step``.

        The chain rule in the order of execution: activations upwards, then from the last layer to
        the first its partial weight gradient and the gradient of its input.
        """
        a, d = step.activations, step.gradients
        last = len(pairs) - 1
        for layer, (w, b) in enumerate(pairs):
            self._forward(a[layer], w, b, a[layer + 1], relu=layer < last)
        share, y = step.share, a[-1]
        self._mse(y, t, d[-1], step.sums.loss, step.sums.loss_parts,
                  (len(y), share.count, y.size // len(y), step.elements))
        for layer in range(last, -1, -1):
            self._backward_weight(step.plans[layer], a[layer], d[layer], step.partials_of(layer),
                                  step.parts[layer], share)
            if layer:  # a[layer] is the output of the ReLU below: its mask comes with the gradient
                self._backward_input(d[layer], pairs[layer][0], a[layer], d[layer - 1])

    def reduce_chunks(self, step: Step, rows: Array) -> None:
        """Add up what each chunk has left; ``rows`` (chunks, parameters + 1), the loss last."""
        self._reduce("reduce_chunks", step.sums.numbers, step.sums.layers, rows, step.share.count,
                     size=step.size + 1)

    def finish_loss(
        self, sums: Sums, loss: Array, elements: int, counters: tuple[Array, Array] | None = None
    ) -> None:
        """Finish a step: add up its loss, and count the step."""
        self._finish_loss(sums.loss, sums.loss_parts, sums.loss_stride, loss, elements, counters)

    def reduce(self, kernel: str, sums: Sums, *args: Any, size: int) -> None:
        """Finish a step: add up its partial gradients with a ``reduce_`` kernel."""
        self._reduce(kernel, sums.numbers, sums.layers, *args, size=size)

    # ---- launches ---------------------------------------------------------------------------

    def _forward(
        self, x: Array, w: Array, b: Array, y: Array, *, relu: bool, top: int = 0, left: int = 0
    ) -> None:
        _check_image_sizes(x=x, y=y)
        plan = plan_convolution(w.shape, x.dtype)
        N, F, OH, OW = y.shape
        self.launch(CONV, "conv_forward_fused", plan.forward.grid(N, F, OH, OW),
                    (plan.forward.threads,), x, w, b, y, *x.shape[2:], OH, OW, top, left,
                    int(relu), real=x.dtype, options=plan.options)

    def _backward_input(self, dy: Array, w: Array, a: Array | None, dx: Array) -> None:
        _check_image_sizes(dy=dy, dx=dx)
        plan = plan_convolution(w.shape, dy.dtype)
        tile = plan.backward_input
        masked = a is not None
        self.launch(CONV, "conv_backward_input_fused", tile.grid(*dx.shape), (tile.threads,),
                    dy, w, a if masked else dy, dx, *dx.shape[2:], *dy.shape[2:], int(masked),
                    real=dy.dtype, options=plan.options)

    def _backward_weight(
        self, plan: ConvPlan, x: Array, dy: Array, partials: Array, parts: int, share: Share
    ) -> None:
        _check_image_sizes(x=x, dy=dy)
        N, _, H, W = x.shape
        self.launch(CONV_WEIGHT, "conv_backward_weight_split", plan.weight_grid(parts),
                    (plan.backward_weight.threads,), x, dy, partials, N,
                    share.count * share.length, H, W,
                    real=x.dtype, options=plan.weight_options)

    def _mse(
        self, y: Array, t: Array, dy: Array, partial: Array, blocks: int,
        sizes: tuple[int, int, int, int],
    ) -> None:
        self.launch(POINTWISE, "mse_partial", (blocks,), (_THREADS,), y, t, dy, partial, *sizes,
                    real=y.dtype)

    def _finish_loss(
        self, partial: Array, parts: int, stride: int, loss: Array, elements: int,
        counters: tuple[Array, Array] | None = None,
    ) -> None:
        # Without counters the kernel leaves its two arguments alone; they only must exist.
        total, steps = counters or (self._unused("float64"), self._unused("int64"))
        self.launch(POINTWISE, "mse_finish", (1,), (CHUNKS,), partial, loss, total, steps,
                    parts, stride, elements, int(counters is not None), real=partial.dtype)

    def _reduce(
        self, kernel: str, partials: Array, layers: Array, *arrays_and_numbers: Any, size: int
    ) -> None:
        params, threads = _REDUCE
        self.launch(POINTWISE, kernel, (-(-size // params),), (threads,), partials, layers,
                    layers.shape[0],
                    *arrays_and_numbers, size, real=partials.dtype)

    def _each(self, kernel: str, size: int, *args: Any, real: np.dtype[Any]) -> None:
        self.launch(POINTWISE, kernel, (-(-size // _THREADS),), (_THREADS,), *args, real=real)

    def _table(self, *layers: tuple[int, int, int, int, int]) -> Array:
        """Return the table {end, count, parts, from, biases, stride}, kept on the device."""
        key = (self.xp.cuda.runtime.getDevice(), *layers)
        if key not in self._tables:
            ends = itertools.accumulate(count for count, *_ in layers)
            rows = [(end, *layer) for end, layer in zip(ends, layers, strict=True)]
            self._tables[key] = self._shared(self.xp.asarray(np.array(rows, np.int64)))
        return self._tables[key]

    def _shared(self, a: Array) -> Array:
        """Wait until ``a`` is written: it is kept, and read on whatever streams come."""
        self.xp.cuda.get_current_stream().synchronize()
        return a

    def _unused(self, dtype: str) -> Array:
        key = (self.xp.cuda.runtime.getDevice(), dtype)
        if key not in self._tables:
            self._tables[key] = self._shared(self.xp.zeros(2, dtype))
        return self._tables[key]


def split_parameters(flat: Array, params: dict[str, Array]) -> dict[str, Array]:
    """Cut an array of all parameters, layer after layer, into views shaped like ``params``."""
    views, start = {}, 0
    for name, value in params.items():
        views[name] = flat[start:start + value.size].reshape(value.shape)
        start += value.size
    return views


def dct_options(side: int) -> tuple[str, ...]:
    """Return the macros of ``dct_adam.cu`` for a chain whose largest kernel is so wide."""
    return (f"-DDCT_SIDE={side}",)


def compile_configurations() -> list[tuple[str, tuple[str, ...]]]:
    """Every source with the options that typical networks compile it with, in both dtypes.

    What a check without a GPU should compile: all sources, and for the layers of the nets 9-1-5,
    9-3-5, 9-5-5, 11-1-7, 9-1-1-5 and a three-channel 9-1-5 the specialised ones.

    Returns
    -------
    list of (str, tuple of str)
        A file name in ``kernels/cuda`` and the options.
    """
    layers = (
        (64, 1, 9, 9), (32, 64, 1, 1), (1, 32, 5, 5),   # 9-1-5
        (32, 64, 3, 3), (32, 64, 5, 5),                 # 9-3-5, 9-5-5
        (64, 1, 11, 11), (1, 32, 7, 7),                 # 11-1-7
        (16, 32, 1, 1), (1, 16, 5, 5),                  # 9-1-1-5
        (64, 3, 9, 9), (3, 32, 5, 5),                   # three channels
    )
    found = []
    for name in DTYPES:
        real = np.dtype(name)
        specialised = {DCT_ADAM}
        for side in (9, 11):
            found.append((DCT_ADAM, compile_options(real, dct_options(side))))
        for shape in layers:
            plan = plan_convolution(shape, real)
            for file, options in (("conv_v3_tiled.cu", layer_options(shape)),
                                  ("conv_v4_sliding.cu", layer_options(shape)),
                                  (CONV_WEIGHT, plan.weight_options),
                                  (CONV, plan.options)):
                specialised.add(file)
                found.append((file, compile_options(real, options)))
        found += [(file, compile_options(real, ()))
                  for file in list_sources() if file not in specialised]
    return found


def _check_image_sizes(**arrays: Array) -> None:
    """Refuse an image whose offsets are no ints; there may be any number of smaller ones."""
    for name, a in arrays.items():
        numbers = math.prod(a.shape[1:])
        if numbers >= 1 << 31:
            raise ValueError(f"{name} has shape {a.shape}, want fewer than 2^31 numbers an image")


def _sum_blocks(size: int) -> int:
    """Blocks of ``mse_partial``: a number a thread, but few enough for one block to finish."""
    return min(_SUM_BLOCKS, -(-size // _THREADS))
