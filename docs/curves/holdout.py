"""Train on 70 of the 91 pictures, score the other 21: how choices are made without Set5 and Set14.

    python docs/curves/holdout.py EXPERIMENTS RESULTS [--backend cupy] [--slots 12] [--minutes 9]

EXPERIMENTS has a JSON object a line, such as

    {"name": "40, a lower rate", "recipe": "fast", "epochs": 40, "lr": 2e-3, "seed": 1}

RESULTS gets one for each experiment as soon as it ends, and
those that it holds already are left out. What an experiment may say beside the fields of a recipe
is in `Experiment`. On a GPU so many of them run at once, each on a stream of its own: one training
does not fill it.

The 21 are the first of a shuffle of the 91 by NumPy's `default_rng(0)`; t36 and t65, which are the
same picture, are both trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import queue
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minisrcnn.engine.backends import choose_backend
from minisrcnn.imaging.datasets import Dataset, load_dataset
from minisrcnn.training.network import new_network
from minisrcnn.training.order import Shuffle, Window
from minisrcnn.training.pictures import Data, Validation, load_data, load_validation
from minisrcnn.training.ranks import Ranks
from minisrcnn.training.recipes import Recipe, get_recipe
from minisrcnn.training.settings import Plan, TrainSettings, new_plan
from minisrcnn.training.steppers import Stepper, new_stepper

HELD_OUT = 21
TWINS = {"t36", "t65"}

# The rate moves, and averages take the weights, once in so many steps; as in training/loop.py.
STRIDE = 50
# Patches of one call for the gradients of L-BFGS: bounds memory.
CHUNK = 4096

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Experiment:
    """One training.

    Attributes
    ----------
    name : str
    recipe : Recipe
        By name ("fast" where not said), with every field changed that the experiment names.
    scale, arch, seed, rgb
        As of `minisrcnn train`.
    init_from : str
        An earlier experiment whose last weights this one begins with.
    redraw : tuple of float
        When, as fractions of the training, filters that answer to nothing are drawn anew.
    weight_decay : float
        Decoupled: ``w <- (1 - lr weight_decay) w``, beside each step.
    averages : tuple of float
        Also score the mean of the weights over so large a part of the training, up to its end.
    lbfgs : int
        Iterations of L-BFGS after the last step, over all patches or `lbfgs_patches` of them.
    points : int
        How many times to score on the way.
    """

    name: str
    recipe: Recipe
    scale: int = 3
    arch: str = "9-1-5"
    seed: int = 0
    rgb: bool = False
    init_from: str = ""
    redraw: tuple[float, ...] = ()
    weight_decay: float = 0.0
    averages: tuple[float, ...] = ()
    lbfgs: int = 0
    lbfgs_patches: int = 1 << 20
    points: int = 4

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Experiment:
        """Build an experiment from a line of JSON."""
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        recipe = get_recipe(values.pop("recipe", "fast"))
        own = {f.name for f in fields(cls)}
        changes = {key: v for key, v in values.items() if key not in own}
        return cls(recipe=replace(recipe, **changes),
                   **{key: v for key, v in values.items() if key in own})

    def plan(self, backend: str, data: str) -> Plan:
        """Return what `minisrcnn train` would go by."""
        plan = new_plan(TrainSettings(data=data, scale=self.scale, arch=self.arch, seed=self.seed,
                                      rgb=self.rgb, backend=backend))
        return replace(plan, recipe=self.recipe)


@dataclass
class Bench:
    """What the experiments share.

    Attributes
    ----------
    backend : module
    folder : str
        Holds the 70 pictures, or links to them.
    held_out : Dataset
        The 21.
    until : float
        When to stop, on the monotonic clock.
    weights : dict
        The last weights of the experiments that ended, by name.
    ended : set
        The names of all that ended, well or not.
    reading, compiling : Lock
        Held while pictures are prepared, and kernels compiled: once, not once a thread.
    """

    backend: ModuleType
    folder: str
    held_out: Dataset
    until: float
    weights: dict[str, Arrays] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    reading: threading.Lock = field(default_factory=threading.Lock)
    compiling: threading.Lock = field(default_factory=threading.Lock)
    _prepared: dict[Any, Any] = field(default_factory=dict)

    def pictures(self, plan: Plan) -> tuple[Data, Validation, Plan]:
        """Return the pictures of a plan, prepared; equal plans share them."""
        r = plan.recipe
        key = (plan.scale, plan.arch, plan.channels, r.degradation, r.rescaled, r.input_size,
               r.stride, r.balance)
        with self.reading:
            if key not in self._prepared:
                data, _, _ = load_data(plan, say=_nothing)
                self._prepared[key] = data, load_validation(self.held_out, plan, _nothing)
        return *self._prepared[key], plan

    def stream(self, **kind: bool) -> Any:
        """Return a stream of the device; on a CPU, nothing."""
        if not hasattr(self.backend, "xp"):
            return contextlib.nullcontext()
        return self.backend.xp.cuda.Stream(**kind)


def _nothing(text: str) -> None:
    """Say nothing: what the pictures of T91 have to say is known."""


class Averages:
    """Means of the weights over the last parts of a training."""

    def __init__(self, parts: tuple[float, ...], steps: int) -> None:
        self.begin = {part: round((1 - part) * steps) for part in parts}
        self.sums: dict[float, Arrays] = {}
        self.counts = dict.fromkeys(parts, 0)

    def take(self, step: int, weights: Callable[[], Arrays]) -> None:
        """Add the weights to the means that have begun."""
        due = [part for part, begin in self.begin.items() if step >= begin]
        if not due:
            return
        now = weights()
        for part in due:
            total = self.sums.setdefault(part, {k: np.zeros(v.shape) for k, v in now.items()})
            for name, value in now.items():
                total[name] += value
            self.counts[part] += 1

    def means(self) -> Iterator[tuple[float, Arrays]]:
        """Yield each part and its mean."""
        for part, total in self.sums.items():
            yield part, {k: v / self.counts[part] for k, v in total.items()}


class Run:
    """An experiment under way."""

    def __init__(self, experiment: Experiment, bench: Bench) -> None:
        self.experiment, self.bench = experiment, bench
        plan = experiment.plan(bench.backend.NAME, bench.folder)
        self.data, self.validation, self.plan = bench.pictures(plan)
        self.net = new_network(self.plan, bench.backend)
        self._begin_with()
        self.batches = len(self.data.index) // experiment.recipe.batch
        self.steps = self.batches * experiment.recipe.epochs
        self.layers = [name for name in self.net.chain.layers if name.startswith("conv")]
        self.curve: list[tuple[float, float]] = []
        self.redrawn: list[int] = []

    def train(self) -> dict[str, Any]:
        """Train to the end, or until time is up; return what goes into the results."""
        e, begin = self.experiment, time.monotonic()
        with self.bench.compiling:
            self.stepper: Stepper = new_stepper(self.net, self.data, e.recipe, Ranks(), print)
            # A device's trainer has a stream of its own, which need not wait for this thread's.
            self.stream = (self.bench.stream(null=True) if hasattr(self.stepper, "trainer")
                           else contextlib.nullcontext())
            self._epoch(0)
            self._block(0)
        averages = Averages(e.averages, self.steps)
        redraw = [round(part * self.steps) // STRIDE * STRIDE for part in e.redraw]
        points = [round(self.steps * (i + 1) / e.points) for i in range(e.points - 1)]
        step = STRIDE
        averages.take(step, self._weights)
        while step < self.steps and time.monotonic() < self.bench.until:
            if step in redraw:
                self.redrawn.append(self._redraw(step))
            self._block(step)
            step += STRIDE
            if e.weight_decay:
                self._decay(step)
            averages.take(step, self._weights)
            if points and step >= points[0]:
                points.pop(0)
                self._score(step)
        result: dict[str, Any] = {"name": e.name, "finished": step >= self.steps}
        result["psnr"] = self._score(min(step, self.steps))
        for part, mean in averages.means():
            self.net.load_parameters(mean)
            result.setdefault("averages", {})[f"{part:g}"] = self.validation.score(
                self.net, Ranks())
        silent = {layer: len(filters) for layer, filters in self._silent().items()}
        result["seconds"] = round(time.monotonic() - begin, 2)
        if e.lbfgs and result["finished"]:
            result["lbfgs"] = self._second_order()
            result["seconds_with_lbfgs"] = round(time.monotonic() - begin, 2)
        self.bench.weights[e.name] = {
            k: np.array(self.bench.backend.to_numpy(v)) for k, v in self.net.parameters.items()}
        return result | {
            "bicubic": self.validation.bicubic, "steps": step, "patches": len(self.data.index),
            "curve": self.curve, "redrawn": self.redrawn, "silent": silent,
            "backend": self.bench.backend.NAME, "experiment": asdict(e)}

    def _begin_with(self) -> None:
        """Change the first weights, where the experiment says so."""
        e, net = self.experiment, self.net
        if e.init_from:
            if e.init_from not in self.bench.weights:
                raise ValueError(f"{e.init_from} failed, or ended in another session")
            net.load_parameters(self.bench.weights[e.init_from])

    def _order(self, epoch: int, stop: int | None = None) -> Window:
        """Return all patches of an epoch: T91 is shuffled whole."""
        shuffle = Shuffle(self.data.index, self.plan.seed, self.data.weights)
        (window,) = shuffle.epoch(epoch, 0, stop)
        return window

    def _epoch(self, epoch: int) -> None:
        window = self._order(epoch, self.batches * self.experiment.recipe.batch)
        self.stepper.begin_epoch(iter([window]))

    def _block(self, step: int) -> None:
        """Make STRIDE steps, or what is left."""
        recipe = self.experiment.recipe
        with self.stream:
            self.stepper.set_rates(recipe.rates(self.layers, step, self.steps))
            for s in range(step, min(step + STRIDE, self.steps)):
                if s % self.batches == 0 and s:
                    self._epoch(s // self.batches)
                self.stepper.step()
            self.stepper.losses()  # waits for the device, so that no run is far ahead

    def _weights(self) -> Arrays:
        self.stepper.update(self.net)
        return {k: self.bench.backend.to_numpy(v) for k, v in self.net.parameters.items()}

    def _score(self, step: int) -> float:
        self.stepper.update(self.net)
        try:
            score = self.validation.score(self.net, Ranks())
        except ValueError:  # not finite
            score = 0.0
        self.curve.append((round(step / self.batches, 2), round(score, 4)))
        return score

    def _decay(self, step: int) -> None:
        rates = self.experiment.recipe.rates(self.layers, step - STRIDE, self.steps)
        arrays = self.stepper.arrays()
        for layer, rate in rates.items():
            arrays[f"{layer}.weight"] *= np.float32(
                (1 - rate * self.experiment.weight_decay) ** STRIDE)
        self.stepper.restore(arrays, step)

    def _silent(self) -> dict[str, NDArray[np.intp]]:
        """Return the filters of each layer but the last that are hardly ever above zero."""
        self.stepper.update(self.net)
        rng = np.random.default_rng(0)
        rows = rng.choice(len(self.data.index), min(512, len(self.data.index)), replace=False)
        y, _ = self._patches(rows)
        silent = {}
        for i, layer in enumerate(self.layers[:-1], 1):
            y, _ = self.net.chain.layers[layer].forward(y)
            y, _ = self.net.chain.layers[f"relu{i}"].forward(y)
            active = (self.net.backend.to_numpy(y) > 0).mean(axis=(0, 2, 3))
            silent[layer] = np.flatnonzero(active < 1e-3)
        return silent

    def _redraw(self, step: int) -> int:
        """Draw silent filters anew; the network computes what it did before."""
        rng = np.random.default_rng([self.plan.seed, step])
        silent, arrays = self._silent(), self.stepper.arrays()
        for here, after in itertools.pairwise(self.layers):
            w, b = arrays[f"{here}.weight"], arrays[f"{here}.bias"]
            for f in silent[here]:
                fresh = rng.normal(size=w[f].shape) * (2 / w[f].size) ** 0.5
                w[f] = fresh - fresh.mean()
                b[f] = 0
                arrays[f"{after}.weight"][:, f] = 0
                for name, array in arrays.items():  # what the optimizer remembers of them
                    if name.startswith((f"{here}.weight.", f"{here}.bias.")):
                        array[f] = 0
                    elif name.startswith(f"{after}.weight."):
                        array[:, f] = 0
        self.stepper.restore(arrays, step)
        return sum(map(len, silent.values()))

    def _patches(
        self, rows: NDArray[np.intp], codes: NDArray[np.intp] | None = None
    ) -> tuple[Any, Any]:
        x, t = self.data.patches(rows, codes, self.experiment.recipe.input_size,
                                 self.net.shrinkage // 2)
        asarray, dtype = self.net.backend.asarray, self.net.dtype
        return asarray(x, dtype), asarray(t, dtype)

    def _second_order(self) -> dict[str, Any]:
        """Go on by L-BFGS over all patches at once, each in one orientation."""
        from scipy.optimize import minimize

        e, net = self.experiment, self.net
        window = self._order(e.recipe.epochs, e.lbfgs_patches)
        order, codes = window.numbers, window.codes
        chunks = [self._patches(order[i:i + CHUNK], codes[i:i + CHUNK])
                  for i in range(0, len(order), CHUNK)]
        shapes = {k: v.shape for k, v in net.parameters.items()}
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
        scale = 1e4  # losses of 1e-3 would meet its tests of convergence at once

        def load(vector: NDArray[np.float64]) -> None:
            parts = np.split(vector, ends)
            net.load_parameters({k: p.reshape(s) for (k, s), p in
                                 zip(shapes.items(), parts, strict=True)})

        def objective(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            load(vector)
            loss, gradient = 0.0, np.zeros(vector.size)
            for x, t in chunks:
                one, grads = net.loss_and_gradients(x, t)
                part = len(x) / len(order)
                loss += float(one) * part
                gradient += part * np.concatenate(
                    [net.backend.to_numpy(grads[k]).ravel() for k in shapes]).astype(np.float64)
            return scale * loss, scale * gradient

        start = np.concatenate([net.backend.to_numpy(v).ravel() for v in net.parameters.values()])
        points: list[tuple[int, float]] = []
        every = max(1, e.lbfgs // 5)
        made = 0

        def progress(vector: NDArray[np.float64]) -> None:
            nonlocal made
            made += 1
            if made % every == 0:
                load(vector)
                points.append((made, round(self.validation.score(net, Ranks()), 4)))
            if time.monotonic() > self.bench.until:
                raise StopIteration

        result = minimize(objective, start.astype(np.float64), jac=True, method="L-BFGS-B",
                          callback=progress,
                          options={"maxiter": e.lbfgs, "maxfun": 2 * e.lbfgs, "maxcor": 30})
        load(result.x)
        return {"psnr": self.validation.score(net, Ranks()), "iterations": int(result.nit),
                "loss": float(result.fun) / scale, "curve": points,
                "message": str(result.message)}


def split(folder: Path) -> Dataset:
    """Link the pictures to train on into a folder; return those that are held out."""
    every = load_dataset("T91", download=False)
    pairs = list(zip(every.titles, every.paths, strict=True))
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = [pairs[i] for i in order if pairs[i][0] not in TWINS]
    for _, path in shuffled[HELD_OUT:] + [pair for pair in pairs if pair[0] in TWINS]:
        (folder / path.name).symlink_to(path.resolve())
    return Dataset("T91, held out", tuple(path for _, path in shuffled[:HELD_OUT]))


def main() -> None:
    """Run the experiments, in their order, several at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--slots", type=int, default=1, help="at once; more than 1 on a GPU only")
    parser.add_argument("--minutes", type=float, default=1e6)
    args = parser.parse_args()
    begin = time.monotonic()
    known = ({json.loads(line)["name"] for line in args.results.read_text().splitlines()}
             if args.results.exists() else set())
    waiting: queue.Queue[Experiment] = queue.Queue()
    pending = set()
    for line in args.experiments.read_text().splitlines():
        if line.strip() and (e := Experiment.from_dict(json.loads(line))).name not in known:
            waiting.put(e)
            pending.add(e.name)
    backend = choose_backend(args.backend)
    slots = args.slots if backend.NAME == "cupy" else 1
    steps = 0
    with tempfile.TemporaryDirectory() as folder, open(args.results, "a") as results:
        bench = Bench(backend, folder, split(Path(folder)), begin + 60 * args.minutes)
        writing = threading.Lock()

        def work() -> None:
            nonlocal steps
            with bench.stream(non_blocking=True):
                while time.monotonic() < bench.until:
                    try:
                        e = waiting.get_nowait()
                    except queue.Empty:
                        return
                    if e.init_from in pending - bench.ended:
                        waiting.put(e)
                        time.sleep(0.1)
                        continue
                    try:
                        result = Run(e, bench).train()
                    except Exception as error:  # the others go on
                        print(f"{e.name}: {error}", file=sys.stderr)
                        traceback.print_exc()
                        continue
                    finally:
                        bench.ended.add(e.name)
                    with writing:
                        steps += result["steps"]
                        print(json.dumps(result), file=results, flush=True)
                        print(f"{time.monotonic() - begin:6.0f} s  {e.name}: "
                              f"{result['psnr']:.3f} dB in {result['seconds']:.0f} s"
                              + ("" if result["finished"] else ", not finished"), flush=True)

        threads = [threading.Thread(target=work) for _ in range(slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = time.monotonic() - begin
    print(f"{steps:,} steps in {seconds:.0f} s, {steps / seconds:,.0f} a second; "
          f"{waiting.qsize()} experiments left")


if __name__ == "__main__":
    main()
