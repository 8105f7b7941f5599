"""The pictures of a training: what is trained on, and what is scored."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError
from ..evaluate import PUBLISHED, TOLERANCE, Published
from ..imaging.datasets import (
    Dataset,
    dataset_name,
    fallback_photographs,
    load_dataset,
    load_datasets,
)
from ..imaging.files import read_image
from ..imaging.metrics import psnr
from ..imaging.packed import PackedSet
from ..imaging.patches import PatchIndex, augment, gather
from ..imaging.prepare import (
    degrade,
    luma_of,
    planes,
    prepare,
    prepare_rgb,
    rgb_planes,
    to_unit,
)
from ..srcnn import SRCNN, parse_arch
from .kept import KeptImages
from .order import WINDOW, Numbers
from .ranks import Ranks
from .settings import MEMORY, Plan, Say

Image = NDArray[np.float32]
Plane = NDArray[np.uint8]

# No picture is drawn from more often than the median one by this factor, to the power of balance.
_MOST_OFTEN = 20

# Where neither Set5 nor a data set is at hand, these photographs are scored, not trained on.
_HELD_OUT = ("astronaut", "chelsea", "coffee")


def _expect_nothing(now: Numbers, soon: Numbers) -> None:
    """Take no notice of which pictures are needed."""


@dataclass(frozen=True)
class Data:
    """The pictures that are trained on.

    Attributes
    ----------
    name : str
    inputs : sequence of float32 (H, W) arrays
        Degraded when they are asked for; (3, H, W) for a network of three channels.
    labels : sequence of uint8 (H, W) arrays
        Or (3, H, W); see :func:`minisrcnn.imaging.prepare.to_unit`.
    index : PatchIndex
        Where the patches are.
    checksum : int
        Of the pictures.
    weights : (I,) array, optional
        How often patches of each picture are drawn, up to a factor; without, each comes once an
        epoch.
    expect : callable
        To be told which pictures are needed now, and which next.
    close : callable
        To be called at the end.
    """

    name: str
    inputs: Sequence[Image]
    labels: Sequence[Plane]
    index: PatchIndex
    checksum: int
    weights: NDArray[np.float64] | None = None
    expect: Callable[[Numbers, Numbers], None] = _expect_nothing
    close: Callable[[], None] = field(default=lambda: None)

    def patches(
        self, numbers: Numbers, codes: Numbers | None, size: int, padding: int
    ) -> tuple[Image, Image]:
        """Return inputs (N, C, size, size), and labels without ``padding`` pixels on each side.

        Parameters
        ----------
        numbers : (N,) array of int
            Rows of the index.
        codes : (N,) array of int in 0..7, or None
            How they are flipped and rotated; see :func:`minisrcnn.imaging.patches.augment`.
        """
        rows = self.index[numbers]

        def cut(images: Sequence[NDArray[Any]], size: int, offset: int) -> NDArray[Any]:
            patches = gather(images, rows, size, offset=offset)
            C = math.prod(patches.shape[1:-2])  # no -1 below: there may be no patches
            patches = patches.reshape(len(rows), C, size, size)
            if codes is None:
                return patches
            turned = augment(patches.reshape(-1, size, size), np.repeat(codes, patches.shape[1]))
            return turned.reshape(patches.shape)

        return cut(self.inputs, size, 0), to_unit(cut(self.labels, size - 2 * padding, padding))


class Planes(Protocol):
    """Pictures and copies of them, luma or RGB: in memory, or in a :class:`PackedSet`."""

    shapes: NDArray[np.int64]

    def plane(self, number: int) -> Plane:
        """Return a plane, (H, W) or (3, H, W)."""

    def digest(self, number: int) -> bytes:
        """Return the SHA-256 of its pixels."""

    def check(self, number: int) -> None:
        """Raise MinisrcnnError if it is damaged."""

    def release(self) -> None:
        """Free what can be had again."""


class LoadedPlanes:
    """Planes in memory."""

    def __init__(self, planes: Sequence[Plane]) -> None:
        self._planes = planes
        self.shapes = np.array([plane.shape[-2:] for plane in planes], np.int64).reshape(-1, 2)

    def plane(self, number: int) -> Plane:
        """Return a plane, (H, W) or (3, H, W)."""
        return self._planes[number]

    def digest(self, number: int) -> bytes:
        """Return the SHA-256 of its pixels."""
        return hashlib.sha256(np.ascontiguousarray(self._planes[number])).digest()

    def check(self, number: int) -> None:
        """Do nothing: it is not damaged."""

    def release(self) -> None:
        """Do nothing: it could not be had again."""


class _Labels(Sequence[Plane]):
    """Some of the planes, cropped to multiples of the scale: views."""

    def __init__(self, source: Planes, numbers: Numbers, shapes: NDArray[np.int64]) -> None:
        self._source, self._numbers, self._shapes = source, numbers.tolist(), shapes.tolist()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        H, W = self._shapes[number]
        return self._source.plane(self._numbers[number])[..., :H, :W]


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


def load_data(
    plan: Plan, say: Say, memory: int = MEMORY
) -> tuple[Data, Validation, Plan]:
    """Load what is trained on and what is scored.

    Returns the plan too: its batch is no larger than the number of patches. Of the degraded
    pictures ``memory`` bytes are kept.

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
    source, numbers = (
        _packed_planes(train_set, plan, say) if isinstance(train_set, PackedSet)
        else _loaded_planes(train_set, plan, say))
    data = _data(train_set.name, source, numbers, plan, memory)
    patches = len(data.index)
    if not patches:
        raise MinisrcnnError(f"{data.name}: no picture has {size}x{size} pixels, the size "
                             "of a patch")
    if patches < plan.recipe.batch:
        say(f"Only {patches} patches: steps take that many, not {plan.recipe.batch}.")
        plan = replace(plan, recipe=replace(plan.recipe, batch=patches))
    shuffled = 4 * plan.channels * min(int(data.index.shapes.prod(axis=1).sum()), WINDOW)
    if memory < shuffled:
        say(f"Warning: --memory is {memory / 1e6:,.0f} MB, want {shuffled / 1e6:,.0f} MB for the "
            "pictures that are shuffled together: they are degraded again and again, which is "
            "slow.")
    if plan.recipe.balance:
        if data.index.shapes.prod(axis=1).sum() > WINDOW:
            say(f"Degrading {len(data.labels):,} pictures and copies once, to see how well bicubic "
                f"does on each (recipe {plan.recipe.name} has balance).")
        data = replace(data, weights=_weights(data, plan, source.release))
    return data, load_validation(scored, plan, say), plan


