"""Models of other programs: read them, and write ours for them.

:mod:`.reading` takes PyTorch state dicts (safetensors, .pth), ONNX chains and the authors' .mat;
:mod:`.onnx_files`, :mod:`.folders` and :mod:`.spandrel` are for those who want ours elsewhere.
``docs/models.md`` says what is kept of a model, and what differs between programs.
"""

from __future__ import annotations

from .convert import convert
from .reading import Foreign, read_model

__all__ = ["Foreign", "convert", "read_model"]
