"""Classify what ``upscale`` makes of any folder of pictures, against other decoders.

    python tests/corpus.py FOLDER [--format png] [--make]

Every file is upscaled by 2 with a network that changes nothing, so that what should come out is
known: the bicubic picture. It is worked out apart from the package: decoded by imagecodecs and
tifffile where they can, else by Pillow; resized by Pillow, in floats, colours in proportion to
alpha. Metadata are compared as Pillow reads them on both sides. The classes:

    kept      right, and nothing lost
    named     right, and what was lost stands on standard error
    refused   one clear line, no result
    silent    something was lost without a word
    wrong     more than 2 % of the samples differ by more than 8 of 255, over black or over white
              (24 in JPEG, AVIF and HEIC, 80 in GIF)
    crash     anything but one line

``--make`` fills FOLDER first: every mode, format and metadata that the libraries at hand write.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

SCALE = 2


# --- what should come out ------------------------------------------------------------------------


def decoded(path: Path) -> np.ndarray | None:
    """The first frame by another decoder, upright: floats in [0, 1], 1 to 4 channels."""
    data = path.read_bytes()
    with contextlib.suppress(Exception):
        import tifffile

        if data[:2] in (b"II", b"MM") and data[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+"):
            page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
            kind, values = int(page.photometric), page.asarray()
            bits = page.bitspersample
            if kind in (0, 1, 2, 5) and (values.dtype.kind in "if" or bits > 8
                                         or int(page.compression) == 50001):
                values = values.transpose(1, 2, 0) if page.planarconfig == 2 and values.ndim == 3 \
                    else values
                values = scaled(values, bits)
                if kind == 0:
                    values = 1 - values
                if kind == 5:
                    return (1 - values[..., :3]) * (1 - values[..., 3:4])
                colours = 3 if kind == 2 else 1
                extra = [int(e) for e in page.extrasamples]
                if values.ndim == 3 and values.shape[2] > colours + (extra[:1] in ([1], [2])):
                    values = values[..., :colours]
                if extra[:1] == [1]:
                    values = values.copy()
                    values[..., :-1] /= np.maximum(values[..., -1:], 1e-6)
                tag = page.tags.get(274)
                return turned(values, int(tag.value) if tag else 1)
    with contextlib.suppress(Exception):
        import imagecodecs

        if data[:8] == b"\x89PNG\r\n\x1a\n" and (data[24] == 16 or (
                data[25] == 0 and b"tRNS" in data[:4096])):
            with Image.open(path) as other:
                orientation = other.getexif().get(0x0112, 1)
            values = imagecodecs.png_decode(data)
            return turned(values / np.iinfo(values.dtype).max, orientation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as picture:
                if picture.info.get("default_image"):
                    picture.seek(1)
                picture.load()
                orientation = picture.getexif().get(0x0112, 1)
                if picture.format == "HEIF":
                    orientation = 1
                if picture.mode in ("F", "I") or picture.mode.startswith("I;"):
                    values = np.asarray(picture).astype(float)
                    if picture.mode == "F" or values.max() > 65535 or values.min() < 0:
                        low, high = values.min(), values.max()
                        if picture.mode == "F" and low >= 0 and high <= 1:
                            low, high = 0, 1
                        values = (values - low) / ((high - low) or 1)
                    else:
                        values = values / 65535
                    return turned(values, orientation)
                if picture.mode == "CMYK" and picture.info.get("icc_profile"):
                    picture = ImageCms.profileToProfile(
                        picture, io.BytesIO(picture.info["icc_profile"]),
                        ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC,
                        "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
                elif picture.mode == "LAB":
                    picture = ImageCms.profileToProfile(
                        picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"),
                        ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
                if picture.mode in ("La", "RGBa"):
                    picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
                return turned(np.asarray(picture.convert("RGBA")) / 255, orientation)
        except Exception:
            return None


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Samples of any kind in [0, 1]: documented in docs/pictures.md."""
    x = values.astype(float)
    if values.dtype.kind == "i" and bits <= 16:
        return (x + (1 << bits - 1)) / ((1 << bits) - 1)
    if values.dtype.kind == "u" and bits <= 16:
        return x / ((1 << bits) - 1)
    low, high = x.min(), x.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return x
    if values.dtype.kind != "f" and low >= 0 and high <= 65535:
        return x / (255 if high <= 255 else 65535)
    return (x - low) / ((high - low) or 1)


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, by Pillow's transpositions rather than ours."""
    how = {2: [np.fliplr], 3: [np.rot90, np.rot90], 4: [np.flipud],
           5: [np.rot90, np.flipud], 6: [np.rot90] * 3, 7: [np.rot90, np.fliplr],
           8: [np.rot90]}.get(orientation, [])
    for step in how:
        x = step(x)
    return x


