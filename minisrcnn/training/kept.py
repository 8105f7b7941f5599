"""Inputs of the pictures: computed when they are asked for, kept as far as memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


class KeptImages(Sequence[Image]):
    """Images that a function makes, of which so many bytes are kept.

    A sequence like a list of them, whatever the memory; what is not kept is made again. Told what
    is needed now and next (:meth:`expect`), it makes that ahead in a thread of its own, and what
    was needed last goes first.

    Parameters
    ----------
    make : callable
        Returns the image of a number, the same each time; called from two threads.
    sizes : array of int
        Bytes of each image.
    memory : int
        Bytes to keep; the image asked for last is kept in any case.
    """

    def __init__(
        self, make: Callable[[int], Image], sizes: NDArray[np.integer], memory: int
    ) -> None:
        self._make, self._sizes, self.memory = make, sizes, memory
        self._kept: OrderedDict[int, Image] = OrderedDict()  # the first one goes first
        self.held = 0
        self._lock = threading.Lock()
        self._now: list[int] = []
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, number: int) -> Image: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Image]: ...
    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        image = self._kept.get(number)
        if image is None:
            if not -len(self) <= number < len(self):
                raise IndexError(f"image is {number}, want one of {len(self)}")
            number %= len(self)
            image = self._make(number)
            self._keep(number, image)
        return image

    def _keep(self, number: int, image: Image) -> None:
        with self._lock:
            if number in self._kept:  # the other thread was faster
                return
            self._kept[number] = image
            self.held += image.nbytes
            while self.held > self.memory and len(self._kept) > 1:
                self.held -= self._kept.popitem(last=False)[1].nbytes

    def expect(self, now: NDArray[np.integer], soon: NDArray[np.integer]) -> None:
        """Say which images are needed from now on, and which next; what was needed goes first."""
        self.close()
        with self._lock:
            for number in self._now:
                if number in self._kept:
                    self._kept.move_to_end(number, last=False)
            for number in (*soon.tolist(), *now.tolist()):
                if number in self._kept:
                    self._kept.move_to_end(number)
        self._now = now.tolist()
        ahead = [number for number in (*self._now, *soon.tolist()) if number not in self._kept]
        needed = self._sizes[np.union1d(now, soon)].sum()
        if ahead and needed <= self.memory:  # else it would drive out what is needed now
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._make_ahead, args=(ahead, self._stop), daemon=True)
            self._thread.start()

    def _make_ahead(self, numbers: Iterable[int], stop: threading.Event) -> None:
        try:
            for number in numbers:
                if stop.is_set():
                    return
                if number not in self._kept:
                    self._keep(number, self._make(number))
        except Exception:
            return  # it is raised again where the image is asked for

    def close(self) -> None:
        """Make nothing more ahead."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
