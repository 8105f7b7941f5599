"""Many pictures: side by side in one process, in several, in shards of many machines.

Whatever happens to one picture, the others go on; every outcome is one line of a manifest, from
which a run that was killed is taken up again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import MinisrcnnError
from .pixels import upscale_image
from .plan import Job
from .run import Options, Result, remove_leftovers, upscale_file

if TYPE_CHECKING:
    from .pixels import Networks

_SIDE_BY_SIDE = 2  # pictures under way in one process: one computes while another is compressed
_SMALL = 4_000_000  # pixels of the pictures that may be under way beside another


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result, or an error in one line."""

    job: Job
    result: Result | None
    error: str | None


Report = Callable[[float], None]


class Gate:
    """Lets pictures in as long as they are small together; a large one comes in alone."""

    def __init__(self, most: int = _SMALL) -> None:
        self._most = most
        self._inside = 0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for a picture, and keep it while it is worked on."""
        with self._change:
            self._change.wait_for(
                lambda: self._inside == 0 or self._inside + pixels <= self._most)
            self._inside += pixels
        try:
            yield
        finally:
            with self._change:
                self._inside -= pixels
                self._change.notify_all()


def run_jobs(
    jobs: Sequence[Job], networks: Networks, options: Options, report: Report | None = None
) -> Iterator[Outcome]:
    """Upscale pictures in this process; yield their outcomes in the order of the jobs.

    Parameters
    ----------
    jobs, networks, options
        As for :func:`minisrcnn.upscale.run.upscale_file`.
    report : callable, optional
        Called, from any thread, with the number of pictures done, the begun ones in part.
    """
    stopped = threading.Event()
    parts: dict[int, float] = {}
    gate = Gate()

    def one(number: int) -> Outcome:
        def progress(part: float) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            parts[number] = part
            if report is not None:
                report(sum(list(parts.values())))

        job = jobs[number]
        outcome = _attempt(lambda: upscale_file(job, networks, options, progress, gate), job)
        progress(1)
        return outcome

    if len(jobs) == 1:
        yield one(0)
        return
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        waiting: deque[Future[Outcome]] = deque()
        try:
            for number in range(len(jobs)):
                waiting.append(pool.submit(one, number))
                if len(waiting) > 2 * _SIDE_BY_SIDE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stopped.set()
            for future in waiting:
                future.cancel()
            wait(waiting)


def _attempt(work: Callable[[], Result], job: Job) -> Outcome:
    try:
        return Outcome(job, work(), None)
    except MinisrcnnError as error:
        return Outcome(job, None, str(error))


# --- several processes ---------------------------------------------------------------------------


def run_workers(
    jobs: Sequence[Job], networks: Networks, load: Callable[[], Networks], options: Options,
    count: int, report: Report | None = None,
) -> Iterator[Outcome]:
    """Upscale pictures in ``count`` processes; yield their outcomes as they come.

    A worker that dies is replaced, and its picture is tried once more; if that fails too,
    the picture has failed and the others go on.

    Parameters
    ----------
    jobs, networks, options
        As for :func:`minisrcnn.upscale.run.upscale_file`.
    load : callable
        Returns the networks again; can be pickled, for each worker loads its own.
    """
    from multiprocessing import connection

    context = _context(networks)
    threads = max(1, _processors() // count)
    waiting = deque((job, 0) for job in jobs)
    workers: dict[Any, _Worker] = {}
    done = 0

    def start() -> None:
        ours, theirs = context.Pipe()
        # A fork has our ends of all pipes too: while it holds them, none of them ends with us.
        forks = context.get_start_method() == "fork"
        inherited = [ours, *workers] if forks else []
        process = context.Process(
            target=_work, args=(theirs, inherited, load, options, threads), daemon=True)
        with _signals_held():
            process.start()
        theirs.close()
        workers[ours] = _Worker(process)

    def give(pipe: Any) -> None:
        worker = workers[pipe]
        worker.task = waiting.popleft() if waiting else None
        with contextlib.suppress(OSError):  # dead: the end of the pipe will say so
            pipe.send(worker.task and worker.task[0])

    try:
        for _ in range(min(count, len(jobs))):
            start()
        for pipe in list(workers):
            give(pipe)
        while workers:
            ready: list[Any] = connection.wait(list(workers))
            for pipe in ready:
                worker = workers[pipe]
                outcome: Outcome | None
                try:
                    outcome = pipe.recv()
                except (EOFError, OSError):
                    del workers[pipe]
                    worker.process.join()
                    outcome = _after_death(worker, waiting)
                    if waiting and len(workers) < count:
                        start()
                        give(list(workers)[-1])
                else:
                    give(pipe)
                if outcome is not None:
                    done += 1
                    if report is not None:
                        report(done)
                    yield outcome
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join()


@dataclass
class _Worker:
    process: Any
    task: tuple[Job, int] | None = None


def _after_death(worker: _Worker, waiting: deque[tuple[Job, int]]) -> Outcome | None:
    if worker.task is None:  # it had been sent home
        return None
    job, deaths = worker.task
    remove_leftovers(job.target)
    if deaths == 0:
        waiting.appendleft((job, 1))
        return None
    code = worker.process.exitcode
    return Outcome(job, None, f"{job.source}: its worker process died twice (exit code {code})")


def _context(networks: Networks) -> Any:
    """Return how processes are started: forked where that is safe, else anew.

    A fork has all that this process has loaded, and costs milliseconds. So the kernels are loaded,
    or compiled, here and once; not by every worker. A GPU cannot be taken along, and systems
    other than Linux have libraries that do not survive it.
    """
    import multiprocessing

    net, scale = networks(1)[0]
    upscale_image(np.zeros((1, 1, 3), np.uint8), net, scale)
    safe = sys.platform == "linux" and net.backend.NAME in ("numba", "numpy", "reference")
    return multiprocessing.get_context("fork" if safe else "spawn")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _work(
    pipe: Any, inherited: Sequence[Any], load: Callable[[], Networks], options: Options,
    threads: int,
) -> None:
    for ours in inherited:
        ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    signal.signal(signal.SIGTERM, _leave)
    _hold_signals(False)
    try:
        from ..imaging.decode import quiet

        with quiet():
            networks = load()
            backend = networks(1)[0][0].backend
            if hasattr(backend, "set_threads") and "NUMBA_NUM_THREADS" not in os.environ:
                with contextlib.suppress(ValueError):  # fewer are allowed anyway
                    backend.set_threads(threads)
            while (job := pipe.recv()) is not None:
                pipe.send(_attempt(functools.partial(upscale_file, job, networks, options), job))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent is gone, or stops us
        pass
    os._exit(0)  # what else there is in this process, a progress bar, is the parent's


def _leave(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals while a process starts: until it has handlers of its own."""
    _hold_signals(True)
    try:
        yield
    finally:
        _hold_signals(False)


