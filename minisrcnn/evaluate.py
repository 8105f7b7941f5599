"""Score a model on Y as the authors do, beside bicubic and the published figures.

Of a model of three channels the Y of its result is scored so, and R, G and B as well.

The known figures are of the authors' own models, measured with an independent float64
implementation of their protocol (``imaging/prepare.py`` says what that is). They guard every
score: where the bicubic row does not read the known figure, neither can the model's row mean
what it seems to, so no score is given for that set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import MinisrcnnError
from .imaging.color import pillow_luma, rgb2y
from .imaging.datasets import Dataset, verify
from .imaging.files import read_image
from .imaging.metrics import psnr, ssim
from .imaging.prepare import modcrop, prepare, prepare_rgb
from .imaging.resize import imresize

if TYPE_CHECKING:
    from .srcnn import SRCNN

Image = NDArray[Any]


@dataclass(frozen=True)
class Published:
    """Mean PSNR on Y over a data set at a scale, as published, dB.

    Attributes
    ----------
    bicubic : float
    models : dict
        The authors' models, by (architecture, training set).
    """

    bicubic: float
    models: dict[tuple[str, str], float]

    def of(self, arch: str | None = None) -> dict[str, float]:
        """Return the figures of the authors' models, of one architecture or all, by title.

        A title is ``"authors' 9-1-5, 91 images"``.
        """
        return {f"authors' {name}, {data}": value for (name, data), value in self.models.items()
                if arch in (None, name)}


# By (data set, scale), borders clamped as in the authors' MATLAB. Measured with their models;
# those marked m with mirrored borders, which is at most 0.006 dB off.
PUBLISHED: dict[tuple[str, int], Published] = {
    ("Set5", 2): Published(33.662, {
        ("9-1-5", "91 images"): 36.342,  # m
        ("9-5-5", "ImageNet"): 36.656,  # m
    }),
    ("Set14", 2): Published(30.233, {
        ("9-1-5", "91 images"): 32.176,  # m
        ("9-5-5", "ImageNet"): 32.454,  # m
    }),
    ("Set5", 3): Published(30.394, {
        ("9-1-5", "91 images"): 32.394,
        ("9-1-5", "ImageNet"): 32.516,  # m
        ("9-3-5", "ImageNet"): 32.658,
        ("9-5-5", "ImageNet"): 32.749,  # m
    }),
    ("Set14", 3): Published(27.543, {
        ("9-1-5", "91 images"): 29.000,
        ("9-1-5", "ImageNet"): 29.131,  # m
        ("9-3-5", "ImageNet"): 29.237,  # m
        ("9-5-5", "ImageNet"): 29.298,
    }),
    ("Set5", 4): Published(28.422, {
        ("9-1-5", "91 images"): 30.086,
        ("9-5-5", "ImageNet"): 30.489,
    }),
    ("Set14", 4): Published(26.003, {
        ("9-1-5", "91 images"): 27.202,  # m
        ("9-5-5", "ImageNet"): 27.502,  # m
    }),
}

# Above this the bicubic row is not the authors' bicubic. Rounding moves it by 0.0005 dB.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM on Y; ``ssim`` is NaN for a picture too small for its window.

    ``rgb`` is the PSNR over R, G and B together; None where the model restores Y alone.
    """

    psnr: float
    ssim: float
    rgb: float | None = None


@dataclass(frozen=True)
class Row:
    """One picture, or the mean over a set; ``model`` is None where bicubic alone was scored."""

    name: str
    bicubic: Score
    model: Score | None


