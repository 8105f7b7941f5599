"""The backends: one module for each kind of hardware, all with the same functions.

A backend is a plain module, neither a class nor a registry entry. Each has, over plain C-contiguous
NCHW arrays of float32 or float64::

    conv2d_forward(x, w, b) -> y             x (N,C,H,W)  w (F,C,KH,KW)  b (F,)  y (N,F,OH,OW)
    conv2d_backward_input(dy, w) -> dx       OH = H - KH + 1,  OW = W - KW + 1
    conv2d_backward_weight(x, dy) -> dw
    conv2d_backward_bias(dy) -> db
    relu_forward(x) -> y                     relu_backward(dy, y) -> dx
    mse(y, t) -> (loss, dy)
    sgd_update(param, grad, velocity, lr, momentum)                           in place
    adam_update(param, grad, m, v, step, lr, beta1, beta2, eps)               in place
    asarray(a, dtype) -> array               to_numpy(a) -> numpy.ndarray

"Convolution" is cross-correlation: THE KERNEL IS NOT FLIPPED, as in every deep-learning library.
``d<name>`` is the gradient of the loss with respect to ``<name>``, with its shape and dtype.
Results are new arrays; a backward never accumulates and never writes to its arguments.

Two fused paths are optional. ``SRCNN`` uses them where a backend has them::

    chain_loss_and_gradients(params, x, t) -> (loss, grads)
    chain_predict(params, image) -> image
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

from ...errors import BackendUnavailableError, MinisrcnnError

BACKENDS = ("reference", "numpy", "numba", "cupy", "cupy-emulated")

#: What every backend has. A function of ``reference`` that is not here may be missing elsewhere:
#: a layer that needs it then says so, and the tests and ``minisrcnn gradcheck`` skip it visibly.
FUNCTIONS = (
    "conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "conv2d_backward_bias",
    "relu_forward", "relu_backward", "mse", "sgd_update", "adam_update", "asarray", "to_numpy",
)

# What "auto" tries, fastest first. The emulated backend is for proofs, never for work.
_AUTO = ("cupy", "numba", "numpy")


def get_backend(name: str | ModuleType = "auto", *functions: str) -> ModuleType:
    """Return the backend module of that name.

    Parameters
    ----------
    name : str or module
        ``"reference"``, ``"numpy"``, ``"numba"``, ``"cupy"``, ``"cupy-emulated"``, or
        ``"auto"``: CuPy where a CUDA device works, else Numba, else NumPy.
        A module is returned as it is, so that callers may bring their own backend.
    *functions : str
        Functions that the backend must have; a backend may lack the newer ones.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    BackendUnavailableError
        If this machine cannot run it, and the message says why and what to install; or if it
        lacks one of ``functions``, and the message says which backends have it.
    """
    module = name if isinstance(name, ModuleType) else _find(name)
    for function in functions:
        if not hasattr(module, function):
            others = [other for other in BACKENDS
                      if unavailable_reason(other) is None and hasattr(_load(other), function)]
            raise BackendUnavailableError(f"backend {module.NAME} has no {function}, want one of "
                                          f"those that have it: {', '.join(others) or 'none yet'}")
    return module


def _find(name: str) -> ModuleType:
    if name == "auto":
        name = next(candidate for candidate in _AUTO if unavailable_reason(candidate) is None)
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}, want one of {', '.join(BACKENDS)} or auto")
    reason = unavailable_reason(name)
    if reason is not None:
        raise BackendUnavailableError(f"backend {name} cannot be used here: {reason}")
    return _load(name)


def unavailable_reason(name: str) -> str | None:
    """Say in one sentence why this machine cannot run a backend; None if it can."""
    try:
        module = _load(name)
    except ImportError as error:
        if (error.name or "").startswith("minisrcnn.kernels"):
            return "this copy of minisrcnn has no kernels: install it again, or use a whole clone"
        return f"{error}"
    probe = getattr(module, "unavailable_reason", None)
    return probe() if probe is not None else None


def choose_backend(name: str) -> ModuleType:
    """Return the backend that a user named; as :func:`get_backend`, with the errors of a user.

    Raises
    ------
    MinisrcnnError
        If there is no backend of that name, or this machine cannot run it.
    """
    try:
        return get_backend(name)
    except ValueError as error:
        raise MinisrcnnError(str(error)) from None


def announce_backend(
    backend: ModuleType, name: str, say: Callable[[str], None], jobs: Sequence[str] = ("predict",)
) -> None:
    """Say in one line what computes, and in another one where kernels must be compiled first.

    Parameters
    ----------
    backend : module
    name : str
        What the user asked for; for ``"auto"``, the line says why the faster ones cannot be used.
    say : callable
        Takes each line.
    jobs : sequence of {"train", "predict"}
        What is about to be done.
    """
    details = describe_backend(backend)
    line = f"Backend: {backend.NAME}" + (f" ({details})" if details else "")
    if name == "auto":
        faster = _AUTO[:_AUTO.index(backend.NAME)]
        line += "".join(f"; not {other}: {unavailable_reason(other)}" for other in faster)
    say(line)
    needs_compiling = getattr(backend, "needs_compiling", None)
    if needs_compiling is not None and any(needs_compiling(job) for job in jobs):
        problem = cache_problem(backend)
        say(f"Compiling the kernels of the {backend.NAME} backend: seconds"
            + (f"; {problem}." if problem else ", this once."))


def cache_problem(module: ModuleType) -> str:
    """Say in one line why compiled kernels are not kept where they usually are; "" if they are."""
    find = getattr(module, "cache_problem", None)
    return "" if find is None else str(find())


def describe_backend(module: ModuleType) -> str:
    """Return what a backend runs on, such as its vector unit and threads; "" if it does not say."""
    describe = getattr(module, "describe", None)
    return "" if describe is None else str(describe())


def set_threads(count: int) -> None:
    """Let the Numba kernels use ``count`` threads (1 up to what ``NUMBA_NUM_THREADS`` allows).

    Results are the same bit for bit whatever the count. NumPy's own threads are not
    affected; they are set by its BLAS library (for instance ``OPENBLAS_NUM_THREADS``).

    Raises
    ------
    ValueError
        If ``count`` is less than 1 or more than Numba was started with.
    """
    get_backend("numba").set_threads(count)


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
