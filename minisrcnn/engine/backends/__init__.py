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
from types import ModuleType

from ...errors import BackendUnavailableError

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
            return ("the kernels are not where this copy of minisrcnn looks for them: in a clone, "
                    "install with pip install -e . or run from another folder")
        return f"{error}"
    probe = getattr(module, "unavailable_reason", None)
    return probe() if probe is not None else None


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
