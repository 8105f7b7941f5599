"""Picture files to arrays: every frame and page, 8 or 16 bits, with what else the file carries.

Pillow decodes, and names the formats that may touch a file from a stranger (``READABLE``: none runs
another program). Where it would lose something, this module asks for it otherwise: 16-bit colour
of PNG, samples of TIFF that are not 8-bit (by tifffile), CMYK by its colour profile.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MinisrcnnError, reason
from .ifd import byte_order
from .metadata import DESCRIBING, STORING, Metadata, exif_of_tiff, exif_orientation

READABLE = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG",
            "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")

MAX_PIXELS = 250_000_000

_STRIP = 1 << 20  # pixels converted at a time
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """One frame or page, upright: (H, W), (H, W, 2), (H, W, 3) or (H, W, 4), uint8 or uint16."""

    pixels: Pixels
    duration: float | None = None


@dataclass
class Picture:
    """An opened file.

    Attributes
    ----------
    name : str
    format : str
        As Pillow names it.
    count : int
        Frames or pages.
    animated : bool
        Whether these are the frames of an animation, rather than pages.
    loop : int
        How often an animation is played; 0: for ever.
    metadata : Metadata
    pixels : int
        Of the first frame, by the header.
    notes : list of str
        What had to be given up, or should be known; grows while frames are read.
    """

    name: str
    format: str
    count: int
    animated: bool
    loop: int
    metadata: Metadata
    pixels: int = 0
    notes: list[str] = field(default_factory=list)
    _file: Any = None
    _source: Any = None
    _skip: int = 0
    _limit: int = MAX_PIXELS

    def frames(self, first_only: bool = False) -> Iterator[Frame]:
        """Decode one frame after another; MinisrcnnError for a damaged one."""
        for number in range(1 if first_only else self.count):
            with _explained(self.name):
                frame = self._frame(number + self._skip)
            yield frame

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _frame(self, number: int) -> Frame:
        picture = self._file
        if picture is None:  # a TIFF that Pillow cannot read
            return Frame(_by_tifffile(self, number))
        if number or self.count > 1:
            picture.seek(number)
        check_size(picture.size, self._limit)
        pixels = _pixels(self, picture, number)
        if self.format == "PNG" and number == self._skip:  # text may come after the pixels
            self.metadata = _metadata(self, picture, self._source)
        if self.animated and pixels.shape[2:] != (4,):
            pixels = _with_alpha(pixels)  # another frame may have some
        if self.format != "HEIF":  # its decoder has rotated it
            exif = self.metadata.exif
            orientation = (int(picture.tag_v2.get(0x0112, 1)) if self.format == "TIFF"
                           else exif_orientation(exif, self.metadata.xmp))
            pixels = _upright(pixels, orientation)
        return Frame(pixels, picture.info.get("duration") if self.animated else None)


def check_size(size: tuple[int, int], limit: int) -> None:
    """MinisrcnnError where a picture has more pixels than allowed."""
    W, H = size
    if limit < W * H:
        raise MinisrcnnError(f"has {W}x{H} = {W * H:,} pixels, want at most the limit of "
                             f"{limit:,} pixels")


@contextlib.contextmanager
def open_picture(
    source: str | os.PathLike[str] | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Picture]:
    """Open a picture file; its pixels are decoded when its frames are asked for.

    Parameters
    ----------
    source : path or bytes
        A file, or the content of one.
    name : str, optional
        For messages; by default the path.
    max_pixels : int
        More pixels than that in a frame or page, by its header, are refused.

    Raises
    ------
    MinisrcnnError
        Where the file is missing, not a regular file, of a format not in ``READABLE``, damaged,
        or too large.
    """
    from PIL import Image

    name = name or (os.fspath(source) if not isinstance(source, bytes) else "the picture")
    Image.preinit()
    with contextlib.ExitStack() as stack:
        with _explained(name):
            if not isinstance(source, bytes):
                mode = os.stat(source).st_mode
                if stat.S_ISDIR(mode):
                    raise IsADirectoryError
                if not stat.S_ISREG(mode):
                    raise MinisrcnnError("is not a regular file, want one")
            if _head(source)[4:8] == b"ftyp":
                _register_heif()
            stack.enter_context(_unlimited())
            picture = stack.enter_context(_open(stack, source, name, max_pixels))
        yield picture


@contextlib.contextmanager
def _open(
    stack: contextlib.ExitStack, source: Any, name: str, limit: int
) -> Iterator[Picture]:
    from PIL import Image, UnidentifiedImageError

    stream = io.BytesIO(source) if isinstance(source, bytes) else source

    def opened() -> Any:
        formats = [known for known in READABLE if known in Image.OPEN]
        return stack.enter_context(Image.open(stream, formats=formats))

    try:
        try:
            file = opened()
        except UnidentifiedImageError:  # none of the common formats; the others take time to load
            Image.init()
            file = opened()
    except UnidentifiedImageError:
        head = _head(source)
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            yield _foreign_tiff(source, name, limit)
            return
        if head[4:8] == b"ftyp" and "HEIF" not in Image.OPEN:
            raise MinisrcnnError("is a HEIC or like picture: pip install pillow-heif reads "
                                 "those") from None
        raise MinisrcnnError("is not a picture in a format that can be read") from None
    check_size(file.size, limit)
    yield _describe(file, source, name, limit)


def _head(source: Any) -> bytes:
    if isinstance(source, bytes):
        return source[:16]
    with open(source, "rb") as file:
        return file.read(16)


def _content(source: Any) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()


def _register_heif() -> None:
    with contextlib.suppress(ImportError):
        import pillow_heif

        if not _heif_done:
            _heif_done.append(True)
            pillow_heif.register_heif_opener()


_heif_done: list[bool] = []


# --- limits and errors ---------------------------------------------------------------------------

_limits = threading.Lock()
_lifted: list[Any] = []


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Lift Pillow's own limit of pixels, and its warnings: ``max_pixels`` takes its place."""
    from PIL import Image

    with _limits:
        if not _lifted:
            _lifted.append(Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        else:
            _lifted.append(None)
    try:
        yield
    finally:
        with _limits:
            last = _lifted.pop()
            if not _lifted:
                Image.MAX_IMAGE_PIXELS = last


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one line."""
    try:
        yield
    except MinisrcnnError as error:
        raise MinisrcnnError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise MinisrcnnError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise MinisrcnnError(f"{name}: a folder, not a picture") from None
    except PermissionError:
        raise MinisrcnnError(f"{name}: not allowed to read it") from None
    except MemoryError:
        raise MinisrcnnError(f"{name}: too large for the memory of this machine") from None
    except Exception as error:  # a damaged file can raise anything inside a decoder
        text = reason(error)
        raise MinisrcnnError(f"{name}: damaged or unreadable picture ({text})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Python's warnings of odd files; begin and end it where no other thread reads."""
    import logging

    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- metadata ------------------------------------------------------------------------------------


def _describe(file: Any, source: Any, name: str, limit: int) -> Picture:
    kind = str(file.format)
    count = int(getattr(file, "n_frames", 1))
    notes: list[str] = []
    skip = 0
    if kind == "MPO" or (kind == "HEIF" and count > 1):
        if count > 1:
            notes.append(f"only the main one of {count} pictures in the file is used")
        count = 1
        kind = "JPEG" if kind == "MPO" else kind
    if kind == "PNG" and count > 1 and file.info.get("default_image"):
        count, skip = count - 1, 1
        notes.append("the still picture beside the animation is not kept")
    animated = kind in _ANIMATED and count > 1
    loop = file.info.get("loop")
    if kind == "GIF":  # no loop extension: played once; n: n times more
        loop = 1 if loop is None else loop + 1 if loop else 0
    picture = Picture(name, kind, count, animated, int(loop or 0), Metadata(),
                      file.size[0] * file.size[1], notes, file, source, skip, limit)
    picture.metadata = _metadata(picture, file, source)
    return picture


def _metadata(picture: Picture, file: Any, source: Any) -> Metadata:
    info, kind = file.info, picture.format
    text: dict[str, str] = {}
    gamma: dict[bytes, bytes] = {}
    exif, xmp = info.get("exif"), info.get("xmp")
    iptc = None
    if kind == "PNG":
        chunks = _png_chunks(source)
        gamma = {key: chunks[key] for key in (b"gAMA", b"cHRM", b"sRGB", b"cICP") if key in chunks}
        text, exif, xmp = _png_text(file, exif or chunks.get(b"eXIf"), xmp)
    elif kind == "TIFF":
        exif = exif_of_tiff(_content(source))
        tags = file.tag_v2
        xmp = xmp or tags.get(0x02BC)
        iptc = tags.get(0x8649)
        if 0x83BB in tags and not iptc:
            raw = tags[0x83BB]
            iptc = _irb(raw) if isinstance(raw, bytes) else None
        strange = {tag for tag in tags if tag > 0x0103} - STORING - DESCRIBING
        if strange & _GEO:
            picture.note("GeoTIFF tags are not kept")
        if strange - _GEO:
            numbers = ", ".join(map(str, sorted(strange - _GEO)[:4]))
            picture.note(f"TIFF tags {numbers} are not kept")
    elif kind == "JPEG":
        for marker, data in getattr(file, "applist", []):
            if marker == "APP13" and data.startswith(b"Photoshop 3.0\0"):
                iptc = (iptc or b"") + data[14:]
            elif marker == "APP1" and data.startswith(_XMP):
                xmp = xmp or data[len(_XMP):]  # which Pillow tells from 11.0 on
            elif marker == "APP1" and data.startswith(b"http://ns.adobe.com/xmp/extension/"):
                picture.note("extended XMP is not kept")
    comment = info.get("comment")
    if comment and kind != "PNG":
        text["Comment"] = (comment.decode("utf-8", "replace") if isinstance(comment, bytes)
                           else str(comment)).rstrip("\0")
    if isinstance(exif, bytes) and exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if isinstance(exif, bytes) and exif and byte_order(exif) is None:
        picture.note("EXIF is damaged and not kept")
        exif = None
    profile = info.get("icc_profile")
    return Metadata(
        profile=profile if isinstance(profile, bytes) and profile else None,
        exif=exif if isinstance(exif, bytes) and len(exif) > 8 else None,
        xmp=xmp if isinstance(xmp, bytes) and xmp.strip() else None,
        iptc=iptc if isinstance(iptc, bytes) and iptc else None,
        dpi=_dpi(info), text=text, gamma=gamma)


_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_GEO = {33550, 33922, 34264, 34735, 34736, 34737}


def _irb(iptc: bytes) -> bytes:
    """Wrap IPTC records as the Photoshop resource 0x0404, the form in which JPEG holds them."""
    body = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
    return body + b"\0" * (len(iptc) % 2)


def _dpi(info: dict[str, Any]) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _png_chunks(source: Any) -> dict[bytes, bytes]:
    """Return the small chunks of a PNG; the first of each kind."""
    found: dict[bytes, bytes] = {}
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"eXIf") and size < 1 << 24:
                found.setdefault(kind, stream.read(size))
                stream.seek(4, 1)
            else:
                stream.seek(size + 4, 1)
    return found


