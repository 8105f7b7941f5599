"""Ctrl-C ends a training after its step, saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C end the loop after its step; a second one ends everything."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    hit = []
    old = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        hit.append(number)
        signal.signal(signal.SIGINT, old)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(hit)
    finally:
        signal.signal(signal.SIGINT, old)
