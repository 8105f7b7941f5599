"""What a training is asked for, and the plan that follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..arguments import check_integer
from ..checkpoint import RUNS
from ..errors import MinisrcnnError
from .recipes import DEFAULT, Recipe, get_recipe

#: Bytes of degraded pictures that are kept.
MEMORY = 2_000_000_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainSettings:
    """What ``minisrcnn train`` is asked for; None is "not said".

    With ``resume``, what is not said is as the run began, and what is said must agree with it.

    Attributes
    ----------
    data : str, optional
        ``"T91"``, or a folder: of pictures, or one that holds ``T91/``; or a packed set. By
        default T91, and where it cannot be had, the photographs of scikit-image.
    scale : int, optional
        3 by default.
    arch : str, optional
        ``"9-1-5"`` by default.
    recipe : str, optional
        See :mod:`minisrcnn.recipes`.
    degradation : {"bicubic", "bicubic-mirror", "zoom"}, optional
        Instead of the recipe's; see :func:`minisrcnn.imaging.prepare.prepare`.
    epochs, batch_size : int, optional
        Instead of the recipe's.
    rgb : bool, optional
        Train one network of three channels on RGB, instead of one on Y.
    backend : str, optional
        ``"auto"`` by default.
    seed : int, optional
        0 by default.
    out : path, optional
        The run's folder; ``runs/RECIPE-ARCH-xSCALE`` by default, for RGB with ``-rgb``.
    resume : bool
        Go on from the checkpoint in ``out``.
    threads : int, optional
        Of the numba backend; the result does not depend on it.
    max_minutes : float, optional
        Stop after so long, saved, as if interrupted but without an error.
    checkpoint_seconds : float
        How often to save.
    memory : int
        Bytes of degraded pictures that are kept; the result does not depend on it.
    """

    data: str | None = None
    scale: int | None = None
    arch: str | None = None
    recipe: str | None = None
    degradation: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    rgb: bool | None = None
    backend: str | None = None
    seed: int | None = None
    out: Path | None = None
    resume: bool = False
    threads: int | None = None
    max_minutes: float | None = None
    checkpoint_seconds: float = 10.0
    memory: int = MEMORY


@dataclass(frozen=True)
class Plan:
    """What decides every bit of the result, beside the pictures: kept in the checkpoint."""

    data: str | None
    scale: int
    arch: str
    seed: int
    backend: str
    recipe: Recipe
    channels: int = 1

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read back what ``to_json`` wrote; ValueError or the like where it is something else."""
        values = json.loads(text)
        plan = cls(**values | {"recipe": Recipe.from_dict(values["recipe"])})
        check_integer("scale", plan.scale, 2, 16)
        check_integer("seed", plan.seed, 0)
        texts = (plan.arch, plan.backend, plan.recipe.name, plan.recipe.about)
        if not (check_integer("channels", plan.channels) in (1, 3)
                and isinstance(plan.data, str | None)
                and all(isinstance(text, str) for text in texts)):
            raise ValueError("not a plan")
        return plan

    def to_json(self) -> str:
        """Write the plan as one line."""
        return json.dumps(asdict(self))


def new_plan(settings: TrainSettings) -> Plan:
    """Return the plan of a training that begins, with defaults for what was not said."""
    recipe = get_recipe(settings.recipe or DEFAULT)
    asked: dict[str, Any] = {"degradation": settings.degradation, "epochs": settings.epochs,
             "batch": settings.batch_size}
    try:
        recipe = replace(recipe, **{k: v for k, v in asked.items() if v is not None})
    except (TypeError, ValueError) as error:
        raise MinisrcnnError(str(error)) from None
    return Plan(
        settings.data, 3 if settings.scale is None else settings.scale,
        settings.arch or "9-1-5", settings.seed or 0, settings.backend or "auto", recipe,
        3 if settings.rgb else 1,
    )


def resumed_plan(settings: TrainSettings, old: Plan) -> Plan:
    """Return the plan of a training that goes on; refuse what differs from how it began."""
    asked = {
        "scale": (settings.scale, old.scale),
        "arch": (settings.arch, old.arch), "recipe": (settings.recipe, old.recipe.name),
        "degradation": (settings.degradation, old.recipe.degradation),
        "epochs": (settings.epochs, old.recipe.epochs),
        "batch-size": (settings.batch_size, old.recipe.batch), "seed": (settings.seed, old.seed),
        "rgb": (settings.rgb, old.channels == 3),
        "backend": (None if settings.backend == "auto" else settings.backend, old.backend),
    }
    for name, (value, was) in asked.items():
        if value is not None and value != was:
            raise MinisrcnnError(f"--resume with --{name} {value}, but this run began with "
                                 f"{was}: leave it out, or train anew into another --out")
    # The pictures may have moved; that they are the same ones is checked when they are read.
    return replace(old, data=settings.data if settings.data is not None else old.data)


def run_folder(settings: TrainSettings) -> Path:
    """Return the folder of a run: ``--out``, else ``runs/RECIPE-ARCH-xSCALE``."""
    if settings.out is not None:
        return Path(settings.out)
    plan = new_plan(settings)
    rgb = "-rgb" if plan.channels == 3 else ""
    return RUNS / f"{plan.recipe.name}-{plan.arch}-x{plan.scale}{rgb}"
