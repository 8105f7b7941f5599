"""The threads that the kernels run on.

Compiled kernels release Python's lock, so plain Python threads run them side by side. Compared
with Numba's ``prange`` (which version 2 shows) this compiles in half the time, survives ``fork``
and being called from several threads at once.

The threads share out their work by a counter, :func:`take_next`, so whoever calls would finish
alone: nobody ever waits for a thread that has not started. A thread that has nothing to do
watches for the next job, for half a millisecond, in compiled code that holds no lock, and only
then goes to sleep. Waking a sleeper takes some 50 microseconds, a tenth of a small
convolution; in a loop of them nobody sleeps. The caller watches in the same way, somewhat
longer, for the others to finish.

Every job has a counter of its own, which no other job is given while a helper may still be at
work on it, and which is closed for good when its caller leaves, in whatever way. So a Ctrl-C may
come at any moment: helpers of an interrupted job finish what they have in hand and find nothing
more; they never take an item of the next one.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import SIMD, kernel

Work = Callable[[int, Any], None]

# Seconds that a helper watches for the next job, and the caller for the helpers, before they sleep.
_WATCH, _WAIT = 5e-4, 2e-3
# Multiplications that one thread has done by the time it has handed half of them to another.
_LITTLE = 1 << 18
_LINE = 8  # int64 of a cache line
_CLOSED = 1 << 62  # more than any job has items

_threads = numba.config.NUMBA_NUM_THREADS


def get_threads() -> int:
    """Return how many threads are used: at first ``NUMBA_NUM_THREADS``, or the processors."""
    return _threads


def set_threads(count: int) -> None:
    """Use ``count`` threads, at least 1, from now on."""
    global _threads
    _threads = count


def share(items: int, multiplications: int) -> int:
    """Return how many threads to share ``items`` out to: one alone where there is little to do."""
    return min(_threads, items) if multiplications > _LITTLE else 1


@intrinsic
def take_next(typingctx: Any, counter: Any) -> Any:
    """Return counter[0] and add 1 to it, as one step: no two threads get the same number."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@intrinsic
def _poll(typingctx: Any, a: Any, i: Any) -> Any:
    """Return a[i] as it is in memory now, after a moment's rest for the other hyperthread."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if SIMD in ("avx512", "avx2", "sse"):
            pause = builder.module.declare_intrinsic(
                "llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), ()))
            builder.call(pause, ())
        place = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(place, [args[1]]), "acquire", 8)

    return types.int64(a, types.intp), codegen


@intrinsic
def _show(typingctx: Any, a: Any, i: Any, value: Any) -> Any:
    """Set a[i] = value; whoever sees it sees all that was written before."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = context.make_array(sig.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], builder.gep(place, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.int64), codegen


@kernel(lambda t: (types.int64[::1], types.int64[::1], types.int64[::1], types.int64, types.int64,
                   types.int64))