def _hold_signals(held: bool) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK,
                               {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


# --- shards and manifests ------------------------------------------------------------------------


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the shard that ``--shard``, ``mpiexec`` or ``srun`` names, (index, count), or (0, 1).

    Parameters
    ----------
    text : str or None
        ``I/N``, I from 0 to N - 1.
    environment : mapping
        Where Open MPI, MPICH, Intel MPI and Slurm put a process's rank and their number. (Slurm's
        number of tasks is that of the step: the script of a job has none.)

    Raises
    ------
    MinisrcnnError
        If the text is of another form or range.
    """
    if text is None:
        for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
                           ("PMI_RANK", "PMI_SIZE"),
                           ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if rank in environment and size in environment:
                text = f"{environment[rank]}/{environment[size]}"
                break
        else:
            return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal()) or int(first) >= int(second):
        raise MinisrcnnError(f"--shard is {text!r}, want I/N with I from 0 to N - 1, such as 0/4")
    return int(first), int(second)


class Manifest:
    """An append-only file of JSON lines, one for each picture: input, output, size, seconds, error.

    A line is written by one call, so a kill leaves whole lines, and at most one torn at the end,
    which is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def finished(self) -> set[tuple[str, str]]:
        """Return (input, output) of what was done well and is still there."""
        found: set[tuple[str, str]] = set()
        if os.path.exists(self.path) and not os.path.isfile(self.path):  # a pipe would block
            raise MinisrcnnError(f"{self.path}: not a plain file, want the manifest of a run")
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return found
        except OSError as error:
            raise MinisrcnnError(f"{self.path}: cannot be read ({error.strerror})") from None
        for line in lines:
            try:
                entry = json.loads(line)
                key = (entry["input"], entry["output"])
                if not all(isinstance(name, str) for name in key):
                    continue
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if entry.get("error") is None and os.path.exists(key[1]):
                found.add(key)
            else:
                found.discard(key)
        return found

    def add(self, outcome: Outcome) -> None:
        """Append a line."""
        try:
            if self._file is None:
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
                if self._file.tell() and not self.path.read_bytes().endswith(b"\n"):
                    self._file.write(b"\n")
            self._file.write(json.dumps(as_dict(outcome)).encode() + b"\n")
        except OSError as error:
            raise MinisrcnnError(f"{self.path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON has it, in the manifest and in the report."""
    result = outcome.result
    return {
        "input": str(outcome.job.source),
        "output": str(outcome.job.target),
        "size": list(result.size) if result else None,
        "frames": result.frames if result else None,
        "seconds": round(result.seconds, 4) if result else None,
        "notes": result.notes if result else [],
        "error": outcome.error,
    }
