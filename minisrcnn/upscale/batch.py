"""Many pictures: side by side in one process, in several, in shards of many machines.

Whatever happens to one picture, the others go on; every outcome is one line of a manifest, from
which a run that was killed is taken up again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import MinisrcnnError
from ..imaging.files import remove_leftovers
from .pixels import upscale_image
from .plan import Job
from .run import Options, Result, upscale_file

if TYPE_CHECKING:
    from .pixels import Networks

SIDE_BY_SIDE = 2  # pictures under way in a process: one computes while another is written
_STARTS = 3  # workers in a row that may die at their start
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


class SideBySide:
    """Upscales a few pictures at once, in threads of this process.

    Parameters
    ----------
    networks, options
        As for :func:`minisrcnn.upscale.run.upscale_file`.
    report : callable, optional
        Called, from any thread, with the number of pictures done, the begun ones in part.
    """

    def __init__(
        self, networks: Networks, options: Options, report: Report | None = None
    ) -> None:
        self._networks, self._options, self._report = networks, options, report
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        self._gate = Gate()
        self._parts: dict[Job, float] = {}
        self._done = 0
        self._count = threading.Lock()
        self._stopped = threading.Event()

    def submit(self, job: Job) -> Future[Outcome]:
        """Begin a picture as soon as there is room."""
        return self._pool.submit(self.upscale, job)

    def upscale(self, job: Job) -> Outcome:
        """Upscale a picture in this thread."""
        def progress(part: float) -> None:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            if self._report is None:
                return
            with self._count:
                if outcome is None:
                    self._parts[job] = part
                else:
                    del self._parts[job]
                    self._done += 1
                done = self._done + sum(self._parts.values())
            self._report(done)

        outcome: Outcome | None = None
        progress(0)
        try:
            result = upscale_file(job, self._networks, self._options, progress, self._gate)
            outcome = Outcome(job, result, None)
        except MinisrcnnError as error:
            outcome = Outcome(job, None, str(error))
        progress(1)
        return outcome

    def stop(self) -> None:
        """End what is under way, with nothing left half written, and begin nothing more."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)


def run_jobs(
    jobs: Sequence[Job], networks: Networks, options: Options, report: Report | None = None
) -> Iterator[Outcome]:
    """Upscale pictures in this process; yield their outcomes in the order of the jobs.

    Parameters
    ----------
    jobs
        As for :func:`minisrcnn.upscale.run.upscale_file`.
    networks, options, report
        As for :class:`SideBySide`.
    """
    several = SideBySide(networks, options, report)
    if len(jobs) == 1:
        yield several.upscale(jobs[0])
        return
    waiting: deque[Future[Outcome]] = deque()
    try:
        for job in jobs:
            waiting.append(several.submit(job))
            if len(waiting) > 2 * SIDE_BY_SIDE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        several.stop()


# --- several processes ---------------------------------------------------------------------------


