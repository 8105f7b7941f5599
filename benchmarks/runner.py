"""Directs a run: one process an implementation, turns in shuffled order, an eye on the noise.

For each case every implementation is prepared, checked and warmed up; then come rounds, in
each of which all take a turn, in an order of its own. Who has no turn is stopped by the kernel, so
that no idle thread can take a core from who has. All are bound to the same processors.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import random
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import cases, machine
from .cases import Case, Roof
from .ours import Implementation
from .registry import all_implementations
from .results import Row, Run

# Every library's own word for the number of threads; they are read when it is loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")
INTERRUPTED = "the rest"
_PATIENCE = 180.0         # seconds for one answer of a worker
_CALIBRATION = 2_500_000  # rounds of the loop of multiply-adds: about 4 ms


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes
    ----------
    threads : int
        Of every implementation; all are bound to as many processors.
    rounds : int
        Turns of each implementation at a case, where time allows.
    turn : float
        Seconds of a turn, at least one call.
    budget : float
        Seconds for the turns of one implementation at one case; slow ones get fewer, but three.
    limit : float
        Seconds of a call beyond which a case is skipped, but for our production backend; a quarter
        of it for lessons.
    seed : int
        Of the order of the turns.
    time_limit : float
        Seconds after which no further case is begun.
    clock : {"wall", "cpu"}
        ``"cpu"``: processor time of one thread, for a machine that is not ours alone.
    """

    threads: int = 2
    rounds: int = 9
    turn: float = 0.03
    budget: float = 2.5
    limit: float = 2.5
    seed: int = 0
    time_limit: float = 86_400
    clock: str = "wall"


@dataclass
class Side:
    """A column: an implementation from a checkout, under a name of its own."""

    implementation: Implementation
    name: str
    root: Path = machine.ROOT
    files: Sequence[Path] = ()
    emulated: bool = False
    rate: dict[str, float] = field(default_factory=dict)  # of a group: ms for an MFLOP


