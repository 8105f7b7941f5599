"""How far a training has come, what it made, and how it can end."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import check_integer
from ..checkpoint import MODEL_FILE
from ..errors import MinisrcnnError, printable
from ..srcnn import SRCNN
from .pictures import Data, Validation
from .settings import Plan


class TrainingFailedError(MinisrcnnError):
    """A training that began and could not go on: exit code 1."""


class TrainingStoppedError(MinisrcnnError):
    """A training that was interrupted, and saved: exit code 130."""


@dataclass
class Progress:
    """How far a training has come: kept in the checkpoint, beside the arrays.

    Attributes
    ----------
    step : int
        Steps taken.
    loss_sum : float
        Of the steps of this epoch so far.
    seconds : float
        Of training and scoring, all runs together.
    log_bytes : int
        Length of the log.
    psnr : float or None
        The last score, dB.
    loss : float or None
        Of the last epoch that is complete.
    """

    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    log_bytes: int = 0
    psnr: float | None = None
    loss: float | None = None

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Read back the JSON of ``dataclasses.asdict``; ValueError where it is something else."""
        progress = cls(**json.loads(text))
        check_integer("step", progress.step, 0)
        check_integer("log_bytes", progress.log_bytes, 0)
        scores, sums = (progress.psnr, progress.loss), (progress.loss_sum, progress.seconds)
        if not (all(isinstance(score, float | None) for score in scores)
                and all(isinstance(number, int | float) for number in sums)):
            raise ValueError("not a progress")
        return progress


@dataclass(frozen=True)
class TrainResult:
    """What :func:`minisrcnn.training.train` made.

    Attributes
    ----------
    out : Path
    plan : Plan
    data, validation
        What was trained on, and scored.
    net : SRCNN
    progress : Progress
    steps : int
        Of the whole training; more than ``progress.step`` where it was stopped by
        ``max_minutes``.
    """

    out: Path
    plan: Plan
    data: Data
    validation: Validation
    net: SRCNN
    progress: Progress
    steps: int = field(default=0)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.progress.step == self.steps


def summary(result: TrainResult) -> str:
    """Return what to say at the end: the score, and what to do next."""
    scored, psnr = result.validation, result.progress.psnr
    assert psnr is not None
    known = "" if scored.published is None else ", ".join(
        f"{name} {value:.2f}" for name, value in scored.published.of(result.plan.arch).items())
    against = f"\n  ({known})" if known else "" if scored.comparable else " (not comparable)"
    model, out = printable(str(result.out / MODEL_FILE)), shlex.quote(printable(str(result.out)))
    return (f"{printable(scored.name)}, scale {result.plan.scale}: {psnr:.2f} dB, bicubic "
            f"{scored.bicubic:.2f}, gain {psnr - scored.bicubic:+.2f}{against}; "
            f"{result.progress.seconds / 60:.1f} minutes\n"
            f"{model}\n  (report.md, curve.png, filters.png, before-after.png beside it)\n"
            f"Next: minisrcnn evaluate --model {out}    "
            f"minisrcnn upscale PICTURE --model {out}")
