"""Kernels of the stand-in for CuPy: compiled when first needed, every argument checked."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minisrcnn.engine.emulator import build
from minisrcnn.engine.emulator.arrays import ndarray
from minisrcnn.engine.emulator.streams import (
    SHARED_AT_MOST,
    SHARED_BY_DEFAULT,
    CompileException,
    CUDADriverError,
    Stream,
    submit,
)

_SCALARS = {
    "f4": ctypes.c_float,
    "f8": ctypes.c_double,
    "b1": ctypes.c_bool,
    "i1": ctypes.c_int8,
    "i2": ctypes.c_int16,
    "i4": ctypes.c_int32,
    "i8": ctypes.c_int64,
    "u1": ctypes.c_uint8,
    "u2": ctypes.c_uint16,
    "u4": ctypes.c_uint32,
    "u8": ctypes.c_uint64,
}
_SPELLED = {"f4": "float", "f8": "double", "i4": "int", "u4": "unsigned", "i8": "long long"}


def _argument(value: Any, wanted: str, where: str) -> Any:
    """Convert one argument as CuPy would, and refuse it where the kernel would misread it."""
    if wanted[0] == "p":
        element = wanted.lstrip("pc")
        spelled = ("const " if wanted[1] == "c" else "") + _SPELLED.get(element, element) + "*"
        if value is None:
            return ctypes.c_void_p(0)
        if not isinstance(value, ndarray):
            raise TypeError(f"{where} is a {type(value).__name__}; the kernel wants {spelled}")
        if element[0] in "fiub" and value._array.dtype.str[1:] != element:
            raise TypeError(f"{where} is a {value._array.dtype} array; the kernel wants {spelled}")
        if not value._array.flags.c_contiguous:
            raise ValueError(
                f"{where} is not C-contiguous, and its address is all that the kernel gets"
            )
        return ctypes.c_void_p(value._array.ctypes.data)
    # CuPy passes a Python int as 8 bytes and a float as a double; NumPy's scalars as what they are.
    by_type = {bool: "b1", int: "i8", float: "f8"}
    have = by_type.get(type(value)) or (
        value.dtype.str[1:] if isinstance(value, np.generic) else None
    )
    spelled = _SPELLED.get(wanted, wanted)
    if have is None or wanted not in _SCALARS:
        raise TypeError(f"{where} is a {type(value).__name__}; the kernel wants {spelled}")
    signedness_only = have[0] in "iu" and wanted[0] in "iu" and have[1:] == wanted[1:]
    if have != wanted and not signedness_only:
        got = _SPELLED.get(have, have)
        raise TypeError(
            f"{where} is passed as {got}; the kernel wants {spelled}: wrap it "
            f"(np.{_SCALARS[wanted].__name__.replace('c_', '')}(...) or the like)"
            if type(value) in by_type
            else f"{where} is passed as {got}; the kernel wants {spelled}"
        )
    return _SCALARS[wanted](value.item() if isinstance(value, np.generic) else value)


def _triple(value: Any, what: str) -> tuple[int, int, int]:
    if not isinstance(value, tuple) or not 1 <= len(value) <= 3:
        raise TypeError(f"{what} is {value!r}; wanted a tuple of one to three integers")
    full = (*(int(n) for n in value), 1, 1)
    if min(full) < 1:
        raise ValueError(f"{what} is {value}: empty (CuPy would launch it with 1 instead)")
    return full[0], full[1], full[2]


class RawKernel:
    """A kernel, compiled when it is first needed."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: bool | None = None,
    ):
        self.code, self.name, self.options = code, name, options
        self._module = RawModule(code, options=options)
        self._shared_limit = SHARED_BY_DEFAULT

    def _function(self) -> build.Function:
        functions = self._module._functions()
        if self.name not in functions:
            raise AttributeError(
                f"no kernel {self.name!r} in this module: it has {sorted(functions)}"
            )
        return functions[self.name]

    def compile(self, log_stream: Any = None) -> None:
        """Compile now."""
        self._function()

    @property
    def max_threads_per_block(self) -> int:
        """The limit of ``__launch_bounds__``, or 1024."""
        return self._function().max_threads

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """How much dynamic shared memory a launch may ask for; 48 KB unless raised."""
        return self._shared_limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, bytes: int) -> None:
        if not 0 <= bytes <= SHARED_AT_MOST:
            raise CUDADriverError(1)
        self._shared_limit = int(bytes)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple,
        *,
        shared_mem: int = 0,
        stream: Stream | None = None,
    ) -> None:
        """Launch: check everything, then run the whole grid (or record it, in a capture)."""
        function, name = self._function(), self.name
        g, b = _triple(grid, f"{name}: grid"), _triple(block, f"{name}: block")
        if math.prod(b) > function.max_threads or b[2] > 64:
            raise ValueError(
                f"{name}: block {b} has {math.prod(b)} threads; the kernel allows "
                f"{function.max_threads} (64 in z)"
            )
        if g[0] >= 2**31 or g[1] >= 2**16 or g[2] >= 2**16:
            raise ValueError(f"{name}: grid {g} is over CUDA's limits (2^31-1, 65535, 65535)")
        if not 0 <= shared_mem <= self._shared_limit:
            raise ValueError(
                f"{name}: shared_mem {shared_mem} is over {self._shared_limit} bytes; "
                "raise max_dynamic_shared_size_bytes first"
            )
        if not isinstance(args, tuple):
            raise TypeError(f"{name}: args is a {type(args).__name__}; wanted a tuple")
        if len(args) != len(function.parameters):
            raise TypeError(
                f"{name}: {len(args)} arguments for {len(function.parameters)} parameters"
            )
        values = [
            _argument(value, wanted, f"{name}: argument {i}")
            for i, (value, wanted) in enumerate(zip(args, function.parameters, strict=True))
        ]
        arrays = [(a._array, wanted) for a, wanted in zip(args, function.parameters, strict=True)
                  if isinstance(a, ndarray)]
        submit(
            lambda: self._function().launch(g, b, values, shared_mem),
            [a for a, _ in arrays],
            [a for a, wanted in arrays if not wanted.startswith("pc")],
            name,
            stream,
        )


class RawModule:
    """A kernel text, compiled when it is first needed, once for each setting it runs with."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool | None = None,
    ):
        if code is None:
            raise TypeError("the stand-in's RawModule takes code=, not path=")
        if not isinstance(options, tuple):
            raise TypeError(f"options is a {type(options).__name__}; wanted a tuple")
        self.code, self.options, self.name_expressions = code, options, name_expressions
        self._built: dict[tuple, dict[str, build.Function]] = {}

    def _functions(self) -> dict[str, build.Function]:
        now = build.settings()
        key = (now.sanitize, now.debug, now.portable)
        if key not in self._built:
            try:
                self._built[key] = build.load(
                    self.code, self.options, tuple(self.name_expressions or ()), now
                )
            except build.CompileError as error:
                raise CompileException(str(error), self.code, "kernel.cu", self.options) from None
        return self._built[key]

    def compile(self, log_stream: Any = None) -> None:
        """Compile now."""
        self._functions()

    def get_function(self, name: str) -> RawKernel:
        """Return a kernel by its name."""
        kernel = RawKernel(self.code, name, self.options)
        kernel._module = self
        return kernel
