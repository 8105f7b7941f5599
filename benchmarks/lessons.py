"""The ladder of CPU lessons: measure it, and write the table and the feet of the lessons.

    python -m benchmarks.lessons             # under four minutes on two cores
    python -m benchmarks.lessons --write     # only the table and the feet, from the result file

One thread and all threads, 32 patches, the layers of SRCNN; the median of seven turns of at
least 20 ms each. Every result is first compared with the ``numpy`` backend's in float64. Results
go to ``benchmarks/results/lessons.json``, from where the table in ``kernels/cpu/README.md`` and the
figures at each lesson's foot are filled in, between their markers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minisrcnn.kernels.cpu.lessons import LESSONS
from minisrcnn.kernels.cpu.simd import BITS

from . import machine
from .cases import OPERATIONS, Convolution, Training, error_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "lessons.json"
README = ROOT / "kernels" / "cpu" / "README.md"
BATCH, TURNS, SECONDS = 32, 7, 0.02

LAYERS = {  # C, F, K, size of the input: conv1 to conv3 of 9-1-5, conv2 of 9-5-5 and of 9-3-5
    "9x9, 1 -> 64": (1, 64, 9, 33),
    "1x1, 64 -> 32": (64, 32, 1, 25),
    "5x5, 32 -> 1": (32, 1, 5, 25),
    "5x5, 64 -> 32": (64, 32, 5, 25),
    "3x3, 64 -> 32": (64, 32, 3, 25),
}
STEP = 3  # of them are the layers of 9-1-5
STEP_NAME = "training step 9-1-5"


def jobs() -> dict[str, Any]:
    """Return the cases by name; the image's gradient is never asked for."""
    found: dict[str, Any] = {}
    for layer, (C, F, K, size) in LAYERS.items():
        for operation in OPERATIONS:
            if not (C == 1 and operation == "input gradient"):
                found[f"{layer}, {operation}"] = Convolution(operation, BATCH, C, F, K, size, size)
    return found | {STEP_NAME: Training("9-1-5", BATCH)}


