"""Ranks of MPI and workers of ``upscale``: measured, and a model for more than there are here.

``python -m benchmarks scaling`` starts ``mpiexec -n R python -m benchmarks.scaling``, R from 1 to
4, one thread a rank, in turns. Each times whole training steps of the recipe ``fast`` (its batch
changed), and alone the exchange (gradients of all chunks there, their sum back) and the update by
the optimizer, which every rank makes for itself. What a step takes beyond that is the patches'.

The model adds these up for any number of ranks R, c chunks of s patches and G numbers a gradient:

    step(R)     = ceil(c / R) s patch + exchange(R) + update
    exchange(R) = add c G / R + message (R - 1 + 2 ceil(log2 R)) + number (c / R + 1) G (1 - 1/R)

as the exchange is an Alltoallv of R - 1 messages, and two Allgathers. ``patch``, ``update`` and
``add`` are read off one rank, ``message`` and ``number`` fitted to ranks that have a core each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .cases import Training
from .results import Row, Run

RANKS = (1, 2, 3, 4)
CASES = (("9-1-5", 16), ("9-1-5", 128), ("9-1-5", 512), ("9-1-5", 2048), ("9-5-5", 128),
         ("9-5-5", 512))
PICTURES, SIZE = 10_000, (24, 32)
PARTS = ("step", "exchange", "update")
PROJECTED = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SLOW_LINK = "30 microseconds a message, 1.25 GB/s (Ethernet of 10 Gbit/s)"
_SLOW = 0.030, 4 / 1.25e6  # the same in milliseconds: for a message, for a number of 4 bytes
_PAYS = 1.1  # twice the ranks should be faster by a tenth at least
_LIMIT = 600.0  # seconds for one start of the ranks


# ---- measuring: the process that directs -------------------------------------------------------


def find_mpiexec() -> str | None:
    """Return the mpiexec of this Python's environment, else of mpi4py's, else the path's."""
    import mpi4py

    # .../lib/pythonX.Y/site-packages/mpi4py/__init__.py, if it is in an environment.
    above = Path(mpi4py.__file__).resolve().parents
    beside = [Path(sys.executable).parent, *(folder / "bin" for folder in above[4:5])]
    return shutil.which("mpiexec", path=os.pathsep.join(map(str, beside))) or shutil.which(
        "mpiexec")


def mpi_environment(mpiexec: str) -> dict[str, str]:
    """Return what else mpi4py needs to know: it looks for the library in its own environment."""
    library = Path(mpiexec).resolve().parent.parent / "lib" / "libmpi.so.12"
    return {"MPI4PY_LIBMPI": str(library)} if library.exists() else {}


