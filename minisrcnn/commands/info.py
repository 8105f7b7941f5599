"""``minisrcnn info``."""

from __future__ import annotations

from .terminal import print_line


def info_command() -> None:
    """Show versions, the processor, threads, and each backend or why it is missing."""
    from ..info import describe

    for name, value in describe():
        print_line(f"{name:<23}{value}")
