"""Ctrl-C, and the signals with which systems end a program, end a training saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# SIGTERM: kill, a batch system at its time limit. SIGHUP: the terminal is gone.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal came; the second one is a KeyboardInterrupt.

    A signal that is ignored (SIGHUP under nohup) stays ignored. In other threads than the main one
    signals cannot be caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    hits: list[int] = []

    def note(number: int, frame: Any) -> None:
        hits.append(number)
        if len(hits) == 2:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(hits)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