def _png_text(file: Any, exif: Any, xmp: Any) -> tuple[dict[str, str], Any, Any]:
    text = {}
    for key, value in file.info.items():
        if not isinstance(value, str) or not isinstance(key, str):
            continue
        if key == "XML:com.adobe.xmp":
            xmp = xmp or value.encode()
        elif key in ("Raw profile type exif", "Raw profile type APP1") and not exif:
            exif = _raw_profile(value)
            if exif is None:
                text[key] = value
        elif key not in ("blend", "disposal"):
            text[key] = str(value)
    return text, exif, xmp


def _raw_profile(value: str) -> bytes | None:
    """Return the bytes that ImageMagick writes as lines of hexadecimal digits."""
    try:
        data = bytes.fromhex("".join(value.split("\n")[3:]))
    except ValueError:
        return None
    return data if data.startswith(b"Exif\0\0") else None


# --- pixels --------------------------------------------------------------------------------------


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate or flip as the orientation says; a view."""
    swapped = pixels.swapaxes(0, 1)
    return {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: swapped,
            6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}.get(orientation, pixels)


def _pixels(picture: Picture, file: Any, number: int) -> Pixels:
    kind = picture.format
    if kind == "TIFF" and _wants_tifffile(file):
        return _by_tifffile(picture, number)
    raw = _raw_mode(file)
    if kind == "PNG" and picture.count == 1 and ";16" in raw and file.mode in ("RGB", "RGBA"):
        return _deep_png(picture, file, raw)
    if _is_deep(picture, file):
        picture.note("more than 8 bits a sample are read as 8")
    _load(picture, file)
    if kind == "PNG" and picture.count == 1:
        _check_rows(picture, file)
        _scale_key(file, raw)
    return _array(picture, file)


def _load(picture: Picture, file: Any) -> None:
    """Decode; a JPEG that lacks its end marker alone is decoded with a note."""
    try:
        file.load()
    except OSError as error:
        if picture.format != "JPEG" or "truncated" not in str(error):
            raise
        from PIL import Image

        content = _content(picture._source)
        views = []
        for filler in (b"", b"\x55\xaa" * 64):  # would end up in rows that are missing
            again = Image.open(io.BytesIO(content + filler + b"\xff\xd9"), formats=["JPEG"])
            again.load()
            views.append(again)
        if content[-1:] == b"\xff" or views[0].tobytes() != views[1].tobytes():
            raise
        file.im = views[0].im
        file.tile = []
        picture.note("lacks its end marker; all its rows are there")


def _raw_mode(file: Any) -> str:
    args = file.tile[0][3] if file.tile else ""
    if isinstance(args, tuple):
        args = args[0] if args else ""
    return args if isinstance(args, str) else ""


def _is_deep(picture: Picture, file: Any) -> bool:
    """Whether colours have more than 8 bits, of which Pillow keeps 8."""
    if picture.format == "AVIF":
        return _deep_avif(picture._source)
    if picture.format not in ("PPM", "JPEG2000", "HEIF", "SGI") or file.mode not in (
            "RGB", "RGBA", "LA"):
        return False
    head = _content(picture._source)[:4096] if picture.format != "HEIF" else b""
    if picture.format == "PPM":
        numbers = re.sub(rb"#[^\n]*", b"", head).split(None, 4)
        return len(numbers) > 3 and numbers[3][:5].isdigit() and int(numbers[3][:5]) > 255
    if picture.format == "JPEG2000":
        at = head.find(b"\xff\x4f\xff\x51")  # start of codestream, image and tile size
        return 0 <= at < len(head) - 43 and (head[at + 42] & 0x7F) > 7
    if picture.format == "SGI":
        return head[3:4] == b"\x02"
    return int(file.info.get("bit_depth") or 8) > 8


def _deep_avif(source: Any) -> bool:
    head = _content(source)[:65536]
    at = head.find(b"av1C")
    return at > 0 and bool(head[at + 6 : at + 7] and head[at + 6] & 0x40)


def _deep_png(picture: Picture, file: Any, raw: str) -> Pixels:
    """16-bit colour, which Pillow reads as 8: the high bytes once, then the low ones."""
    from PIL import Image

    W, H = file.size
    channels = {"LA;16B": 2, "RGB;16B": 3, "RGBA;16B": 4}[raw]
    out = np.empty((H, W, channels), np.uint16)
    if channels == 2:  # four bytes a pixel, as many as RGBA has
        file._mode = "RGBA"
        file.tile = [(*file.tile[0][:3], "RGBA")]
        file.load()
        _check_rows(picture, file)
        for y, strip in _crops(file):
            four = np.asarray(strip).astype(np.uint16)
            out[y : y + len(four)] = four[..., 0::2] << 8 | four[..., 1::2]
        return out
    key = file.info.get("transparency")
    file.load()
    _check_rows(picture, file)
    for y, strip in _crops(file):
        band = np.asarray(strip)
        np.left_shift(band, 8, out=out[y : y + len(band)], dtype=np.uint16)
    file.im = None  # not needed any more; close() would fail the second time before Pillow 11.2
    source = picture._source
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(stream, formats=["PNG"]) as low:
        tile: Any = (*low.tile[0][:3], raw[:-1] + "L")  # plain tuples before Pillow 11
        low.tile = [tile]
        low.load()
        for y, strip in _crops(low):
            band = np.asarray(strip)
            out[y : y + len(band)] |= band
    if isinstance(key, tuple) and channels == 3:
        visible = (out != np.array(key, np.uint16)).any(axis=2)
        return np.dstack([out, visible.astype(np.uint16) * 65535])
    return out


def _check_rows(picture: Picture, file: Any) -> None:
    """Refuse a PNG whose data end before its last row: decoders leave the rest black."""
    W, H = file.size
    if not file.info.get("interlace") and np.asarray(file.crop((0, H - 1, W, H))).any():
        return
    depth, colour, interlaced, packed = 0, 0, 0, []
    data = _content(picture._source)
    at = 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            depth, colour, interlaced = data[at + 16], data[at + 17], data[at + 20]
        elif kind == b"IDAT":
            packed.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)] if not interlaced else [
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2)]
    wanted = 0
    for x, y, dx, dy in passes:
        w, h = -(-(W - x) // dx), -(-(H - y) // dy)
        wanted += h * (1 + (w * bits + 7) // 8) if w > 0 and h > 0 else 0
    there, inflate = 0, zlib.decompressobj()
    for part in packed:
        while part and not inflate.eof:
            there += len(inflate.decompress(part, 1 << 20))
            part = inflate.unconsumed_tail
    if there < wanted:
        raise MinisrcnnError(f"damaged picture: its last {H - there * H // wanted} or so of "
                             f"{H} rows are missing")


def _scale_key(file: Any, raw: str) -> None:
    """Scale a transparent gray of 1, 2 or 4 bits to the 8 bits that Pillow makes of them."""
    key = file.info.get("transparency")
    if not isinstance(key, int):
        return
    if file.mode == "1":
        file.info["transparency"] = 255 if key else 0
    elif raw in ("L;2", "L;4"):
        file.info["transparency"] = key * (85 if raw == "L;2" else 17)


def _crops(file: Any) -> Iterator[tuple[int, Any]]:
    """Yield strips of a loaded picture: converted whole, a photograph is held four times over."""
    W, H = file.size
    step = max(1, _STRIP // W)
    for y in range(0, H, step):
        yield y, file.crop((0, y, W, min(y + step, H)))


def _array(picture: Picture, file: Any) -> Pixels:
    mode, info = file.mode, file.info
    key = info.get("transparency")
    if mode.startswith("I;16") or mode == "I":
        return _integers(picture, file, key)
    if mode == "F":
        return _scaled(picture, np.asarray(file))
    if mode in ("CMYK", "LAB"):
        return _by_profile(picture, file)
    if mode in ("L", "1") and key is not None and not isinstance(key, bytes):
        gray = _converted(file, "L")
        return np.dstack([gray, np.where(gray == int(key), 0, 255).astype(np.uint8)])
    if mode in ("La", "RGBa"):  # premultiplied
        return _converted(file, mode[:-1] + "A", twice=mode == "La")
    if mode == "LA":
        return _converted(file, "LA")
    if mode in ("PA", "RGBA") or key is not None:
        return _converted(file, "RGBA")
    return _converted(file, "L" if mode in ("1", "L") else "RGB")


def _converted(file: Any, mode: str, twice: bool = False) -> Pixels:
    W, H = file.size
    out = np.empty((H, W) if mode == "L" else (H, W, len(mode)), np.uint8)
    for y, strip in _crops(file):
        if strip.mode != mode:
            strip = strip.convert(mode)
        out[y : y + strip.size[1]] = np.asarray(strip)
    return out


def _integers(picture: Picture, file: Any, key: Any) -> Pixels:
    if file.mode == "I":
        values = np.asarray(file)
        if picture.format == "TIFF" or values.min() < 0 or values.max() > 65535:
            return _scaled(picture, values)
        gray = values.astype(np.uint16)
    else:
        gray = np.array(file)
        if gray.dtype != np.uint16:
            gray = gray.astype(np.uint16)
    if isinstance(key, int):
        return np.dstack([gray, np.where(gray == key, 0, 65535).astype(np.uint16)])
    return gray


def _scaled(picture: Picture, values: Pixels) -> Pixels:
    """Numbers of any range as 16 bits: [0, 1] as it is, others from their least to their most."""
    finite = np.isfinite(values)
    if not finite.all():
        picture.note("values that are not finite are taken as the least")
        least = values[finite].min() if finite.any() else 0
        values = np.where(finite, values, least)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
        picture.note("floating-point samples become 16-bit")
    elif values.dtype.kind != "f" and low >= 0 and high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
        picture.note(f"32-bit samples become 16-bit: {high:g} is white")
    else:
        picture.note(f"samples from {low:g} to {high:g} become 16-bit: 0 to 65535")
    span = (high - low) or 1.0
    out = np.empty(values.shape, np.uint16)
    for y in range(0, len(values), 64):
        out[y : y + 64] = np.floor((values[y : y + 64].astype(np.float64) - low) / span * 65535
                                   + 0.5)
    return out


def _by_profile(picture: Picture, file: Any) -> Pixels:
    """CMYK and Lab to sRGB, by the colour profile where there is one."""
    from PIL import ImageCms

    W, H = file.size
    out = np.empty((H, W, 3), np.uint8)
    transform = None
    profile = picture.metadata.profile
    try:
        if file.mode == "LAB":
            source: Any = ImageCms.createProfile("LAB")
        else:
            source = ImageCms.getOpenProfile(io.BytesIO(profile or b""))
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), file.mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION)
    except (ImageCms.PyCMSError, OSError):
        pass
    if transform is None and file.mode == "LAB":
        raise MinisrcnnError("holds Lab colours, which this Pillow cannot convert")
    picture.note(f"{file.mode} colours become sRGB" + (
        " by the colour profile" if transform is not None and file.mode == "CMYK"
        else "" if file.mode == "LAB" else " by the simple formula: no colour profile to go by"))
    picture.metadata = picture.metadata.without({"colour profile"})
    for y, strip in _crops(file):
        done: Any = (ImageCms.applyTransform(strip, transform) if transform is not None
                else strip.convert("RGB"))
        out[y : y + done.size[1]] = np.asarray(done)
    return out


def _with_alpha(pixels: Pixels) -> Pixels:
    """RGBA of anything."""
    top = np.iinfo(pixels.dtype).max
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    colours, alpha = pixels, np.full(pixels.shape[:2], top, pixels.dtype)
    if pixels.shape[2] in (2, 4):
        colours, alpha = pixels[..., :-1], pixels[..., -1]
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    return np.dstack([colours, alpha])


# --- TIFF that is not 8-bit ----------------------------------------------------------------------


def _wants_tifffile(file: Any) -> bool:
    tags = file.tag_v2
    bits = tags.get(258, (1,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    kinds = tags.get(339, (1,))
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return (max(bits) > 8 or any(kind not in (1, 4) for kind in kinds)
            or tags.get(259) == _WEBP)  # which Pillow's libtiff is built without


_WEBP = 50001


def _foreign_tiff(source: Any, name: str, limit: int) -> Picture:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        count = len(file.pages)
        page: Any = file.pages[0]
        check_size((page.imagewidth, page.imagelength), limit)
        profile = page.tags.get(34675)
    metadata = Metadata(profile=bytes(profile.value) if profile else None,
                        exif=exif_of_tiff(_content(source)))
    return Picture(name, "TIFF", count, False, 0, metadata,
                   int(page.imagewidth) * int(page.imagelength), [], None, source, 0, limit)


def _by_tifffile(picture: Picture, number: int) -> Pixels:
    import tifffile

    source = picture._source
    with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        page: Any = file.pages[number]
        check_size((page.imagewidth, page.imagelength), picture._limit)
        try:
            values = page.asarray()
        except Exception as error:
            if "imagecodecs" in str(error):
                raise MinisrcnnError(f"is a TIFF compressed as {page.compression.name}, want "
                                     "imagecodecs to read it: pip install imagecodecs") from None
            raise
        photometric, extra = int(page.photometric), tuple(int(e) for e in page.extrasamples)
        planar, bits = int(page.planarconfig), int(page.bitspersample)
        orientation = page.tags.get(274)
        turn = int(orientation.value) if orientation else 1
    values = values[0] if values.ndim > 2 and len(values) == 1 else values
    if values.ndim == 3 and planar == 2:
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3):
        raise MinisrcnnError(f"has samples of shape {values.shape}, want a picture")
    channels = 1 if values.ndim == 2 else values.shape[2]
    colours = {0: 1, 1: 1, 2: 3, 5: 4}.get(photometric)
    if colours is None or channels < colours:
        raise MinisrcnnError(f"is a TIFF of {bits} bits with colours of kind {photometric}, "
                             "want grayscale, RGB or CMYK")
    if values.dtype.kind == "i" and bits <= 16:
        picture.note(f"signed samples become unsigned: {-(1 << bits - 1)} is black")
        values = (values.astype(np.int32) + (1 << bits - 1)).astype(np.uint16)
    if values.dtype.kind in "ub" and bits <= 16:
        values = _stretched(values, bits)
    else:
        values = _scaled(picture, values)
    if photometric == 0:  # white is zero
        values = 65535 - values
    if colours == 4:
        ink = values[..., :4].astype(np.uint32)
        values = ((65535 - ink[..., :3]) * (65535 - ink[..., 3:]) // 65535).astype(np.uint16)
        picture.note("16-bit CMYK colours become RGB by the simple formula")
        picture.metadata = picture.metadata.without({"colour profile"})
    elif channels > colours + 1 or (channels == colours + 1 and extra[:1] not in ((1,), (2,))):
        picture.note(f"{channels - colours} extra channels are not kept")
        values = values[..., :colours] if colours > 1 else values[..., 0]
    elif channels == colours + 1 and extra[0] == 1:  # premultiplied
        alpha = np.maximum(values[..., -1:].astype(np.uint32), 1)
        straight = np.minimum(values[..., :-1].astype(np.uint32) * 65535 // alpha, 65535)
        values = np.concatenate([straight.astype(np.uint16), values[..., -1:]], axis=2)
    elif channels == 1 and values.ndim == 3:
        values = values[..., 0]
    if picture._file is None:
        values = _upright(values, turn)
    return values


def _stretched(values: Pixels, bits: int) -> Pixels:
    """Return samples of ``bits`` bits as 16 bits."""
    if bits == 16:
        return values.astype(np.uint16, copy=False)
    top = (1 << bits) - 1
    return ((values.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
