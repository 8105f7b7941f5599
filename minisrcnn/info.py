"""What this machine has to compute with: the facts that a bug report needs."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from . import __version__

_PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "scikit-image", "pillow", "safetensors")


def describe() -> list[tuple[str, str]]:
    """Return names and values, in the order to print them."""
    from .engine.backends import (
        BACKENDS,
        describe_backend,
        get_backend,
        unavailable_reason,
    )
    from .models import shipped_models

    rows = [
        ("minisrcnn", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
        *((name, _version(name)) for name in _PACKAGES),
        ("processor", _processor()),
        ("cores", f"{_usable_cores()} usable of {os.cpu_count()}"),
    ]
    best = get_backend("auto").NAME
    for name in BACKENDS:
        reason = unavailable_reason(name)
        if reason is not None:
            rows.append((f"backend {name}", f"not here: {reason}"))
            continue
        details = describe_backend(get_backend(name))
        words = ["works", *([details] if details else []), *(["auto"] if name == best else [])]
        rows.append((f"backend {name}", ", ".join(words)))
    rows.append(("models", ", ".join(model.name for model in shipped_models())))
    return rows


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
