"""A stand-in for the part of CuPy that the ``cupy`` backend uses, over the emulator.

``from minisrcnn.engine.emulator import cupy_standin as xp`` gives a module whose public names exist
in CuPy with the same parameters (a test compares them with the real wheel), and which is
*stricter* than CuPy wherever CuPy would go on with garbage:

* a launch checks the number of arguments, the width and kind of every scalar, the element type
  and contiguity of every array, an empty grid, the limits of the block (CuPy checks none of them);
* ``empty`` gives arrays filled with 0xFF, which is NaN as float32 and float64;
* arrays do not mix with NumPy's, nor turn into them, except through ``get()`` and ``asnumpy()``;
* while a stream is being captured, launches and in-place updates are recorded, not executed;
  whatever allocates memory, copies to or from the host or waits raises;
* a captured graph whose arrays have been freed meanwhile raises instead of writing to their memory.

Streams do not run at the same time here: everything happens at once, in the order of the Python
program. What a missing wait would do on a GPU is found by ``ordering.watch()``.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from minisrcnn.engine.emulator import build
from minisrcnn.engine.emulator.arrays import FUNCTIONS as _FUNCTIONS
from minisrcnn.engine.emulator.arrays import (  # noqa: F401
    MemoryPointer,
    array,
    asarray,
    ascontiguousarray,
    asnumpy,
    copyto,
    empty,
    empty_like,
    forwarded,
    full,
    ndarray,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from minisrcnn.engine.emulator.launch import RawKernel, RawModule  # noqa: F401
from minisrcnn.engine.emulator.streams import (
    CompileException,
    CUDADriverError,
    CUDARuntimeError,
    Device,
    Event,
    Graph,
    Stream,
    alloc_pinned_memory,
    get_current_stream,
    get_device_properties,
    get_elapsed_time,
)

bool_, int8, int32, int64 = np.bool_, np.int8, np.int32, np.int64
uint8, uint32, uint64 = np.uint8, np.uint32, np.uint64
float16, float32, float64 = np.float16, np.float32, np.float64
dtype, newaxis, pi, inf, nan = np.dtype, np.newaxis, np.pi, np.inf, np.nan


def _device_synchronize() -> None:
    """Wait, which is not allowed during a capture."""
    Device().synchronize()


runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    getDeviceProperties=get_device_properties,
    deviceSynchronize=_device_synchronize,
    streamCaptureModeGlobal=0,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeRelaxed=2,
)
cuda = types.SimpleNamespace(
    Stream=Stream,
    Event=Event,
    Graph=Graph,
    Device=Device,
    MemoryPointer=MemoryPointer,
    alloc_pinned_memory=alloc_pinned_memory,
    get_current_stream=get_current_stream,
    get_elapsed_time=get_elapsed_time,
    is_available=lambda: build.unavailable_reason() is None,
    runtime=runtime,
    driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
    compiler=types.SimpleNamespace(CompileException=CompileException),
)
del runtime


def __getattr__(name: str) -> Any:
    # Not as globals: `min` and `sum` would hide Python's own in this module.
    if name in _FUNCTIONS:
        return forwarded(name, getattr(np, name))
    raise AttributeError(f"the stand-in for CuPy has no {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS})