@dataclass(frozen=True)
class Evaluation:
    """The scores of one data set at one scale.

    Attributes
    ----------
    name : str
        Of the data set.
    scale : int
    rows : list of Row
        One for each picture.
    published : Published or None
        Known mean PSNR; None where none is known.
    """

    name: str
    scale: int
    rows: list[Row]
    published: Published | None

    @property
    def mean(self) -> Row:
        """The mean of every column, as the published figures are means."""
        models = [row.model for row in self.rows if row.model is not None]
        return Row("mean", _mean([row.bicubic for row in self.rows]),
                   _mean(models) if models else None)

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as plain data: name, scale, images, mean, published_psnr.

        There is a key ``"rgb"`` where R, G and B were scored.
        """
        def scored(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value for key, value in items if key != "rgb" or value is not None}

        return {
            "name": self.name,
            "scale": self.scale,
            "images": [asdict(row, dict_factory=scored) for row in self.rows],
            "mean": asdict(self.mean, dict_factory=scored),
            "published_psnr": {} if self.published is None else
                              {"bicubic": self.published.bicubic} | self.published.of(),
        }


def evaluate(
    dataset: Dataset,
    scale: int,
    net: SRCNN | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score bicubic, and a network, on every picture of a data set.

    Parameters
    ----------
    dataset : Dataset
        From :func:`minisrcnn.imaging.datasets.load_dataset`.
    scale : int
        The factor by which pictures are made smaller and restored.
    net : SRCNN, optional
        A network of one channel, or of three, for RGB.
    progress : callable, optional
        Called with (pictures done, pictures in all).

    Raises
    ------
    TypeError, ValueError
        If ``scale`` is not an integer of at least 1.
    MinisrcnnError
        If the network has other than one or three channels; a picture cannot be read or is too
        small; or the set is Set5 or Set14 and its bicubic PSNR is more than 0.01 dB off the known
        figure: then the pictures are not the originals, and a score would mean nothing.
    """
    _check_channels(net, (1, 3))
    dtype = np.float32 if net is None else net.dtype
    rows = []
    for done, (title, path) in enumerate(zip(dataset.titles, dataset.paths, strict=True)):
        if progress is not None:
            progress(done, len(dataset))
        image = _colours(read_image(path), dataset)
        if min(image.shape[:2]) <= 3 * scale:
            raise MinisrcnnError(f"{path}: too small to score at scale {scale}")
        x, label = prepare(image, scale, dtype=dtype)
        bicubic = _score(x, label, scale)
        if net is None or net.channels == 1:
            model = None if net is None else _score(net.predict(x), label, scale)
        else:
            bicubic, model = _scores_of_rgb(image, scale, net, bicubic, label)
        rows.append(Row(title, bicubic, model))
    if progress is not None:
        progress(len(dataset), len(dataset))
    result = Evaluation(dataset.name, scale, rows, PUBLISHED.get((dataset.name, scale)))
    _check_bicubic(result, dataset)
    return result


def likely_scale(dataset: Dataset, scale: int, net: SRCNN) -> int | None:
    """Return another scale, if the network's gain over bicubic says that it is made for that one.

    A network of another scale sharpens too little or too much, so its gain is largest by far at
    its own. Tried are 2, 3 and 4, on the first two pictures of the data set.

    Raises
    ------
    MinisrcnnError
        As :func:`evaluate`, for a picture that cannot be read.
    """
    images = [_colours(read_image(path), dataset) for path in dataset.paths[:2]]
    scales = [s for s in {2, 3, 4, scale} if all(min(image.shape[:2]) > 3 * s for image in images)]
    gains = {}
    for s in scales:
        pairs = [prepare(image, s, dtype=net.dtype) for image in images]
        gains[s] = sum(psnr(net.predict(x), label, s) - psnr(x, label, s) for x, label in pairs)
    best = max(gains, key=lambda s: gains[s], default=scale)
    return best if scale in gains and gains[best] > gains[scale] + 0.2 * len(images) else None


def _check_channels(net: SRCNN | None, known: tuple[int, ...] = (1,)) -> None:
    if net is not None and net.channels not in known:
        raise MinisrcnnError(f"the model has {net.channels} channels, want "
                             f"{' or '.join(map(str, known))}")


def _scores_of_rgb(
    image: Image, scale: int, net: SRCNN, bicubic: Score, luma: Image
) -> tuple[Score, Score]:
    """Return the scores of bicubic, with RGB, and of a network of three channels."""
    x, label = prepare_rgb(image, scale, dtype=net.dtype)
    y = np.clip(net.predict(x), 0, 1)
    restored = _score(rgb2y(np.ascontiguousarray(np.moveaxis(y, 0, -1))), luma, scale)
    return (replace(bicubic, rgb=psnr(x, label, scale)),
            replace(restored, rgb=psnr(y, label, scale)))