def call_of(module: Any, case: Any) -> Callable[[], Any] | None:
    """Return the call that computes a case; None where the module does not offer it."""
    if isinstance(case, Training):
        function = getattr(module, "chain_loss_and_gradients", None)
        return function and (lambda: function(case.params, case.data["x"], case.data["t"]))
    function = getattr(module, case.function, None)
    return function and (lambda: function(*(case.data[name] for name in case.arguments)))


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the median of the turns."""
    start = time.perf_counter()
    call()
    count = max(1, round(SECONDS / (time.perf_counter() - start)))
    turns = []
    for _ in range(TURNS if count > 1 else 3):
        start = time.perf_counter()
        for _ in range(count):
            call()
        turns.append((time.perf_counter() - start) / count)
    return statistics.median(turns)


def use_threads(threads: int) -> None:
    """Give prange, our own threads and BLAS as many threads each."""
    import numba
    from threadpoolctl import threadpool_limits

    import minisrcnn

    numba.set_num_threads(threads)
    minisrcnn.set_threads(threads)
    threadpool_limits(threads)


def measure() -> dict[str, Any]:
    """Time every lesson, and production, on every job."""
    import numba

    modules = {name: importlib.import_module(f"minisrcnn.kernels.cpu.lessons.{name}")
               for name in LESSONS}
    modules["production"] = importlib.import_module("minisrcnn.engine.backends.numba")
    cases = jobs()
    answers = {job: case.answer() for job, case in cases.items()}
    settings = sorted({1, numba.config.NUMBA_NUM_THREADS})
    rows = []
    for name, module in modules.items():
        for job, case in cases.items():
            call = call_of(module, case)
            if call is None:
                continue
            error = error_of(case, call(), answers[job])
            if not error < 1e-4:
                raise SystemExit(f"{name} is wrong by {error:.1e} in {job}")
            for threads in settings:
                use_threads(threads)
                call()
                took = seconds_of(call)
                rows.append({"name": name, "job": job, "threads": threads, "seconds": took,
                             "gflops": case.mflop / took / 1e3})
            time.sleep(0.05)
        print(f"{name}: measured", flush=True)
    return {"machine": machine.describe(ROOT), "vector_bits": BITS, "batch": BATCH,
            "threads": settings, "mflop": {job: case.mflop for job, case in cases.items()},
            "rows": rows}


def rate(report: dict[str, Any], name: str, threads: int, selected: list[str]) -> float | None:
    """Return GFLOP/s over several jobs: all their operations by all their seconds."""
    found = {row["job"]: row["seconds"] for row in report["rows"]
             if row["name"] == name and row["threads"] == threads and row["job"] in selected}
    if set(found) != set(selected):
        return None
    return sum(report["mflop"][job] for job in found) / sum(found.values()) / 1e3


def rates(report: dict[str, Any], name: str, threads: int) -> list[float | None]:
    """Return a line of the table: the training step, then each layer with its gradients."""
    names = list(report["mflop"])
    layers = [[job for job in names if job.startswith(layer)] for layer in LAYERS]
    step = rate(report, name, threads, [STEP_NAME])
    return [step or rate(report, name, threads, [job for layer in layers[:STEP] for job in layer]),
            *(rate(report, name, threads, layer) for layer in layers)]


def number(value: float | None) -> str:
    """Return a rate with three figures at most."""
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def table(report: dict[str, Any]) -> str:
    """Return the README's table."""
    one, most = report["threads"][0], report["threads"][-1]
    lines = [f"| | {STEP_NAME}, {most} threads | one thread | "
             + " | ".join(LAYERS) + " |", "|---|" + "---|" * (2 + len(LAYERS))]
    for name in (*LESSONS, "production"):
        first, *others = rates(report, name, one)
        cells = [rates(report, name, most)[0], first, *others]
        title = f"[{name}](lessons/{name}.py)" if name in LESSONS else "[production](production)"
        lines.append(f"| {title} | " + " | ".join(map(number, cells)) + " |")
    facts = report["machine"]
    lines += ["", f"GFLOP/s, counted as the plain sum needs them, on {facts['processor']}, vectors "
              f"of {report['vector_bits']} bits, {report['batch']} patches of 33x33, float32. The "
              "training step is the sum of",
              "its eight convolutions, for v7 and production the step itself with ReLU and loss; "
              "the layers are with their gradients, one thread."]
    return "\n".join(lines)


def foot(report: dict[str, Any], name: str) -> str:
    """Return the figures of one lesson as a comment."""
    one, most = report["threads"][0], report["threads"][-1]

    def both(job: str) -> str:
        found = [rate(report, name, threads, [job]) for threads in (one, most)]
        return "" if found[0] is None else f"{number(found[0])} / {number(found[1])}"

    lines = [f"MEASURED, GFLOP/s, one thread / {most} threads (python -m benchmarks.lessons):", ""]
    if both(STEP_NAME):
        lines += [f"  {STEP_NAME}: {both(STEP_NAME)}"]
    else:
        lines += [" " * 16 + "".join(f"{operation:>17}" for operation in OPERATIONS)]
        lines += [f"  {layer:14}" + "".join(f"{both(f'{layer}, {operation}'):>17}"
                                            for operation in OPERATIONS) for layer in LAYERS]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def write(report: dict[str, Any]) -> None:
    """Fill in the table and the feet."""
    text = README.read_text()
    README.write_text(re.sub(r"(<!-- measured -->\n).*?(\n<!-- end -->)",
                             lambda m: m[1] + table(report) + m[2], text, flags=re.DOTALL))
    for name in LESSONS:
        path = ROOT / "kernels" / "cpu" / "lessons" / f"{name}.py"
        text = path.read_text()
        path.write_text(re.sub(r"# MEASURED.*?(?=\n#\n# What is slow)",
                               lambda m, name=name: foot(report, name), text, flags=re.DOTALL))


def main() -> None:
    """Measure and write, or only write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lessons", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="only fill in what was measured")
    if not parser.parse_args().write:
        report = json.dumps(measure(), indent=1) + "\n"
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(report)
        os.replace(temporary, RESULTS)
    report = json.loads(RESULTS.read_text())
    write(report)
    print(table(report))


if __name__ == "__main__":
    main()
