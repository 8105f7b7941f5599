"""What was measured on, and how busy it was with other things.

Standard library only, and nothing is imported from the packages whose versions are given: the
process that directs a run must not start threads of its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "openvino", "ncnn",
             "ai-edge-litert", "cupy-cuda12x", "cupy-cuda13x")

# A round is noisy beyond any of these: share of time in which a task waited for a processor, over
# that of the case's quietest round (a library may have a thread too many of its own); share of
# time stolen by the hypervisor; and the fixed job's time over the quickest tenth's.
PRESSURE, STEAL, CALIBRATION = 0.10, 0.02, 1.10
NOISY_ROUNDS = 0.10  # a run with more of them is noisy, and one with as many processors kept
BUSY = 0.20          # busy by others, before it or after


def describe(root: Path = ROOT) -> dict[str, Any]:
    """Return processor, governor, GPU, versions, and the revision of the checkout."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "governor": _read(
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not readable",
        "system": f"{platform.system()} {platform.machine()}", "gpu": _gpu(),
        "python": platform.python_version(), "versions": _versions(), **revision(root),
    }


def python_path() -> str:
    """Return PYTHONPATH with this checkout first, for a process that is started."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def revision(root: Path) -> dict[str, Any]:
    """Return the git revision and whether all tracked files are as committed."""
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True,
                              check=False)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        known = git("rev-parse", "--short", "HEAD")
        return {"revision": known, "clean": None if known == "unknown" else changes == ""}
    except OSError:  # there is no git
        return {"revision": "unknown", "clean": None}


def use_checkout(root: Path = ROOT) -> None:
    """Import ``minisrcnn`` and its kernels from a checkout, without installing anything."""
    sys.path.insert(0, str(root))
    import minisrcnn

    if Path(minisrcnn.__file__).resolve().parent.parent != root.resolve():
        raise RuntimeError(f"minisrcnn was imported from {minisrcnn.__file__}, want {root}")
    minisrcnn.__path__.append(str(root))  # where kernels/ is, which setup.py installs inside


def usable_cpus() -> list[int]:
    """Return the processors that may be used here."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(
        range(os.cpu_count() or 1))


def choose_cpus(count: int) -> list[int]:
    """Return ``count`` processors to run on, one of each physical core first.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    usable = usable_cpus()
    if not 1 <= count <= len(usable):
        raise ValueError(f"threads is {count}, want 1 to {len(usable)}: the usable processors")
    cores: dict[str, int] = {}
    for cpu in usable:
        place = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.setdefault(_read(place) or str(cpu), cpu)
    first = list(cores.values())
    return (first + [cpu for cpu in usable if cpu not in first])[:count]


@dataclass(frozen=True)
class Load:
    """The kernel's counters at one moment; the difference of two says what happened between."""

    moment: float
    waited: float | None  # seconds in which some task waited for a processor
    stolen: float | None  # processor ticks
    busy: float
    total: float

    @classmethod
    def now(cls) -> Load:
        """Read them; None where this kernel does not have them."""
        waited = None
        for line in _read("/proc/pressure/cpu").splitlines():
            if line.startswith("some"):
                waited = int(line.rsplit("=", 1)[1]) * 1e-6
        ticks = [int(n) for n in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
        if len(ticks) < 8:
            return cls(time.monotonic(), waited, None, 0, 0)
        return cls(time.monotonic(), waited, ticks[7], sum(ticks) - ticks[3] - ticks[4], sum(ticks))

    def since(self, before: Load) -> dict[str, float | None]:
        """Return the shares of the time between: pressure, and steal."""
        total = max(self.total - before.total, 1)
        return {
            "pressure": None if self.waited is None or before.waited is None else round(
                (self.waited - before.waited) / max(self.moment - before.moment, 1e-9), 4),
            "steal": None if self.stolen is None or before.stolen is None else round(
                (self.stolen - before.stolen) / total, 4),
        }


@contextlib.contextmanager
def noted(noise: list[dict[str, Any]], case: str, number: int) -> Iterator[None]:
    """Note, for a round of a case, how busy the machine was meanwhile."""
    before = Load.now()
    yield
    noise.append({"case": case, "round": number, **Load.now().since(before), "calibration": None})


def others(seconds: float = 1.0) -> float:
    """Sleep, and return how many processors others kept busy meanwhile."""
    before = Load.now()
    time.sleep(seconds)
    after = Load.now()
    return (after.busy - before.busy) / max(after.total - before.total, 1) * (os.cpu_count() or 1)


def mark_noise(noise: list[dict[str, Any]], busy: float = 0.0) -> str:
    """Set ``noisy`` in each round's record; say in a sentence why the run is noisy, or ""."""
    least: dict[str, float] = {}
    for n in noise:
        least[n["case"]] = min(n["pressure"] or 0, least.get(n["case"], 1))
    fixed = [n["calibration"] for n in noise if n["calibration"]]
    usual = statistics.quantiles(fixed, n=10)[0] if len(fixed) > 1 else (fixed or [0.0])[0]
    reasons = {"pressure": 0, "steal": 0, "calibration": 0}
    for n in noise:
        pressure = (n["pressure"] or 0) - least[n["case"]]
        beyond = {"pressure": pressure > PRESSURE, "steal": (n["steal"] or 0) > STEAL,
                  "calibration": (n["calibration"] or 0) > CALIBRATION * usual}
        n["noisy"] = any(beyond.values())
        for reason, is_so in beyond.items():
            reasons[reason] += is_so
    count = sum(n["noisy"] for n in noise)
    why = [f"others kept {busy:.1f} processors busy"] if busy > BUSY else []
    if count > NOISY_ROUNDS * len(noise):
        seen = ", ".join(f"{name} in {times}" for name, times in reasons.items() if times)
        why.append(f"{count} of {len(noise)} rounds were noisy ({seen})")
    return "; ".join(why)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm",
             "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False)
        return done.stdout.strip().replace("\n", "; ") or "none"
    except (OSError, subprocess.TimeoutExpired):
        return "none"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
