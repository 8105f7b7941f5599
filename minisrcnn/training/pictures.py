"""The pictures of a training: what is trained on, and what is scored."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError
from ..evaluate import PUBLISHED, TOLERANCE, Published
from ..imaging.datasets import Dataset, fallback_photographs, load_dataset, load_datasets
from ..imaging.files import read_image
from ..imaging.metrics import psnr
from ..imaging.patches import patch_index
from ..imaging.prepare import prepare, prepare_rgb
from ..imaging.resize import imresize
from ..srcnn import SRCNN, parse_arch
from .ranks import Ranks
from .settings import Plan, Say

Image = NDArray[np.float32]

# No picture is drawn from more often than the median one by this factor, to the power of balance.
_MOST_OFTEN = 20

# Where neither Set5 nor a data set is at hand, these photographs are scored, not trained on.
_HELD_OUT = ("astronaut", "chelsea", "coffee")


@dataclass(frozen=True)
class Data:
    """The pictures, prepared.

    Attributes
    ----------
    name : str
    inputs, labels : sequences of (H, W) arrays
        (3, H, W) for a network of three channels.
    index : (P, 3) array
        Where the patches are; see :func:`minisrcnn.imaging.patches.patch_index`.
    checksum : int
        Of all labels.
    chances : (P,) array, optional
        With what probability each patch is drawn, where not each comes once an epoch.
    """

    name: str
    inputs: Sequence[Image]
    labels: Sequence[Image]
    index: NDArray[np.intp]
    checksum: int
    chances: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Validation:
    """Pictures to score as training goes.

    Attributes
    ----------
    name : str
    titles, inputs, labels : sequences
    bicubic : float
        Mean PSNR of the inputs as they are, dB.
    published : Published or None
        Figures that the score compares with.
    """

    name: str
    titles: Sequence[str]
    inputs: Sequence[Image]
    labels: Sequence[Image]
    scale: int
    bicubic: float
    published: Published | None

    @property
    def comparable(self) -> bool:
        """Whether the score compares with published ones."""
        return self.published is not None

    def score(self, net: SRCNN, ranks: Ranks) -> float:
        """Return the mean PSNR of a network, dB; the ranks share out the pictures.

        Raises
        ------
        ValueError
            If an output is not finite.
        """
        first, last = ranks.share(len(self.inputs))
        mine = np.full((last - first, 1), np.nan)
        with contextlib.suppress(ValueError):  # raised below, on all ranks
            for i in range(first, last):
                mine[i - first] = psnr(net.predict(self.inputs[i]), self.labels[i], self.scale)
        scores = ranks.gather(mine, len(self.inputs))
        if np.isnan(scores).any():
            raise ValueError("the network's output is not finite")
        return sum(map(float, scores[:, 0])) / len(scores)


def load_data(plan: Plan, say: Say) -> tuple[Data, Validation, Plan]:
    """Load and prepare what is trained on and what is scored.

    Returns the plan too: its batch is no larger than the number of patches.

    Raises
    ------
    MinisrcnnError
        If there are no pictures, or none with a patch in it.
    """
    try:
        kernels = parse_arch(plan.arch)
    except ValueError as error:
        raise MinisrcnnError(str(error)) from None
    size, label_size = plan.recipe.input_size, plan.recipe.input_size + sum(1 - k for k in kernels)
    if any(k % 2 == 0 for k in kernels) or label_size < 1:
        raise MinisrcnnError(f"--arch {plan.arch}: training wants odd kernels that leave some of "
                             f"a patch of {size}x{size}")
    train_set, scored = _sets(plan, say)
    pairs = _prepared(train_set, plan, say, plan.recipe.rescaled)
    inputs, labels = [x for x, _ in pairs], [t for _, t in pairs]
    index = patch_index([x if x.ndim == 2 else x[0] for x in inputs], size, plan.recipe.stride)
    if not len(index):
        raise MinisrcnnError(f"{train_set.name}: no picture has {size}x{size} pixels, the size "
                             "of a patch")
    if len(index) < plan.recipe.batch:
        say(f"Only {len(index)} patches: steps take that many, not {plan.recipe.batch}.")
        plan = replace(plan, recipe=replace(plan.recipe, batch=len(index)))
    checksum = 0
    for label in labels:
        checksum = zlib.crc32(np.ascontiguousarray(label), checksum)
    data = Data(train_set.name, inputs, labels, index, checksum,
                _chances(inputs, labels, index, plan))
    return data, load_validation(scored, plan, say), plan


def _chances(
    inputs: Sequence[Image], labels: Sequence[Image], index: NDArray[np.intp], plan: Plan
) -> NDArray[np.float64] | None:
    """Return the probability of each patch; see :attr:`.Recipe.balance`."""
    if not plan.recipe.balance:
        return None
    errors = np.array([10 ** (-psnr(x, t, plan.scale) / 10)
                       for x, t in zip(inputs, labels, strict=True)])
    # A picture of a single colour has none: nothing is left to learn from it.
    errors = np.maximum(errors, np.median(errors) / _MOST_OFTEN)
    chances = errors[index[:, 0]] ** -plan.recipe.balance
    return chances / chances.sum()


def _sets(plan: Plan, say: Say) -> tuple[Dataset, Dataset]:
    """Return the pictures to train on and those to score."""
    folder = None
    if plan.data is not None:
        (train_set,) = load_datasets([plan.data], ("T91",))
        folder = plan.data if Path(plan.data, "Set5").is_dir() else None
    else:
        try:
            train_set = _found_or_fetched("T91", say)
        except MinisrcnnError as error:
            say(f"NO T91: {error}.")
            say("TRAINING ON SCIKIT-IMAGE'S PHOTOGRAPHS INSTEAD: good for trying things out; "
                "scores do not compare with published ones. (--data T91 fails instead.)")
            photographs = fallback_photographs()
            train_set = replace(photographs, paths=tuple(
                p for p in photographs.paths if p.stem not in _HELD_OUT))
    try:
        if plan.data is None and train_set.registered:
            return train_set, _found_or_fetched("Set5", say)
        return train_set, load_dataset("Set5", data_dir=folder, download=False)
    except MinisrcnnError as error:
        say(f"No Set5 ({error}): scoring photographs of scikit-image instead.")
    photographs = fallback_photographs()
    return train_set, Dataset("scikit-image photographs, held out", tuple(
        p for p in photographs.paths if p.stem in _HELD_OUT))


def _found_or_fetched(name: str, say: Say) -> Dataset:
    try:
        return load_dataset(name, download=False)
    except MinisrcnnError:
        say(f"{name} is not here: downloading it.")
        return load_dataset(name)


def _prepared(
    dataset: Dataset, plan: Plan, say: Say, rescaled: Sequence[float] = ()
) -> list[tuple[Image, Image]]:
    """Read and degrade pictures; what cannot be read or is too small is skipped with a warning.

    Each picture is followed by the rescaled copies of it that are large enough.
    """
    pairs, ready = [], prepare if plan.channels == 1 else prepare_rgb
    for path in dataset.paths:
        try:
            image = read_image(path)
            if min(image.shape[:2]) < 2 * plan.scale:
                raise MinisrcnnError(f"{path}: too small for scale {plan.scale}")
        except MinisrcnnError as error:
            say(f"Skipped: {error}")
            continue
        image = image[..., :3] if image.ndim == 3 else image
        pairs.append(ready(image, plan.scale, plan.recipe.degradation))
        H, W = image.shape[:2]
        for factor in rescaled:
            size = round(factor * H), round(factor * W)
            if min(size) >= 2 * plan.scale:
                copy = imresize(image, output_size=size)
                pairs.append(ready(copy, plan.scale, plan.recipe.degradation))
    if not pairs:
        raise MinisrcnnError(f"{dataset.name}: none of its pictures can be used")
    return pairs


def load_validation(dataset: Dataset, plan: Plan, say: Say) -> Validation:
    """Prepare the pictures to score; published figures only where a score compares with them."""
    pairs = _prepared(dataset, plan, say)
    inputs, labels = [x for x, _ in pairs], [t for _, t in pairs]
    bicubic = _mean_psnr(inputs, labels, plan.scale)
    published = PUBLISHED.get((dataset.name, plan.scale))
    if plan.recipe.degradation != "bicubic" or plan.channels != 1 or not dataset.registered:
        published = None
    elif published and abs(bicubic - published.bicubic) > TOLERANCE:
        say(f"Bicubic reads {bicubic:.3f} dB on {dataset.name} where {published.bicubic:.3f} is "
            "known: its files are not the originals, and scores do not compare.")
        published = None
    return Validation(dataset.name, dataset.titles, inputs, labels, plan.scale, bicubic, published)


def _mean_psnr(outputs: Sequence[Image], labels: Sequence[Image], scale: int) -> float:
    scores = [psnr(y, t, scale) for y, t in zip(outputs, labels, strict=True)]
    return sum(scores) / len(scores)
