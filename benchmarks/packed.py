"""Packed sets: what training from one costs in time and memory, against pictures in memory.

``python -m benchmarks packed`` trains on T91 (recipe ``fast``) and on 10,000 pictures of 200x300
that it makes (smooth noise, recipe ``adam``): from memory and from a packed set, in turns, each in
a process of its own. Two things are measured, of the 10,000 by processes for each:

- *Time*: whole steps of windows of patches. Those of the 10,000 are cut to a sixteenth of their
  size here, so that some whole ones are timed: the pixels to degrade for each patch are as many.
  In memory, all of them are degraded before; of the packed set none is, as if of all pictures
  nothing were ever kept.
- *Memory*: the peak of an epoch with windows as they are, of which every 16th patch is cut.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .results import Row, Run

PICTURES = 10_000
EVERYTHING, BUDGETS = 10**10, {"2GB": 2 * 10**9, "600MB": 6 * 10**8}
_PART = 16
_WINDOWS = 4  # so many are timed
STEPS = 2000  # of T91, whose patches make one window; with the first steps, which are not timed


def make_pictures(folder: Path, count: int, H: int = 200, W: int = 300) -> None:
    """Write pictures that no two are alike: smooth noise, with edges, in grey."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (H // 10, W // 10), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:05}.png", compress_level=1)


def peak() -> float:
    """Return the peak of this process's memory so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # rusage of a process that was forked counts its parent's too
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if kilobytes:
            return int(kilobytes[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def begin(data: str, recipe: str, memory: int) -> tuple[Any, Any, Any]:
    """Return what a training of 9-1-5 begins with: what makes its steps, its pictures, its plan."""
    from minisrcnn.engine.backends import choose_backend
    from minisrcnn.training.network import new_network
    from minisrcnn.training.pictures import load_data
    from minisrcnn.training.ranks import Ranks
    from minisrcnn.training.settings import TrainSettings, new_plan
    from minisrcnn.training.steppers import HostStepper

    plan = new_plan(TrainSettings(data=data, recipe=recipe, backend="numba"))
    net = new_network(plan, choose_backend("numba"))
    loaded, _, plan = load_data(plan, lambda text: None, memory)
    stepper = HostStepper(net, loaded, plan.recipe, Ranks())
    stepper.set_rates({name: 1e-6 for name in net.chain.layers if name.startswith("conv")})
    return stepper, loaded, plan


def time_steps(data: str, recipe: str, memory: int, steps: int) -> dict[str, float]:
    """Train in this process; return milliseconds of a step, and the peak of memory, MB."""
    from minisrcnn.training import order

    stepper, loaded, plan = begin(data, recipe, memory)
    if recipe == "adam":
        order.WINDOW //= _PART
        windows = list(order.Shuffle(loaded.index, 0, loaded.weights).epoch(0))[:_WINDOWS + 1]
        if memory == EVERYTHING:
            for image in np.concatenate([window.images for window in windows]):
                loaded.inputs[image]
        warm, timed = (sum(len(w.numbers) for w in part) // plan.recipe.batch
                       for part in (windows[:1], windows[1:]))
    else:
        windows = list(order.Shuffle(loaded.index, 0, loaded.weights).epoch(0))
        warm, timed = steps // 8, steps
    stepper.begin_epoch(iter(windows))
    for _ in range(warm):
        stepper.step()
    timed = min(timed, steps) if steps < STEPS else timed
    start = time.perf_counter()
    for _ in range(timed):
        stepper.step()
    took = time.perf_counter() - start
    loaded.close()
    return {"ms": 1e3 * took / timed, "batch": plan.recipe.batch, "peak": peak()}


def measure_peak(data: str, recipe: str, memory: int) -> dict[str, float]:
    """Cut every 16th patch of an epoch in this process, and train a little; return the peak, MB."""
    from minisrcnn.training import order

    stepper, loaded, plan = begin(data, recipe, memory)
    windows = [order.Window(w.numbers[::_PART], w.codes[::_PART], w.images)
               for w in order.Shuffle(loaded.index, 0, loaded.weights).epoch(0)]
    stream = order.Stream(iter(windows), loaded.expect)
    for _ in range(sum(len(w.numbers) for w in windows) // plan.recipe.batch - 100):
        loaded.patches(*stream.take(plan.recipe.batch), plan.recipe.input_size, 6)
    stepper.stream = stream
    for _ in range(100):
        stepper.step()
    loaded.close()
    return {"peak": peak()}


def child(*words: str) -> dict[str, float]:
    """Train in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.packed", *words], cwd=machine.ROOT,
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"a training ended with exit code {done.returncode}: "
                         f"{done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int, pictures: int, steps: int, command: list[str]) -> Run:
    """Measure everything in turns; return the run.

    Parameters
    ----------
    rounds : int
        Turns of each training that is timed; peaks are measured once.
    pictures : int
        How many are made.
    steps : int
        Timed at most, if fewer than usual: for a quick look.
    command : list of str
        What to note in the file.

    Raises
    ------
    ValueError
        If a process fails.
    """
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    busy = machine.others()
    rows: dict[tuple[str, str], Row] = {}
    noise: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"threads": len(machine.usable_cpus()), "clock": "wall",
                                "rounds": rounds}
    shuffled = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="minisrcnn-packed-") as name:
        place = Path(name)
        folder = place / "pictures"
        make_pictures(folder, pictures)
        made = f"{pictures:,} pictures of 200x300"
        settings["packing"] = {"T91": pack("T91", place / "t91.luma"),
                               made: pack(str(folder), place / "set.luma", "--no-copies")}
        cases = [("T91", "in memory", "T91", "fast", EVERYTHING),
                 ("T91", "packed", str(place / "t91.luma"), "fast", BUDGETS["2GB"]),
                 (made, "in memory", str(folder), "adam", EVERYTHING),
                 (made, "packed", str(place / "set.luma"), "adam", BUDGETS["2GB"])]
        for n in range(rounds):
            for case, who, data, recipe, memory in shuffled.sample(cases, len(cases)):
                print(f"round {n + 1} of {rounds}: {case}, {who}", file=sys.stderr, flush=True)
                with machine.noted(noise, case, n):
                    found = child("time", data, recipe, str(memory), str(steps))
                row = rows.setdefault((case, who), Row(
                    "packed", case, case, int(found["batch"]), who))
                row.samples.append([round(found["ms"], 5)])
                if case == "T91":  # all of it, as it is
                    row.peak_mb = max(row.peak_mb or 0.0, round(found["peak"], 1))
        peaks = [("in memory", str(folder), EVERYTHING),
                 *((f"packed, --memory {name}", str(place / "set.luma"), memory)
                   for name, memory in BUDGETS.items())]
        for who, data, memory in peaks:
            print(f"peak of memory: {who}", file=sys.stderr, flush=True)
            found = child("peak", data, "adam", str(memory))
            rows[made, f"{who}, peak"] = Row("packed peak", made, made, pictures, who,
                                             peak_mb=round(found["peak"], 1))
    busy = max(busy, machine.others())
    return Run(command, started, round(time.monotonic() - start, 1),
               machine.describe() | {"others_busy": round(busy, 2)}, settings,
               list(rows.values()), noise, machine.mark_noise(noise, busy))


