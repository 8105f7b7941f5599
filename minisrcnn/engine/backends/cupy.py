"""The ``cupy`` backend: the CUDA kernels of ``kernels/cuda``, run on a GPU through CuPy.

The functions are those of :class:`minisrcnn.engine.backends._cuda.CudaBackend`; arrays are
``cupy.ndarray``. Kernels are compiled for the device on first use (CuPy keeps them on disk). See
``docs/cuda.md``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

from ._cuda import CudaBackend, compile_configurations
from ._cuda_training import DeviceTrainer as _DeviceTrainer

__all__ = ["NAME", "DeviceTrainer", "compile_configurations", "unavailable_reason"]

NAME = "cupy"

_INSTALL = (
    "pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]', by the CUDA version that nvidia-smi "
    "shows"
)
_PROBE = 'extern "C" __global__ void probe(float* x) { x[0] = 42.0f; }'


def _load() -> ModuleType:
    import cupy

    return cupy


_backend = CudaBackend(_load)


def __getattr__(name: str) -> Any:
    """Take the functions of this module from the one body that all CUDA backends share."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_backend, name)


class DeviceTrainer(_DeviceTrainer):
    """Training that stays on the GPU; see :class:`._cuda_training.DeviceTrainer`."""

    backend = _backend


def describe() -> str:
    """Return CuPy's version and the name of the device."""
    cupy: Any = _load()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return f"CuPy {cupy.__version__} on {name}{compiler_mismatch(cupy)}"


def has_driver() -> bool:
    """Return whether the NVIDIA driver's library can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _is_installed(name: str) -> bool:
    try:
        return sys.modules[name] is not None
    except KeyError:
        return importlib.util.find_spec(name) is not None


@cache
def unavailable_reason() -> str | None:
    """Say in one sentence why CUDA cannot be used here, and what to install; None if it can.

    Tries what the backend will do, in order: load the driver, as CUDA itself does and in a
    hundredth of the time that CuPy takes to import; import CuPy, find a device, compile a kernel,
    run it. The answer is kept for the life of the process.
    """
    if not has_driver():
        return "there is no NVIDIA driver" + ("" if _is_installed("cupy") else
                                              ", and CuPy is not installed")
    try:
        cupy: Any = _load()
    except ImportError as error:
        if error.name == "cupy":
            return f"CuPy is not installed; {_INSTALL}"
        return f"CuPy cannot be imported ({_first_line(error)}); {_INSTALL}"
    except Exception as error:  # a broken installation raises what it likes
        return f"CuPy cannot be imported ({_first_line(error)}); {_INSTALL}"
    try:
        # Not cupy.cuda.is_available(): that swallows the reason, and remembers a False.
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "InsufficientDriver" in str(error):
            return "the NVIDIA driver is older than CuPy's CUDA; install one from nvidia.com"
        return f"no CUDA device can be used ({_first_line(error)})"
    if count == 0:
        return "there is no CUDA device"
    try:
        x = cupy.zeros(1, "float32")
        cupy.RawModule(code=_PROBE).get_function("probe")((1,), (1,), (x,))
        value = float(x[0])
    except Exception as error:
        kind = type(error).__name__
        if kind == "DynamicLibNotFoundError":
            return f"the CUDA compiler NVRTC is not installed; {_INSTALL}"
        if kind == "CompileException":
            return f"a CUDA kernel cannot be compiled ({_first_line(error)})"
        return f"a CUDA kernel failed ({kind}: {_first_line(error)}{compiler_mismatch(cupy)})"
    return None if value == 42 else f"a CUDA kernel wrote {value:g} where it should write 42"


def compiler_mismatch(cupy: Any) -> str:
    """Say that the CUDA compiler is newer than the driver understands; "" where it is not.

    CuPy for CUDA 12 can load the NVRTC of CUDA 13 where both wheels are installed.
    """
    try:
        compiler = int(cupy.cuda.nvrtc.getVersion()[0])
        driver = int(cupy.cuda.runtime.driverGetVersion()) // 1000
    except Exception:  # one of them is missing: that has a message of its own
        return ""
    if compiler <= driver:
        return ""
    return (f"; the compiler NVRTC is of CUDA {compiler}, the driver of CUDA {driver}: uninstall "
            f"the nvidia-cuda-nvrtc of CUDA {compiler}, or update the driver")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
