"""Several processes that train one network: the ranks of an MPI job, or one process alone.

Bits must not depend on the number of ranks, and floating-point sums depend on their order. So what
is shared out are the chunks of a batch, which the batch alone fixes; every rank gets all chunks'
gradients (Allgatherv, not Allreduce) and adds them in the order of the chunks, as one process does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError

T = TypeVar("T")

# What mpiexec and srun set: of MPICH and Intel MPI, Open MPI, PMIx.
_STARTED_BY_MPI = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


class Ranks:
    """One process alone; :class:`MPIRanks` are several.

    Attributes
    ----------
    rank, size : int
        Of this process, from 0, and how many there are.
    """

    rank = 0
    size = 1

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Return what a function returns on rank 0, or raise its MinisrcnnError, everywhere."""
        return function()

    def run_everywhere(self, function: Callable[[], T]) -> T:
        """Run a function on every rank; if it raises a MinisrcnnError on one, raise it on all."""
        return function()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank."""
        return flags

    def share(self, items: int) -> tuple[int, int]:
        """Return the first item of this rank, and the one after its last."""
        return items * self.rank // self.size, items * (self.rank + 1) // self.size

    def gather(self, rows: NDArray[Any], items: int) -> NDArray[Any]:
        """Return the rows of all items, in order, from every rank's share of them."""
        return rows

    def set_threads(self, set_threads: Callable[[int], None]) -> None:
        """Share the processor out among the ranks of one machine."""

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """End all ranks if this one fails in a way that the others cannot know of."""
        yield


class MPIRanks(Ranks):
    """The ranks of ``mpiexec -n N``."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise MinisrcnnError("started by mpiexec or srun, which needs mpi4py and an MPI "
                                 f"library: pip install '.[mpi]' ({error})") from None
        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Return what a function returns on rank 0, or raise its MinisrcnnError, everywhere."""
        result: Any = None
        if self.rank == 0:
            try:
                result = function()
            except MinisrcnnError as error:
                result = error
        result = self._world.bcast(result)
        if isinstance(result, MinisrcnnError):
            raise result
        return result

    def run_everywhere(self, function: Callable[[], T]) -> T:
        """Run a function on every rank; if it raises a MinisrcnnError on one, raise it on all."""
        result: Any = None
        found = None
        try:
            result = function()
        except MinisrcnnError as error:
            found = error
        for rank, other in enumerate(self._world.allgather(found)):
            if other is not None:
                raise type(other)(f"{other} (on rank {rank})" if rank else str(other))
        return result

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank."""
        both = np.array(flags, np.uint8)
        self._world.Allreduce(self._mpi.IN_PLACE, both, self._mpi.MAX)
        return tuple(map(bool, both))

    def gather(self, rows: NDArray[Any], items: int) -> NDArray[Any]:
        """Return the rows of all items, in order, from every rank's share of them."""
        from mpi4py.util import dtlib

        width = rows[0].size if len(rows) else 0
        width = self._world.allreduce(width, self._mpi.MAX)
        everything = np.empty((items, width), rows.dtype)
        ends = [items * (rank + 1) // self.size * width for rank in range(self.size)]
        starts = [0, *ends[:-1]]
        counts = [end - start for start, end in zip(starts, ends, strict=True)]
        kind = dtlib.from_numpy_dtype(rows.dtype)
        self._world.Allgatherv([np.ascontiguousarray(rows), kind],
                               [everything, counts, starts, kind])
        return everything.reshape(items, *rows.shape[1:])

    def set_threads(self, set_threads: Callable[[int], None]) -> None:
        """Share the processor out among the ranks of one machine."""
        here = self._world.Split_type(self._mpi.COMM_TYPE_SHARED)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(ValueError):  # NUMBA_NUM_THREADS allows fewer
            set_threads(max(1, (cores or 1) // here.size))

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """End all ranks if this one fails in a way that the others cannot know of."""
        try:
            yield
        except MinisrcnnError:  # raised on every rank alike
            raise
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                traceback.print_exc(file=sys.__stderr__)
            print(f"minisrcnn: rank {self.rank} of {self.size} failed "
                  f"({type(error).__name__}); the last checkpoint is kept", file=sys.__stderr__,
                  flush=True)
            self._world.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)
            raise


def find_ranks() -> Ranks:
    """Return the ranks of the MPI job that this process belongs to, or one alone.

    Raises
    ------
    MinisrcnnError
        If it was started by ``mpiexec`` and mpi4py or its library is missing.
    """
    if not any(name in os.environ for name in _STARTED_BY_MPI):
        return Ranks()
    ranks = MPIRanks()
    return ranks if ranks.size > 1 else Ranks()