def _watch_for_job(number, counters, busy, i, seen, polls):
    """Say that helper i is not busy; return whether another job than ``seen`` has been begun."""
    _show(busy, i, 0)
    for _ in range(polls):
        job = _poll(number, 0)
        if job != seen and _poll(counters, job % (counters.size // _LINE) * _LINE) > 0:
            return True
    return False


@kernel(lambda t: (types.int64[::1], types.int64, types.int64))
def _watch_for_end(busy, job, polls):
    """Return whether nobody is ``busy`` with a job."""
    i = 0
    for _ in range(polls):
        while i < busy.size and _poll(busy, i) != job:
            i += 1
        if i == busy.size:
            return True
    return False


class _Job:
    """Work to be shared; its number says which counter it has."""

    __slots__ = ("__weakref__", "closed", "counter", "error", "helpers", "number", "work")

    def __init__(self, work: Work, helpers: int) -> None:
        self.work, self.helpers = work, helpers
        self.number, self.counter = 0, None  # posted when these are set
        self.closed = False
        self.error: BaseException | None = None


class _Team:
    """Threads 1, 2, ..., which help the caller, thread 0, with one job after the other.

    All but the watching holds Python's lock. A helper says with which job it is busy before it
    polls whether that is still the one; the caller closes the job before it polls who is busy. That
    it is busy no more a helper says when it has let go of the lock: the caller goes on at once.
    """

    def __init__(self, helpers: int) -> None:
        # The job in hand. A weak reference: if its caller was interrupted before it could close
        # it, the job ends with the caller's frame.
        self._current: Callable[[], _Job | None] = lambda: None
        self._claiming = threading.Lock()
        # A counter, in a cache line of its own, for each job that a helper may still be busy with,
        # and one more for the next; that of job number n is at n modulo their count.
        self._slots = helpers + 1
        self._counters = np.zeros(self._slots * _LINE, np.int64)
        self._counter = [self._counters[i * _LINE:i * _LINE + 1] for i in range(self._slots)]
        self._number = np.zeros(1, np.int64)
        self._busy = np.zeros(helpers, np.int64)  # with which job; 0: none
        self._asleep = [False] * helpers
        self._bells: list[queue.SimpleQueue[None]] = [queue.SimpleQueue() for _ in range(helpers)]
        self._job_or_not = _watch_for_job.compile("float32")
        self._end_or_not = _watch_for_end.compile("float32")
        # A poll takes 30 ns on one processor and 60 on another.
        start = time.perf_counter()
        self._job_or_not(self._number, self._counters, self._busy, 0, 0, 10_000)
        polls = 10_000 / (time.perf_counter() - start)
        self._watch, self._wait = int(_WATCH * polls), int(_WAIT * polls)
        for i in range(helpers):
            threading.Thread(target=self._help, args=(i,), daemon=True,
                             name=f"minisrcnn-{i + 1}").start()

    def __len__(self) -> int:
        return len(self._busy)

    def run(self, work: Work, helpers: int) -> bool:
        """Run a job to its end, or return False: another one is in hand."""
        job = _Job(work, helpers)
        try:
            with self._claiming:
                current = self._current()
                if current is not None and not current.closed:
                    return False
                self._current = weakref.ref(job)
            self._post(job)
            work(0, job.counter)
        finally:
            self._close(job)
            while job.number and not self._end_or_not(self._busy, job.number, self._wait):
                time.sleep(2e-4)
        if job.error is not None:
            raise job.error
        return True

    def _post(self, job: _Job) -> None:
        """Give the job a number whose counter nobody else has, and show it to the helpers."""
        number, slots = self._number.item() + 1, self._slots
        taken = [other % slots for other in self._busy.tolist() if other]
        while number % slots in taken:
            number += 1
        job.number, job.counter = number, self._counter[number % slots]
        job.counter[0] = 0
        self._number[0] = number
        for i in range(job.helpers):
            if self._asleep[i]:
                self._bells[i].put(None)

    def _close(self, job: _Job) -> None:
        job.closed = True
        if job.number:
            job.counter[0] = _CLOSED

    def _help(self, i: int) -> None:
        seen = 0
        while True:
            if not self._job_or_not(self._number, self._counters, self._busy, i, seen,
                                    self._watch):
                self._asleep[i] = True
                if self._number[0] == seen:
                    self._bells[i].get()
                self._asleep[i] = False
                continue
            seen = self._number.item()
            self._busy[i] = seen
            job = self._current()
            if job is not None and job.number == seen and not job.closed and i < job.helpers:
                try:
                    job.work(i + 1, job.counter)
                except BaseException as error:
                    job.error = error
            del job


_team: _Team | None = None
_founding = threading.Lock()


def run(work: Work, threads: int) -> None:
    """Call ``work(0, counter)``, ``work(1, counter)``, ... side by side; return at the end of all.

    ``counter`` is a (1,) int64 array of zero, for :func:`take_next`. Every one of the calls takes
    work by it until none is left, so some of them may be left out: all but the first where
    another caller has the threads, or those that were late.
    """
    global _team
    if threads > 1:
        with _founding:
            if _team is None or len(_team) < threads - 1:
                _team = _Team(threads - 1)
            team = _team
        if team.run(work, threads - 1):
            return
    work(0, np.zeros(1, np.int64))


def _forget_team() -> None:
    global _team, _founding
    _team, _founding = None, threading.Lock()  # its threads do not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)
