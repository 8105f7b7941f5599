"""A folder as the Hugging Face Hub wants it: configuration, weights, card."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from ..checkpoint import MODEL_FILE, ModelFile, save_state
from ..errors import MinisrcnnError, printable, reason
from ..imaging.files import atomic_open, remove_leftovers

PathLike = str | os.PathLike[str]


def write_folder(path: PathLike, model: ModelFile) -> None:
    """Write ``config.json``, ``README.md`` and ``model.safetensors`` into a new or empty folder.

    The weights have PyTorch's names, and minisrcnn reads the folder back as a model. They come
    last: a folder with them is whole, and one without them, which a process left that was killed
    while it wrote, is gone on with.

    Raises
    ------
    MinisrcnnError
        If the folder holds anything, or cannot be written to.
    """
    folder = Path(path)
    config = {
        "model_type": "srcnn", "architectures": ["SRCNN"],
        "kernels": [int(size) for size in model.arch.split("-")],
        "filters": list(model.filters), "channels": model.channels, "scale": model.scale,
        "padding_mode": "replicate", "y_range": [16, 235],
    }
    texts = {"config.json": json.dumps(config, indent=2) + "\n", "README.md": _card(model)}
    written: list[Path] = []
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder / name for name in (*texts, MODEL_FILE))
        if any(not path.name.startswith(".") and not _is_ours(path, texts)
               for path in folder.iterdir()) or (folder / MODEL_FILE).exists():
            raise MinisrcnnError(f"{folder}: holds files already, want a new or an empty folder")
        for name, text in texts.items():
            with atomic_open(folder / name) as file:
                file.write(text.encode())
            written.append(folder / name)
        save_state(folder / MODEL_FILE, model.parameters, dict(model.metadata) | {"format": "pt"})
    except BaseException as error:
        for path in written:  # half a folder would be in the way of the next try
            path.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise MinisrcnnError(f"{folder}: cannot be written ({reason(error)})") from None
        raise


def _is_ours(path: Path, texts: dict[str, str]) -> bool:
    """Whether a file holds what is to be written there anyway."""
    text = texts.get(path.name)
    return text is not None and path.is_file() and path.read_bytes() == text.encode()


def _card(model: ModelFile) -> str:
    scale = "?" if model.scale is None else model.scale
    facts = "\n".join(f"- {printable(name)}: {printable(value)}"
                      for name, value in sorted(model.metadata.items())
                      if name not in ("format", "sha256"))
    return f"""---
library_name: minisrcnn
pipeline_tag: image-to-image
tags: [super-resolution, srcnn]
---

# SRCNN {model.arch}, scale {scale}

Restores {"the Y of a picture" if model.channels == 1 else "RGB pictures"} that was enlarged
{scale} times by bicubic interpolation (MATLAB's), pixels in [0, 1]{
", Y in studio range (16 to 235 of 255)" if model.channels == 1 else ""}; each convolution repeats
the border. The weights are named `conv1.weight`, `conv1.bias`, ..., as a PyTorch state dict;
`config.json` has the sizes.

{facts}
"""
