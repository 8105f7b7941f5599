"""A contact sheet: before beside after, a detail of every picture."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MinisrcnnError
from ..imaging.decode import open_picture
from ..imaging.files import to_8_bits, writing
from ..imaging.save import format_of

_SIDE = 240  # pixels of a detail, as large as in the result
_CAPTION = 18
_ACROSS = 2  # pictures beside each other
MOST = 200


def write_sheet(path: str, results: Sequence[tuple[str, str]]) -> None:
    """Write a contact sheet of the first ``MOST`` results.

    Parameters
    ----------
    path : str
    results : sequence of (source, target)
        Files; what cannot be read is skipped.

    Raises
    ------
    MinisrcnnError
        If the sheet cannot be written.
    """
    from PIL import Image, ImageDraw

    format_of(path)
    tiles: list[Any] = []
    for source, target in results[:MOST]:
        with contextlib.suppress(MinisrcnnError):
            before, after = _shown(source), _shown(target)
            left = (before.width - _SIDE * before.width / after.width) / 2
            top = (before.height - _SIDE * before.height / after.height) / 2
            right, bottom = before.width - left, before.height - top
            box = (max(left, 0), max(top, 0), min(right, before.width), min(bottom, before.height))
            factor = after.width / before.width
            size = (max(1, round((box[2] - box[0]) * factor)),
                    max(1, round((box[3] - box[1]) * factor)))
            x, y = round(box[0] * factor), round(box[1] * factor)
            tile = Image.new("RGB", (2 * _SIDE + 4, _SIDE + _CAPTION), "white")
            tile.paste(before.resize(size, Image.Resampling.BICUBIC, box=box), (0, _CAPTION))
            tile.paste(after.crop((x, y, x + size[0], y + size[1])), (_SIDE + 4, _CAPTION))
            ImageDraw.Draw(tile).text((2, 2), f"{Path(source).name[:40]}: bicubic, result", "black")
            tiles.append(tile)
    if not tiles:
        return
    rows = -(-len(tiles) // _ACROSS)
    W, H = tiles[0].size
    sheet = Image.new("RGB", ((W + 8) * min(_ACROSS, len(tiles)), (H + 8) * rows), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, ((W + 8) * (number % _ACROSS), (H + 8) * (number // _ACROSS)))
    with writing(path) as file:
        sheet.save(file, format_of(path).name)


def _shown(path: str) -> Any:
    """Return the first frame, on white."""
    from PIL import Image

    with open_picture(path) as picture:
        pixels = to_8_bits(next(picture.frames(first_only=True)).pixels)
    if pixels.shape[2:] == (2,):
        pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], axis=2)
    shown = Image.fromarray(np.ascontiguousarray(pixels))
    if shown.mode == "RGBA":
        white = Image.new("RGBA", shown.size, "white")
        shown = Image.alpha_composite(white, shown)
    return shown.convert("RGB")
