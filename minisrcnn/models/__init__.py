"""The models that come with the package: what there is, and which one serves a factor.

Each is a safetensors file with a card, a text that says what it was trained on, how, and what it
scores. ``registry.json`` lists them with the SHA-256 of their files.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent

#: The largest factor: two models of x4, one after the other.
LARGEST = 16

# A factor is at times a quotient of two sizes.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ShippedModel:
    """One model of the package.

    Attributes
    ----------
    name : str
        Such as ``"9-1-5-x3"``; what ``--model`` takes.
    scale : int
    arch : str
    channels : int
        1: restores Y. 3: RGB.
    default : bool
        Whether it is what its scale gets where no model is named.
    sha256 : str
        Of the file.
    psnr : dict of str to float
        Mean PSNR on Y in dB, by data set; for a model of three channels on RGB.
    """

    name: str
    scale: int
    arch: str
    channels: int
    default: bool
    sha256: str
    psnr: dict[str, float]

    @property
    def path(self) -> Path:
        """The model's file."""
        return FOLDER / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        """The model's card, Markdown."""
        return FOLDER / f"{self.name}.md"


@cache
def shipped_models() -> tuple[ShippedModel, ...]:
    """Return the models of the package, in the order of the registry."""
    entries = json.loads((FOLDER / "registry.json").read_text(encoding="utf-8"))
    return tuple(ShippedModel(**entry) for entry in entries)


def find_model(name: str) -> ShippedModel | None:
    """Return the model of that name, None where there is none."""
    return next((model for model in shipped_models() if model.name == name), None)


def default_model(scale: int) -> ShippedModel | None:
    """Return the model that a scale gets where none is named; None where there is none."""
    return next((model for model in shipped_models() if model.default and model.scale == scale),
                None)


def models_for(factor: float) -> list[ShippedModel]:
    """Return the fewest models that, one after the other, enlarge at least ``factor`` times.

    Of as few, the pair that enlarges least: x5 and x6 are x3 and x2, and what is more than
    ``factor`` is for the caller to resize down.

    Raises
    ------
    ValueError
        If ``factor`` is not in [1, 16].
    """
    if not 1 <= factor <= LARGEST * (1 + _ROUNDING):
        raise ValueError(f"factor is {factor:g}, want 1 to {LARGEST}")
    models = [model for model in shipped_models() if model.default]
    chains = [[model] for model in models]
    chains += [[first, then] for first in models for then in models if first.scale >= then.scale]

    def reach(chain: list[ShippedModel]) -> int:
        return math.prod(model.scale for model in chain)

    enough = [chain for chain in chains if reach(chain) * (1 + _ROUNDING) >= factor]
    return min(enough, key=lambda chain: (len(chain), reach(chain)))