def measure(
    cases: Sequence[tuple[str, int]], ranks: Sequence[int], rounds: int, pictures: int,
    command: list[str], seconds: float = 1.0,
) -> Run:
    """Measure everything in turns; return the run.

    Parameters
    ----------
    cases : sequence of (str, int)
        Architectures and batches.
    ranks : sequence of int
        Numbers of ranks.
    rounds : int
        Turns of each number of ranks; of ``upscale``, at most three.
    pictures : int
        For ``upscale``; 0 leaves that out.
    command : list of str
        What to note in the file.
    seconds : float
        At most so long for a part of a case in a turn, but one call.

    Raises
    ------
    ValueError
        If there is no MPI, or a start fails.
    """
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    try:
        mpiexec = find_mpiexec()
    except ImportError:
        mpiexec = None
    if mpiexec is None:
        raise ValueError("there is no mpi4py or no mpiexec, want both: pip install '.[mpi]'")
    busy = machine.others()
    rows: dict[tuple[str, str], Row] = {}
    noise: list[dict[str, Any]] = []
    works: dict[str, dict[str, Any]] = {}
    shuffled = random.Random(0)
    for n in range(rounds):
        for R in shuffled.sample(list(ranks), len(ranks)):
            print(f"round {n + 1} of {rounds}: {R} ranks", file=sys.stderr, flush=True)
            with machine.noted(noise, f"{R} ranks", n):
                found = _start(mpiexec, R, cases, seconds)
            for case in found:
                work = {key: case[key] for key in ("arch", "N", "size", "chunks", "width")}
                work["group"] = group_of(case["arch"], case["N"])
                works[work["group"]] = work
                for part in PARTS:
                    row = rows.setdefault((f"{work['group']}, {R} ranks", part), Row(
                        "scaling", f"{work['group']}, {R} ranks", work["group"], R, part,
                        mflop=Training(case["arch"], case["N"]).mflop if part == "step" else 0.0,
                        mbyte=4e-6 * case["chunks"] * case["width"] if part == "exchange" else 0.0))
                    row.samples.append([round(ms, 5) for ms in case[part]])
    if pictures:
        for n, jobs, ms in upscale_in_turns(pictures, min(rounds, 3), noise):
            print(f"round {n + 1}: {jobs} workers, {ms / 1e3:.1f} s", file=sys.stderr, flush=True)
            group = f"upscale {pictures:,} pictures of {SIZE[1]}x{SIZE[0]}"
            rows.setdefault((f"{group}, {workers_of(jobs)}", "upscale"), Row(
                "workers", f"{group}, {workers_of(jobs)}", group, jobs, "upscale",
            )).samples.append([round(ms, 1)])
    busy = max(busy, machine.others())
    return Run(command, started, round(time.monotonic() - start, 1),
               machine.describe() | {"others_busy": round(busy, 2)},
               {"threads": 1, "clock": "wall", "rounds": rounds, "works": list(works.values()),
                "pictures": pictures, "processors": len(machine.usable_cpus())},
               list(rows.values()), noise, machine.mark_noise(noise, busy))


def group_of(arch: str, N: int) -> str:
    """Return the series that a case belongs to; the ranks are what varies."""
    return f"{arch}, {N:,} patches"


def workers_of(jobs: int) -> str:
    """Return a number of workers in words."""
    return "1 worker" if jobs == 1 else f"{jobs} workers"


