"""Compile the CUDA sources on first use, and launch kernels with their arguments checked.

CuPy passes to a kernel whatever it is given: it checks neither how many arguments there are, nor
their dtypes, nor whether an array is contiguous or on this device, and sends a Python float as a
double. A mistake is then garbage or a crash of the whole process. So every launch goes
through :class:`Launcher`, which reads a kernel's signature from its source, converts the numbers,
and refuses what does not fit.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np

# extern "C" __global__ void [__launch_bounds__(...)] name(parameters) {
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^{;]*?\)\s+)?(\w+)\s*'
    r"\(([^)]*)\)\s*\{"
)
_SCALARS = {"int": "int32", "long long": "int64", "float": "float32", "double": "float64"}

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its name, whether it is an array, and its type in C."""

    name: str
    is_array: bool
    ctype: str

    def dtype(self, real: np.dtype[Any]) -> np.dtype[Any]:
        """Return the NumPy type, ``real`` being what the source was compiled for."""
        return real if self.ctype == "real" else np.dtype(_SCALARS[self.ctype])


@cache
def list_sources() -> list[str]:
    """Return the names of the CUDA sources in ``kernels/cuda``."""
    folder = importlib.resources.files("minisrcnn.kernels.cuda")
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(".cu"))


def read_source(file: str) -> str:
    """Return the text of a file of ``kernels/cuda``."""
    return (importlib.resources.files("minisrcnn.kernels.cuda") / file).read_text("utf-8")


@cache
def read_signatures(file: str) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of every kernel in a file of ``kernels/cuda``."""
    text = re.sub(r"//[^\n]*", "", read_source(file))
    return {
        name: tuple(_parameter(parameter) for parameter in parameters.split(","))
        for name, parameters in _KERNEL.findall(text)
    }


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", " ").split()
    name = words.pop()
    kinds = [word for word in words if word not in ("const", "*")]
    return Parameter(name, "*" in words, " ".join(kinds))


class Launcher:
    """Launches the kernels of ``kernels/cuda`` on one array library.

    Parameters
    ----------
    load : callable
        Returns the library: CuPy, or the stand-in that executes CUDA C on the CPU.
        Called on first use, so that a machine without it can still import this module.
    """

    def __init__(self, load: Callable[[], ModuleType]) -> None:
        self._load = load
        self._modules: dict[tuple[str, tuple[str, ...], int], Any] = {}
        self._kernels: dict[tuple[str, tuple[str, ...], int, str], Any] = {}

    @cached_property
    def xp(self) -> Any:
        """The array library."""
        return self._load()

    def __call__(
        self, file: str, name: str, grid: Grid, block: Grid, *args: Any,
        real: np.dtype[Any], options: tuple[str, ...] = (),
    ) -> None:
        """Launch kernel ``name`` of ``file`` on the current stream.

        Parameters
        ----------
        file, name : str
            Which kernel.
        grid, block : tuple of int
            Numbers of blocks and of threads, each at least 1.
        *args
            The kernel's arguments: arrays, and Python numbers for its scalars.
        real : dtype
            float32 or float64: what ``real`` means in the source.
        options : tuple of str
            Macros (``-DNAME=VALUE``) beside ``-DREAL``.

        Raises
        ------
        TypeError, ValueError
            If an argument is not what the kernel takes. These are mistakes of the caller in this
            package: the public functions check their own arguments first.
        """
        parameters = read_signatures(file)[name]
        if len(args) != len(parameters):
            raise TypeError(f"{name} got {len(args)} arguments, want {len(parameters)}: "
                            f"{', '.join(parameter.name for parameter in parameters)}")
        if min(*grid, *block) < 1:
            raise ValueError(f"{name} got the grid {grid} of blocks {block}, want sizes of at "
                             "least 1")
        device = self.xp.cuda.runtime.getDevice()
        values = tuple(
            self._array(name, parameter, arg, real, device) if parameter.is_array
            else self._scalar(name, parameter, arg, real)
            for parameter, arg in zip(parameters, args, strict=True)
        )
        self._kernel(file, name, real, options, device)(grid, block, values)

    def _kernel(
        self, file: str, name: str, real: np.dtype[Any], options: tuple[str, ...], device: int
    ) -> Any:
        flags = compile_options(real, options)
        key = (file, flags, device, name)
        if key not in self._kernels:
            if key[:3] not in self._modules:
                # CuPy keeps the compiled module on disk; this keeps it loaded.
                self._modules[key[:3]] = self.xp.RawModule(code=read_source(file), options=flags)
            self._kernels[key] = self._modules[key[:3]].get_function(name)
        return self._kernels[key]

    def _array(
        self, kernel: str, parameter: Parameter, a: Any, real: np.dtype[Any], device: int
    ) -> Any:
        want = parameter.dtype(real)
        if not isinstance(a, self.xp.ndarray):
            raise TypeError(f"{parameter.name} of {kernel} is a {type(a).__module__}."
                            f"{type(a).__name__}, want an array on the device")
        if a.dtype != want:
            raise TypeError(f"{parameter.name} of {kernel} has dtype {a.dtype}, want {want}")
        if not a.flags.c_contiguous:
            raise ValueError(f"{parameter.name} of {kernel} has strides {a.strides}, want a "
                             "C-contiguous array")
        if a.device.id != device:
            raise ValueError(f"{parameter.name} of {kernel} is on device {a.device.id}, want "
                             f"device {device}, the current one")
        return a

    @staticmethod
    def _scalar(kernel: str, parameter: Parameter, value: Any, real: np.dtype[Any]) -> Any:
        want = parameter.dtype(real)
        if want.kind == "i":
            if isinstance(value, float):
                raise TypeError(f"{parameter.name} of {kernel} is {value!r}, want an integer")
            limit = np.iinfo(want)
            if not limit.min <= value <= limit.max:
                raise ValueError(f"{parameter.name} of {kernel} is {value}, want at most "
                                 f"{limit.max}")
        return want.type(value)


@cache
def compile_options(real: np.dtype[Any], options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options of the compiler: the C++ standard, the meaning of ``real``, the macros."""
    return ("--std=c++17", f"-DREAL={'float' if real == np.float32 else 'double'}", *options)
