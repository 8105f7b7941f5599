"""The files of a run: its folder, the log and the checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..checkpoint import load_state, save_state
from ..errors import MinisrcnnError
from .settings import Plan, Say, TrainSettings, run_folder
from .state import Progress

CHECKPOINT_FILE = "checkpoint.safetensors"
LOG_FILE = "log.jsonl"


@dataclass
class Checkpoint:
    """A training as it was after a step.

    Attributes
    ----------
    plan : Plan or None
        None where the run was killed before its first checkpoint.
    progress : Progress
    checksum : int
        Of the pictures.
    arrays : dict
        Parameters and the optimizer's state.
    """

    plan: Plan | None
    progress: Progress
    checksum: int
    arrays: dict[str, NDArray[Any]]


def load_checkpoint(settings: TrainSettings) -> Checkpoint:
    """Read the checkpoint of a run; one without arrays where it was killed before the first."""
    out = run_folder(settings)
    path = out / CHECKPOINT_FILE
    if not path.exists():
        if out.is_dir() and {p.name for p in _visible(out)} <= {LOG_FILE}:
            return Checkpoint(None, Progress(), 0, {})
        raise MinisrcnnError(f"{out}: nothing to resume, there is no {CHECKPOINT_FILE}")
    arrays, metadata = load_state(path)
    try:
        return Checkpoint(Plan.from_json(metadata["plan"]),
                          Progress(**json.loads(metadata["progress"])),
                          int(metadata["checksum"]), arrays)
    except (KeyError, TypeError, ValueError):
        raise MinisrcnnError(f"{path}: not a checkpoint of this version of minisrcnn") from None


def free_folder(settings: TrainSettings) -> Path:
    """Return the folder of a run that begins; refuse one that holds anything."""
    out = run_folder(settings)
    try:
        if out.exists() and not out.is_dir():
            raise MinisrcnnError(f"{out}: a file is in the way, want a folder for the run")
        if out.is_dir() and _visible(out):
            more = ("; go on with it (--resume)" if (out / CHECKPOINT_FILE).exists() else "")
            raise MinisrcnnError(f"{out}: holds files already, and nothing is overwritten: name "
                                 f"another folder with --out{more}")
    except OSError as error:
        raise MinisrcnnError(f"{out}: cannot be read ({error.strerror})") from None
    return out


def _visible(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if not path.name.startswith(".")]


class RunFiles:
    """What a training writes while it runs; every failure is a :class:`MinisrcnnError`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def make(self) -> None:
        """Make the folder."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MinisrcnnError(
                f"{self.out}: cannot be made ({error.strerror or error})") from None

    def tidy(self) -> None:
        """Remove what a run that was killed while it wrote left behind."""
        with contextlib.suppress(OSError):
            for part in self.out.glob(".*.part"):
                part.unlink()

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

    def begin_log(self) -> None:
        """Begin an empty log."""
        (self.out / LOG_FILE).write_bytes(b"")

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

    def cut_log(self, length: int, say: Say) -> int:
        """Cut the log back to ``length`` bytes; return its length, less where it lost lines."""
        log = self.out / LOG_FILE
        try:
            with open(log, "ab") as file:
                if file.tell() < length:
                    say(f"{log} has lost lines; it goes on with what it has.")
                    length = file.tell()
                file.truncate(length)
        except OSError as error:
            raise MinisrcnnError(f"{log}: cannot be written ({error.strerror})") from None
        return length

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, whole or not at all."""
        assert checkpoint.plan is not None
        save_state(self.out / CHECKPOINT_FILE, checkpoint.arrays, {
            "plan": checkpoint.plan.to_json(),
            "progress": json.dumps(asdict(checkpoint.progress)),
            "checksum": str(checkpoint.checksum),
        })
