"""Packed sets: what training from one costs in time and memory, against pictures in memory.

    python -m benchmarks.packed                      T91, and 10,000 pictures of 200x300
    python -m benchmarks.packed --pictures 2500 --rounds 1 --steps 300

Each training is a process of its own, in turns with the others; printed are medians of the rounds.
It cuts the patches of an epoch without training on them, and then makes whole steps for one window
of patches that are shuffled together (all of T91; 340,000 patches). The pictures are smooth noise,
as PNG in a temporary folder that is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .machine import use_checkout


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


def measure(data: str, recipe: str, memory: int, most: int) -> dict[str, float]:
    """Train in this process: an epoch of patches without network, then whole steps of a window."""
    from minisrcnn.engine.backends import choose_backend
    from minisrcnn.training.network import new_network
    from minisrcnn.training.order import Shuffle, Stream
    from minisrcnn.training.pictures import load_data
    from minisrcnn.training.ranks import Ranks
    from minisrcnn.training.settings import TrainSettings, new_plan
    from minisrcnn.training.steppers import HostStepper

    plan = new_plan(TrainSettings(data=data, recipe=recipe, backend="numba"))
    net = new_network(plan, choose_backend("numba"))
    start = time.perf_counter()
    loaded, _, plan = load_data(plan, lambda text: None, memory)
    opened = time.perf_counter() - start
    batch, size = plan.recipe.batch, plan.recipe.input_size
    shuffle = Shuffle(loaded.index, 0)

    def cut(stream: Stream, batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            loaded.patches(*stream.take(batch), size, net.shrinkage // 2)
        return batches * batch / (time.perf_counter() - start)

    first = cut(Stream(shuffle.epoch(0), loaded.expect), len(loaded.index) // batch)
    windows = [len(window.numbers) // batch for window in shuffle.epoch(1)]
    stepper = HostStepper(net, loaded, plan.recipe, Ranks())
    stepper.set_rates({name: 1e-6 for name in net.chain.layers if name.startswith("conv")})
    stepper.begin_epoch(shuffle.epoch(1))
    # What comes first was not made ahead.
    cut(stepper.stream, windows.pop(0) if len(windows) > 1 else 0)
    steps = min(windows[0], most) if most else windows[0]
    start = time.perf_counter()
    for _ in range(steps):
        stepper.step()
    rate = steps * batch / (time.perf_counter() - start)
    loaded.close()
    return {"rate": rate, "peak": peak(), "opened": opened, "first": first}


def child(*args: str) -> dict[str, float]:
    """Run a measurement in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.packed", "--child", *args],
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(title: str, cases: dict[str, list[str]], rounds: int) -> None:
    """Measure cases in turns; print a table of medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, args in cases.items():
            found[name].append(child(*args))
    print(f"\n{title}\n\n| pictures | patches/s | | without network, first epoch | peak memory, MB "
          "| to open, s |\n|---|---|---|---|---|---|")
    reference = None
    for name, results in found.items():
        rate, first, most, opened = (statistics.median(r[key] for r in results)
                                     for key in ("rate", "first", "peak", "opened"))
        reference = reference or rate
        print(f"| {name} | {rate:,.0f} | {rate / reference - 1:+.1%} | {first:,.0f} | {most:,.0f} "
              f"| {opened:.1f} |", flush=True)


def main() -> None:
    """Make the pictures, pack them, measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packed")
    parser.add_argument("--pictures", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="at most; a whole window by default")
    parser.add_argument("--child", nargs=4, metavar=("DATA", "RECIPE", "MEMORY", "STEPS"),
                        help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_checkout()
    if options.child:
        data, recipe, memory, steps = options.child
        print(json.dumps(measure(data, recipe, int(memory), int(steps))))
        return
    with tempfile.TemporaryDirectory() as place:
        compare_all(Path(place), options.pictures, options.rounds, str(options.steps))


def compare_all(place: Path, pictures: int, rounds: int, steps: str) -> None:
    """Measure T91 and the synthetic set."""
    program = [sys.executable, "-m", "minisrcnn", "data", "pack"]
    everything = str(10**10)
    subprocess.run([*program, "T91", "-o", str(place / "t91.luma")], check=True)
    compare("T91, recipe fast", {
        "in memory": ["T91", "fast", everything, steps],
        "packed, --memory 2GB": [str(place / "t91.luma"), "fast", str(2 * 10**9), steps],
    }, rounds)
    make_pictures(place / "pictures", pictures)
    start = time.perf_counter()
    folder, packed = str(place / "pictures"), str(place / "set.luma")
    code = (f"import resource, subprocess; subprocess.run({[*program, folder]!r} + "
            f"['--no-copies', '-o', {packed!r}], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    print(f"\n{done.stdout.splitlines()[0].split(': ')[1]}, packed in "
          f"{time.perf_counter() - start:.0f} s, peak memory "
          f"{int(done.stdout.split()[-1]) * 1024 / 1e6:,.0f} MB; the set has "
          f"{os.path.getsize(packed) / 1e6:,.0f} MB")
    compare(f"{pictures:,} pictures of 200x300, recipe adam", {
        "in memory": [folder, "adam", everything, steps],
        **{f"packed, --memory {name}": [packed, "adam", str(memory), steps]
           for name, memory in (("2GB", 2 * 10**9), ("600MB", 6 * 10**8))},
    }, rounds)


if __name__ == "__main__":
    main()
