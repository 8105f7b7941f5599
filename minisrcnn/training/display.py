"""What a training says while it runs: a bar on a terminal, elsewhere a line at each score."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from ..errors import printable
from .pictures import Validation
from .settings import Plan
from .state import Progress


class Shown(Protocol):
    """What is shown of a training."""

    plan: Plan
    validation: Validation
    progress: Progress
    batches: int
    steps: int
    score_every: int


def say_to_stderr(text: str) -> None:
    """Print one line on standard error; training goes on where nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def display(run: Shown) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; elsewhere a line at each score."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    first, start = run.progress.step, time.monotonic()

    def facts() -> tuple[str, str, str]:
        done = run.progress.step - first
        rate = done * run.plan.recipe.batch / max(time.monotonic() - start, 1e-9)
        part = run.progress.step % run.batches
        loss = run.progress.loss_sum / part if part else run.progress.loss
        return (f"{loss:.6f}" if loss is not None else "", f"{rate:,.0f}",
                f"{run.progress.psnr:.2f} dB" if run.progress.psnr is not None else "")

    if not console.is_terminal:
        def line() -> None:
            epoch, part = divmod(run.progress.step, run.batches)
            if not part and (epoch % run.score_every == 0 or run.progress.step == run.steps):
                loss, rate, score = facts()
                say_to_stderr(f"epoch {epoch}/{run.plan.recipe.epochs}  loss {loss}  "
                              f"{rate} patches/s  {run.validation.name} {score}")

        yield line
        return
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=None),
               TextColumn("loss {task.fields[loss]}  {task.fields[rate]} patches/s  "
                          "{task.fields[score]}"), TimeRemainingColumn())
    bar = Bar(*columns, console=console)
    epochs = run.plan.recipe.epochs
    task = bar.add_task("train", total=run.steps, completed=run.progress.step, epoch="", loss="",
                        rate="", score="")

    def update() -> None:
        loss, rate, score = facts()
        epoch = min(run.progress.step // run.batches + 1, epochs)
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            bar.update(task, completed=run.progress.step, epoch=f"{epoch}/{epochs}", loss=loss,
                       rate=rate, score=score)

    with contextlib.suppress(OSError, ValueError):
        bar.start()
    try:
        update()
        yield update
    finally:
        with contextlib.suppress(OSError, ValueError):
            bar.stop()
