"""Streams, events and graphs of the stand-in for CuPy.

Everything happens at once, in the order of the Python program: streams do not overlap. What a
missing wait would do on a GPU is found by :mod:`~minisrcnn.engine.emulator.ordering` instead, which
keeps account of what the streams, events and waits order.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minisrcnn.engine.emulator import build, ordering

_STATUS = {
    1: "cudaErrorInvalidValue: invalid argument",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    903: "cudaErrorIllegalState: the operation cannot be performed in the present state",
    906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on "
    "a capturing blocking stream",
}


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime; ``status`` is its number."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(_STATUS.get(status, f"CUDA error {status}"))


class CUDADriverError(RuntimeError):
    """An error of the CUDA driver; ``status`` is its number."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(
            {1: "CUDA_ERROR_INVALID_VALUE: invalid argument"}.get(status, f"CUDA error {status}")
        )


class CompileException(Exception):
    """The kernel text does not compile."""

    def __init__(
        self, msg: str, source: str, name: str, options: tuple[str, ...], backend: str = "nvrtc"
    ):
        super().__init__(msg)
        self.source, self.name, self.options, self.backend = source, name, options, backend

    def get_message(self) -> str:
        """Return the compiler's messages."""
        return str(self)


class _Call(NamedTuple):
    """A recorded launch. References are weak: a graph does not keep its arrays alive."""

    run: Callable[[], object]
    reads: list[weakref.ref[np.ndarray]]
    writes: list[weakref.ref[np.ndarray]]
    what: str

    @property
    def arrays(self) -> list[weakref.ref[np.ndarray]]:
        return self.reads + self.writes


class Graph:
    """What was launched on a stream between ``begin_capture`` and ``end_capture``."""

    def __init__(self, *args: object, **kwargs: object):
        self._calls: list[_Call] = []

    def launch(self, stream: Stream | None = None) -> None:
        """Execute the recorded launches, in order (or record them, if the stream captures)."""
        if any(reference() is None for call in self._calls for reference in call.arrays):
            raise build.KernelError(
                "a graph was launched after an array that it uses had been freed: on a GPU its "
                "kernels would write to memory that may be another's by now; keep the arrays"
            )
        for call in self._calls:
            reads, writes = ([a for a in (reference() for reference in references) if a is not None]
                             for references in (call.reads, call.writes))
            submit(call.run, reads, writes, f"{call.what} of a graph", stream)

    def upload(self, stream: Stream | None = None) -> None:
        """Do nothing: there is no device to upload to."""


class Stream:
    """A stream: here, a place where launches can be captured."""

    null: ClassVar[Stream]

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ):
        self.is_non_blocking = non_blocking
        self.ptr = 0 if null else id(self)
        self._capture: Graph | None = None

    def __enter__(self) -> Stream:
        _entered.streams.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _entered.streams.pop()

    def use(self) -> Stream:
        """Make this the current stream."""
        _entered.streams[-1] = self
        return self

    @property
    def done(self) -> bool:
        """Whether all work has finished; asking is not allowed during a capture."""
        self.synchronize()
        return True

    def is_capturing(self) -> bool:
        """Tell whether launches are being recorded."""
        return self._capture is not None

    def synchronize(self) -> None:
        """Wait for the stream, which is not allowed during a capture."""
        if self._capture is not None:
            raise CUDARuntimeError(900)
        if ordering.current is not None:
            ordering.current.host_waits(ordering.current.clock(self))

    def begin_capture(self, mode: int | None = None) -> None:
        """Record from now on, instead of executing."""
        if self.ptr == 0:
            raise CUDARuntimeError(900)  # the default stream cannot be captured
        if self._capture is not None:
            raise CUDARuntimeError(903)
        self._capture = Graph()
        capturing.append(self)

    def end_capture(self) -> Graph:
        """Stop recording and return what was recorded."""
        if self._capture is None:
            raise CUDARuntimeError(903)
        graph, self._capture = self._capture, None
        capturing.remove(self)
        return graph

    def record(self, event: Event | None = None) -> Event:
        """Record an event on this stream."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let what comes wait for an event (here: only for the account of ``ordering``)."""
        if ordering.current is not None:
            for number, count in event._clock.items():
                clock = ordering.current.clock(self)
                clock[number] = max(clock.get(number, 0), count)


Stream.null = Stream(null=True)


class _Entered(threading.local):
    """The streams that a thread has entered: its current one is the last."""

    def __init__(self) -> None:
        self.streams = [Stream.null]


