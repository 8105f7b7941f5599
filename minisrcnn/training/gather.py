"""How several GPUs that train one network get each other's gradients.

Each rank has on its device the gradients of its own chunks of a batch, and needs those of all,
which every device then adds in the order of the chunks. So all that goes from rank to rank is an
Allgather, which changes no number: whichever library makes it, the bits are the same.

====== ==========================================================================================
nccl   from device to device, by NCCL (``cupyx.distributed``), if each rank has a device of its own
mpi    from device to device, by an MPI that takes device memory ("CUDA-aware")
host   through pinned memory of the host, by any MPI
====== ==========================================================================================

The first that can be used is taken; the environment variable ``MINISRCNN_GATHER`` asks for one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError
from .ranks import Ranks
from .settings import Say

VARIABLE = "MINISRCNN_GATHER"


class Gather(Protocol):
    """A way to gather gradients."""

    name: str

    def __init__(self, backend: ModuleType, ranks: Ranks) -> None: ...

    def __call__(self, rows: Any, stream: Any) -> None:
        """Fill ``rows`` (ranks, ...) on the device, in order with the work of ``stream``.

        Each rank has the row of its number.
        """

    @staticmethod
    def unavailable_reason(shared: bool) -> str | None:
        """Say why it cannot be used, ``shared`` if ranks share a device; None if it can."""


class ByNCCL:
    """NCCL, on the trainer's stream: the host does not wait."""

    name = "by NCCL"

    def __init__(self, backend: ModuleType, ranks: Ranks) -> None:
        from cupyx.distributed import init_process_group

        self.rank = ranks.rank
        # MPI carries no more than the group's name to all.
        self.group = init_process_group(ranks.size, ranks.rank, use_mpi=True)

    def __call__(self, rows: Any, stream: Any) -> None:
        """Fill ``rows``; returns at once."""
        mine = rows[self.rank]  # within rows, where NCCL wants it: nothing is copied
        self.group.all_gather(mine, rows, mine.size, stream)

    @staticmethod
    def unavailable_reason(shared: bool) -> str | None:
        """Say why NCCL cannot be used; None if it can."""
        if shared:
            return "ranks share a device"
        with warnings.catch_warnings():  # CuPy warns where the library is missing
            warnings.simplefilter("ignore")
            try:
                from cupy.cuda import nccl
            except ImportError:
                return "CuPy is not installed"
        return None if nccl.available else "its library is not installed, pip install " \
                                           "nvidia-nccl-cu12 or nvidia-nccl-cu13"


class ByMPI:
    """MPI on device memory. It knows no streams, so the host waits."""

    name = "by MPI from device to device"

    def __init__(self, backend: ModuleType, ranks: Ranks) -> None:
        self.ranks = ranks

    def __call__(self, rows: Any, stream: Any) -> None:
        """Fill ``rows``."""
        stream.synchronize()
        self.ranks.fill(rows)

    @staticmethod
    def unavailable_reason(shared: bool) -> str | None:
        """Say why MPI is not given device memory; None if it says that it takes it."""
        from mpi4py import MPI

        # An extension of Open MPI that MPICH has too; mpi4py does not pass it on.
        query = getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", None)
        return None if query is not None and query() == 1 else \
            "it does not say that it takes device memory"


class ByHost:
    """Plain MPI, and a copy of the gradients on the host, in pinned memory."""

    name = "through the memory of the host"

    def __init__(self, backend: ModuleType, ranks: Ranks) -> None:
        self.ranks, self.cuda = ranks, backend.xp.cuda
        self.host: NDArray[Any] = np.empty(0)

    def __call__(self, rows: Any, stream: Any) -> None:
        """Fill ``rows``; the copy to the device may be under way still."""
        if self.host.shape != rows.shape:
            memory = self.cuda.alloc_pinned_memory(rows.nbytes)
            self.host = np.frombuffer(memory, rows.dtype, rows.size).reshape(rows.shape)
        rows[self.ranks.rank].get(stream=stream, out=self.host[self.ranks.rank])
        self.ranks.fill(self.host)
        rows.set(self.host, stream=stream)

    @staticmethod
    def unavailable_reason(shared: bool) -> str | None:
        """Return None: it can always be used."""
        return None


WAYS: dict[str, type[Gather]] = {"nccl": ByNCCL, "mpi": ByMPI, "host": ByHost}


def choose_gather(backend: ModuleType, ranks: Ranks, say: Say) -> Gather:
    """Return the way in which these ranks gather gradients, the same for all; say which it is.

    Raises
    ------
    MinisrcnnError
        If the environment asks for one that there is not.
    """
    devices = set(ranks.collect((platform.node(), backend.device_address())))
    shared = len(devices) < ranks.size
    if shared:
        say(f"Warning: {ranks.size} ranks share {len(devices)} GPU{'s' * (len(devices) > 1)}, want "
            "one for each.")
    asked = ranks.run_on_first(lambda: os.environ.get(VARIABLE) or None)
    if asked is not None and asked not in WAYS:
        raise MinisrcnnError(f"{VARIABLE} is {asked!r}, want one of {', '.join(WAYS)}")
    refused = []
    for name, way in WAYS.items():
        if asked not in (None, name):
            continue
        # Whoever asks for MPI knows more than its library says.
        reason = None if asked == "mpi" else way.unavailable_reason(shared)
        reason = next((found for found in ranks.collect(reason) if found is not None), None)
        if reason is None:
            break
        if asked is not None:
            raise MinisrcnnError(f"{VARIABLE} is {name}, which cannot be used: {reason}")
        refused.append(f"; not {name}: {reason}")
    say(f"Gradients go from GPU to GPU {way.name}{''.join(refused)}.")
    return way(backend, ranks)