def run_workers(
    jobs: Sequence[Job], networks: Networks, load: Callable[[], Networks], options: Options,
    count: int, report: Report | None = None,
) -> Iterator[Outcome]:
    """Upscale pictures in ``count`` processes; yield their outcomes as they come.

    Each has two pictures under way. One that dies is replaced, and its pictures are tried once
    more, each as the only one of a worker: if that dies too, the picture has failed, and the
    others go on.

    Parameters
    ----------
    jobs, networks, options
        As for :func:`minisrcnn.upscale.run.upscale_file`.
    load : callable
        Returns the networks again; can be pickled, for each worker loads its own.

    Raises
    ------
    MinisrcnnError
        If workers cannot be started.
    """
    from multiprocessing import connection

    context = _context(networks)
    threads = max(1, _processors() // count)
    waiting, suspects = deque(jobs), deque[Job]()
    workers: dict[Any, _Worker] = {}
    done = deaths = 0  # deaths at the start, since a worker was last ready

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

    def task_for(worker: _Worker) -> Job | None:
        if worker.alone or len(worker.tasks) == SIDE_BY_SIDE:
            return None
        if suspects:
            worker.alone = not worker.tasks
            return suspects.popleft() if worker.alone else None
        return waiting.popleft() if waiting else None

    def give(pipe: Any) -> None:
        """Give a worker that is ready what it has room for, or send it home."""
        worker = workers[pipe]
        with contextlib.suppress(OSError):  # dead: the end of the pipe will say so
            while (job := task_for(worker)) is not None:
                worker.tasks.append(job)
                pipe.send(job)
            if not worker.tasks:
                pipe.send(None)

    def bury(pipe: Any) -> Outcome | None:
        """Take back what a dead worker had; return the outcome if it is known."""
        worker = workers.pop(pipe)
        worker.process.join()
        remove_leftovers(job.target for job in worker.tasks)
        if not worker.alone:
            # A result may be there, without the word that it is: the second try replaces it.
            suspects.extend(replace(job, named=job.named or job.target.exists())
                            for job in worker.tasks)
            return None
        return Outcome(worker.tasks[0], None, f"{worker.tasks[0].source}: its worker process died "
                       f"twice (exit code {worker.process.exitcode})")

    try:
        for _ in range(min(count, len(jobs))):
            start()
        while workers:
            ready: list[Any] = connection.wait(list(workers))
            for pipe in ready:
                worker = workers[pipe]
                outcome: Outcome | None = None
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    outcome = bury(pipe)
                    deaths += not worker.ready
                    if deaths == _STARTS:
                        raise MinisrcnnError(
                            f"{deaths} worker processes died at their start, one after another "
                            f"(exit code {worker.process.exitcode})") from None
                    if waiting or suspects:
                        start()
                else:
                    if not worker.ready:
                        if message is not None:
                            raise MinisrcnnError(f"a worker process cannot start: {message}")
                        worker.ready, deaths = True, 0
                    else:
                        outcome = message
                        worker.tasks.remove(outcome.job)
                        worker.alone = False
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
    """A worker process: whether it has loaded the networks, and the pictures that it has."""

    process: Any
    ready: bool = False
    tasks: list[Job] = field(default_factory=list)
    alone: bool = False  # its picture is one that a worker died of, perhaps


def _context(networks: Networks) -> Any:
    """Return how processes are started: forked where that is safe, else anew.

    A fork has all that this process has loaded, and costs milliseconds. So the kernels are loaded,
    or compiled, here and once; not by every worker. A GPU cannot be taken along, and systems
    other than Linux have libraries that do not survive it.
    """
    import multiprocessing

    safe = sys.platform == "linux" and _try(networks).NAME in ("numba", "numpy", "reference")
    return multiprocessing.get_context("fork" if safe else "spawn")


def _try(networks: Networks) -> Any:
    """Upscale one pixel, so that what does not work fails now; return the backend."""
    net, scale = networks(1)[0]
    upscale_image(np.zeros((1, 1, 3), np.uint8), net, scale)
    return net.backend


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
    several = None
    try:
        _hold_signals(False)
        from ..imaging.decode import quiet

        with quiet():
            try:
                networks = load()
                backend = _try(networks)
            except MinisrcnnError as error:
                pipe.send(str(error))
                os._exit(0)
            if hasattr(backend, "set_threads") and "NUMBA_NUM_THREADS" not in os.environ:
                with contextlib.suppress(ValueError):  # fewer are allowed anyway
                    backend.set_threads(threads)
            several, sending = SideBySide(networks, options), threading.Lock()
            pipe.send(None)

            def send(future: Future[Outcome]) -> None:
                if future.cancelled() or isinstance(future.exception(), KeyboardInterrupt):
                    return
                try:
                    with sending:
                        pipe.send(future.result())
                except BrokenPipeError:
                    pass
                except BaseException:  # a fault of ours: the parent sees that this process is gone
                    traceback.print_exc()
                    os._exit(1)

            while (job := pipe.recv()) is not None:
                several.submit(job).add_done_callback(send)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent is gone, or stops us
        pass
    if several is not None:
        several.stop()
    os._exit(0)  # what else there is in this process, a progress bar, is the parent's


def _leave(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: a job that is stopped may say so to all, and we
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
    name = "--shard"
    if text is None:
        for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
                           ("PMI_RANK", "PMI_SIZE"),
                           ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if rank in environment and size in environment:
                name, text = f"{rank}/{size}", f"{environment[rank]}/{environment[size]}"
                break
        else:
            return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal()) or int(first) >= int(second):
        raise MinisrcnnError(f"{name} is {text!r}, want I/N with I from 0 to N - 1, such as 0/4")
    return int(first), int(second)


def name_of_part(path: Path, part: tuple[int, int]) -> Path:
    """Return a file's name for a part: files on several machines cannot be shared."""
    index, count = part
    return path if count == 1 else path.with_name(f"{path.stem}.{index}-of-{count}{path.suffix}")


class Manifest:
    """An append-only file of JSON lines, one for each picture: input, output, size, seconds, error.

    ``with`` opens it to add lines. A line is written by one call, so a kill leaves whole lines, and
    at most one torn at the end, which is passed over. Each part of a run writes a file of its own,
    and reads those of all parts, in however many the pictures were shared out before.

    Parameters
    ----------
    whole : Path
        The name that the user gave; without parts, that of the file.
    part : (int, int)
        (I, N), as in :func:`shard_of`.
    """

    def __init__(self, whole: Path, part: tuple[int, int] = (0, 1)) -> None:
        self.path, self._whole = name_of_part(whole, part), whole
        self._file: IO[bytes] | None = None

    def finished(self, among: Container[tuple[str, str]] | None = None) -> set[tuple[str, str]]:
        """Return (input, output) of what was done well and is still there.

        Parameters
        ----------
        among : container of (str, str), optional
            What is asked for: no other output is looked at.

        Raises
        ------
        MinisrcnnError
            If a manifest is no file, or cannot be read.
        """
        last: dict[tuple[str, str], bool] = {}  # whether it was done well when it was done last
        for path in self._files():
            if not path.is_file():  # a pipe would block
                raise MinisrcnnError(f"{path}: not a plain file, want the manifest of a run")
            try:
                lines = path.read_bytes().splitlines()
            except OSError as error:
                raise MinisrcnnError(f"{path}: cannot be read ({error.strerror})") from None
            for line in lines:
                try:
                    entry = json.loads(line)
                    key = (entry["input"], entry["output"])
                    if not all(isinstance(name, str) for name in key):
                        continue
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
                if among is None or key in among:
                    last[key] = entry.get("error") is None
        return {key for key, good in last.items() if good and os.path.exists(key[1])}

    def _files(self) -> list[Path]:
        """Return the manifests of all parts, those written last at the end."""
        whole = self._whole
        part = re.compile(rf"{re.escape(whole.stem)}(\.\d+-of-\d+)?{re.escape(whole.suffix)}")
        try:
            found = [path for path in whole.parent.iterdir() if part.fullmatch(path.name)]
            return sorted(found, key=lambda path: path.stat().st_mtime_ns)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise MinisrcnnError(f"{whole}: cannot be read ({error.strerror})") from None

    def __enter__(self) -> Manifest:
        """Open the file to add lines; before anything is computed, for it may be refused."""
        try:
            self._file = open(self.path, "ab", buffering=0)
            if self._file.tell() and not self.path.read_bytes().endswith(b"\n"):
                self._file.write(b"\n")
        except OSError as error:
            raise MinisrcnnError(f"{self.path}: cannot be written ({error.strerror})") from None
        return self

    def add(self, outcome: Outcome) -> None:
        """Append a line to the open file."""
        assert self._file is not None
        try:
            self._file.write(json.dumps(as_dict(outcome)).encode() + b"\n")
        except OSError as error:
            raise MinisrcnnError(f"{self.path}: cannot be written ({error.strerror})") from None

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
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