def _weights(data: Data, plan: Plan, release: Callable[[], None]) -> NDArray[np.float64]:
    """Return how often patches of each picture are drawn; see :attr:`.Recipe.balance`."""
    errors = np.full(len(data.labels), np.nan)
    for i, label in enumerate(data.labels):
        if min(label.shape[-2:]) > 2 * plan.scale:  # else there is nothing left within the border
            errors[i] = 10 ** (-psnr(data.inputs[i], label, plan.scale) / 10)
        if i % 256 == 255:
            release()
    # A picture of a single colour has none: nothing is left to learn from it.
    errors = np.maximum(errors, np.nanmedian(errors) / _MOST_OFTEN)
    return np.nan_to_num(errors ** -plan.recipe.balance)


def _data(name: str, source: Planes, numbers: Numbers, plan: Plan, memory: int) -> Data:
    """Return what is trained on, from these of the planes."""
    scale, degradation = plan.scale, plan.recipe.degradation
    shapes = source.shapes[numbers]
    digest = hashlib.sha256(shapes.astype("<i8").tobytes())
    for number in numbers.tolist():
        digest.update(source.digest(number))
    shapes = shapes // scale * scale
    labels = _Labels(source, numbers, shapes)

    def make(number: int) -> Image:
        source.check(int(numbers[number]))
        return degrade(to_unit(labels[number]), scale, degradation)

    inputs = KeptImages(make, 4 * plan.channels * shapes.prod(axis=1), memory)

    def expect(now: Numbers, soon: Numbers) -> None:
        source.release()
        inputs.expect(now, soon)

    index = PatchIndex(shapes, plan.recipe.input_size, plan.recipe.stride)
    return Data(name, inputs, labels, index, int.from_bytes(digest.digest()[:4], "big"),
                expect=expect, close=inputs.close)


