"""CUDA C on the CPU: ``kernels/cuda/*.cu`` compiled by g++ and run thread by thread.

``cuda_on_cpu.h``
    What CUDA C has and C++ has not, over fibers. Written to be read.
:mod:`~minisrcnn.engine.emulator.build`
    From the text of a ``.cu`` file to a loaded library; the cache; the settings.
:mod:`~minisrcnn.engine.emulator.cupy_standin`
    A module with the interface of the part of CuPy that the backend uses.
:mod:`~minisrcnn.engine.emulator.nvrtc`
    Compiles the same text for real GPUs, without one, and reports registers and spills.

``docs/cuda-emulator.md`` says what all this can prove and what it cannot.
"""

from minisrcnn.engine.emulator.build import (
    CompileError,
    KernelError,
    Settings,
    configure,
    settings,
    unavailable_reason,
)

__all__ = [
    "CompileError",
    "KernelError",
    "Settings",
    "configure",
    "settings",
    "unavailable_reason",
]
