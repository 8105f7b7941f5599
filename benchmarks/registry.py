"""All columns of the table, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import gpu, ours, peers, roofs
from .ours import Implementation


def all_implementations(
    files: Sequence[Path] = (), emulated: bool = False
) -> dict[str, Implementation]:
    """Return every implementation by name; ``emulated``: CUDA kernels run on the CPU, instead."""
    columns = [roofs.IMPLEMENTATION]
    if emulated:
        columns += gpu.implementations("cupy-emulated")
    else:
        columns += [*ours.implementations(), *(ours.your_file(path) for path in files),
                    *gpu.implementations("cupy"), *peers.implementations(), *gpu.peers()]
    return {column.name: column for column in columns}