def _loaded_planes(dataset: Dataset, plan: Plan, say: Say) -> tuple[Planes, Numbers]:
    """Read pictures; each is followed by the rescaled copies of it that are large enough."""
    convert = rgb_planes if plan.channels == 3 else luma_of(plan.recipe.degradation)
    loaded = LoadedPlanes([
        plane for image in _images(dataset, plan, say, 2 * plan.scale)
        for _, plane in planes(image, plan.recipe.rescaled, 2 * plan.scale, convert)])
    return loaded, np.arange(len(loaded.shapes))


def _packed_planes(packed: PackedSet, plan: Plan, say: Say) -> tuple[Planes, Numbers]:
    """Choose the same planes from a packed set, in the same order."""
    recipe = plan.recipe
    if plan.channels == 3:
        raise MinisrcnnError(f"{packed.path}: holds luma, and --rgb wants colours: train on the "
                             "folder of the pictures")
    if recipe.degradation == "zoom":
        raise MinisrcnnError(f"{packed.path}: holds the luma of MATLAB, and degradation zoom wants "
                             "that of Pillow: train on the folder of the pictures")
    lacking = [f"{factor:g}" for factor in recipe.rescaled if factor not in packed.factors]
    if lacking:
        raise MinisrcnnError(f"{packed.path}: has no copies at {', '.join(lacking)} of the "
                             f"pictures' size, which recipe {recipe.name} trains on: pack it with "
                             "--copies, or use --recipe adam")
    place = np.full(len(packed.factors) + 1, -1)
    place[0] = 0
    for i, factor in enumerate(recipe.rescaled, 1):
        place[1 + packed.factors.index(factor)] = i
    large = packed.shapes.min(axis=1) >= 2 * plan.scale
    small = np.flatnonzero(~large & (packed.size == 0))
    if len(small):
        more = f" and {len(small) - 1:,} more" if len(small) > 1 else ""
        say(f"Skipped: {packed.names[packed.picture[small[0]]]}{more}: too small for scale "
            f"{plan.scale}")
    # A picture that is too small is skipped with its copies: they are smaller still.
    numbers = np.flatnonzero(large & (place[packed.size] >= 0))
    if not len(numbers):
        raise MinisrcnnError(f"{packed.path}: none of its pictures can be used")
    return packed, numbers[np.lexsort((place[packed.size[numbers]], packed.picture[numbers]))]


def _sets(plan: Plan, say: Say) -> tuple[Dataset | PackedSet, Dataset]:
    """Return the pictures to train on and those to score."""
    folder = None
    train_set: Dataset | PackedSet
    if plan.data is not None and Path(plan.data).expanduser().is_file():
        train_set = PackedSet(Path(plan.data).expanduser())
    elif plan.data is not None:
        if not Path(plan.data).expanduser().is_dir() and dataset_name(plan.data) is None:
            raise MinisrcnnError(f"{plan.data}: neither a folder nor a packed set nor T91")
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
        if isinstance(train_set, Dataset) and plan.data is None and train_set.registered:
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


def _images(
    dataset: Dataset, plan: Plan, say: Say, least: int
) -> Iterator[NDArray[np.uint8]]:
    """Read pictures; what cannot be read or has fewer rows or columns is skipped with a warning."""
    read = 0
    for path in dataset.paths:
        try:
            image = read_image(path)
            if min(image.shape[:2]) < least:
                raise MinisrcnnError(f"{path}: too small for scale {plan.scale}")
        except MinisrcnnError as error:
            say(f"Skipped: {error}")
            continue
        read += 1
        yield image[..., :3] if image.ndim == 3 else image
    if not read:
        raise MinisrcnnError(f"{dataset.name}: none of its pictures can be used")


def load_validation(dataset: Dataset, plan: Plan, say: Say) -> Validation:
    """Prepare the pictures to score; published figures only where a score compares with them."""
    ready = prepare if plan.channels == 1 else prepare_rgb
    # A score leaves out as many pixels as the scale on each side: more than that must be there.
    pairs = [ready(image, plan.scale, plan.recipe.degradation)
             for image in _images(dataset, plan, say, 3 * plan.scale)]
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