_entered = _Entered()
capturing: list[Stream] = []


class Event:
    """A point in a stream; ``cuda.get_elapsed_time`` gives the time between two of them."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ):
        self._time: float | None = None
        self._clock: ordering.Clock = {}

    @property
    def done(self) -> bool:
        """Whether the event has happened."""
        return True

    def record(self, stream: Stream | None = None) -> None:
        """Record the event on a stream."""
        self._time = time.perf_counter()
        if ordering.current is not None:
            self._clock = dict(ordering.current.clock(stream or get_current_stream()))

    def synchronize(self) -> None:
        """Wait for the event, which is not allowed during a capture."""
        if capturing:
            raise CUDARuntimeError(900)
        if ordering.current is not None:
            ordering.current.host_waits(self._clock)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two events."""
    if start_event._time is None or end_event._time is None:
        raise CUDARuntimeError(1)
    return 1e3 * (end_event._time - start_event._time)


def get_current_stream(device_id: int = -1) -> Stream:
    """Return the stream that launches go to."""
    return _entered.streams[-1]


def owner(a: np.ndarray) -> np.ndarray:
    """Return the array that owns the memory: NumPy lets every view point at it."""
    return a if a.base is None else a.base


def submit(
    run: Callable[[], object],
    reads: Sequence[np.ndarray],
    writes: Sequence[np.ndarray],
    what: str,
    stream: Stream | None = None,
) -> None:
    """Execute what a kernel does, or record it where the stream is being captured."""
    stream = stream or get_current_stream()
    if stream._capture is not None:
        stream._capture._calls.append(_Call(
            run, [weakref.ref(owner(a)) for a in reads], [weakref.ref(owner(a)) for a in writes],
            what))
        return
    if stream.ptr == 0 and any(not s.is_non_blocking for s in capturing):
        raise CUDARuntimeError(906)
    note(reads, writes, what, stream)
    run()


def note(
    reads: Sequence[np.ndarray],
    writes: Sequence[np.ndarray],
    what: str,
    stream: Stream | None = None,
) -> None:
    """Keep account of an operation, where somebody watches (see ``ordering``)."""
    if ordering.current is not None:
        ordering.current.operation(stream or get_current_stream(), [owner(a) for a in reads],
                                   [owner(a) for a in writes], what)


def not_while_capturing(what: str) -> None:
    """Allocation, and copies from and to the host, cannot be part of a graph."""
    if get_current_stream()._capture is not None:
        error = CUDARuntimeError(900)
        error.args = (f"{error.args[0]} ({what})",)
        raise error


# ------------------------------------------------------------------------------------- the device
SHARED_BY_DEFAULT = 48 * 1024
SHARED_AT_MOST = 227 * 1024


class Device:
    """The one device."""

    def __init__(self, device: int | None = None):
        if device not in (None, 0):
            raise CUDARuntimeError(101)
        self.id = 0

    def __int__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __repr__(self) -> str:
        return "<CUDA Device 0, emulated>"

    def use(self) -> None:
        """Do nothing: there is one device."""

    def synchronize(self) -> None:
        """Wait, which is not allowed during a capture."""
        if capturing:
            raise CUDARuntimeError(900)
        if ordering.current is not None:
            ordering.current.host_waits_for_all()

    @property
    def pci_bus_id(self) -> str:
        """Where the device is."""
        return "0000:00:00.0"

    @property
    def compute_capability(self) -> str:
        """Major and minor version, as one string."""
        return "75"

    @property
    def attributes(self) -> dict[str, int]:
        """The limits that kernels may ask for."""
        return {
            "MaxThreadsPerBlock": 1024,
            "MaxSharedMemoryPerBlock": SHARED_BY_DEFAULT,
            "MaxSharedMemoryPerBlockOptin": SHARED_AT_MOST,
            "MultiProcessorCount": 4,
            "WarpSize": 32,
        }


def alloc_pinned_memory(size: int) -> bytearray:
    """Return memory of the host that copies need not make a detour from."""
    not_while_capturing("allocation")
    return bytearray(size)


def get_device_properties(device: int) -> dict[str, Any]:
    """Return the name of the device, and its limits."""
    return {
        "name": b"CUDA C emulated on the CPU",
        "major": 7,
        "minor": 5,
        "multiProcessorCount": 4,
        "sharedMemPerBlockOptin": SHARED_AT_MOST,
        "totalGlobalMem": 8 << 30,
    }