def pack(source: str, out: Path, *options: str) -> dict[str, float]:
    """Pack a set; return seconds, the peak of memory and the size of the file, MB."""
    program = [sys.executable, "-m", "minisrcnn", "data", "pack", source, "-o", str(out), *options]
    start = time.perf_counter()
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, cwd=machine.ROOT,
                               env=os.environ | {"PYTHONPATH": machine.python_path()})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"data pack {source} ended with exit code {process.returncode}")
    return {"seconds": round(time.perf_counter() - start, 1),
            "peak_mb": round(used.ru_maxrss * 1024 / 1e6, 1),
            "file_mb": round(os.path.getsize(out) / 1e6, 1)}


def table(run: Run) -> list[list[str]]:
    """Return the lines of the documents' table: set, pictures, patches a second, peak."""
    lines = []
    medians = {(row.case, row.implementation): row for row in run.timed("packed")}
    for (case, who), row in medians.items():
        memory = medians[case, "in memory"]
        turns = zip(memory.turns, row.turns, strict=True)
        ratio = float(np.median([a / b for a, b in turns]))
        peak_ = "" if row.peak_mb is None else f"{row.peak_mb:,.0f} MB"
        lines.append([case, who, f"{1e3 * row.size / row.median:,.0f}",
                      "" if who == "in memory" else f"{ratio - 1:+.1%}", peak_])
    lines += [[row.case, row.implementation, "", "", f"{row.peak_mb:,.0f} MB"]
              for row in run.rows if row.suite == "packed peak"]
    lines += [[case, f"to pack: {cost['seconds']:.0f} s, {cost['file_mb']:,.0f} MB", "", "",
               f"{cost['peak_mb']:,.0f} MB"]
              for case, cost in run.settings.get("packing", {}).items()]
    return lines


def main() -> None:
    """Be a training."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packed")
    for name in ("what", "data", "recipe"):
        parser.add_argument(name)
    parser.add_argument("memory", type=int)
    parser.add_argument("steps", type=int, nargs="?", default=STEPS)
    options = parser.parse_args()
    machine.use_checkout()
    data, recipe, memory = options.data, options.recipe, options.memory
    print(json.dumps(measure_peak(data, recipe, memory) if options.what == "peak"
                     else time_steps(data, recipe, memory, options.steps)))


if __name__ == "__main__":
    main()