def _check_bicubic(result: Evaluation, dataset: Dataset) -> None:
    """Refuse a score that could not be compared: the protocol's own control experiment."""
    if result.published is None:
        return
    known = result.published.bicubic
    off = result.mean.bicubic.psnr - known
    if abs(off) <= TOLERANCE:
        return
    if dataset.registered:
        pinned = verify(dataset.name, dataset.paths[0].parent.parent)
        changed = [status.path.name for status in pinned if status.status != "ok"]
        cause = (f"{', '.join(changed)} differ from the originals" if changed
                 else "the files are the originals, so a step before the network differs: "
                      "Y range, resizer, rounding or border (--protocol shows what each costs)")
    else:
        cause = "these are not the original pictures (resized, recompressed or others)"
    raise MinisrcnnError(
        f"{result.name}: no score, as bicubic reads {result.mean.bicubic.psnr:.3f} dB at scale "
        f"{result.scale} where {known:.3f} is known, {off:+.3f} dB off: {cause}"
    )


def _colours(image: Image, dataset: Dataset) -> Image:
    """Drop transparency; make grayscale RGB, as ``upscale`` does, but in the published data sets.

    There it is its own Y, as the authors had it.
    """
    if image.ndim == 3:
        return image[..., :3]
    if dataset.registered or dataset.name in {name for name, _ in PUBLISHED}:
        return image
    return np.repeat(image[..., None], 3, axis=2)


def _score(output: Image, label: Image, border: int) -> Score:
    small = min(label.shape) - 2 * border < 11  # SSIM's window
    return Score(psnr(output, label, border), math.nan if small else ssim(output, label, border))


def _mean(scores: list[Score]) -> Score:
    rgb = [s.rgb for s in scores if s.rgb is not None]
    return Score(sum(s.psnr for s in scores) / len(scores),
                 sum(s.ssim for s in scores) / len(scores),
                 sum(rgb) / len(rgb) if rgb else None)


# --- what each choice of the protocol costs -----------------------------------------------------


