"""The ``cupy-emulated`` backend: the code and kernels of ``cupy``, executed on the CPU. Slow.

The same functions over a stand-in for CuPy that compiles the CUDA C of ``kernels/cuda`` with g++
and runs it thread by thread (``minisrcnn/engine/emulator``). It proves that the kernels are right,
where there is no GPU; it is far too slow for anything else. See ``docs/cuda.md``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ._cuda import CudaBackend, compile_configurations
from ._cuda_training import DeviceTrainer as _DeviceTrainer

__all__ = ["NAME", "DeviceTrainer", "cache_problem", "compile_configurations", "unavailable_reason"]

NAME = "cupy-emulated"


def _load() -> ModuleType:
    from ..emulator import cupy_standin

    return cupy_standin


_backend = CudaBackend(_load)


def __getattr__(name: str) -> Any:
    """Take the functions of this module from the one body that all CUDA backends share."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_backend, name)


class DeviceTrainer(_DeviceTrainer):
    """Training on the emulated device; see :class:`._cuda_training.DeviceTrainer`."""

    backend = _backend


def unavailable_reason() -> str | None:
    """Say in one sentence why the emulator cannot be used here; None if it can."""
    from .. import emulator

    return emulator.unavailable_reason()


def cache_problem() -> str:
    """Say in one line why compiled kernels are not kept where they usually are; "" if they are."""
    from ..emulator.build import cache_directory

    return cache_directory()[1]
