"""Recipes: everything about a training but the pictures, the scale, the network and the seed.

``notes`` is the design notes' own, ``paper`` the authors', ``fast`` ours. A recipe is a handful
of numbers; ``docs/training.md`` says where each comes from and what it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from ..arguments import check_integer, check_number
from ..errors import MinisrcnnError

#: Output pixels of a patch of the paper: 33x33 in, 21x21 out.
PAPER_PIXELS = 21 * 21

#: What a learning rate of the authors' Caffe loss is in ours. Theirs sums over the P pixels of a
#: patch and halves, ours is the mean, B patches both::
#:
#:     L_caffe = 1/(2B) sum (y - t)^2        L = 1/(B P) sum (y - t)^2
#:     L_caffe = (P / 2) L,  so   lr_caffe dL_caffe/dw = (lr_caffe P / 2) dL/dw
CAFFE_TO_MEAN = PAPER_PIXELS / 2


_MOST = 2**31 - 1  # of what is counted

_CHOICES = {
    "degradation": ("bicubic", "bicubic-mirror", "zoom"),
    "augment": (False, True),
    "init": ("normal", "he", "identity"),
    "optimizer": ("sgd", "adam", "dct-adam", "muon"),
    "schedule": ("constant", "cosine"),
}


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    name, about : str
    degradation : {"bicubic", "bicubic-mirror", "zoom"}
        See :func:`minisrcnn.imaging.prepare.prepare`.
    input_size, stride : int
        Pixels of a patch, and between patches. The label is what the network's output covers.
    rescaled : tuple of float
        Patches are also cut from copies of the pictures made so many times their size: bicubic,
        in (0, 1).
    augment : bool
        Whether each patch is flipped and rotated at random, anew in every epoch.
    balance : float
        0: every patch comes once in an epoch. Above: as many are drawn at random, in proportion to
        ``(mean squared error of their picture's input)^-balance``. A score is a mean of the
        logarithms of the pictures' errors, whose gradient weighs each picture by one over its
        error: that is 1.
    init : {"normal", "he", "identity"}
        "normal" and "he" as in :class:`minisrcnn.Conv2d`; "identity": see
        :func:`minisrcnn.training.network.initialise`.
    optimizer : {"sgd", "adam", "dct-adam", "muon"}
        The last two: see :class:`minisrcnn.engine.optim.DCTAdam` and
        :class:`~minisrcnn.engine.optim.Muon`.
    lr : float
        At the start, of all layers but the last; for the loss that is a mean over all pixels.
    last_lr : float
        The last layer's learning rate, as a fraction of ``lr``.
    momentum : float
        Of SGD.
    schedule : {"constant", "cosine"}
        How the learning rate goes: "cosine" falls from 1 to 0 over the training as half a wave.
    warmup : int
        Steps over which it first rises, in proportion to the step; a factor beside the schedule.
    batch, epochs : int
        Patches a step; passes over all patches.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong type or out of range.
    """

    name: str
    about: str
    degradation: str = "bicubic"
    input_size: int = 33
    stride: int = 14
    rescaled: tuple[float, ...] = ()
    augment: bool = False
    balance: float = 0.0
    init: str = "normal"
    optimizer: str = "sgd"
    lr: float = 1e-4 * CAFFE_TO_MEAN
    last_lr: float = 1.0
    momentum: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    batch: int = 128
    epochs: int = 100

    def __post_init__(self) -> None:
        for name in ("input_size", "stride", "batch", "epochs"):
            check_integer(name, getattr(self, name), 1, _MOST)
        check_integer("warmup", self.warmup, 0, _MOST)
        for name in ("lr", "last_lr", "momentum", "balance"):
            check_number(name, getattr(self, name), 0)
        for factor in self.rescaled:
            check_number("rescaled", factor, 0, 1)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, want one of "
                                 f"{', '.join(map(str, choices))}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from what ``dataclasses.asdict`` gave; MinisrcnnError if it is not one."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise MinisrcnnError(f"the recipe of this run is of another version (differs in {odd})")
        return cls(**values | {"rescaled": tuple(values["rescaled"])})

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, of a training of ``steps``."""
        lr = self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr
        if self.schedule == "constant":
            return lr
        return lr * (1 + math.cos(math.pi * step / steps)) / 2

    def rates(self, layers: Iterable[str], step: int, steps: int) -> dict[str, float]:
        """Return the learning rate of each layer, ``"conv1"`` and so on, first to last."""
        layers = list(layers)
        rate = self.rate(step, steps)
        return dict.fromkeys(layers, rate) | {layers[-1]: rate * self.last_lr}


RECIPES = {recipe.name: recipe for recipe in (
    Recipe(
        "fast", "minutes on two cores: Muon and Adam, from a network that is bicubic to begin with",
        rescaled=(0.9, 0.8, 0.7, 0.6), augment=True, balance=1.0, init="identity",
        optimizer="muon", lr=4e-3, last_lr=0.1, schedule="cosine", batch=16, epochs=10,
    ),
    Recipe(
        "deep", "the same for 9-3-5 and 9-5-5: a quarter of the rate, reached in a thousand steps",
        rescaled=(0.9, 0.8, 0.7, 0.6), augment=True, balance=1.0, init="identity",
        optimizer="muon", lr=1e-3, last_lr=0.1, schedule="cosine", warmup=1000, batch=16,
        epochs=15,
    ),
    Recipe(
        "adam", "Adam alone, on the pictures as they are",
        augment=True, init="identity", optimizer="adam", lr=2e-3, last_lr=0.1, schedule="cosine",
        batch=16, epochs=25,
    ),
    Recipe(
        "paper", "the authors' protocol: momentum 0.9, the last layer a tenth as fast",
        last_lr=0.1, momentum=0.9, epochs=300,
    ),
    Recipe(
        "notes", "the design notes: zoom degradation, normal 1e-3, plain gradient descent",
        degradation="zoom", lr=0.05,
    ),
)}

DEFAULT = "fast"


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises
    ------
    MinisrcnnError
        If there is none.
    """
    if name not in RECIPES:
        raise MinisrcnnError(f"recipe is {name!r}, want one of {', '.join(RECIPES)}")
    return RECIPES[name]