def _start(mpiexec: str, R: int, cases: Sequence[tuple[str, int]], seconds: float) -> Any:
    words = [mpiexec, "-n", str(R), sys.executable, "-m", "benchmarks.scaling",
             "--seconds", str(seconds), *(f"{arch}:{N}" for arch, N in cases)]
    environment = mpi_environment(mpiexec) | os.environ | {
        "PYTHONPATH": machine.python_path(), "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=machine.ROOT,
                              env=environment, timeout=_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{R} ranks took more than {_LIMIT:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        raise ValueError(f"{R} ranks ended with exit code {done.returncode}: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def upscale_in_turns(
    pictures: int, rounds: int, noise: list[dict[str, Any]]
) -> Iterator[tuple[int, int, float]]:
    """Upscale as many small pictures by one worker and by two; yield (round, workers, ms)."""
    from PIL import Image

    with tempfile.TemporaryDirectory(prefix="minisrcnn-pictures-") as name:
        folder = Path(name)
        make_pictures(folder / "in", pictures)
        for n in range(rounds):
            for jobs in (1, 2) if n % 2 == 0 else (2, 1):
                out = folder / "out"
                with machine.noted(noise, workers_of(jobs), n):
                    start = time.perf_counter()
                    done = subprocess.run(
                        [sys.executable, "-m", "minisrcnn", "upscale", str(folder / "in"), "-o",
                         str(out), "--jobs", str(jobs), "--backend", "numba"], check=False,
                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                        env=os.environ | {"PYTHONPATH": machine.python_path()}, cwd=machine.ROOT)
                    took = time.perf_counter() - start
                made = sorted(out.iterdir()) if out.exists() else []
                if done.returncode or len(made) != pictures:
                    raise ValueError(f"upscale --jobs {jobs} made {len(made)} of {pictures} "
                                     f"pictures: {done.stderr.strip()[-200:]}")
                with Image.open(made[-1]) as last:
                    last.load()
                shutil.rmtree(out)
                yield n, jobs, took * 1e3


def make_pictures(folder: Path, count: int) -> None:
    """Write small grayscale pictures of smooth noise, each another."""
    from PIL import Image

    folder.mkdir(parents=True)
    H, W = SIZE
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (H // 4, W // 4)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:06}.png")


# ---- measuring: a rank -------------------------------------------------------------------------


def time_case(arch: str, N: int, ranks: Any, seconds: float, most: int = 10) -> dict[str, Any]:
    """Return milliseconds of steps, exchanges and updates, as this rank sees them."""
    from minisrcnn import SRCNN
    from minisrcnn.engine.backends import get_backend
    from minisrcnn.training.order import Window
    from minisrcnn.training.recipes import RECIPES
    from minisrcnn.training.steppers import HostStepper

    backend = get_backend("numba")
    backend.set_threads(1)
    recipe = replace(RECIPES["fast"], batch=N)
    net = SRCNN(arch, backend=backend, init="he", seed=0)
    stepper = HostStepper(net, _noise(recipe.input_size, net.shrinkage), recipe, ranks)
    steps = most + 2
    rng = np.random.default_rng(1)
    stepper.begin_epoch(iter([Window(rng.integers(len(stepper.data.index), size=N * steps),
                                     rng.integers(8, size=N * steps))]))
    stepper.set_rates({name: 1e-6 for name in net.chain.layers if name.startswith("conv")})
    size = backend.chunk_size(N)
    chunks = -(-N // size)
    first, last = ranks.share(chunks)
    side = recipe.input_size
    x, t = (np.zeros((1, 1, n, n), np.float32) for n in (side, side - net.shrinkage))
    partial, losses = backend.chain_partials(net.parameters, x, t, 1, t.size)
    _, grads = backend.chain_total(net.parameters, x, partial[0], losses, t.size)
    rows = np.zeros((last - first, partial.shape[1]), np.float32)
    losses = np.zeros(last - first)

    def exchange() -> None:
        ranks.add_in_order(rows, chunks, backend.add_partials)
        ranks.gather(losses, chunks)

    calls = {"step": stepper.step, "exchange": exchange,
             "update": lambda: stepper.optimizer.step(grads)}
    return {"arch": arch, "N": N, "size": size, "chunks": chunks, "width": partial.shape[1],
            **{part: _times(call, ranks, seconds, most) for part, call in calls.items()}}


def _times(call: Callable[[], Any], ranks: Any, seconds: float, most: int) -> list[float]:
    call()
    until = time.perf_counter() + seconds
    found: list[float] = []
    while len(found) < most and not (found and ranks.any(time.perf_counter() > until)[0]):
        ranks.any(False)  # all begin together
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _noise(side: int, shrinkage: int) -> Any:
    from minisrcnn.imaging.patches import PatchIndex
    from minisrcnn.training.pictures import Data

    rng = np.random.default_rng(0)
    labels = [rng.integers(256, size=(5 * side, 5 * side), dtype=np.uint8) for _ in range(8)]
    inputs = [label / np.float32(255) for label in labels]
    return Data("noise", inputs, labels, PatchIndex([x.shape for x in inputs], side, 14), 0)


def main() -> None:
    """Be a rank: time the cases, and print what the first rank saw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("cases", nargs="+", metavar="ARCH:BATCH")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    machine.use_checkout()
    from minisrcnn.training.ranks import find_ranks

    ranks = find_ranks()
    found = []
    for case in options.cases:
        arch, N = case.split(":")
        found.append(time_case(arch, int(N), ranks, options.seconds))
    if ranks.rank == 0:
        print(json.dumps(found))


# ---- the model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A batch: N patches in chunks of ``size``, and numbers in the gradients of a chunk."""

    arch: str
    N: int
    size: int
    chunks: int
    width: int

    def numbers(self, ranks: int) -> float:
        """Return how many numbers a rank gets from others in an exchange."""
        return (self.chunks / ranks + 1) * self.width * (1 - 1 / ranks)

    def messages(self, ranks: int) -> int:
        """Return how many messages it waits for."""
        return ranks - 1 + 2 * math.ceil(math.log2(ranks))


@dataclass(frozen=True)
class Model:
    """Milliseconds of each part; of a patch and of an update by architecture."""

    patch: dict[str, float]
    update: dict[str, float]
    add: float
    message: float
    number: float

    def exchange(self, work: Work, ranks: int) -> float:
        """Return the milliseconds of an exchange."""
        added = self.add * work.chunks * work.width / ranks
        if ranks == 1:
            return added
        return added + self.message * work.messages(ranks) + self.number * work.numbers(ranks)

    def step(self, work: Work, ranks: int) -> float:
        """Return the milliseconds of a step."""
        patches = min(work.N, math.ceil(work.chunks / ranks) * work.size)
        return (patches * self.patch[work.arch] + self.exchange(work, ranks)
                + self.update[work.arch])


def works_of(run: Run) -> dict[str, Work]:
    """Return the batches that a run measured, by group."""
    return {w["group"]: Work(w["arch"], w["N"], w["size"], w["chunks"], w["width"])
            for w in run.settings.get("works", [])}


def medians_of(run: Run) -> dict[tuple[str, int, str], float]:
    """Return the median milliseconds by group, ranks and part."""
    return {(r.group, r.size, r.implementation): r.median for r in run.timed("scaling")}


def fit(run: Run) -> Model:
    """Fit the model to one rank, and to the exchanges of ranks that have a core each."""
    from scipy.optimize import nnls

    works, ms = works_of(run), medians_of(run)
    patch: dict[str, float] = {}
    update: dict[str, float] = {}
    for group, w in sorted(works.items(), key=lambda item: item[1].N):  # the largest batch counts
        whole, exchange, own = (ms[group, 1, part] for part in PARTS)
        patch[w.arch], update[w.arch] = (whole - exchange - own) / w.N, own
    add = statistics.median(ms[group, 1, "exchange"] / (w.chunks * w.width)
                            for group, w in works.items())
    equations, times = [], []
    for (group, ranks, part), took in ms.items():
        if part == "exchange" and 1 < ranks <= run.settings["processors"]:
            w = works[group]
            rest = max(took - add * w.chunks * w.width / ranks, 0.0)
            equations.append([w.messages(ranks) / took, w.numbers(ranks) / took])
            times.append(rest / took)  # relative: small exchanges count as much as large ones
    message, number = nnls(np.array(equations), np.array(times))[0]
    return Model(patch, update, add, float(message), float(number))


def deviation(run: Run, model: Model) -> float:
    """Return the largest relative deviation from a measured step of ranks with a core each."""
    works = works_of(run)
    return max(abs(model.step(works[group], ranks) / took - 1)
               for (group, ranks, part), took in medians_of(run).items()
               if part == "step" and 1 < ranks <= run.settings["processors"])


def slower(model: Model) -> Model:
    """Return the model with the links of :data:`SLOW_LINK`."""
    return replace(model, message=_SLOW[0], number=_SLOW[1])


def projected_works(run: Run) -> list[Work]:
    """Return the measured batches from 128 patches on, and one of 16,384 of each architecture."""
    works = [w for w in works_of(run).values() if w.N >= 128]
    for arch in dict.fromkeys(w.arch for w in works):
        largest = max((w for w in works if w.arch == arch), key=lambda w: w.N)
        size = max(largest.size, 16)
        works.append(replace(largest, N=16_384, size=size, chunks=16_384 // size))
    return sorted(works, key=lambda w: (w.arch, w.N))


def pays_up_to(model: Model, work: Work) -> int:
    """Return the ranks beyond which twice as many are not faster by a tenth."""
    ranks = 1
    while 2 * ranks <= PROJECTED[-1] and (
            model.step(work, ranks) / model.step(work, 2 * ranks) >= _PAYS):
        ranks *= 2
    return ranks


if __name__ == "__main__":
    main()