def bicubic(x: np.ndarray) -> np.ndarray:
    """RGBA of twice the size, straight, in [0, 1]."""
    if x.ndim == 2:
        x = x[..., None]
    alpha = x[..., -1:] if x.shape[2] in (2, 4) else np.ones_like(x[..., :1])
    colours = x[..., :-1] if x.shape[2] in (2, 4) else x
    colours = np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours

    def larger(plane: np.ndarray) -> np.ndarray:
        H, W = plane.shape
        wide = Image.fromarray(np.pad(plane, 6, mode="symmetric").astype(np.float32))
        out = wide.resize((SCALE * (W + 12), SCALE * (H + 12)), Image.Resampling.BICUBIC)
        edge = 6 * SCALE
        return np.asarray(out)[edge : edge + SCALE * H, edge : edge + SCALE * W]

    opaque = (alpha == 1).all()
    a = np.ones((SCALE * x.shape[0], SCALE * x.shape[1])) if opaque else larger(alpha[..., 0])
    rgb = [larger(colours[..., k] * alpha[..., 0]) / np.maximum(a, 1e-3) for k in range(3)]
    return np.clip(np.dstack([*rgb, a]), 0, 1)


def differs(got: np.ndarray, want: np.ndarray, limit: float) -> str | None:
    """Say how far the composites over black and over white are apart, if too far."""
    if got.shape[:2] != want.shape[:2]:
        return f"has {got.shape[1]}x{got.shape[0]} pixels, want {want.shape[1]}x{want.shape[0]}"
    for back in (0, 1):
        over = [p[..., :3] * p[..., 3:] + back * (1 - p[..., 3:]) for p in (got, want)]
        error = np.abs(over[0] - over[1])
        far = (error > limit / 255).mean()
        if far > 0.02:
            return f"{far:.0%} differ, by up to {error.max() * 255:.0f} of 255"
    return None


# --- what is beside the pixels -------------------------------------------------------------------


def facts(path: Path) -> dict[str, object]:
    """What Pillow says that a file carries."""
    found: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            picture.load()
            info = picture.info
            found["colour profile"] = info.get("icc_profile")
            skipped = {0x0112, 0x8769, 0x8825, 0xA005, 0x014A, *range(0xFE, 0x10D), 0x111,
                       *range(0x115, 0x11D), 0x128, 0x11A, 0x11B, 0x13D, 0x13E, 0x13F, 0x140,
                       *range(0x141, 0x148), 0x152, 0x153, 0x154, 0x155, 0x15B,
                       *range(0x200, 0x217),
                       0x2BC, 0x83BB, 0x8649, 0x8773, 0x13C}  # fmt: skip
            exif = picture.getexif()
            tags = {(0, t): str(v) for t, v in exif.items() if t not in skipped}
            for ifd in (0x8769, 0x8825):
                tags |= {(ifd, t): str(v) for t, v in exif.get_ifd(ifd).items()
                         if t not in (0xA002, 0xA003, 0xA005, 0x927C)}
            found["EXIF"] = tags or None
            xmp = (info.get("xmp") or info.get("XML:com.adobe.xmp")  # till Pillow 11 of WebP, PNG
                   or getattr(picture, "tag_v2", {}).get(0x2BC)
                   or any(data.startswith(b"http://ns.adobe.com/xap/1.0/")
                          for _, data in getattr(picture, "applist", [])))
            found["XMP"] = bool(xmp) or None
            with contextlib.suppress(Exception):
                dpi = tuple(round(float(v)) for v in info["dpi"])
                found["DPI"] = dpi if min(dpi) > 0 else None
            text = {k: str(v) for k, v in getattr(picture, "text", {}).items()
                    if not k.startswith(("XML:com", "Raw profile type"))}
            if info.get("comment"):
                comment = info["comment"]
                text["Comment"] = (comment.decode("utf-8", "replace") if isinstance(comment, bytes)
                                   else str(comment)).rstrip("\0")
            found["text"] = text or None
            found["PNG gamma"] = (info.get("gamma"), info.get("chromaticity"), info.get("srgb"))
            if found["PNG gamma"] == (None, None, None):
                found["PNG gamma"] = None
            frames = getattr(picture, "n_frames", 1)
            durations = None
            if frames > 1:
                durations = []
                for number in range(frames):
                    picture.seek(number)
                    picture.load()
                    durations.append(round(float(picture.info.get("duration") or 0)))
            found["frames"] = (frames, durations) if frames > 1 else None
    return found


