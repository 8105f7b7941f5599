"""Several processes that train one network: the ranks of an MPI job, or one process alone.

Bits must not depend on the number of ranks, and floating-point sums depend on their order, which
Allreduce does not promise. So what is shared out are the chunks of a batch, which the batch alone
fixes, and their gradients are added in the order of the chunks, as one process does: each rank adds
up a run of the columns, of all chunks (Alltoallv), and the sums go to all (Allgather).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError, reason

T = TypeVar("T")

# What mpiexec and srun set: of MPICH and Intel MPI, Open MPI, PMIx.
_STARTED_BY_MPI = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")

# Of how many processes each is one; srun says it, even where it has not started them for MPI.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

# Before an abort: MPICH's mpiexec drops what a rank has printed and it has not passed on by then.
_SECONDS_TO_PASS_ON = 0.5


class Ranks:
    """One process alone; :class:`MPIRanks` are several.

    Attributes
    ----------
    rank, size : int
        Of this process, from 0, and how many there are.
    local_rank, local_size : int
        The same among those on this machine.
    library : str
        Whose MPI it is.
    """

    rank = local_rank = 0
    size = local_size = 1
    library = ""

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Return what a function returns on rank 0, or raise its MinisrcnnError, everywhere."""
        return function()

    def run_everywhere(self, function: Callable[[], T]) -> T:
        """Run a function on every rank; if it raises a MinisrcnnError on one, raise it on all."""
        return function()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank."""
        return flags

    def collect(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks."""
        return [value]

    def fill(self, rows: Any) -> None:
        """Fill an array (size, ...), of which each rank has the row of its number."""

    def share(self, items: int) -> tuple[int, int]:
        """Return the first item of this rank, and the one after its last."""
        return items * self.rank // self.size, items * (self.rank + 1) // self.size

    def gather(self, rows: NDArray[Any], items: int) -> NDArray[Any]:
        """Return the rows of all items, in order, from every rank's share of them."""
        return rows

    def add_in_order(
        self, rows: NDArray[Any], items: int, add: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> NDArray[Any]:
        """Return the sum of the rows of all items, in order, from every rank's share of them.

        Parameters
        ----------
        rows : (any, K) array
            Of this rank's items, by :meth:`share`.
        items : int
            Of all ranks together.
        add : callable
            Adds the rows of an (items, any) array in order, column by column.
        """
        return add(rows)

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
                                 f"library: pip install mpi4py mpich ({reason(error)})") from None
        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        self.library = MPI.get_vendor()[0]
        here = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = here.rank, here.size

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

    def collect(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks."""
        return list(self._world.allgather(value))

    def fill(self, rows: Any) -> None:
        """Fill an array (size, ...), of which each rank has the row of its number.

        The array may be on a device, if the MPI library takes such.
        """
        self._world.Allgather(self._mpi.IN_PLACE, rows)

    def gather(self, rows: NDArray[Any], items: int) -> NDArray[Any]:
        """Return the rows of all items, in order, from every rank's share of them."""
        everything = np.empty((items, *rows.shape[1:]), rows.dtype)
        width = everything[:1].size
        counts = [count * width for count in self._shares(items)]
        self._world.Allgatherv(self._buffer(rows), self._buffer(everything, counts))
        return everything

    def add_in_order(
        self, rows: NDArray[Any], items: int, add: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> NDArray[Any]:
        """Return the sum of the rows of all items, in order, from every rank's share of them."""
        # A run of columns for each rank, all of one width: what comes back are those of all items,
        # in order.
        columns = rows.shape[1]
        width = -(-columns // self.size)
        if rest := self.size * width - columns:
            rows = np.pad(rows, ((0, 0), (0, rest)))
        runs = rows.reshape(len(rows), self.size, width).swapaxes(0, 1).copy()
        mine = np.empty((items, width), rows.dtype)
        self._world.Alltoallv(
            self._buffer(runs, [len(rows) * width] * self.size),
            self._buffer(mine, [count * width for count in self._shares(items)]))
        total = np.empty(self.size * width, rows.dtype)
        self._world.Allgather(self._buffer(add(mine)), self._buffer(total))
        return total[:columns]

    def _shares(self, items: int) -> list[int]:
        """Return how many items each rank has."""
        ends = [items * rank // self.size for rank in range(self.size + 1)]
        return [end - start for start, end in itertools.pairwise(ends)]

    def _buffer(self, a: NDArray[Any], counts: list[int] | None = None) -> list[Any]:
        """Return what MPI takes: an array, how much of it is each rank's, and its type."""
        from mpi4py.util import dtlib

        kind = dtlib.from_numpy_dtype(a.dtype)
        a = np.ascontiguousarray(a)
        return [a, kind] if counts is None else [a, counts, kind]

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """End all ranks if this one fails in a way that the others cannot know of."""
        try:
            yield
        except MinisrcnnError:  # raised on every rank alike
            raise
        except BaseException as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            if code == 130:
                what = "was interrupted at once"
            elif isinstance(error, MemoryError):
                what = "has not enough memory"
            else:  # a fault of ours
                traceback.print_exc(file=sys.__stderr__)
                what = f"failed ({type(error).__name__})"
            print(f"minisrcnn: rank {self.rank} of {self.size} {what}; the last checkpoint, if "
                  "there is one, is kept",
                  file=sys.__stderr__, flush=True)
            time.sleep(_SECONDS_TO_PASS_ON)
            self._world.Abort(code)
            os._exit(code)  # where Abort returns, before this process is killed


def find_ranks() -> Ranks:
    """Return the ranks of the MPI job that this process belongs to, or one alone.

    Raises
    ------
    MinisrcnnError
        If it was started by ``mpiexec`` and mpi4py or its library is missing, or is not the one
        that this ``mpiexec`` or ``srun`` starts: then each process would train for itself.
    """
    sizes = {name: os.environ[name] for name in _SIZES if os.environ.get(name, "1") != "1"}
    if not sizes and not any(name in os.environ for name in _STARTED_BY_MPI):
        return Ranks()
    ranks = MPIRanks()
    if ranks.size > 1:
        return ranks
    for name, size in sizes.items():
        raise MinisrcnnError(
            f"{name} is {size}, but {ranks.library}, the MPI of mpi4py, has found 1 process: want "
            "that library's mpiexec, or srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)")
    return Ranks()
