"""The ``numba`` backend: the kernels of :mod:`minisrcnn.kernels.cpu.production`.

Checks arguments, allocates results, and calls compiled code. Equations, shapes and errors are those
of ``reference``. Kernels are compiled at their first use, once, and kept on disk;
:func:`needs_compiling` says whether that is still to come.

Threads: as many as ``NUMBA_NUM_THREADS`` (or the processor) gives, or :func:`set_threads`. The
results are the same, bit for bit, for any number of them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray

from minisrcnn.kernels.cpu.jit import SIMD, cache_folder
from minisrcnn.kernels.cpu.production import chain, pointwise, single, whole, workers
from minisrcnn.kernels.cpu.production.plan import aligned, plan_chain

from ...arguments import check_integer
from . import checks

NAME = "numba"

Array = NDArray[Any]

_ACCEPTS = checks.Accepts(np.ndarray, ("float32", "float64"))

# Chunks of a batch, each with gradients of its own: they follow from the batch alone, so that the
# sums do not depend on the number of threads or processes. 32 keep many threads busy; large batches
# have more, for many processes, of as many patches as make adding up a chunk cheap.
_CHUNKS = 32
_LARGEST_CHUNK = 16

# What each job needs compiled that takes seconds; an optimizer's rule does not.
_NEEDS = {
    "train": (chain.pack, chain.train, chain.add_chunks, chain.unpack),
    "predict": (chain.pack, whole.predict),
}


def needs_compiling(job: str = "train", dtype: DTypeLike = "float32") -> bool:
    """Return whether a job's kernels have still to be compiled: seconds, once, then kept on disk.

    Parameters
    ----------
    job : {"train", "predict"}
        What is about to be done.
    dtype : dtype
        float32 or float64.

    Raises
    ------
    ValueError
        If there is no such job.
    """
    if job not in _NEEDS:
        raise ValueError(f"job is {job!r}, want one of {', '.join(_NEEDS)}")
    return not all(kernel.is_ready(np.dtype(dtype)) for kernel in _NEEDS[job])


def cache_problem() -> str:
    """Say in one line why compiled kernels are not kept where they usually are; "" if they are."""
    return cache_folder()[1]


def describe() -> str:
    """Return the vector unit and the number of threads."""
    return f"{SIMD}, {workers.get_threads()} threads"


def set_threads(count: int) -> None:
    """Use ``count`` threads from now on; see :func:`minisrcnn.set_threads`."""
    most = numba.config.NUMBA_NUM_THREADS
    if check_integer("count", count) > most:
        raise ValueError(f"count is {count}, want at most {most}: NUMBA_NUM_THREADS, or the "
                         "number of processors, sets this when Python starts")
    workers.set_threads(int(count))


def conv2d_forward(x: Array, w: Array, b: Array) -> Array:
    """Compute a valid convolution plus bias; see ``reference.conv2d_forward``."""
    checks.conv2d_forward(x, w, b, _ACCEPTS)
    return single.conv2d_forward(x, w, b)


def conv2d_backward_input(dy: Array, w: Array) -> Array:
    """Return the gradient with respect to the input; see ``reference.conv2d_backward_input``."""
    checks.conv2d_backward_input(dy, w, _ACCEPTS)
    return single.conv2d_backward_input(dy, w)


def conv2d_backward_weight(x: Array, dy: Array) -> Array:
    """Return the gradient with respect to the filters; see ``reference.conv2d_backward_weight``."""
    checks.conv2d_backward_weight(x, dy, _ACCEPTS)
    return single.conv2d_backward_weight(x, dy)


def conv2d_backward_bias(dy: Array) -> Array:
    """Return the gradient with respect to the biases; see ``reference.conv2d_backward_bias``."""
    checks.conv2d_backward_bias(dy, _ACCEPTS)
    db = np.empty(dy.shape[1], dy.dtype)
    pointwise.bias_gradient.compile(dy.dtype)(dy, db)
    return db


def relu_forward(x: Array) -> Array:
    """Compute the rectified linear unit; see ``reference.relu_forward``."""
    checks.relu_forward(x, _ACCEPTS)
    y = np.empty_like(x, order="C")
    pointwise.relu.compile(x.dtype)(x.reshape(-1), y.reshape(-1))
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """Return the gradient through a ReLU; see ``reference.relu_backward``."""
    checks.relu_backward(dy, y, _ACCEPTS)
    dx = np.empty_like(dy, order="C")
    pointwise.relu_gradient.compile(y.dtype)(dy.reshape(-1), y.reshape(-1), dx.reshape(-1))
    return dx


def mse(y: Array, t: Array) -> tuple[float, Array]:
    """Return the mean squared error and its gradient; see ``reference.mse``."""
    checks.mse(y, t, _ACCEPTS)
    dy = np.empty_like(y, order="C")
    loss = pointwise.mse.compile(y.dtype)(y.reshape(-1), t.reshape(-1), dy.reshape(-1))
    return float(loss), dy


def sgd_update(
    param: Array, grad: Array, velocity: Array | None, lr: float, momentum: float
) -> None:
    """Take one step of gradient descent with momentum, in place; see ``reference.sgd_update``."""
    checks.sgd_update(param, grad, velocity, lr, momentum, _ACCEPTS)
    if velocity is None:
        pointwise.sgd.compile(param.dtype)(param.reshape(-1), grad.reshape(-1), lr)
    else:
        pointwise.sgd_momentum.compile(param.dtype)(
            param.reshape(-1), grad.reshape(-1), velocity.reshape(-1), lr, momentum
        )


def adam_update(
    param: Array, grad: Array, m: Array, v: Array,
    step: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:
    """Take one step of Adam, in place; see ``reference.adam_update``."""
    checks.adam_update(param, grad, m, v, step, lr, beta1, beta2, eps, _ACCEPTS)
    pointwise.adam.compile(param.dtype)(
        param.reshape(-1), grad.reshape(-1), m.reshape(-1), v.reshape(-1),
        step, lr, beta1, beta2, eps,
    )


def chain_loss_and_gradients(
    params: dict[str, Array], x: Array, t: Array
) -> tuple[float, dict[str, Array]]:
    """Return the mean squared error of a conv-ReLU chain and its gradients, fused patch by patch.

    Parameters
    ----------
    params : dict
        ``"conv1.weight"`` (F,C,KH,KW), ``"conv1.bias"`` (F,), ``"conv2.weight"``, ... in order.
    x : (N, C, H, W) array
        Patches.
    t : (N, F, OH, OW) array
        Targets, of the size of the chain's output.

    Returns
    -------
    loss : float
        Mean over all elements.
    grads : dict
        New arrays under the keys of ``params``.

    Raises
    ------
    TypeError, ValueError
        As ``reference.conv2d_forward``, for any of the arguments.
    """
    partial, losses = chain_partials(params, x, t, chunk_size(x.shape[0]), t.size)
    return chain_total(params, x, add_partials(partial), losses, t.size)


def chunk_size(N: int) -> int:
    """Return how many patches of a batch of N have gradients of their own, added at the end."""
    return min(-(-N // _CHUNKS), _LARGEST_CHUNK)


def chain_partials(
    params: dict[str, Array], x: Array, t: Array, size: int, elements: int
) -> tuple[Array, Array]:
    """Return the gradients of each chunk of a batch, or of a run of its chunks.

    Parameters
    ----------
    params, x, t
        As for :func:`chain_loss_and_gradients`; x and t may be some whole chunks of the batch.
    size : int
        Patches of a chunk, :func:`chunk_size` of the batch; the last chunk may have fewer.
    elements : int
        Of the targets of the whole batch: the loss is a mean over them.

    Returns
    -------
    partial : (chunks, ...) array
        In a layout of its own; for :func:`add_partials`.
    losses : (chunks,) float64 array
        Sums of squared differences.
    """
    pairs = checks.chain_loss_and_gradients(params, x, t, _ACCEPTS)
    dtype, N = x.dtype, x.shape[0]
    plan = plan_chain(tuple(w.shape for w, _ in pairs), x.shape[2], x.shape[3], dtype.itemsize)
    packed = _pack(pairs, plan)
    chunks = -(-N // size)
    partial = aligned(chunks, plan.grads, dtype)
    scratch = aligned(min(workers.get_threads(), chunks), plan.scratch, dtype)
    losses = np.empty(chunks)
    train = chain.train.compile(dtype)
    flat_x, flat_t, scale = x.reshape(-1), t.reshape(-1), dtype.type(2 / elements)
    workers.run(lambda i, counter: train(flat_x, flat_t, N, size, scale, plan.layers, plan.tables,
                                         packed, scratch[i], partial, losses, counter),
                len(scratch))
    return partial, losses


def add_partials(partial: Array) -> Array:
    """Return the sum of the rows of ``partial`` (chunks, any), in order; it is overwritten.

    Column by column, so that the sum of some columns is a part of the sum of all.
    """
    chain.add_chunks.compile(partial.dtype)(partial)
    return partial[0]


def chain_total(
    params: dict[str, Array], x: Array, total: Array, losses: Array, elements: int
) -> tuple[float, dict[str, Array]]:
    """Return the loss and the gradients of a batch from what all of its chunks add up to.

    Parameters
    ----------
    params, elements
        As for :func:`chain_partials`.
    x : array
        Any patches of the batch, for their size.
    total : array
        From :func:`add_partials`.
    losses : array
        From :func:`chain_partials`, of all chunks.
    """
    shapes = tuple(value.shape for value in params.values() if value.ndim == 4)
    plan = plan_chain(shapes, x.shape[2], x.shape[3], total.dtype.itemsize)
    grads = {key: np.empty_like(value) for key, value in params.items()}
    new = list(grads.values())
    for i, (dw, db) in enumerate(zip(new[::2], new[1::2], strict=True)):
        chain.unpack.compile(total.dtype)(total, plan.layers, i, dw, db)
    return float(losses.sum()) / elements, grads


def chain_predict(params: dict[str, Array], image: Array) -> Array:
    """Run a conv-ReLU chain over an image of any size, every layer with replicated borders.

    Parameters
    ----------
    params : dict
        As for :func:`chain_loss_and_gradients`.
    image : (C, H, W) array
        The image.

    Returns
    -------
    y : (F, H, W) array
        Of the image's size; beside it, a few hundred kilobytes a thread are used.

    Raises
    ------
    TypeError, ValueError
        As ``reference.conv2d_forward``, for any of the arguments.
    """
    return _predict(params, image)


def _predict(
    params: dict[str, Array], image: Array, tile: tuple[int, int] | None = None
) -> Array:
    """:func:`chain_predict`, in strips of ``tile`` = (height, width); None: the best."""
    pairs = checks.chain_predict(params, image, _ACCEPTS)
    H, W = image.shape[1:]
    threads = workers.get_threads()
    height, width = tile or whole.strip_size((H, W), threads)
    plan = whole.plan_whole(tuple(w.shape for w, _ in pairs), min(width, W), image.itemsize)
    strips = -(-H // height) * -(-W // width)
    threads = min(threads, strips)
    y = np.empty((pairs[-1][0].shape[0], H, W), image.dtype)
    packed, scratch = _pack(pairs, plan), aligned(threads, plan.scratch, image.dtype)
    tables = np.empty((threads, plan.tables), np.int64)
    predict = whole.predict.compile(image.dtype)
    flat, flat_y = image.reshape(-1), y.reshape(-1)
    workers.run(lambda i, counter: predict(flat, flat_y, H, W, height, width, plan.layers, packed,
                                           scratch[i], tables[i], counter), threads)
    return y


def _pack(pairs: list[tuple[Array, Array]], plan: Any) -> Array:
    w, _ = pairs[0]
    packed = aligned(1, plan.packed, w.dtype, np.zeros)[0]
    for (w, b), packing in zip(pairs, plan.packing, strict=True):
        chain.pack.compile(w.dtype)(w, b, *packing, packed)
    return packed


def asarray(a: Any, dtype: DTypeLike) -> Array:
    """Return ``a`` as a C-contiguous NumPy array of ``dtype``; no copy where none is needed."""
    return np.ascontiguousarray(a, dtype)


def to_numpy(a: Array) -> Array:
    """Return ``a`` as a NumPy array; here it is one already."""
    return a