def silently(before: dict[str, object], after: dict[str, object], said: str) -> list[str]:
    """What was there, is not, and was not named."""
    words = {"frames": ("frames", "pages", "pictures in the file", "still picture",
                        "timing"),
             "text": ("text", "comment"),
             "colour profile": ("colour profile", "sRGB", "RGB by the simple")}
    lost = []
    for name, value in before.items():
        if value is None or after.get(name) == value:
            continue
        if name == "EXIF" and isinstance(value, dict):
            value = {k: v for k, v in value.items() if str(k[1]) not in said}
            if not value:
                continue
        if name == "EXIF" and isinstance(after.get(name), dict):
            missing = {k: v for k, v in value.items() if after[name].get(k) != v}
            if not missing:
                continue
            name = f"EXIF {sorted(missing)[:3]}"
        if name == "frames" and after.get(name) and after[name][0] == value[0] and not any(
                value[1]):
            continue
        if name == "frames" and after.get(name) and sum(after[name][1]) == sum(value[1]) > 0:
            continue  # frames that are equal are one, shown as long
        if name == "text" and isinstance(after.get(name), dict) and all(
                after[name].get(k) == v for k, v in value.items()):
            continue
        if not any(word in said for word in words.get(name, (name.split()[0],))):
            lost.append(name)
    return lost


# --- the classes ---------------------------------------------------------------------------------


