"""A picture on its way into a file: pages of rows that come strip by strip."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Page:
    """One picture, page or frame.

    Attributes
    ----------
    H, W : int
        Size.
    channels : int
        1 grayscale, 2 with alpha, 3 RGB, 4 with alpha.
    dtype : dtype
        uint8 or uint16.
    strips : iterable of arrays, shape (h, W) or (h, W, channels)
        Top to bottom; the rows add up to H.
    duration : float or None
        Milliseconds that a frame of an animation is shown.
    """

    H: int
    W: int
    channels: int
    dtype: np.dtype[Any]
    strips: Iterable[NDArray[Any]]
    duration: float | None = None

    def checked(self) -> Iterator[NDArray[Any]]:
        """Yield the strips; ValueError where one does not fit, or the rows do not add up to H."""
        row = 0
        for strip in self.strips:
            shape = (self.W,) if self.channels == 1 else (self.W, self.channels)
            if strip.dtype != self.dtype or strip.shape[1:] != shape:
                raise ValueError(f"strip has dtype {strip.dtype} and shape {strip.shape}, "
                                 f"want {self.dtype} and rows of shape {shape}")
            row += len(strip)
            yield strip
        if row != self.H or row == 0:
            raise ValueError(f"strips have {row} rows in all, want {self.H}")


def bands(page: Page, rows: int) -> Iterator[NDArray[Any]]:
    """Yield the page cut otherwise: ``rows`` rows at a time, and what is left at the end."""
    held: list[NDArray[Any]] = []
    count = 0
    for strip in page.checked():
        held.append(strip)
        count += len(strip)
        if count < rows:
            continue
        joined = held[0] if len(held) == 1 else np.concatenate(held)
        whole = count - count % rows
        for start in range(0, whole, rows):
            yield joined[start : start + rows]
        held, count = ([joined[whole:]], count - whole) if whole < count else ([], 0)
    if held:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def in_order(
    pool: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int = 8
) -> Iterator[Out]:
    """Map as ``pool.map`` does, but take no more than ``ahead`` items before their results."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def whole(page: Page) -> NDArray[Any]:
    """Return the page as one array."""
    out: NDArray[Any] | None = None
    row = 0
    for strip in page.checked():
        if out is None:  # not before the source of the strips has checked its arguments
            out = np.empty((page.H, *strip.shape[1:]), page.dtype)
        out[row : row + len(strip)] = strip
        row += len(strip)
    assert out is not None
    return out


def ahead(items: Iterable[Out], threaded: bool = True) -> Iterator[Out]:
    """Yield the items, each computed in another thread while the one before is in use."""
    if not threaded:
        yield from items
        return
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        if not sys.is_finalizing():  # then threads stand still for good, and a join never ends
            thread.join()