class Worker:
    """A worker's process, stopped while it is not asked anything."""

    def __init__(self, side: Side, settings: Settings, folder: Path, log: Any) -> None:
        cpus = machine.choose_cpus(settings.threads)
        environment = os.environ | dict.fromkeys(_THREADS, str(settings.threads)) | {
            "PYTHONPATH": machine.python_path(), "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "CUPY_CACHE_DIR": str(folder / "cupy"),  # empty: a first call is to compile
            "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "benchmarks.worker", side.implementation.name,
                   "--root", str(side.root), "--threads", str(settings.threads),
                   "--clock", settings.clock, *(["--emulated"] if side.emulated else [])]
        for file in side.files:
            command += ["--with", str(file)]
        bind = {"preexec_fn": partial(_bind, cpus)} if sys.platform == "linux" else {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=machine.ROOT,
            env=environment, start_new_session=True, text=True, **bind)
        self._replies = selectors.DefaultSelector()
        self._replies.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, do: str, **message: Any) -> dict[str, Any]:
        """Wake the process, ask it something, wait for the answer, and stop it again."""
        try:
            self._signal("SIGCONT")
            self.process.stdin.write(json.dumps({"do": do, **message}) + "\n")
            self.process.stdin.flush()
            if not self._replies.select(_PATIENCE):
                self.close()
                return {"status": "failed", "reason": f"no answer within {_PATIENCE:.0f} s"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            return {"status": "failed",
                    "reason": f"its process ended ({_ending(self.process.returncode)})"}
        self._signal("SIGSTOP")
        return json.loads(line)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def close(self) -> None:
        """End the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.process.pid, getattr(signal, name))
                if name == "SIGSTOP":  # it stops when it is scheduled next: wait for that
                    os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        elif name == "SIGSTOP":
            time.sleep(0.15)  # no such signal here: let its threads go to sleep


class Director:
    """Runs cases and collects rows and noise records."""

    def __init__(self, sides: Sequence[Side], settings: Settings,
                 say: Callable[[str], None]) -> None:
        self.sides, self.settings, self.say = list(sides), settings, say
        self.rows: list[Row] = []
        self.noise: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        self._random = random.Random(settings.seed)
        self._folder = Path(tempfile.mkdtemp(prefix="minisrcnn-benchmarks-"))
        self._log = open(self._folder / "log", "w")  # noqa: SIM115
        self.say(f"what the workers print: {self._folder / 'log'}")

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._log.close()
        for left in self._folder.iterdir():
            if left.name != "log":
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def run(self, chosen: Sequence[Case]) -> None:
        """Measure every case by every side that offers it."""
        self._find_missing(chosen)
        plan = [(case, self._sides_of(case)) for case in chosen]
        weights = [sum(_guess(case, s) for s in sides) for case, sides in plan]
        start, done = time.monotonic(), 0.0
        for (case, sides), weight in zip(plan, weights, strict=True):
            passed = time.monotonic() - start
            if passed > self.settings.time_limit:
                self.missing[case.label] = "the time limit was reached"
            elif sides:
                # The guess is trusted for a minute, then what is seen.
                left = (sum(weights) - done) * (passed + 60) / (done + 60)
                self.say(f"{_clock(passed)} done, about {_clock(left)} left: {case.label}")
                self._measure(case, sides)
            done += weight

    def _find_missing(self, chosen: Sequence[Case]) -> None:
        suites = {case.suite for case in chosen}
        needs: dict[str, str] = {}
        for side in list(self.sides):
            need = side.implementation.needs
            if not suites & set(side.implementation.suites):
                continue
            if not (need and need in needs):
                reply = self._worker(side).ask("hello")
                if reply["status"] == "ok":
                    continue
                self._workers.pop(side.name).close()
                needs[need] = reply["reason"]
                self.say(f"{need or side.name} is skipped: {needs[need]}")
            self.missing[side.name] = needs[need]
            self.sides.remove(side)

    def _sides_of(self, case: Case) -> list[Side]:
        return [s for s in self.sides if case.suite in s.implementation.suites
                and case.mflop <= s.implementation.most_mflop]

    def _worker(self, side: Side) -> Worker:
        worker = self._workers.get(side.name)
        if worker is None or worker.ended:
            worker = self._workers[side.name] = Worker(
                side, self.settings, self._folder, self._log)
        return worker

    def _measure(self, case: Case, sides: list[Side]) -> None:
        want = self._folder / "want.npz"
        np.savez(want, **case.answer())
        ready: list[tuple[Side, dict[str, Any], Row]] = []
        for side in self._random.sample(sides, len(sides)):
            row = Row(case.suite, case.label, case.group, case.size, side.name,
                      side.implementation.device, side.implementation.kind,
                      mflop=case.mflop, mbyte=case.mbyte, gate=side.implementation.gate)
            reply = self._prepare(case, side, want)
            if reply["status"] == "not offered":
                continue
            self.rows.append(row)
            row.status, row.reason = reply["status"], reply.get("reason", "")
            error = reply.get("error", math.nan)
            row.error = None if math.isnan(error) else error
            if row.status == "ok":
                row.setting, row.steady = reply["setting"], reply["steady"]
                row.mflop, row.done_mflop = reply["mflop"] or row.mflop, reply["done_mflop"]
                if row.device == "cpu" and reply["threads"] is not None:
                    row.threads = round(reply["threads"], 2)
                self.rows.append(_like(row, "first", [[reply["first"]]]))
                ready.append((side, reply, row))
        self._take_turns(case, ready)
        for side, _, _ in ready:
            self._worker(side).ask("release")
        if case.mflop:
            for side, reply, _ in ready:
                side.rate[case.group] = reply["usual"] / case.mflop

    def _prepare(self, case: Case, side: Side, want: Path) -> dict[str, Any]:
        expected = side.rate.get(case.group, 0) * case.mflop * 1e-3
        kind = side.implementation.kind
        limit = self.settings.limit / (4 if kind in ("lesson", "textbook") else 1)
        if expected > limit and side.implementation.name != "production":
            return {"status": "skipped", "reason": f"a call would take about {expected:.1f} s, "
                    f"limit {limit:.1f}"}
        reply = self._worker(side).ask("prepare", case=cases.to_json(case), want=str(want))
        if reply["status"] == "ok" and (reply["threads"] or 0) > self.settings.threads + 0.3:
            return {"status": "failed", "reason": f"it used {reply['threads']:.1f} processors, "
                    f"want {self.settings.threads}"}
        return reply

    def _take_turns(self, case: Case, ready: list[tuple[Side, dict[str, Any], Row]]) -> None:
        s = self.settings
        rounds = {row.implementation: max(3, min(s.rounds, int(
            s.budget / max(s.turn, reply["usual"] * 1e-3)))) for _, reply, row in ready}
        more: dict[tuple[str, str], Row] = {}
        for n in range(max(rounds.values(), default=0)):
            before = machine.Load.now()
            turns = [t for t in ready if n < rounds[t[2].implementation] and t[2].status == "ok"]
            for side, _, row in self._random.sample(turns, len(turns)):
                reply = self._worker(side).ask("turn", seconds=s.turn)
                if "status" in reply:
                    row.status, row.reason, row.samples = "failed", reply["reason"], []
                    continue
                for timing, times in reply.items():
                    if timing == "warm":
                        target = row
                    else:
                        target = more.setdefault((row.implementation, timing),
                                                 _like(row, timing, []))
                    target.samples.append([round(t, 6) for t in times])
            noise = machine.Load.now().since(before)
            self.noise.append({"case": case.label, "round": n, **noise,
                               "calibration": self._calibrate()})
        self.rows += [row for row in more.values() if row.samples]

    def _calibrate(self) -> float | None:
        """Return milliseconds of a fixed job on all threads, in a process of its own."""
        side = Side(all_implementations()["roof"], "calibration")
        if "calibration" not in self._workers:
            empty = self._folder / "nothing.npz"
            np.savez(empty)
            self._worker(side).ask("prepare", case=cases.to_json(Roof("fma", _CALIBRATION)),
                                   want=str(empty))
        times = self._worker(side).ask("turn", seconds=0.012).get("warm")
        return round(min(times), 4) if times else None


def measure(chosen: Sequence[Case], sides: Sequence[Side], settings: Settings,
            command: list[str], say: Callable[[str], None] | None = None) -> Run:
    """Measure cases by sides; return the run."""
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    busy = machine.others()
    if busy > machine.BUSY:
        say(f"warning: others keep {busy:.1f} processors busy")
    director = Director(sides, settings, say)
    try:
        director.run(chosen)
    except KeyboardInterrupt:  # what was measured is kept
        director.missing[INTERRUPTED] = "interrupted"
    finally:
        director.close()
    busy = max(busy, machine.others())
    noisy = machine.mark_noise(director.noise, busy)
    return Run(command, started, round(time.monotonic() - start, 1),
               machine.describe() | {"others_busy": round(busy, 2)}, dict(vars(settings)),
               director.rows, director.noise, noisy, director.missing)


def select(chosen: Sequence[Case], sides: Sequence[Side], pattern: str,
           ) -> tuple[list[Case], list[Side]]:
    """Keep the cases and the sides of which some pair matches a regular expression."""
    wanted = re.compile(pattern, re.IGNORECASE)
    pairs = [(c, s) for c in chosen for s in sides if c.suite in s.implementation.suites
             and wanted.search(f"{c.suite} {c.label} {s.name}")]
    return ([c for c in chosen if any(c is p for p, _ in pairs)],
            [s for s in sides if any(s is p for _, p in pairs)])


def _bind(cpus: list[int]) -> None:
    """Bind a new process to processors and to our life: a stopped one sees no pipe close."""
    os.sched_setaffinity(0, cpus)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _like(row: Row, timing: str, samples: list[list[float]]) -> Row:
    return Row(**vars(row) | {"timing": timing, "samples": samples})


def _guess(case: Case, side: Side) -> float:
    """Seconds that a pair may take; only the ratios matter, for the time left."""
    return min(0.6 + case.mflop / 4000, 12)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
