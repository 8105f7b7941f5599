"""The files of a run: its folder, the lock, the log and the checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from ..checkpoint import load_state, save_state
from ..errors import MinisrcnnError, reason
from ..imaging.files import locked
from .ranks import Ranks
from .settings import Plan, Say
from .state import Progress

T = TypeVar("T")

CHECKPOINT_FILE = "checkpoint.safetensors"
PREVIOUS_FILE = "checkpoint-previous.safetensors"
LOG_FILE = "log.jsonl"
LOCK_FILE = ".lock"

# What a run that is killed while it writes can leave; other hidden files are the user's.
_LEFTOVER = re.compile(r"\.(probe|(checkpoint(-previous)?|model)\.safetensors|report\.md|"
                       r"(curve|filters|before-after)\.png)[.-]\d+(-[0-9a-f]{8})?\.part")


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was after a step.

    Attributes
    ----------
    plan : Plan
    progress : Progress
    checksum : int
        Of the pictures.
    arrays : dict
        Parameters and the optimizer's state.
    """

    plan: Plan
    progress: Progress
    checksum: int
    arrays: dict[str, NDArray[Any]]


def _on_first_rank(method: Callable[..., T]) -> Callable[..., T]:
    """Run a method on rank 0 alone; its result, or its error, is every rank's."""
    @functools.wraps(method)
    def call(self: RunFiles, *args: Any) -> T:
        return self.ranks.run_on_first(lambda: method(self, *args))

    return call


class RunFiles:
    """What a training writes while it runs; every failure is a :class:`MinisrcnnError`.

    Of several ranks the first one writes.
    """

    def __init__(self, out: Path, ranks: Ranks | None = None) -> None:
        self.out, self.ranks = out, ranks or Ranks()

    @_on_first_rank
    def check_free(self) -> None:
        """Refuse a folder that holds anything but hidden files."""
        out = self.out
        try:
            if out.exists() and not out.is_dir():
                raise MinisrcnnError(f"{out}: a file is in the way, want a folder for the run")
            if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
                more = "; go on with it (--resume)" if (out / CHECKPOINT_FILE).exists() else ""
                raise MinisrcnnError(f"{out}: holds files already, and nothing is overwritten: "
                                     f"name another folder with --out{more}")
        except OSError as error:
            raise MinisrcnnError(f"{out}: cannot be read ({error.strerror})") from None

    @_on_first_rank
    def make(self) -> None:
        """Make the folder."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MinisrcnnError(
                f"{self.out}: cannot be made ({error.strerror or error})") from None

    @contextlib.contextmanager
    def locked(self, say: Say = lambda text: None) -> Iterator[None]:
        """Keep other trainings out of the folder; the system ends the lock of a killed one."""
        lock = contextlib.ExitStack()

        def acquire() -> None:
            try:
                lock.enter_context(locked(
                    self.out / LOCK_FILE, f"{self.out}: another training is writing to it: wait "
                    "for its end, or name another folder with --out", say))
            except OSError as error:
                raise MinisrcnnError(
                    f"{self.out}: cannot be written to ({reason(error)})") from None

        self.ranks.run_on_first(acquire)
        with lock:
            yield

    @_on_first_rank
    def tidy(self) -> None:
        """Remove what a run that was killed while it wrote left behind."""
        with contextlib.suppress(OSError):
            for path in self.out.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    path.unlink()

    @_on_first_rank
    def probe(self, size: int) -> None:
        """Write as much as the run will, ``size`` bytes, so that a full disk is found now."""
        probe = self.out / f".probe-{os.getpid()}.part"
        try:
            with open(probe, "wb") as file:
                for _ in range(size >> 16):
                    file.write(b"\1" * (1 << 16))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MinisrcnnError(f"{self.out}: cannot be written to ({error.strerror}); the run "
                                 f"needs {size >> 20} MB there") from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    @_on_first_rank
    def append(self, line: dict[str, Any]) -> int:
        """Add a line to the log, durably; return the length of the log."""
        data = (json.dumps(line) + "\n").encode()
        try:
            with open(self.out / LOG_FILE, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise MinisrcnnError(f"{self.out / LOG_FILE}: cannot be written "
                                 f"({error.strerror})") from None

    @_on_first_rank
    def cut_log(self, length: int, say: Say) -> int:
        """Cut the log back to ``length`` bytes, whole lines; return its length.

        It is less than asked for where the log has lost lines.
        """
        log = self.out / LOG_FILE
        try:
            with open(log, "a+b") as file:
                file.seek(0)
                data = file.read()[:length]
                kept = data.rfind(b"\n") + 1
                if kept < length:
                    say(f"{log} has lost lines; it goes on with what it has.")
                file.truncate(kept)
        except OSError as error:
            raise MinisrcnnError(f"{log}: cannot be written ({error.strerror})") from None
        return kept

    @_on_first_rank
    def read_log(self, say: Say) -> list[dict[str, Any]]:
        """Return the lines of the log; damaged ones are skipped with a warning."""
        log = self.out / LOG_FILE
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(log.read_bytes().splitlines(), 1):
            try:
                line = json.loads(text)
                numbers = {"start": ["epoch", "psnr"], "epoch": ["epoch", "loss"]}[line["event"]]
                if any(type(line.get(key)) not in (int, float) for key in numbers) or (
                        type(line.get("psnr", 0.0)) is not float):
                    raise ValueError
                lines.append(line)
            except (ValueError, TypeError, KeyError, RecursionError):
                say(f"{log}: line {number} is damaged; the report is made without it.")
        return lines

    @_on_first_rank
    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, whole or not at all; the one before stays beside it."""
        path, previous = self.out / CHECKPOINT_FILE, self.out / PREVIOUS_FILE
        try:
            if path.exists():
                previous.unlink(missing_ok=True)
                try:
                    os.link(path, previous)  # so that there is a checkpoint at any moment
                except OSError:  # a file system without links
                    os.replace(path, previous)
        except OSError as error:
            raise MinisrcnnError(f"{previous}: cannot be written ({error.strerror})") from None
        save_state(path, checkpoint.arrays, {
            "plan": checkpoint.plan.to_json(),
            "progress": json.dumps(asdict(checkpoint.progress)),
            "pictures": str(checkpoint.checksum),
        })

    @_on_first_rank
    def check_begun(self) -> None:
        """Refuse a folder without a checkpoint: there is nothing to go on with."""
        if not any((self.out / name).exists() for name in (CHECKPOINT_FILE, PREVIOUS_FILE)):
            raise MinisrcnnError(f"{self.out}: nothing to resume, there is no {CHECKPOINT_FILE}")

    @_on_first_rank
    def load(self, say: Say) -> Checkpoint:
        """Read the checkpoint; where it is damaged or missing, the one before, with a warning."""
        path, previous = self.out / CHECKPOINT_FILE, self.out / PREVIOUS_FILE
        try:
            return _read(path)
        except MinisrcnnError as error:
            if not previous.exists():
                raise
            checkpoint = _read(previous)
            with contextlib.suppress(OSError):
                os.replace(previous, path)  # or the damaged one would be the next to be kept
            say(f"{error}. The checkpoint before it, of step {checkpoint.progress.step:,}, is "
                "used.")
            return checkpoint


def _read(path: Path) -> Checkpoint:
    arrays, metadata = load_state(path, want_checksum=True)
    try:
        return Checkpoint(Plan.from_json(metadata["plan"]),
                          Progress.from_json(metadata["progress"]),
                          int(metadata["pictures"]), arrays)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, MinisrcnnError):
        raise MinisrcnnError(f"{path}: not a checkpoint of this version of minisrcnn") from None