@dataclass(frozen=True)
class _Protocol:
    """The choices that papers and programs make differently; the defaults are the authors'."""

    luma: Callable[[Image], Image] = rgb2y
    resize: Callable[[Image, tuple[int, int]], Image] = (
        lambda image, size: imresize(image, output_size=size, border="clamp"))
    round_small: bool = False
    round_input: bool = False
    round_output: bool = True
    shave: bool = True

    def psnr(self, image: Image, scale: int, net: SRCNN | None) -> tuple[float, float]:
        """PSNR of bicubic and of the network; NaN without one."""
        luma = np.asarray(self.luma(image))
        label = modcrop(luma, scale).astype(np.float64) / 255
        H, W = label.shape
        small = self.resize(label, (H // scale, W // scale))
        x = self.resize(_rounded(small) if self.round_small else small, (H, W))
        x = _rounded(x) if self.round_input else x
        outputs = [x] if net is None else [x, net.predict(x.astype(net.dtype))]
        border = scale if self.shave else 0
        inside = (slice(border, H - border), slice(border, W - border))
        values = []
        for output in outputs:
            a = output[inside].astype(np.float64)
            a = _rounded(a) if self.round_output else a
            rmse = math.sqrt(np.mean((a - label[inside]) ** 2))
            values.append(-20 * math.log10(rmse) if rmse else math.inf)
        return values[0], values[-1] if net is not None else math.nan


@dataclass(frozen=True)
class Choice:
    """One choice made otherwise: mean PSNR in dB, and the change from the authors' protocol."""

    step: str
    choice: str
    bicubic: float
    bicubic_change: float
    model: float | None
    model_change: float | None


def explain_protocol(
    dataset: Dataset,
    scale: int,
    net: SRCNN | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Choice]:
    """Measure what each choice of the protocol is worth, one changed at a time.

    Every variant is run on the pictures themselves. The first is the authors' protocol.

    Parameters
    ----------
    dataset, scale, net, progress
        As for :func:`evaluate`.

    Raises
    ------
    MinisrcnnError
        As :func:`evaluate`, but for the bicubic control: this is where to see why it fails.
    """
    _check_channels(net)
    images = [_colours(read_image(path), dataset) for path in dataset.paths]
    for path, image in zip(dataset.paths, images, strict=True):
        if min(image.shape[:2]) <= 3 * scale:
            raise MinisrcnnError(f"{path}: too small to score at scale {scale}")
    variants = _variants()
    choices: list[Choice] = []
    for done, (step, choice, protocol) in enumerate(variants):
        if progress is not None:
            progress(done, len(variants))
        pairs = [protocol.psnr(image, scale, net) for image in images]
        bicubic, model = (sum(column) / len(images) for column in zip(*pairs, strict=True))
        first = choices[0] if choices else None
        choices.append(Choice(
            step, choice, bicubic, bicubic - first.bicubic if first else 0.0,
            None if net is None else model,
            None if net is None else model - (first.model or 0.0) if first else 0.0,
        ))
    if progress is not None:
        progress(len(variants), len(variants))
    return choices


def _variants() -> list[tuple[str, str, _Protocol]]:
    authors = _Protocol()
    return [
        ("", "the authors' protocol", authors),
        ("Y range", "full range 0..255 (JFIF, Pillow) for 16..235",
         replace(authors, luma=pillow_luma)),
        ("Y range", "Y not rounded to integers", replace(authors, luma=_float_y)),
        ("resizer", "borders mirrored (MATLAB since R2014), not clamped",
         replace(authors, resize=lambda image, size: imresize(image, output_size=size))),
        ("resizer", "cubic without antialiasing, a = -0.75 (OpenCV)",
         replace(authors, resize=_cubic_without_antialiasing)),
        ("resizer", "scipy.ndimage.zoom, cubic splines", replace(authors, resize=_spline)),
        ("resizer", "scipy.ndimage.zoom, prefilter=False",
         replace(authors, resize=lambda image, size: _spline(image, size, prefilter=False))),
        ("resizer", "Pillow, bicubic", replace(authors, resize=_pillow)),
        ("rounding", "small picture rounded to 8 bits", replace(authors, round_small=True)),
        ("rounding", "network's input rounded to 8 bits", replace(authors, round_input=True)),
        ("rounding", "output neither clipped nor rounded", replace(authors, round_output=False)),
        ("border", "nothing shaved off", replace(authors, shave=False)),
    ]


def _rounded(image: Image) -> Image:
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5) / 255


def _float_y(image: Image) -> Image:
    return rgb2y(image / 255.0) * 255 if image.ndim == 3 else image


def _spline(image: Image, size: tuple[int, int], prefilter: bool = True) -> Image:
    from scipy.ndimage import zoom

    factors = (size[0] / image.shape[0], size[1] / image.shape[1])
    return zoom(image, factors, prefilter=prefilter)


def _pillow(image: Image, size: tuple[int, int]) -> Image:
    from PIL import Image as pillow

    picture = pillow.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize(size[::-1], pillow.Resampling.BICUBIC), np.float64)


def _cubic_without_antialiasing(image: Image, size: tuple[int, int]) -> Image:
    """Keys' cubic with a = -3/4 through the four nearest pixels, even where the image shrinks."""
    a = -0.75
    for axis in (0, 1):
        n = image.shape[axis]
        centre = (np.arange(size[axis]) + 0.5) * n / size[axis] - 0.5
        nearest = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
        t = np.abs(centre[:, None] - nearest)
        weights = np.where(t <= 1, ((a + 2) * t - (a + 3)) * t * t + 1,
                           ((a * t - 5 * a) * t + 8 * a) * t - 4 * a)
        taken = np.take(image, np.clip(nearest, 0, n - 1), axis=axis)
        letters = "ikj,ik->ij" if axis == 0 else "jik,ik->ji"
        image = np.einsum(letters, taken, weights)
    return image
