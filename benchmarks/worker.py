"""The process of one implementation: it checks, warms up and takes its turns, one line each.

    -> {"do": "hello"}                              <- {"status": "ok"} or why it cannot take part
    -> {"do": "prepare", "case": ..., "want": ...}  <- error, first call, warm-up, processors used
    -> {"do": "turn", "seconds": 0.03}              <- {"warm": [ms, ...], ...}
    -> {"do": "release"}                            <- {}

A process of its own, for libraries disturb each other: idle threads of one were seen to take a
core from the next for 100 ms. The directing process stops this one (SIGSTOP) while it has no turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from .machine import use_checkout

_STEADY = 0.03   # a warm-up is over when the last three times and the three before agree so well,
_WARM_UP = 0.4   # or after so many seconds
_LONG_ENOUGH = 0.05  # seconds, to say how many processors were used
_SAMPLES = 5     # of a turn, at most
_SHORTEST = 1.0  # ms: shorter calls are timed several at once


class Bench:
    """Holds the case that is being measured."""

    def __init__(self, implementation: Any, threads: int, clock: str) -> None:
        self.implementation, self.threads = implementation, threads
        self.on_device = implementation.device == "gpu"
        self.now = time.process_time if clock == "cpu" else time.perf_counter

    def hello(self, message: dict[str, Any]) -> dict[str, Any]:
        """Find out whether this implementation can run at all, by the smallest case it takes."""
        from . import cases

        suites = self.implementation.suites
        tiny = {"ops": cases.Convolution("forward", 1, 1, 1, 1, 2, 2),
                "training": cases.Training("3-1", 1, 8), "inference": cases.Inference("3-1", 8, 8),
                "roofs": cases.Roof("fma", 1000)}
        try:
            self.implementation.prepare(tiny[suites[0] if suites[0] in tiny else "ops"],
                                        self.threads)
        except ImportError as error:
            return {"status": "missing", "reason": _first_line(error)}
        except Exception as error:
            if type(error).__name__ == "BackendUnavailableError":
                return {"status": "missing", "reason": _first_line(error)}
        return {"status": "ok"}

    def prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """Make the calls of a case, check every setting, keep the fastest, warm it up."""
        import numpy as np

        from . import cases, gpu
        from .ours import NotOffered

        case = cases.from_json(message["case"])
        with np.load(message["want"]) as file:
            want = dict(file)
        start = time.perf_counter()
        try:
            prepared = self.implementation.prepare(case, self.threads)
            settings = prepared.calls.items()
            results = {}
            for name, call in settings:
                results[name] = call()
                if len(results) == 1:
                    if self.on_device:
                        self.clock = gpu.make_clock(self.implementation)
                        self.clock.wait()
                    first = time.perf_counter() - start
            errors = {name: cases.error_of(case, prepared.fetch(result), want)
                      for name, result in results.items()}
            del results
        except NotOffered:
            return {"status": "not offered"}
        except NotImplementedError as reason:
            return {"status": "skipped", "reason": _first_line(reason)}
        except Exception as error:
            return {"status": "failed", "reason": f"{type(error).__name__}: {_first_line(error)}"}
        gate = self.implementation.gate
        right = {name: call for name, call in settings if errors[name] <= gate}
        if not right:
            least = min(errors.values())
            return {"status": "wrong", "error": least,
                    "reason": f"off by {least:.1e}, want at most {gate:g}"}
        self.call, self.whole, self.stream = None, prepared.whole, prepared.stream
        cpu, wall = time.process_time(), time.perf_counter()
        heat = {name: self._once(call) for name, call in right.items()}
        if len(heat) > 1 and sum(heat.values()) < 500:
            heat = {name: min(heat[name], self._once(call)) for name, call in right.items()}
        setting = min(heat, key=lambda name: heat[name])
        self.call = right[setting]
        steady, usual = self._warm_up(heat[setting])
        wall = time.perf_counter() - wall
        threads = (time.process_time() - cpu) / wall if wall > _LONG_ENOUGH else None
        self.calls = max(1, round(_SHORTEST / usual))
        self.usual = usual
        return {"status": "ok", "error": errors[setting], "setting": setting,
                "first": first * 1e3, "usual": usual, "steady": steady, "threads": threads,
                "mflop": prepared.mflop, "done_mflop": self.implementation.done_mflop(case)}

    def turn(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return milliseconds of a call: up to five samples within about so many seconds."""
        gc.collect()
        gc.disable()
        if self.usual < 100:
            self.call()  # brings back code, data and threads
        budget = message["seconds"] * 1e3
        count = max(1, min(_SAMPLES, int(budget / (self.calls * self.usual))))
        if self.on_device:
            with self.stream:
                times = {timing: [self.clock.milliseconds(self.call, self.calls, timing == "cold")
                                  for _ in range(count)] for timing in ("warm", "cold")}
            if self.whole is not None:
                times["end to end"] = [self._once(self.whole) for _ in range(count)]
        else:
            times = {"warm": [self._once(self.call, self.calls) for _ in range(count)]}
        gc.enable()
        return times

    def release(self, message: dict[str, Any]) -> dict[str, Any]:
        """Drop the case's arrays."""
        self.call = self.whole = None
        gc.collect()
        return {}

    def _once(self, call: Any, calls: int = 1) -> float:
        start = self.now()
        for _ in range(calls):
            call()
        if self.on_device:
            self.clock.wait()
        return (self.now() - start) / calls * 1e3

    def _warm_up(self, guess: float) -> tuple[bool, float]:
        """Call until times are steady; return whether they became so, and the usual one."""
        if guess > _WARM_UP * 1e3 / 2:
            return True, guess
        end, times = time.perf_counter() + _WARM_UP, []
        calls = max(1, round(_SHORTEST / max(guess, 1e-3)))
        while time.perf_counter() < end:
            times.append(self._once(self.call, calls))
            new, old = times[-3:], times[-6:-3]
            if len(old) == 3 and abs(statistics.median(new) / statistics.median(old) - 1) < _STEADY:
                return True, statistics.median(new)
        return False, statistics.median(times[-3:])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def main() -> None:
    """Answer the directing process until it closes the pipe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker")
    parser.add_argument("implementation")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--with", dest="files", type=Path, action="append", default=[])
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")  # libraries print what they like: that goes to the log
    os.dup2(2, 1)
    use_checkout(options.root)
    from .registry import all_implementations

    column = all_implementations(options.files, options.emulated)[options.implementation]
    bench = Bench(column, options.threads, options.clock)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            reply = getattr(bench, message["do"])(message)
        except Exception as error:
            reply = {"status": "failed", "reason": f"{type(error).__name__}: {_first_line(error)}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
