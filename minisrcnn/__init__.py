"""SRCNN from scratch: every gradient derived by hand, proved by finite differences, and fast.

The public names below are loaded when first used, so that ``import minisrcnn`` costs
next to nothing and needs neither Numba nor SciPy nor CuPy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a clone, kernels/ is beside this package; setup.py installs it inside. With the clone's folder
# on the path of the package, minisrcnn.kernels is found in both.
_clone = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if all(os.path.isfile(os.path.join(_clone, *file)) for file in (("setup.py",),
                                                                 ("kernels", "__init__.py"))):
    __path__.append(_clone)

_HOME = {
    "SRCNN": "minisrcnn.srcnn",
    "Conv2d": "minisrcnn.engine.layers",
    "ReLU": "minisrcnn.engine.layers",
    "Chain": "minisrcnn.engine.layers",
    "mse": "minisrcnn.engine.losses",
    "SGD": "minisrcnn.engine.optim",
    "Adam": "minisrcnn.engine.optim",
    "get_backend": "minisrcnn.engine.backends",
    "set_threads": "minisrcnn.engine.backends",
    "upscale_image": "minisrcnn.upscale",
    "extract_patches": "minisrcnn.imaging.patches",
    "merge_patches": "minisrcnn.imaging.patches",
    "average_patches": "minisrcnn.imaging.patches",
    "check_gradients": "minisrcnn.gradcheck",
    "MinisrcnnError": "minisrcnn.errors",
    "BackendUnavailableError": "minisrcnn.errors",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .engine.backends import get_backend as get_backend
    from .engine.backends import set_threads as set_threads
    from .engine.layers import Chain as Chain
    from .engine.layers import Conv2d as Conv2d
    from .engine.layers import ReLU as ReLU
    from .engine.losses import mse as mse
    from .engine.optim import SGD as SGD
    from .engine.optim import Adam as Adam
    from .errors import BackendUnavailableError as BackendUnavailableError
    from .errors import MinisrcnnError as MinisrcnnError
    from .gradcheck import check_gradients as check_gradients
    from .imaging.patches import average_patches as average_patches
    from .imaging.patches import extract_patches as extract_patches
    from .imaging.patches import merge_patches as merge_patches
    from .srcnn import SRCNN as SRCNN
    from .upscale import upscale_image as upscale_image


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'minisrcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
