"""One picture file to another, with all that it carries."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError
from ..imaging.decode import MAX_PIXELS, Frame, Picture, open_picture
from ..imaging.files import no_transparency, to_8_bits, writing
from ..imaging.pages import Page, ahead
from ..imaging.save import Format, check_size, format_of, lost, shown_for, write_picture
from .pixels import resized_strips
from .plan import STANDARD, Job

if TYPE_CHECKING:
    from .pixels import Networks

MAX_OUTPUT = 4_000_000_000

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Options:
    """How pictures are upscaled.

    Attributes
    ----------
    scale : float
        How many times larger.
    box : (int or None, int or None), optional
        Width and height that the result is to fit, with its proportions kept; replaces ``scale``.
    format : str
        Suffix of what goes to standard output.
    quality : int, optional
        1 to 100, for JPEG, AVIF, HEIC, and a WebP that is then not lossless.
    overwrite, strip, first_frame, scale_dpi : bool
        Replace results; leave out EXIF, XMP, IPTC and text; take the first frame or page alone;
        multiply the DPI, so that the printed size stays.
    max_pixels, max_output : int
        Pixels of a frame, by its header, and of the result in all, above which a picture is
        refused.
    """

    scale: float = 3
    box: tuple[int | None, int | None] | None = None
    format: str = "png"
    quality: int | None = None
    overwrite: bool = False
    strip: bool = False
    first_frame: bool = False
    scale_dpi: bool = False
    max_pixels: int = MAX_PIXELS
    max_output: int = MAX_OUTPUT

    def size(self, H: int, W: int) -> tuple[int, int]:
        """Return height and width of the result."""
        if self.box is None:
            return max(round(H * self.scale), 1), max(round(W * self.scale), 1)
        width, height = self.box
        factor = min(width / W if width else float("inf"), height / H if height else float("inf"))
        if factor < 1:
            raise MinisrcnnError(f"is {W}x{H} pixels, larger than --size wants: nothing to upscale")
        return max(round(H * factor), H), max(round(W * factor), W)


@dataclass
class Result:
    """What became of a picture."""

    source: str
    target: str
    size: tuple[int, int] = (0, 0)  # width, height
    frames: int = 1
    seconds: float = 0
    notes: list[str] = field(default_factory=list)


def upscale_file(
    job: Job,
    networks: Networks,
    options: Options,
    progress: Progress | None = None,
    gate: Callable[[int], contextlib.AbstractContextManager[None]] | None = None,
) -> Result:
    """Upscale one file to another, which is written whole or not at all.

    Parameters
    ----------
    job : Job
    networks : callable
        As for :func:`minisrcnn.upscale.resized_strips`.
    options : Options
    progress : callable, optional
        Called with the part that is done, 0 to 1. What it raises ends the job.
    gate : callable, optional
        Given the pixels of the picture, a context to be in while it is worked on.

    Raises
    ------
    MinisrcnnError
        If the picture cannot be read or the result not be written.
    """
    begin = time.perf_counter()
    name = "standard input" if job.source == Path(STANDARD) else str(job.source)
    if job.target.exists() and not job.named and not options.overwrite:
        raise MinisrcnnError(f"{name}: {job.target} exists already (--overwrite replaces it)")
    source: Any = sys.stdin.buffer.read() if job.source == Path(STANDARD) else job.source
    suffix = f".{options.format}" if job.target == Path(STANDARD) else job.target.suffix.lower()
    kind = format_of(f"output{suffix}" if job.target == Path(STANDARD) else job.target)
    with open_picture(source, name, options.max_pixels) as picture:
        result = Result(name, str(job.target))
        with _named(name), gate(picture.pixels) if gate else contextlib.nullcontext():
            _convert(picture, kind, suffix, job, networks, options, progress, result)
        result.notes = picture.notes
    result.seconds = time.perf_counter() - begin
    return result


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise MinisrcnnError(f"{name}: too large for the memory of this machine") from None


def _convert(
    picture: Picture, kind: Format, suffix: str, job: Job, networks: Networks, options: Options,
    progress: Progress | None, result: Result,
) -> None:
    several = picture.count > 1 and not options.first_frame
    held = ("animation" if picture.animated else "pages") in kind.holds
    frames = picture.frames(first_only=not (several and held))
    first = _flat(next(frames), kind, job)
    H, W = _size(picture.name, first, options)
    count = picture.count if several and held else 1
    check_size(kind, str(job.target), H, W)
    if count * H * W > options.max_output:
        raise MinisrcnnError(f"{picture.name}: the result has {count} x {W}x{H} = "
                             f"{count * H * W:,} pixels, want at most {options.max_output:,} "
                             "(--max-output)")
    page = _page(first, H, W, kind, None)
    metadata = picture.metadata
    if options.strip:
        metadata = metadata.without({"EXIF", "XMP", "IPTC", "text"})
    missing = lost(kind, metadata, page, picture.count if several else 1, picture.animated)
    if missing:
        picture.note(f"{suffix} holds no {', '.join(sorted(missing))}" if not any(
            word.startswith(("more", "all")) for word in missing)
            else f"not kept in {suffix}: {', '.join(sorted(missing))}")
    metadata = metadata.without(missing & metadata.names())
    factor = W / first.pixels.shape[1]
    metadata = metadata.resized(W, H, factor if options.scale_dpi else 1)

    def pages() -> Iterator[Page]:
        frame: Frame | None = first
        number = 0
        while frame is not None:
            h, w = _size(picture.name, frame, options)
            done = number

            def report(part: float, done: int = done) -> None:
                if progress is not None:
                    progress((done + part) / count)

            shown = frame.duration or 0
            if abs(shown_for(kind, shown) - shown) > 0.5:
                picture.note(f"timing is rounded to what {suffix} can say")
            yield _page(frame, h, w, kind, networks, report)
            number += 1
            following = next(frames, None) if number < count else None
            frame = following and _flat(following, kind, job)

    if not job.named:  # the tree of --recursive
        with contextlib.suppress(OSError):  # writing will say why
            job.target.parent.mkdir(parents=True, exist_ok=True)
    with _target(job) as file:
        write_picture(file, kind, suffix, pages(), metadata, count, picture.loop, options.quality)
    result.size, result.frames = (W, H), count


def _size(name: str, frame: Frame, options: Options) -> tuple[int, int]:
    try:
        return options.size(*frame.pixels.shape[:2])
    except MinisrcnnError as error:
        raise MinisrcnnError(f"{name}: {error}") from None


def _flat(frame: Frame, kind: Format, job: Job) -> Frame:
    """Drop transparency that hides nothing where the format has none; refuse to drop any other."""
    pixels = frame.pixels
    if pixels.shape[2:] not in ((2,), (4,)) or "transparency" in kind.holds:
        return frame
    if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
        raise no_transparency(job.target)
    pixels = pixels[..., :-1] if pixels.shape[2] == 4 else pixels[..., 0]
    return replace(frame, pixels=pixels)


def _page(
    frame: Frame, H: int, W: int, kind: Format, networks: Networks | None,
    report: Progress | None = None,
) -> Page:
    """Yield the page that a frame becomes."""
    pixels = frame.pixels
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    # Few programs read a TIFF of gray and alpha of 16 bits.
    wide = kind.name == "TIFF" and channels == 2 and pixels.dtype == np.uint16
    channels = 4 if wide else channels
    if networks is None:  # only to know what it will be
        return Page(H, W, channels, pixels.dtype, [])
    dtype = pixels.dtype if "16 bits" in kind.holds else np.dtype(np.uint8)
    gray = channels > 2 and "colour" not in kind.holds

    def strips() -> Iterator[NDArray[Any]]:
        done = 0
        for strip in resized_strips(pixels, networks, H, W):
            done += len(strip)
            if report is not None:
                report(done / H)
            if dtype == np.uint8:
                strip = to_8_bits(strip)
            if wide:
                strip = strip[..., [0, 0, 0, 1]]
            yield _gray(strip) if gray else strip

    several = H * W > 1 << 21
    return Page(H, W, 1 if gray else channels, dtype, ahead(strips(), several), frame.duration)


def _gray(strip: NDArray[Any]) -> NDArray[Any]:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(strip[..., :3])).convert("L"))


@contextlib.contextmanager
def _target(job: Job) -> Iterator[IO[bytes]]:
    if job.target != Path(STANDARD):
        with writing(job.target) as file:
            yield file
        return
    buffer = io.BytesIO()
    yield buffer
    left = buffer.getbuffer()
    while left:  # with PYTHONUNBUFFERED, a write may be of a part
        left = left[sys.stdout.buffer.write(left):]
    sys.stdout.buffer.flush()