def identity():
    """A network that changes nothing."""
    from minisrcnn import SRCNN

    net = SRCNN("3-1", (1,))
    for name, value in net.parameters.items():
        value[...] = 0
        if name.endswith("weight"):
            value[0, 0, value.shape[2] // 2, value.shape[2] // 2] = 1
    return net


def classify(path: Path, out: Path, net, suffix: str = ".png") -> tuple[str, str]:
    """Upscale one file and return its class, and why."""
    from minisrcnn import MinisrcnnError
    from minisrcnn.imaging.save import format_of
    from minisrcnn.upscale.plan import Job
    from minisrcnn.upscale.run import Options, upscale_file

    target = out / f"result{suffix}"
    target.unlink(missing_ok=True)
    try:
        result = upscale_file(Job(path, target, named=True), lambda factor: [(net, SCALE)],
                              Options(scale=SCALE))
    except MinisrcnnError as error:
        text = str(error)
        return ("crash" if "\n" in text else "refused"), text
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    said = "; ".join(result.notes)
    x = decoded(path)
    if x is not None:
        got = decoded(target)
        if got is None:
            return "wrong", "the result cannot be decoded"
        want = bicubic(x)
        got = got if got.ndim == 3 else got[..., None]
        if got.shape[2] < 3:
            got = np.concatenate([np.repeat(got[..., :1], 3, 2), got[..., 1:]], axis=2)
        if got.shape[2] == 3:
            got = np.dstack([got, np.ones(got.shape[:2])])
        if suffix == ".gif":  # one bit of it
            want[..., 3] = want[..., 3] >= 0.5
        kind = format_of(f"o{suffix}")
        if "colour" not in kind.holds:
            want[..., :3] = (want[..., :3] @ np.array([0.299, 0.587, 0.114]))[..., None]
        lossy = {"JPEG": 24, "AVIF": 24, "HEIF": 24, "GIF": 80}  # GIF: 256 colours
        text = differs(got, want, lossy.get(kind.name, 8))
        if text:
            return "wrong", text
    try:
        before = facts(path)
    except Exception:
        return ("named" if said else "kept"), said
    lost = silently(before, facts(target), said)
    lost += deep(path, target, said)
    if lost:
        return "silent", f"{', '.join(lost)}   (said: {said})"
    return ("named" if said else "kept"), said


def deep(path: Path, target: Path, said: str) -> list[str]:
    """Whether 16 bits became 8."""
    def bits(file: Path) -> int:
        data = file.read_bytes()
        if data[:4] == b"\x89PNG":
            return data[24]
        if data[:2] in (b"II", b"MM"):
            import tifffile

            with contextlib.suppress(Exception):
                return int(tifffile.TiffFile(io.BytesIO(data)).pages[0].bitspersample)
        return 8

    return ["16 bits"] if bits(path) > 8 >= bits(target) and "8 bits" not in said else []


# --- a corpus ------------------------------------------------------------------------------------


def scene(H: int = 26, W: int = 34) -> np.ndarray:
    """A small picture with slopes, edges and a little noise: RGBA, uint16."""
    y, x = np.mgrid[:H, :W]
    rng = np.random.default_rng(H * W)
    rgb = np.stack([x * 65535 // W, y * 65535 // H, ((x // 5 + y // 7) % 2) * 40000 + 9000], 2)
    rgb = np.clip(rgb + rng.integers(-1500, 1500, rgb.shape), 0, 65535)
    alpha = np.clip((H / 2.2 - np.hypot(y - H / 2, x - W / 2)) * 20000, 0, 65535)
    return np.dstack([rgb, alpha]).astype(np.uint16)


XMP = (b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
       b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
       b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Make="A"/></rdf:RDF></x:xmpmeta>'
       b'<?xpacket end="w"?>')


def exif(orientation: int = 1, more: Mapping[int, Any] | None = None) -> Image.Exif:
    """Camera, time, place and an orientation; ``more`` are tags of the exposure."""
    block = Image.Exif()
    block[0x010F], block[0x0110], block[0x0112], block[0x0132] = (
        "Maker", "Model", orientation, "2024:01:02 03:04:05")
    # Whole: an old Pillow does not write what is put into get_ifd().
    block[0x8769] = {0x829A: (1, 60), 0x9003: "2024:01:02 03:04:05", **(more or {})}
    block[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return block


@functools.cache
def srgb() -> bytes:
    """A colour profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def make(folder: Path) -> None:
    """Write the corpus; what a library cannot write is skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    s16 = scene()
    s8 = (s16 >> 8).astype(np.uint8)
    rgba = Image.fromarray(s8)
    rgb = rgba.convert("RGB")
    modes = {m: rgb.convert(m) for m in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I",
                                         "F") if m not in ("LAB", "HSV")}
    modes |= {"LA": rgba.convert("LA"), "RGBA": rgba, "RGBX": rgb.convert("RGBX"),
              "PA": rgba.convert("PA"), "La": rgba.convert("LA").convert("La"),
              "RGBa": rgba.convert("RGBa"), "I;16": Image.fromarray(s16[..., 0]),
              "LAB": ImageCms.profileToProfile(rgb, ImageCms.createProfile("sRGB"),
                                               ImageCms.createProfile("LAB"), outputMode="LAB")}
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    suffixes = ["png", "bmp", "dib", "gif", "jpg", "jp2", "tif", "webp", "avif",
                "tga", "pcx", "sgi", "ppm", "pgm", "ico", "qoi", "heic", "jfif", "apng"]
    extras = {
        "plain": {}, "icc": {"icc_profile": srgb()}, "dpi": {"dpi": (300, 200)},
        "exif": {"exif": exif()}, "xmp": {"xmp": XMP}, "comment": {"comment": b"a word"},
        "all": {"icc_profile": srgb(), "dpi": (72, 72), "exif": exif(6), "xmp": XMP},
        "big": {"icc_profile": srgb() + bytes(100_000)},
    }

    def save(picture, name, **options):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            buffer = io.BytesIO()
            picture.save(buffer, {"jfif": "JPEG", "jpg": "JPEG", "tif": "TIFF", "dib": "DIB",
                                  "ppm": "PPM", "pgm": "PPM", "jp2": "JPEG2000", "heic": "HEIF",
                                  "apng": "PNG"}.get(name.rpartition(".")[2],
                                                     name.rpartition(".")[2].upper()), **options)
            (folder / name).write_bytes(buffer.getvalue())

    for suffix in suffixes:
        for mode, picture in modes.items():
            for extra, options in extras.items():
                if extra == "plain" or mode in ("RGB", "L", "RGBA", "CMYK", "P", "LA", "1"):
                    save(picture, f"{mode.replace(';', '')}-{extra}.{suffix}", **options)
        for orientation in range(1, 9):
            save(rgb, f"turn{orientation}.{suffix}", exif=exif(orientation))
    for suffix, options in (("jpg", {"quality": 30}), ("jpg", {"progressive": True}),
                            ("jpg", {"subsampling": 2}), ("jpg", {"keep_rgb": True}),
                            ("webp", {"lossless": True}), ("webp", {"quality": 10}),
                            ("gif", {"interlace": 0}), ("tif", {"compression": "tiff_lzw"}),
                            ("tif", {"compression": "tiff_adobe_deflate"}),
                            ("tif", {"compression": "jpeg"}), ("tif", {"compression": "packbits"}),
                            ("tif", {"compression": "group4"}), ("tif", {"big_tiff": True}),
                            ("avif", {"quality": 100}), ("jp2", {"irreversible": True})):
        for mode in ("RGB", "L", "1", "CMYK", "RGBA"):
            word = "-".join(f"{k}{v}" for k, v in options.items())
            save(modes[mode], f"{mode}-{word}.{suffix}", **options)
    _pngs(folder, s16, s8, save, rgb)
    _tiffs(folder, s16, s8)
    _packings(folder, s16, s8)
    _codecs(folder, s16, s8)
    _animations(folder, rgba, save)
    _broken(folder)


def _pngs(folder, s16, s8, save, rgb):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_text("Comment", "g\u00fcn \u4e2d", zip=True)
    text.add_itxt("Author", "\u4e2d\u6587", "zh", "\u4f5c\u8005")
    save(rgb, "text.png", pnginfo=text)
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", struct.pack(">I", 100_000))
    gamma.add(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    save(rgb, "gamma.png", pnginfo=gamma)
    save(rgb, "srgb.png", pnginfo=_info(b"sRGB", b"\0"))
    for name, options in (("key", {"transparency": (100, 100, 100)}),):
        keyed = np.asarray(rgb).copy()
        keyed[5:9] = 100
        save(Image.fromarray(keyed), f"rgb-{name}.png", **options)
    gray = np.asarray(rgb.convert("L")).copy()
    gray[3:9] = 60
    save(Image.fromarray(gray), "gray-key.png", transparency=60)
    palette = rgb.quantize(20)
    save(palette, "palette-alpha.png", transparency=bytes(range(0, 200, 10)))
    save(palette, "palette-key.png", transparency=3)
    save(palette, "palette-key.gif", transparency=3)
    for bits in (1, 2, 4):
        save(rgb.quantize(1 << bits), f"palette{bits}.png", bits=bits)
        packed = s8[..., 0] >> (8 - bits)
        rows = b"".join(b"\0" + _packed(row, bits) for row in packed)
        for key in (None, 1):
            extra = {} if key is None else {b"tRNS": struct.pack(">H", key)}
            (folder / f"gray{bits}-{key}.png").write_bytes(
                png(*packed.shape, bits, 0, rows, extra))
    for channels, colour in ((1, 0), (2, 4), (3, 2), (4, 6)):
        pixels = {1: s16[..., :1], 2: s16[..., [0, 3]], 3: s16[..., :3], 4: s16}[channels]
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        profile = {b"iCCP": b"p\0\0" + zlib.compress(srgb())} if channels > 2 else {}
        (folder / f"deep{channels}.png").write_bytes(
            png(*pixels.shape[:2], 16, colour, rows, profile))
    key = struct.pack(">3H", *s16[4, 4, :3])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in s16[..., :3])
    (folder / "deep-key.png").write_bytes(png(26, 34, 16, 2, rows, {b"tRNS": key}))


def _info(kind: bytes, data: bytes):
    info = PngImagePlugin.PngInfo()
    info.add(kind, data)
    return info


def _packed(row: np.ndarray, bits: int) -> bytes:
    values = "".join(format(int(v), f"0{bits}b") for v in row)
    values = values.ljust(-(-len(values) // 8) * 8, "0")
    return bytes(int(values[i : i + 8], 2) for i in range(0, len(values), 8))


def png(H: int, W: int, bits: int, colour: int, rows: bytes, extra: dict | None = None) -> bytes:
    """A PNG of filtered rows."""
    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body
                + struct.pack(">I", zlib.crc32(kind + body)))

    head = struct.pack(">IIBBBBB", W, H, bits, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + b"".join(chunk(k, v) for k, v in (extra or {}).items())
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def _tiffs(folder, s16, s8):
    try:
        import tifffile
    except ImportError:
        return
    kinds = {
        "u8": s8, "u16": s16, "i16": (s16.astype(np.int32) - 32768).astype(np.int16),
        "u32": s16.astype(np.uint32) << 16, "i32": s16.astype(np.int32),
        "f16": (s16 / 65535).astype(np.float16), "f32": (s16 / 65535).astype(np.float32),
        "f64": s16 / 65535.0, "f32wide": (s16 / 1000.0).astype(np.float32), "i8": s8.view(np.int8),
    }
    for name, pixels in kinds.items():
        for photometric, part in (("minisblack", pixels[..., 0]), ("miniswhite", pixels[..., 0]),
                                  ("rgb", pixels[..., :3]), ("rgb-alpha", pixels),
                                  ("separated", pixels)):
            for planar in ("contig", "separate"):
                for order in ("<", ">"):
                    for compression in (None, "zlib", "lzw"):
                        if part.ndim == 2 and planar == "separate":
                            continue
                        data = np.moveaxis(part, -1, 0) if planar == "separate" else part
                        options = {"photometric": photometric.split("-")[0]}
                        if photometric == "rgb-alpha":
                            options["extrasamples"] = ["unassalpha"]
                        if part.ndim == 3:
                            options["planarconfig"] = planar
                        word = f"{name}-{photometric}-{planar}-{'le' if order == '<' else 'be'}"
                        with contextlib.suppress(Exception):
                            tifffile.imwrite(folder / f"{word}-{compression}.tif", data,
                                             byteorder=order, compression=compression,
                                             resolution=(300, 300), resolutionunit=2, **options)
    tifffile.imwrite(folder / "premultiplied.tif",
                     np.dstack([s16[..., :3] * (s16[..., 3:] / 65535), s16[..., 3:]])
                     .astype(np.uint16), photometric="rgb", extrasamples=["assocalpha"])
    tifffile.imwrite(folder / "five.tif", np.dstack([s16, s16[..., :1]]), photometric="rgb",
                     extrasamples=["unspecified", "unspecified"])
    tifffile.imwrite(folder / "tiled.tif", np.tile(s16[..., :3], (4, 4, 1)), tile=(32, 32),
                     photometric="rgb")
    with contextlib.suppress(Exception):
        tifffile.imwrite(folder / "twelve.tif", s16[..., 0] >> 4, bitspersample=12)
    tifffile.imwrite(folder / "pages16.tif", np.stack([s16[..., 0]] * 3), photometric="minisblack")
    tifffile.imwrite(folder / "bigtiff.tif", s16[..., :3], bigtiff=True, photometric="rgb")


def _packings(folder, s16, s8):
    """TIFF compressed in every way that tifffile knows, tiled, with predictors, with palettes."""
    try:
        import tifffile
    except ImportError:
        return

    def write(name, data, **options):
        buffer = io.BytesIO()
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tifffile.imwrite(buffer, data, **options)
            (folder / f"{name}.tif").write_bytes(buffer.getvalue())

    for compression in ("packbits", "zstd", "lzma", "webp", "jpeg", "jpeg2000", "jpegxl", "lerc",
                        "png", "jpegxr", "ccittfax4"):
        for bits, data in ((8, s8), (16, s16)):
            for name, part in (("gray", data[..., 0]), ("rgb", data[..., :3]), ("alpha", data)):
                extra = {"extrasamples": ["unassalpha"]} if name == "alpha" else {}
                photometric = "minisblack" if name == "gray" else "rgb"
                for tile in (None, (16, 16)):
                    write(f"pack-{compression}-{name}{bits}-{'tile' if tile else 'strip'}", part,
                          compression=compression, photometric=photometric, tile=tile, **extra)
    for kind in (np.uint8, np.uint16, np.uint32, np.float32, np.float64):
        data = (s16 / 65535).astype(kind) if kind in (np.float32, np.float64) else (
            s8 if kind == np.uint8 else s16).astype(kind)
        write(f"predicted-{np.dtype(kind)}", data[..., :3], compression="zlib", predictor=True,
              photometric="rgb")
    for bits in (1, 2, 4, 6, 10, 12, 14):
        write(f"bits{bits}", (s16[..., 0] >> (16 - bits)).astype(np.uint16 if bits > 8
              else np.uint8), bitspersample=bits, photometric="minisblack")
    ramp = np.stack([np.arange(256) * 257, np.arange(255, -1, -1) * 257, np.full(256, 9000)])
    write("colormap", s8[..., 0], photometric="palette", colormap=ramp.astype(np.uint16))
    write("bilevel", s8[..., 0] > 120, photometric="minisblack")
    write("jpeg-ycbcr", s8[..., :3], compression="jpeg", photometric="ycbcr",
          compressionargs={"level": 95}, subsampling=(2, 2))
    write("float-negative", (s16[..., 0] / 9000.0 - 3).astype(np.float32), photometric="minisblack")
    strange = (s16[..., 0] / 65535).astype(np.float32)
    strange[2, 3], strange[5, 6], strange[7, 8] = np.nan, np.inf, -np.inf
    write("float-strange", strange, photometric="minisblack")
    write("metadata", s8[..., :3], photometric="rgb", description="a word", software="its maker",
          datetime="2024:01:02 03:04:05", resolution=(118, 118), resolutionunit=3)
    with contextlib.suppress(Exception), tifffile.TiffWriter(folder / "pyramid.tif") as file:
        file.write(s8[..., :3], photometric="rgb", subifds=1)
        file.write(s8[::2, ::2, :3], photometric="rgb", subfiletype=1)


def _codecs(folder, s16, s8):
    """What other encoders write: imagecodecs."""
    try:
        import imagecodecs
    except ImportError:
        return
    parts = {f"{name}{bits}": data for bits, all_ in ((8, s8), (16, s16)) for name, data in (
        ("gray", all_[..., 0]), ("two", all_[..., [0, 3]]), ("rgb", all_[..., :3]), ("rgba", all_))}
    parts |= {f"{name}{bits}": np.ascontiguousarray(parts[f"{name}16"] >> (16 - bits))
              for bits in (10, 12) for name in ("gray", "rgb", "rgba")}
    for name, data in parts.items():
        data = np.ascontiguousarray(data)
        bits = int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
        ways = {"png": ("png", {}), "webp": ("webp", {"lossless": True}), "qoi": ("qoi", {}),
                "bmp": ("bmp", {}), "apng": ("apng", {}), "avif": ("avif", {"bitspersample": bits}),
                "heic": ("heif", {"bitspersample": bits}), "jp2": ("jpeg2k", {"codecformat": "jp2",
                         "bitspersample": bits}), "j2k": ("jpeg2k", {"codecformat": "j2k"}),
                "jpg": ("jpeg8", {"level": 95}), "jpeg": ("jpeg8", {"level": 95, "subsampling":
                        "411"}), "jpe": ("mozjpeg", {"level": 95})}
        for suffix, (codec, options) in ways.items():
            with contextlib.suppress(Exception):
                made = getattr(imagecodecs, f"{codec}_encode")(data, **options)
                (folder / f"codec-{name}.{suffix}").write_bytes(made)


def _animations(folder, rgba, save):
    frames = [rgba.rotate(30 * i) for i in range(4)]
    for suffix in ("gif", "png", "webp", "tif", "avif"):
        for word, kept in (("alpha", frames), ("opaque", [f.convert("RGB") for f in frames])):
            for loop in (0, 1, 3):
                save(kept[0], f"anim-{word}-{loop}.{suffix}", save_all=True,
                     append_images=kept[1:], duration=[100, 250, 40, 1000], loop=loop)
        for disposal in (1, 2, 3):
            save(frames[0], f"disposal{disposal}.{suffix}", save_all=True, duration=80,
                 append_images=frames[1:], disposal=disposal)
    opaque = [f.convert("RGB") for f in frames]
    save(opaque[0], "still.png", save_all=True, append_images=opaque[1:], default_image=True)
    sizes = [opaque[0], opaque[1].resize((20, 40)), opaque[2].convert("L")]
    save(sizes[0], "pages.tif", save_all=True, append_images=sizes[1:])
    save(opaque[0], "two.mpo", save_all=True, append_images=opaque[1:2])


def _broken(folder):
    """Cut, damaged and empty files of every kind."""
    rng = np.random.default_rng(5)
    for path in sorted(folder.glob("RGB-plain.*")) + sorted(folder.glob("L-all.*")):
        data = path.read_bytes()
        for part in (0, 10, 50, 90, 99):
            (folder / f"cut{part}-{path.name}").write_bytes(data[: len(data) * part // 100])
        (folder / f"end-{path.name}").write_bytes(data[:-2])
        for number in range(6):
            damaged = bytearray(data)
            for place in rng.integers(0, min(len(data), 400), 3):
                damaged[place] = rng.integers(256)
            (folder / f"hit{number}-{path.name}").write_bytes(bytes(damaged))
    s8 = (scene() >> 8).astype(np.uint8)[..., :3]
    rows = b"".join(b"\0" + row.tobytes() for row in s8)
    (folder / "missing-rows.png").write_bytes(png(26, 34, 8, 2, rows[: 12 * (1 + 3 * 34)]))
    (folder / "huge.png").write_bytes(png(100_000, 100_000, 8, 2, rows))


def main() -> None:
    """Run on a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", default="png", help="a suffix, or same")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--show", nargs="*", default=["silent", "wrong", "crash"])
    options = parser.parse_args()
    if options.make:
        make(options.folder)
    from minisrcnn.imaging.decode import quiet
    from minisrcnn.imaging.save import FORMATS

    net, counts = identity(), collections.Counter()
    with tempfile.TemporaryDirectory() as out, quiet():
        for path in sorted(options.folder.rglob("*")):
            if path.is_file():
                suffix = f".{options.format}"
                if options.format == "same":
                    suffix = path.suffix if path.suffix.lower() in FORMATS else ".png"
                kind, why = classify(path, Path(out), net, suffix.lower())
                counts[kind] += 1
                if kind in options.show:
                    print(f"{kind:8} {path.relative_to(options.folder)}: {why}", flush=True)
    print(dict(counts))
    sys.exit(1 if counts["silent"] + counts["wrong"] + counts["crash"] else 0)


if __name__ == "__main__":
    main()
