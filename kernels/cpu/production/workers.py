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
"""

from __future__ import annotations

import os
import queue
import threading
import time
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

_threads = numba.config.NUMBA_NUM_THREADS


def get_threads() -> int:
    """Return how many threads are used: at first ``NUMBA_NUM_THREADS``, or the processors."""
    return _threads


def set_threads(count: int) -> None:
    """Use ``count`` threads, at least 1, from now on."""
    global _threads
    _threads = count


@intrinsic
def take_next(typingctx: Any, counter: Any) -> Any:
    """Return counter[0] and add 1 to it, as one step: no two threads get the same number."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@intrinsic
def _look(typingctx: Any, a: Any, i: Any) -> Any:
    """Return a[i] as it is in memory now, after a moment's rest for the other hyperthread."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if SIMD in ("avx512", "avx2", "sse"):
            pause = builder.module.declare_intrinsic(
                "llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), ()))
            builder.call(pause, ())
        place = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(place, [args[1]]), "acquire", 8)

    return types.int64(a, types.intp), codegen


@kernel(lambda t: (types.int64[::1], types.int64[::1], types.int64, types.int64))
def _watch_for_job(job, counter, seen, looks):
    """Return whether there is another job than ``seen``, and somebody at work on it."""
    for _ in range(looks):  # noqa: SIM110
        if _look(job, 0) != seen and _look(counter, 0) > 0:
            return True
    return False


@kernel(lambda t: (types.int64[::1], types.int64))
def _watch_for_end(busy, looks):
    """Return whether all of ``busy`` is zero."""
    i = 0
    for _ in range(looks):
        while i < busy.size and _look(busy, i) == 0:
            i += 1
        if i == busy.size:
            return True
    return False


class _Team:
    """Threads 1, 2, ..., which help the caller, thread 0, with one job after the other.

    All but the watching holds Python's lock. A helper says that it is busy before it looks
    whether the job is still open; the caller closes the job before it looks who is busy.
    """

    def __init__(self, helpers: int) -> None:
        self.free = threading.Lock()  # one caller at a time
        self._work: Work | None = None  # None: closed
        self._job, self._counter = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._busy = np.zeros(helpers, np.int64)
        self._asleep = [False] * helpers
        self._bells: list[queue.SimpleQueue[None]] = [queue.SimpleQueue() for _ in range(helpers)]
        self._error: BaseException | None = None
        self._job_or_not = _watch_for_job.compile("float32")
        self._end_or_not = _watch_for_end.compile("float32")
        # A look takes 30 ns on one processor and 60 on another.
        start = time.perf_counter()
        self._job_or_not(self._job, self._counter, 0, 10_000)
        looks = 10_000 / (time.perf_counter() - start)
        self._watch, self._wait = int(_WATCH * looks), int(_WAIT * looks)
        for i in range(helpers):
            threading.Thread(target=self._help, args=(i,), daemon=True,
                             name=f"minisrcnn-{i + 1}").start()

    def __len__(self) -> int:
        return len(self._busy)

    def run(self, work: Work, helpers: int) -> None:
        self._counter[0] = 0
        self._helpers, self._work = helpers, work
        self._job[0] += 1
        for i in range(helpers):
            if self._asleep[i]:
                self._bells[i].put(None)
        try:
            work(0, self._counter)
        finally:
            self._work = None
            while not self._end_or_not(self._busy, self._wait):
                time.sleep(2e-4)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _help(self, i: int) -> None:
        seen = 0
        while True:
            if not self._job_or_not(self._job, self._counter, seen, self._watch):
                self._asleep[i] = True
                if self._job[0] == seen:
                    self._bells[i].get()
                self._asleep[i] = False
                continue
            seen = int(self._job[0])
            self._busy[i] = 1
            work = self._work
            try:
                if work is not None and i < self._helpers:
                    work(i + 1, self._counter)
            except BaseException as error:
                self._error = error
            del work
            self._busy[i] = 0


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
        if team.free.acquire(blocking=False):
            try:
                team.run(work, threads - 1)
            finally:
                team.free.release()
            return
    work(0, np.zeros(1, np.int64))


def _forget_team() -> None:
    global _team, _founding
    _team, _founding = None, threading.Lock()  # its threads do not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)
