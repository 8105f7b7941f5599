"""The arrays of the stand-in for CuPy: NumPy's, behind a wall that only explicit copies cross."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minisrcnn.engine.emulator.streams import (
    Device,
    get_current_stream,
    not_while_capturing,
    note,
    submit,
)


class MemoryPointer:
    """Where an array's data is; ``ptr`` is the address."""

    def __init__(self, array: np.ndarray):
        self.ptr = array.ctypes.data


def unwrap(value: Any) -> Any:
    """Return the NumPy arrays inside; a NumPy array from outside is refused, as CuPy does."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: asarray() copies to the device")
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(item) for item in value)
    return value


def _wrap(value: Any) -> Any:
    """Return a result for the caller: what has a dtype stays on the device, scalars too."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray._of(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(_wrap(item) for item in value)
    return value


class ndarray(NDArrayOperatorsMixin):
    """An array that pretends to live on a device."""

    _array: np.ndarray
    __array_priority__ = 100

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: Any = float,
        memptr: None = None,
        strides: None = None,
        order: str = "C",
    ):
        if memptr is not None or strides is not None:
            raise TypeError("the stand-in's ndarray takes no memptr and no strides")
        self._array = empty(shape, dtype, order)._array

    @classmethod
    def _of(cls, array: np.ndarray) -> ndarray:
        self = cls.__new__(cls)
        self._array = array
        return self

    # What NumPy's arrays have, too.
    dtype = property(lambda self: self._array.dtype)
    shape = property(lambda self: self._array.shape)
    strides = property(lambda self: self._array.strides)
    size = property(lambda self: self._array.size)
    ndim = property(lambda self: self._array.ndim)
    nbytes = property(lambda self: self._array.nbytes)
    itemsize = property(lambda self: self._array.itemsize)
    flags = property(lambda self: self._array.flags)
    T = property(lambda self: ndarray._of(self._array.T))

    def item(self, *args: int) -> Any:
        """Copy one element to the host."""
        return self.get().item(*args)

    def tolist(self) -> Any:
        """Copy to the host, as nested lists."""
        return self.get().tolist()

    # What a GPU array has of its own.
    @property
    def data(self) -> MemoryPointer:
        """The device memory; ``.ptr`` is its address."""
        return MemoryPointer(self._array)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What other libraries take device memory by, such as mpi4py."""
        return {"shape": self.shape, "typestr": self.dtype.str, "version": 3, "strides": None,
                "data": (self._array.ctypes.data, False)}

    @property
    def device(self) -> Device:
        """The device that the array is on."""
        return Device()

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        """Copy to the host."""
        not_while_capturing("a copy to the host")
        note([self._array], [], "a copy to the host", stream)
        (stream or get_current_stream()).synchronize()
        if out is None:
            return np.array(self._array, order=order)  # type: ignore[call-overload]
        out[...] = self._array
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Copy from the host."""
        not_while_capturing("a copy from the host")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        note([], [self._array], "a copy from the host", stream)
        self._array[...] = arr

    def fill(self, value: Any) -> None:
        """Set every element."""
        array, scalar = self._array, unwrap(value)
        submit(lambda: array.fill(scalar), [], [array], "fill")

    def __setitem__(self, key: Any, value: Any) -> None:
        array, key, source = self._array, unwrap(key), unwrap(value)
        reads = [source] if isinstance(source, np.ndarray) else []
        submit(lambda: array.__setitem__(key, source), reads, [array], "a[...] = b")

    def __getitem__(self, key: Any) -> ndarray:
        return forwarded("a[...]", self._array.__getitem__)(key)

    # What must not happen by accident.
    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        if any(isinstance(x, np.ndarray) for x in inputs):
            raise TypeError(f"{ufunc.__name__}: a CuPy array and a NumPy array cannot be mixed")
        run = forwarded(ufunc.__name__, getattr(ufunc, method))
        if out is None:
            return run(*inputs, **kwargs)
        kwargs["out"] = unwrap(out)
        inputs = unwrap(inputs)
        reads = [x for x in inputs if isinstance(x, np.ndarray)]
        submit(lambda: getattr(ufunc, method)(*inputs, **kwargs), reads, list(kwargs["out"]),
               ufunc.__name__)  # in place: a kernel
        return out[0] if len(out) == 1 else out

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __repr__(self) -> str:
        return repr(self._array)


