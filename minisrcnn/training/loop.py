"""The training loop: steps, scores, checkpoints.

Step ``s`` of a training is a function of the settings and ``s`` alone: which patches an epoch
takes, in which order and orientation, is drawn from the seed and the number of the epoch, and the
learning rate follows from the step. So a checkpoint needs the parameters, the optimizer's state
and the number of steps, and going on from it gives, bit for bit, what an unbroken run would.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np

from ..checkpoint import MODEL_FILE
from ..engine.backends import announce_backend, choose_backend, set_threads
from ..errors import MinisrcnnError
from ..srcnn import SRCNN
from .display import display, say_to_stderr
from .files import Checkpoint, RunFiles
from .interrupts import interruptible
from .network import new_network
from .order import Shuffle
from .pictures import Data, Validation, load_data
from .ranks import Ranks, find_ranks
from .report import write_report
from .settings import Plan, Say, TrainSettings, new_plan, resumed_plan, run_folder
from .state import Progress, TrainingFailedError, TrainingStoppedError, TrainResult
from .steppers import Stepper, new_stepper

# The learning rate moves, and a device's loss is read, once in so many steps.
_STRIDE = 50

# Settings that each rank may have of its own; where the pictures are, for one.
_OF_A_RANK = ("data", "out", "threads", "max_minutes", "checkpoint_seconds", "memory")


def train(settings: TrainSettings, say: Say | None = None) -> TrainResult:
    """Train a network; leave weights, log, pictures and report in the run's folder.

    Parameters
    ----------
    settings : TrainSettings
    say : callable, optional
        Takes each line that is worth telling; by default it is printed to standard error.

    Raises
    ------
    MinisrcnnError
        If the request cannot be carried out: no pictures, an unknown recipe, a folder that holds
        a run already or cannot be written to, other settings than the checkpoint's.
    TrainingFailedError
        If the loss is no longer a finite number, or a checkpoint cannot be written. The last
        checkpoint stays.
    TrainingStoppedError
        After Ctrl-C; the state is saved.
    """
    ranks = find_ranks()
    say = (say or say_to_stderr) if ranks.rank == 0 else _say_nothing
    with ranks.guarded(), contextlib.ExitStack() as stack:
        _check_same(ranks, {name: value for name, value in asdict(settings).items()
                            if name not in _OF_A_RANK})
        files = RunFiles(run_folder(settings), ranks)
        begun = None
        if settings.resume:
            files.check_begun()
            stack.enter_context(files.locked(say))
            begun = files.load(say)
            kept = begun.plan
            plan = ranks.run_everywhere(lambda: resumed_plan(settings, kept))
        else:
            files.check_free()
            plan = ranks.run_everywhere(lambda: new_plan(settings))
        plan, data, validation, net = ranks.run_everywhere(
            lambda: _prepare(settings, plan, ranks, say))
        stack.callback(data.close)
        _check_same(ranks, {"backend": plan.backend, "the pictures' checksum": data.checksum})
        stepper = new_stepper(net, data, plan.recipe, ranks, say)
        if begun is None:
            files.make()
            stack.enter_context(files.locked(say))
            files.check_free()  # another training may have begun there meanwhile
        run = _Run(settings, files, plan, data, validation, net, stepper, say)
        with interruptible() as interrupted:
            try:
                run.begin(begun)
                return run.train(interrupted)
            except KeyboardInterrupt:
                raise run.broken_off() from None


def _check_same(ranks: Ranks, values: dict[str, Any]) -> None:
    """Refuse ranks whose values differ: the gradients of two trainings would be mixed."""
    first, *others = ranks.collect(values)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other[name] != first[name]:
                raise MinisrcnnError(f"{name} is {other[name]} on rank {rank}, want "
                                     f"{first[name]} as on rank 0: ranks train one network")


def _say_nothing(text: str) -> None:
    """Take what another rank says."""


@contextlib.contextmanager
def _no_display() -> Iterator[Callable[[], None]]:
    """Show nothing: another rank does."""
    yield lambda: None


def _prepare(
    settings: TrainSettings, plan: Plan, ranks: Ranks, say: Say
) -> tuple[Plan, Data, Validation, SRCNN]:
    """Load everything that a plan needs; return the plan as it can be carried out."""
    backend = choose_backend(plan.backend)
    if settings.threads is not None:
        _set_threads(backend, settings.threads)
    elif hasattr(backend, "set_threads"):
        _share_threads(ranks)
    if hasattr(backend, "use_device"):
        backend.use_device(ranks.local_rank)
    asked, plan = plan.backend, replace(plan, backend=backend.NAME)
    data, validation, plan = load_data(plan, say, settings.memory)
    announce_backend(backend, asked, say, ("train", "predict"))
    return plan, data, validation, new_network(plan, backend)


class _Run:
    """A training under way."""

    def __init__(
        self, settings: TrainSettings, files: RunFiles, plan: Plan, data: Data,
        validation: Validation, net: SRCNN, stepper: Stepper, say: Say,
    ) -> None:
        self.settings, self.files, self.out, self.plan = settings, files, files.out, plan
        self.layers = [name for name in net.chain.layers if name.startswith("conv")]
        self.data, self.validation, self.net = data, validation, net
        self.shuffle = Shuffle(data.index, plan.seed, data.weights)
        self.stepper, self.say = stepper, say
        self.ranks, self._interrupted = files.ranks, False
        self.progress = Progress()
        self.batches = len(data.index) // plan.recipe.batch
        self.steps = self.batches * plan.recipe.epochs
        # Scores cost time too: about a hundred of them, at the ends of epochs.
        self.score_every = -(-plan.recipe.epochs // 100)
        self.saved_step = 0

    def begin(self, begun: Checkpoint | None) -> None:
        """Go on from a checkpoint, or write the first one; try that there is room to write."""
        if begun is not None:
            self._restore(begun)
        self.files.tidy()
        self.files.probe(self._size())
        if begun is None:
            self.save()  # before anything that takes long: from here on, --resume knows the plan
        if self.progress.log_bytes == 0:
            self.progress.psnr = self._score()
            self._log({
                "event": "start", "ranks": self.ranks.size, "epoch": 0, "step": 0,
                "psnr": self.progress.psnr,
                "bicubic": self.validation.bicubic, "scored": self.validation.name,
                "comparable": self.validation.comparable, "data": self.data.name,
                "patches": len(self.data.index), "settings": asdict(self.plan),
            })
            self.save()

    def _size(self) -> int:
        """Return a generous guess of the bytes that the run will write."""
        parameters = sum(value.size for value in self.net.parameters.values())
        return 4 * parameters * 8 + (4 << 20)

    def _restore(self, begun: Checkpoint) -> None:
        if begun.checksum != self.data.checksum:
            raise MinisrcnnError(f"{self.out}: data: the pictures, {self.data.name}, are not those "
                                 "that this run began with")
        try:
            if begun.progress.step > self.steps:
                raise MinisrcnnError(f"the checkpoint is of step {begun.progress.step:,}, want at "
                                     f"most {self.steps:,}")
            self.stepper.restore(begun.arrays, begun.progress.step)
        except MinisrcnnError as error:
            raise MinisrcnnError(f"{self.out}: {error}") from None
        self.stepper.update(self.net)
        self.progress = begun.progress
        self.saved_step = begun.progress.step
        self.progress.log_bytes = self.files.cut_log(self.progress.log_bytes, self.say)
        self.say(f"Going on with {self.out} at step {self.progress.step:,} of {self.steps:,}.")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        arrays = self.stepper.arrays()
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._diverged(self.progress.step)
        try:
            self.files.save(Checkpoint(self.plan, self.progress, self.data.checksum, arrays))
        except MinisrcnnError as error:
            raise self._unwritten(error) from None
        self.saved_step = self.progress.step

    def _log(self, line: dict[str, Any]) -> None:
        try:
            self.progress.log_bytes = self.files.append(line)
        except MinisrcnnError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: Any) -> TrainingFailedError:
        return TrainingFailedError(
            f"{error}; stopped at step {self.progress.step:,}, the checkpoint of step "
            f"{self.saved_step:,} is kept: make room, then {self._resume_command()}")

    def _resume_command(self) -> str:
        return f"minisrcnn train --out {shlex.quote(str(self.out))} --resume"

    def train(self, interrupted: Callable[[], bool]) -> TrainResult:
        """Make the steps that are left; write the weights, the pictures and the report."""
        self._start = self._saved = time.monotonic()
        self._before = self.progress.seconds
        with display(self) if self.ranks.rank == 0 else _no_display() as show:
            stop = False
            while self.progress.step < self.steps and not stop:
                stop = self._epoch(interrupted, show)
            self.stepper.update(self.net)
            if self.saved_step != self.progress.step:
                self.save()
        if self._interrupted and self.progress.step < self.steps:
            self._save_model()
            raise TrainingStoppedError(
                f"interrupted and saved at step {self.progress.step:,} of {self.steps:,}; "
                f"go on with: {self._resume_command()}")
        return self._finish()

    def broken_off(self) -> BaseException:
        """Leave the last checkpoint's weights as the model; return what to raise."""
        if self.ranks.size > 1:  # the others may be anywhere
            return KeyboardInterrupt()
        try:
            last = self.files.load(self.say)
            self.stepper.restore(last.arrays, last.progress.step)
            self.stepper.update(self.net)
            self.progress = last.progress
            self._save_model()
        except MinisrcnnError:
            return KeyboardInterrupt()
        return TrainingStoppedError(
            f"interrupted at once; saved is step {last.progress.step:,} of {self.steps:,}; "
            f"go on with: {self._resume_command()}")

    def _epoch(self, interrupted: Callable[[], bool], show: Callable[[], None]) -> bool:
        """Make the steps that are left of an epoch; return whether to stop."""
        progress, recipe = self.progress, self.plan.recipe
        epoch, first = divmod(progress.step, self.batches)
        self.stepper.begin_epoch(self.shuffle.epoch(
            epoch, first * recipe.batch, self.batches * recipe.batch))
        end = (epoch + 1) * self.batches
        fresh, stop = True, False
        while progress.step < end and not stop:
            if fresh or progress.step % _STRIDE == 0:
                step = progress.step - progress.step % _STRIDE
                self.stepper.set_rates(recipe.rates(self.layers, step, self.steps))
                fresh = False
            self.stepper.step()
            progress.step += 1
            now = time.monotonic()
            limit = self.settings.max_minutes
            # Signals and clocks are each rank's own; what follows from them must not be.
            self._interrupted, late, save = self.ranks.any(
                interrupted(), limit is not None and now - self._start >= 60 * limit,
                now - self._saved >= self.settings.checkpoint_seconds)
            stop = self._interrupted or late
            save = save or stop
            if not save and progress.step % _STRIDE and progress.step < end:
                continue
            progress.seconds = self._before + now - self._start
            self._read_losses()
            if progress.step == end:
                self._end_epoch(epoch)
            show()
            if save:
                self.save()
                self._saved = time.monotonic()
        return stop

    def _read_losses(self) -> None:
        # One after another: so the sum is the same bit for bit wherever a run was broken, but for
        # the last digits on a device, which adds up the losses between two readings by itself.
        losses = self.stepper.losses()
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                last = self.progress.step
                raise self._diverged(last - len(losses) + 1 + i if len(losses) > 1 else last)
            self.progress.loss_sum += loss

    def _end_epoch(self, epoch: int) -> None:
        loss = self.progress.loss_sum / self.batches
        line: dict[str, Any] = {
            "event": "epoch", "epoch": epoch + 1, "step": self.progress.step, "loss": loss,
            "lr": self.plan.recipe.rate(self.progress.step - 1, self.steps),
            "seconds": round(self.progress.seconds, 3),
        }
        if (epoch + 1) % self.score_every == 0 or epoch + 1 == self.plan.recipe.epochs:
            self.stepper.update(self.net)
            self.progress.psnr = self._score()
            line["psnr"] = self.progress.psnr
        self.progress.loss_sum, self.progress.loss = 0.0, loss
        self._log(line)

    def _score(self) -> float:
        try:
            return self.validation.score(self.net, self.ranks)
        except ValueError:  # of numbers that are not finite
            raise self._diverged(self.progress.step) from None

    def _diverged(self, step: int) -> TrainingFailedError:
        return TrainingFailedError(
            f"the loss is no longer a finite number at step {step:,} "
            f"(recipe {self.plan.recipe.name}, lr {self.plan.recipe.lr:g}): start again with a "
            f"smaller learning rate or another --recipe; the checkpoint of "
            f"step {self.saved_step:,} is kept in {self.out}")

    def _save_model(self) -> None:
        recipe = self.plan.recipe
        metadata = {
            "scale": str(self.plan.scale), "recipe": recipe.name, "seed": str(self.plan.seed),
            "degradation": recipe.degradation, "data": self.data.name,
            "epochs": f"{self.progress.step / self.batches:g}",
            "scored": self.validation.name,
            "comparable": str(self.validation.comparable).lower(),
        }
        if self.progress.psnr is not None:
            metadata["psnr"] = f"{self.progress.psnr:.3f}"
        try:
            self.ranks.run_on_first(lambda: self.net.save(self.out / MODEL_FILE, metadata))
        except MinisrcnnError as error:
            raise self._unwritten(error) from None

    def _report(self, result: TrainResult, lines: list[dict[str, Any]]) -> None:
        try:
            write_report(result, lines)
        except OSError as error:
            raise MinisrcnnError(f"{self.out}: the report cannot be written "
                                 f"({error.strerror})") from None

    def _finish(self) -> TrainResult:
        if self.progress.step < self.steps:
            self.progress.psnr = self._score()
        self._save_model()
        result = TrainResult(self.out, self.plan, self.data, self.validation, self.net,
                             self.progress, self.steps)
        lines = self.files.read_log(self.say)
        try:
            self.ranks.run_on_first(lambda: self._report(result, lines))
        except MinisrcnnError as error:
            raise self._unwritten(error) from None
        if not result.finished:
            self.say(f"Stopped by --max-minutes at step {self.progress.step:,} of "
                     f"{self.steps:,}; go on with: {self._resume_command()}")
        return result


def _share_threads(ranks: Ranks) -> None:
    """Share the processor out among the ranks of this machine."""
    if ranks.local_size > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(ValueError):  # NUMBA_NUM_THREADS allows fewer
            set_threads(max(1, (cores or 1) // ranks.local_size))


def _set_threads(backend: ModuleType, threads: int) -> None:
    if backend.NAME != "numba":
        raise MinisrcnnError(f"--threads is for the numba backend; {backend.NAME} is used here")
    try:
        set_threads(threads)
    except ValueError as error:
        raise MinisrcnnError(f"--threads: {error}") from None
