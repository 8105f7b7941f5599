"""The threads of the CPU kernels: all work is done once, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from minisrcnn.kernels.cpu.jit import kernel
from minisrcnn.kernels.cpu.production import workers
from numba import types


@kernel(lambda t: (t[::1], types.int64[::1]))
def add_one(a, counter):
    i = workers.take_next(counter)
    while i < a.size:
        a[i] += 1
        i = workers.take_next(counter)


def run_add_one(a, threads):
    function = add_one.compile("float64")
    workers.run(lambda i, counter: function(a, counter), threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 2])
def test_every_item_is_taken_once(threads):
    for size in (0, 1, 2, 1000):
        a = np.zeros(size)
        run_add_one(a, threads)
        assert (a == 1).all()


def test_helpers_that_fell_asleep_wake_up():
    a = np.zeros(10)
    for _ in range(20):
        run_add_one(a, 2)
        time.sleep(0.003)
    assert (a == 20).all()


def test_threads_are_kept_not_made_anew():
    run_add_one(np.zeros(4), 4)
    before = threading.active_count()
    for _ in range(50):
        run_add_one(np.zeros(4), 4)
    assert threading.active_count() == before


def test_callers_do_not_wait_for_each_other():
    """The second caller finds the helpers taken, and does its work alone."""
    first_is_in, second_is_done = threading.Event(), threading.Event()
    seen = []

    def slow(i, counter):
        if i == 0:
            first_is_in.set()
            seen.append(second_is_done.wait(300))

    caller = threading.Thread(target=workers.run, args=(slow, 2))
    caller.start()
    assert first_is_in.wait(300)
    a = np.zeros(100)
    run_add_one(a, 2)
    second_is_done.set()
    caller.join()
    assert (a == 1).all() and seen == [True]


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_any_thread_reaches_the_caller(culprit):
    helper_is_in = threading.Event()

    def work(i, counter):
        if i == 0:
            counter[0] += 1  # helpers start when somebody has taken work
            assert helper_is_in.wait(300)
        else:
            helper_is_in.set()
        if i == culprit:
            raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        workers.run(work, 2)
    a = np.zeros(100)
    run_add_one(a, 2)  # and the threads are as good as before
    assert (a == 1).all()


class Gate:
    """A job of which the helper holds one item in its hand until the gate is opened."""

    def __init__(self, items):
        self.a = np.zeros(items)
        self.helper_is_in, self.open = threading.Event(), threading.Event()
        self.helper_is_out = threading.Event()
        self.taken_after = None

    def work(self, i, counter):
        item = take(counter)
        if i == 0:
            assert self.helper_is_in.wait(300)
            return
        self.helper_is_in.set()
        assert self.open.wait(300)
        self.a[item] += 1
        self.taken_after = take(counter)
        self.helper_is_out.set()


def take(counter):
    item = int(counter[0])
    counter[0] += 1
    return item


def test_helpers_of_an_interrupted_job_never_touch_the_next(monkeypatch):
    """A thousand times: Ctrl-C while the caller waits for a helper, and the next call at once.

    Nothing is left to chance: the helper comes back to its counter exactly while the next job
    is at work.
    """
    run_add_one(np.zeros(2), 2)
    monkeypatch.setattr(workers._team, "_wait", 10)
    real_sleep = time.sleep

    def interrupted(seconds):
        raise KeyboardInterrupt

    for _ in range(1000):
        gate = Gate(100)
        monkeypatch.setattr(workers.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.run(gate.work, 2)
        monkeypatch.setattr(workers.time, "sleep", real_sleep)

        run_add_one(np.zeros(3), 2)  # another one, so that all counters have had their turn
        done = np.zeros(10)

        def work(i, counter, gate=gate, done=done):
            item = take(counter)
            while item < done.size:
                done[item] += 1
                if i == 0 and not gate.open.is_set():
                    gate.open.set()
                    assert gate.helper_is_out.wait(300)
                item = take(counter)

        workers.run(work, 2)
        assert (done == 1).all(), "a helper of the interrupted job took an item of the next"
        assert gate.taken_after >= 100, "the interrupted job is still open"


def test_an_interrupt_before_the_job_is_posted_leaves_the_threads_free(monkeypatch):
    run_add_one(np.zeros(2), 2)
    team = workers._team

    def interrupted(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(team, "_post", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_add_one(np.zeros(4), 2)
    helper_is_in = threading.Event()

    def work(i, counter):
        counter[0] += 1
        if i == 0:
            assert helper_is_in.wait(300)
        else:
            helper_is_in.set()

    workers.run(work, 2)


def test_a_call_within_a_job_is_done_alone():
    inside = np.zeros(50)

    def work(i, counter):
        if i == 0:
            run_add_one(inside, 2)

    workers.run(work, 2)
    assert (inside == 1).all()
