"""Arrays to picture files: which format holds what, and what a picture would lose in it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError, reason
from .jpeg import jpeg_cannot_hold, write_jpeg
from .metadata import Metadata, without_orientation
from .pages import Page, whole
from .png import write_png
from .tiff import write_tiff

QUALITY = 95


@dataclass(frozen=True)
class Format:
    """A format that can be written.

    Attributes
    ----------
    name : str
        As Pillow names it.
    holds : frozenset of str
        Of "transparency", "colour", "16 bits", "animation", "pages", and of the names of
        :meth:`Metadata.names`.
    most : int
        Pixels a side.
    quality : bool
        Whether it has a quality, 1 to 100.
    """

    name: str
    holds: frozenset[str]
    most: int
    quality: bool = False


def _format(name: str, most: int, holds: str, quality: bool = False) -> Format:
    return Format(name, frozenset(holds.split(", ")), most, quality)


_PNG = _format("PNG", 2**31 - 1, "transparency, colour, 16 bits, animation, colour profile, EXIF, "
                                 "XMP, DPI, text, PNG gamma")
_TIFF = _format("TIFF", 2**31 - 1, "transparency, colour, 16 bits, pages, colour profile, EXIF, "
                                   "XMP, IPTC, DPI")
_JPEG = _format("JPEG", 65_535, "colour, colour profile, EXIF, XMP, IPTC, DPI, comment", True)
_WEBP = _format("WEBP", 16_383, "transparency, colour, animation, colour profile, EXIF, XMP", True)
_AVIF = _format("AVIF", 65_535, "transparency, colour, animation, colour profile, EXIF, XMP", True)
_HEIF = _format("HEIF", 16_384, "transparency, colour, colour profile, EXIF, XMP", True)
_JP2 = _format("JPEG2000", 2**31 - 1, "transparency, colour, comment")
_SGI = _format("SGI", 65_535, "transparency, colour")
_GIF = _format("GIF", 65_535, "transparency, colour, animation, comment")

FORMATS = {
    ".apng": _PNG, ".avif": _AVIF, ".bmp": _format("BMP", 2**31 - 1, "colour, DPI"),
    ".dib": _format("DIB", 2**31 - 1, "colour, DPI"), ".gif": _GIF, ".heic": _HEIF, ".heif": _HEIF,
    ".hif": _HEIF, ".j2c": _JP2, ".j2k": _JP2, ".jfif": _JPEG, ".jp2": _JP2, ".jpc": _JP2,
    ".jpe": _JPEG, ".jpeg": _JPEG, ".jpf": _JP2, ".jpg": _JPEG, ".jpx": _JP2, ".mpo": _JPEG,
    ".pcx": _format("PCX", 65_535, "colour"), ".pgm": _format("PPM", 2**31 - 1, ""), ".png": _PNG,
    ".pnm": _format("PPM", 2**31 - 1, "colour"), ".ppm": _format("PPM", 2**31 - 1, "colour"),
    ".qoi": _format("QOI", 2**31 - 1, "transparency, colour"), ".rgb": _SGI, ".rgba": _SGI,
    ".sgi": _SGI, ".tga": _format("TGA", 65_535, "transparency, colour"), ".tif": _TIFF,
    ".tiff": _TIFF, ".webp": _WEBP,
}  # fmt: skip


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that a suffix names; MinisrcnnError for one that cannot be written."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise MinisrcnnError(f"{os.fspath(path)}: cannot write {suffix or 'without a suffix'}; "
                             f"use one of {' '.join(sorted(FORMATS))}")
    kind = FORMATS[suffix]
    _require(kind, os.fspath(path))
    return kind


def _require(kind: Format, path: str) -> None:
    """MinisrcnnError where this installation cannot write a format."""
    if kind.name == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            raise MinisrcnnError(f"{path}: writing HEIC needs pip install pillow-heif") from None
        pillow_heif.register_heif_opener()
    elif kind.name in ("AVIF", "WEBP"):
        from PIL import features

        if not features.check(kind.name.lower()):
            raise MinisrcnnError(f"{path}: this Pillow cannot write {kind.name}")
    elif kind.name in ("JPEG2000", "QOI"):
        from PIL import Image

        Image.init()
        if kind.name not in Image.SAVE:
            raise MinisrcnnError(f"{path}: this Pillow cannot write {kind.name}")


def check_size(kind: Format, path: str, H: int, W: int) -> None:
    """MinisrcnnError where a picture has more pixels a side than its format holds."""
    if max(H, W) > kind.most:
        raise MinisrcnnError(f"{path}: {W}x{H} pixels, {kind.name} holds {kind.most:,} a side: "
                             "use .png or .tif")


def lost(kind: Format, metadata: Metadata, page: Page, frames: int, animated: bool) -> set[str]:
    """Return the names of what a format cannot hold of a picture."""
    names = metadata.names() - kind.holds
    if kind.name == "JPEG":
        names |= jpeg_cannot_hold(metadata)
    if "comment" in kind.holds and set(metadata.text) == {"Comment"}:
        names -= {"text"}
    if metadata.profile and "colour profile" not in names and not _fits(kind, metadata, page):
        names.add("colour profile")
    if page.dtype == np.uint16 and "16 bits" not in kind.holds:
        names.add("more than 8 bits")
    if page.channels > 2 and kind.name == "GIF":
        names.add("more than 256 colours")
    if page.channels in (2, 4) and kind.name == "GIF":
        names.add("more than one bit of transparency")
    if page.channels > 2 and "colour" not in kind.holds:
        names.add("colour")
    if frames > 1 and ("animation" if animated else "pages") not in kind.holds:
        names.add(f"all but the first of {frames} {'frames' if animated else 'pages'}")
    return names


def _fits(kind: Format, metadata: Metadata, page: Page) -> bool:
    """Whether a profile is for the colours of the file (ICC.1, section 7.2.6)."""
    assert metadata.profile is not None
    gray = page.channels < 3 and kind.name in ("PNG", "TIFF", "JPEG")
    return metadata.profile[16:20] == (b"GRAY" if gray else b"RGB ")


_TICKS = {"GIF": (10, 0xFFFF), "WEBP": (1, 0xFFFFFF), "AVIF": (1, 0x7FFFFFFF)}


def shown_for(kind: Format, duration: float) -> float:
    """Return how long a frame is shown in a format that counts ticks; milliseconds."""
    tick, most = _TICKS.get(kind.name, (0, 0))
    return min(round(duration / tick), most) * tick if tick else duration


def write_picture(
    file: IO[bytes],
    kind: Format,
    suffix: str,
    pages: Iterable[Page],
    metadata: Metadata,
    frames: int = 1,
    loop: int = 0,
    quality: int | None = None,
) -> None:
    """Write a picture to an open file.

    Parameters
    ----------
    file : binary file, seekable for TIFF
    kind, suffix
        The format and the suffix that names it.
    pages : iterable of Page
        ``frames`` of them, of channels and dtype that the format holds.
    metadata : Metadata
        Without what :func:`lost` names.
    frames, loop : int
        Number of frames or pages; how often an animation is played, 0 for ever.
    quality : int, optional
        1 to 100; by default lossless WebP, and 95 elsewhere.
    """
    if kind.name == "PNG":
        write_png(file, pages, metadata, frames, loop)
    elif kind.name == "TIFF":
        write_tiff(file, pages, metadata)
    elif kind.name == "JPEG":
        write_jpeg(file, next(iter(pages)), metadata, quality or QUALITY)
    elif kind.name == "GIF":
        _write_gif(file, pages, metadata, loop)
    else:
        _by_pillow(file, kind, suffix, iter(pages), metadata, frames, loop, quality)


def _by_pillow(
    file: IO[bytes], kind: Format, suffix: str, pages: Iterator[Page], metadata: Metadata,
    frames: int, loop: int, quality: int | None,
) -> None:
    from PIL import Image

    durations: list[float] = []

    def pictures() -> Iterator[Any]:
        for page in pages:
            durations.append(shown_for(kind, page.duration or 0))
            picture = Image.fromarray(_plain(whole(page)))
            yield picture.convert("RGB") if kind.name == "QOI" and page.channels == 1 else picture

    source = pictures()
    options: dict[str, Any] = {}
    if metadata.exif:
        exif = metadata.exif
        if kind.name == "AVIF":  # Pillow writes a block with an orientation anew, in its own way
            exif = without_orientation(exif)
        options["exif"] = b"Exif\0\0" + exif
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    if metadata.profile:
        options["icc_profile"] = metadata.profile
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    if kind.quality:
        options["quality"] = quality or QUALITY
    if kind.name in ("AVIF", "HEIF"):  # colours are not subsampled
        options |= {"subsampling": "4:4:4"} if kind.name == "AVIF" else {"chroma": 444}
    if kind.name == "JPEG2000":
        options["no_jp2"] = suffix in (".j2c", ".j2k", ".jpc")  # without the frame around it
        if "Comment" in metadata.text:
            options["comment"] = metadata.text["Comment"]
    if kind.name == "WEBP" and quality is None:
        options |= {"lossless": True, "quality": 60, "exact": True}
    first = next(source)
    if frames > 1:
        # Pillow wants all durations before the frames: these are small against the frames.
        rest = list(source)
        options |= {"save_all": True, "append_images": rest,
                    "duration": [int(value) for value in durations], "loop": loop}
    if suffix == ".pgm" and first.mode != "L":
        raise MinisrcnnError(".pgm holds no colour; use .png or .ppm")
    try:
        if frames > 1:
            first.save(file, kind.name, **options)
        else:
            import imageio.v3 as imageio

            imageio.imwrite(file, np.asarray(first), plugin="pillow", extension=suffix, **options)
    except (ValueError, SyntaxError, RuntimeError, struct.error) as error:
        raise MinisrcnnError(f"{kind.name} cannot be written ({reason(error)})") from error


def _write_gif(
    file: IO[bytes], pages: Iterable[Page], metadata: Metadata, loop: int
) -> None:
    """Write a GIF: 256 colours a frame, pixels of less than half alpha transparent."""
    frames, durations = [], []
    for page in pages:
        frames.append(_paletted(_plain(whole(page))))
        durations.append(int(shown_for(_GIF, page.duration or 0)))
    options: dict[str, Any] = {}
    if "Comment" in metadata.text:
        options["comment"] = metadata.text["Comment"].encode()
    if any("transparency" in frame.info for frame in frames):
        options |= {"transparency": _CLEAR, "disposal": 2}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:], "duration": durations}
        if loop != 1:  # no loop extension: played once; n: n times more
            options["loop"] = min(max(loop - 1, 0), 0xFFFF)
    frames[0].save(file, "GIF", **options)


_CLEAR = 255  # the colour that stands for transparency


def _paletted(pixels: NDArray[Any]) -> Any:
    from PIL import Image

    if pixels.ndim == 2:
        return Image.fromarray(pixels)
    rgb = np.ascontiguousarray(pixels[..., :3])
    clear = pixels[..., 3] < 128 if pixels.shape[2] == 4 else np.zeros(rgb.shape[:2], bool)
    if not clear.any():
        return Image.fromarray(rgb).quantize(256)
    rgb[clear] = rgb[~clear][0] if not clear.all() else 0  # hidden colours take no place
    frame = Image.fromarray(rgb).quantize(_CLEAR)
    palette = frame.getpalette()
    assert palette is not None
    frame.putpalette(palette + [0] * (768 - len(palette)))
    frame.paste(_CLEAR, mask=Image.fromarray(clear))
    frame.info["transparency"] = _CLEAR
    return frame


def _plain(pixels: NDArray[Any]) -> NDArray[Any]:
    """As Pillow takes it: grayscale with alpha as colour."""
    if pixels.shape[2:] == (2,):
        return np.dstack([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]])
    return np.ascontiguousarray(pixels)