def forwarded(name: str, function: Callable) -> Callable:
    """NumPy's function over device arrays. One that does not return a view allocates its result."""

    def call(*args: Any, **kwargs: Any) -> Any:
        args = unwrap(args)
        kwargs = {key: unwrap(value) for key, value in kwargs.items()}
        result = function(*args, **kwargs)
        if isinstance(result, np.generic):
            result = np.asarray(result)
        if isinstance(result, np.ndarray):
            given = (*args, *kwargs.values(), getattr(function, "__self__", None))
            inputs = [a for a in given if isinstance(a, np.ndarray)]
            if not any(np.may_share_memory(result, a) for a in inputs):
                not_while_capturing(f"{name} allocates its result")
                note(inputs, [result], name)
        else:
            not_while_capturing(name)
        return _wrap(result)

    call.__name__ = name
    call.__doc__ = f"As NumPy's ``{name}``, for arrays on the device."
    return call


def _method(name: str) -> Callable:
    def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return forwarded(name, getattr(self._array, name))(*args, **kwargs)

    call.__name__ = name
    return call


_METHODS = (
    "all",
    "any",
    "argmax",
    "argmin",
    "astype",
    "clip",
    "copy",
    "cumsum",
    "diagonal",
    "dot",
    "flatten",
    "max",
    "mean",
    "min",
    "prod",
    "ravel",
    "repeat",
    "reshape",
    "squeeze",
    "std",
    "sum",
    "swapaxes",
    "take",
    "trace",
    "transpose",
    "var",
    "view",
)
for _name in _METHODS:
    setattr(ndarray, _name, _method(_name))


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Allocate without initialising: every byte is 0xFF, which is NaN as a float."""
    not_while_capturing("allocation")
    array = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    if array.size:
        array.reshape(-1, order="A").view(np.uint8).fill(0xFF)
    return ndarray._of(array)


def _written(array: np.ndarray, what: str, reads: Sequence[np.ndarray] = ()) -> ndarray:
    note(reads, [array], what)
    return ndarray._of(array)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Allocate and set to zero."""
    not_while_capturing("allocation")
    return _written(np.zeros(shape, dtype, order), "zeros")  # type: ignore[call-overload]


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Allocate and set to one."""
    not_while_capturing("allocation")
    return _written(np.ones(shape, dtype, order), "ones")  # type: ignore[call-overload]


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    """Allocate and set every element to a value."""
    not_while_capturing("allocation")
    filled = np.full(shape, unwrap(fill_value), dtype, order)  # type: ignore[call-overload]
    return _written(filled, "full")


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    """Allocate like another array, without initialising."""
    return empty(prototype.shape if shape is None else shape, dtype or prototype.dtype)


def zeros_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    """Allocate like another array, and set to zero."""
    return zeros(a.shape if shape is None else shape, dtype or a.dtype)


def ones_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    """Allocate like another array, and set to one."""
    return ones(a.shape if shape is None else shape, dtype or a.dtype)


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """Copy to the device."""
    if not copy:
        return asarray(obj, dtype, order)
    not_while_capturing("allocation")
    source = obj._array if isinstance(obj, ndarray) else obj
    made = np.array(source, dtype=dtype, order=order, ndmin=ndmin)  # type: ignore[call-overload]
    return _written(made, "array", [source] if isinstance(obj, ndarray) else [])


def asarray(
    a: Any,
    dtype: Any = None,
    order: Any = None,
    *,
    copy: bool | None = None,
    blocking: bool = False,
) -> ndarray:
    """Return the array itself if it is on the device with the right dtype, else a copy there."""
    if isinstance(a, ndarray) and not copy:
        result = np.asarray(a._array, dtype=dtype, order=order)
        if np.may_share_memory(result, a._array) or a._array.size == 0:
            return a if result is a._array else ndarray._of(result)
    return array(a, dtype, order=order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """Return the array, C-contiguous and on the device: itself if it is, else a copy."""
    return asarray(a, dtype, "C")


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    """Copy to the host."""
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)  # type: ignore[call-overload]


FUNCTIONS = (
    "abs",
    "absolute",
    "add",
    "all",
    "allclose",
    "any",
    "arange",
    "argmax",
    "argmin",
    "array_equal",
    "broadcast_to",
    "clip",
    "concatenate",
    "divide",
    "dot",
    "einsum",
    "exp",
    "expand_dims",
    "eye",
    "flip",
    "isfinite",
    "isnan",
    "linspace",
    "log",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "moveaxis",
    "multiply",
    "negative",
    "pad",
    "power",
    "prod",
    "ravel",
    "repeat",
    "reshape",
    "roll",
    "rot90",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "subtract",
    "sum",
    "swapaxes",
    "tensordot",
    "tile",
    "transpose",
    "where",
)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """Copy within the device."""
    to, source, mask = dst._array, unwrap(src), True if where is None else unwrap(where)
    reads = [a for a in (source, mask) if isinstance(a, np.ndarray)]
    submit(lambda: np.copyto(to, source, casting=casting, where=mask),  # type: ignore[arg-type]
           reads, [to], "copyto")
