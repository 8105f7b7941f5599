"""In which order a training takes its patches: a function of the pictures and the seed alone.

A set of up to ``WINDOW`` pixels is shuffled whole: every patch can come at any time. In a larger
one, that would want all pictures at hand all the time. So it is shuffled in two steps: the
pictures are cut into blocks of neighbours of up to ``BLOCK`` pixels; the blocks are shuffled, and
put together to windows of up to ``WINDOW`` pixels; the patches of a window are shuffled. Anew in
every epoch. How much memory there is plays no part: that decides only what is kept.

Where pictures have weights, a window's patches are drawn at random in proportion to them, as many
of each window as its share of all weights makes of the number of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..imaging.patches import PatchIndex

WINDOW = 1 << 26  # pixels of which all patches are shuffled together
BLOCK = 1 << 22   # pixels of pictures that stay neighbours: read in one go

Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class Window:
    """Patches that are shuffled together.

    Attributes
    ----------
    numbers : (N,) array of int
        Rows of the index, in the order in which they are taken.
    codes : (N,) array of int in 0..7
        Their orientations; see :func:`minisrcnn.imaging.patches.augment`.
    images : array of int, optional
        The images that they are of; those that are to be kept meanwhile.
    """

    numbers: Numbers
    codes: Numbers
    images: Numbers = field(default_factory=lambda: np.empty(0, np.intp))


def _runs(sizes: Numbers, most: int) -> list[slice]:
    """Cut a list into runs that add up to ``most`` at most, or have one item."""
    ends = np.cumsum(sizes)
    runs, first = [], 0
    while first < len(sizes):
        taken = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, taken + most, side="right")))
        runs.append(slice(first, last))
        first = last
    return runs


class Shuffle:
    """The order of the patches of every epoch.

    Parameters
    ----------
    index : PatchIndex
    seed : int
    weights : (I,) array, optional
        How often patches of each image are drawn, up to a factor; without, each comes once.
    """

    def __init__(
        self, index: PatchIndex, seed: int, weights: NDArray[np.float64] | None = None
    ) -> None:
        self.index, self.seed, self.weights = index, seed, weights
        pixels, self._counts = index.shapes.prod(axis=1), np.diff(index.starts)
        shares = self._counts if weights is None else self._counts * weights
        self._blocks = _runs(pixels, BLOCK)
        self._pixels = np.array([pixels[block].sum() for block in self._blocks])
        self._shares = np.array([shares[block].sum() for block in self._blocks])

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Window]:
        """Yield the windows of an epoch, from its patch number ``start`` to before ``stop``."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1, epoch)))
        order = np.arange(len(self._blocks))
        if self._pixels.sum() > WINDOW:  # else they make one window, in which all are shuffled
            rng.shuffle(order)
        starts, patches = self.index.starts, len(self.index)
        stop = patches if stop is None else stop
        drawn = np.cumsum(self._shares[order])
        at = 0
        for run in _runs(self._pixels[order], WINDOW):
            blocks = [self._blocks[b] for b in order[run]]
            images = np.concatenate([np.arange(block.start, block.stop) for block in blocks])
            numbers = np.concatenate(
                [np.arange(starts[block.start], starts[block.stop]) for block in blocks])
            end = round(patches * float(drawn[run.stop - 1] / drawn[-1]))
            if self.weights is None:
                numbers = rng.permutation(numbers)
            elif end == at:
                continue
            else:
                chances = np.repeat(self.weights[images], self._counts[images])
                numbers = numbers[rng.choice(len(numbers), end - at, p=chances / chances.sum())]
            codes = rng.integers(8, size=len(numbers))
            wanted = slice(max(start - at, 0), max(stop - at, 0))
            at += len(numbers)
            if len(numbers[wanted]):
                yield Window(numbers[wanted], codes[wanted], images)


class Stream:
    """Takes patches, batch by batch, window after window.

    Parameters
    ----------
    windows : iterator of Window
    expect : callable
        Told at the start of each window which images this one and the next need.
    """

    def __init__(
        self, windows: Iterator[Window], expect: Callable[[Numbers, Numbers], None]
    ) -> None:
        self._windows, self._expect = windows, expect
        self._numbers = self._codes = np.empty(0, np.intp)
        self._begun: Window | None = None  # a window of which nobody was told yet
        self._next = next(windows, None)

    def take(self, count: int) -> tuple[Numbers, Numbers]:
        """Return the numbers and orientations of the next patches; fewer at the end."""
        if self._begun is not None:
            # Only now: patches left of the window before were taken together with this one's.
            nothing = np.empty(0, np.intp)
            self._expect(self._begun.images, self._next.images if self._next else nothing)
            self._begun = None
        while len(self._numbers) < count and self._next is not None:
            self._begun, self._next = self._next, next(self._windows, None)
            self._numbers = np.concatenate([self._numbers, self._begun.numbers])
            self._codes = np.concatenate([self._codes, self._begun.codes])
        numbers, codes = self._numbers[:count], self._codes[:count]
        self._numbers, self._codes = self._numbers[count:], self._codes[count:]
        return numbers, codes
