"""Races between streams, found without a GPU: which operations does nothing put in order?

On a GPU two operations on the same memory, one of them a write, must be ordered: by the stream that
both are queued on, by an event, by the host waiting, or by the default stream, which waits for all
blocking streams and they for it. The emulator executes everything at once and so gives the right
result even where that order is missing. This module keeps account of what is ordered, by vector
clocks (Lamport 1978; Mattern 1989), and lists what is not:

    clock[s][r] = how many operations of stream r are known to be done when stream s goes on

An operation is ordered after another one of stream r, its k-th, where clock[s][r] >= k. Waiting for
a stream or an event takes the largest of both clocks, element by element.

    with watch() as races:
        ...
    assert not races
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Clock = dict[int, int]
_HERE = str(Path(__file__).parent)


class Operation(NamedTuple):
    """An operation on a stream: which one of that stream, what it does, and who queued it."""

    stream: int
    number: int
    what: str
    where: str


class Race(NamedTuple):
    """Two operations on the same memory that nothing orders, at least one of them a write."""

    first: Operation
    second: Operation

    def __str__(self) -> str:
        return (f"{self.second.what} ({self.second.where}) is not ordered after "
                f"{self.first.what} ({self.first.where})")


@dataclass
class _Memory:
    """The last write to an array's memory, and the reads of each stream since."""

    alive: weakref.ref[np.ndarray]
    write: Operation | None = None
    reads: dict[int, Operation] = field(default_factory=dict)


class Watch:
    """The clocks of all streams and of the host, and the races found so far."""

    def __init__(self, per_thread_default_stream: bool) -> None:
        self.per_thread = per_thread_default_stream
        self.races: list[Race] = []
        self._clocks: dict[int, Clock] = {}
        self._streams: dict[int, Any] = {}
        self._host: Clock = {}
        self._memory: dict[int, _Memory] = {}

    def clock(self, stream: Any) -> Clock:
        """Return the clock of a stream, brought up to date with what it waits for by itself."""
        key = id(stream)
        self._streams[key] = stream  # kept alive: another stream must not get its id
        own = self._clocks.setdefault(key, {})
        _join(own, self._host)
        if not self.per_thread and not stream.is_non_blocking:
            for other in list(self._streams.values()):
                if not other.is_non_blocking and 0 in (stream.ptr, other.ptr):
                    _join(own, self._clocks.get(id(other), {}))
        return own

    def operation(
        self, stream: Any, reads: Sequence[np.ndarray], writes: Sequence[np.ndarray], what: str
    ) -> None:
        """Note an operation; arrays are those that own their memory."""
        clock, key = self.clock(stream), id(stream)
        clock[key] = clock.get(key, 0) + 1
        now = Operation(key, clock[key], what, _caller())
        for a in writes:
            memory = self._of(a)
            for before in (memory.write, *memory.reads.values()):
                self._compare(before, now, clock)
            memory.write, memory.reads = now, {}
        for a in reads:
            memory = self._of(a)
            self._compare(memory.write, now, clock)
            memory.reads[key] = now

    def host_waits(self, clock: Clock) -> None:
        """Note that the host has waited for a stream or an event."""
        _join(self._host, clock)

    def host_waits_for_all(self) -> None:
        """Note that the host has waited for the device."""
        for clock in self._clocks.values():
            _join(self._host, clock)

    def _compare(self, before: Operation | None, now: Operation, clock: Clock) -> None:
        if before is not None and clock.get(before.stream, 0) < before.number:
            self.races.append(Race(before, now))

    def _of(self, a: np.ndarray) -> _Memory:
        memory = self._memory.get(id(a))
        if memory is None or memory.alive() is not a:
            memory = self._memory[id(a)] = _Memory(weakref.ref(a))
        return memory


current: Watch | None = None  # what the stand-in reports to


@contextlib.contextmanager
def watch(per_thread_default_stream: bool = False) -> Iterator[list[Race]]:
    """Collect races while the block runs.

    Parameters
    ----------
    per_thread_default_stream : bool
        As with ``CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1``: the default stream waits for nobody.
    """
    global current
    before, current = current, Watch(per_thread_default_stream)
    try:
        yield current.races
    finally:
        current = before


def _join(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        if clock.get(stream, 0) < number:
            clock[stream] = number


def _caller() -> str:
    for frame, line in traceback.walk_stack(None):
        if not frame.f_code.co_filename.startswith(_HERE):
            return f"{Path(frame.f_code.co_filename).name}:{line}"
    return "?"
