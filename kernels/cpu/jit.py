"""How the kernels are compiled, and where the compiled code is kept.

Numba's own ``cache=True`` has three gaps that matter here. It does not see that a *called*
function in another file has changed; it does not know for which vector unit the tiles were
emitted; and two processes that compile different signatures at the same moment can leave an
index that points at each other's code. :func:`jit` closes them: every compiled function has one
file, named by a digest of all that it depends on (signature, processor, Numba, the sources of
this folder, the vector unit) and put in place by a rename. There is no index, so there is
nothing to race for; where no folder can be written, functions are compiled anew by each process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock


def choose_simd(wish: str = "") -> str:
    """Name the vector unit to emit tiles for: avx512, avx2, neon, sse or plain.

    ``plain`` means ordinary Numba loops, for a host without any of the others. A ``wish`` (or
    ``MINISRCNN_SIMD``) is taken as it is; LLVM refuses what the processor cannot run.

    Raises
    ------
    ValueError
        If the wish is not one of those names.
    """
    wish = wish or os.environ.get("MINISRCNN_SIMD", "")
    names = ("avx512", "avx2", "neon", "sse", "plain")
    if wish:
        if wish not in names:
            raise ValueError(f"MINISRCNN_SIMD is {wish!r}, want one of {', '.join(names)}")
        return wish
    has = llvmlite.binding.get_host_cpu_features()
    if has.get("avx512f"):
        return "avx512"
    if has.get("avx2") and has.get("fma"):
        return "avx2"
    if llvmlite.binding.get_process_triple().split("-")[0] in ("aarch64", "arm64"):
        return "neon"
    return "sse" if has.get("sse2") else "plain"


SIMD = choose_simd()

_HERE = Path(__file__).parent
_STAMP = hashlib.sha256(
    b"".join(p.read_bytes() for p in sorted(_HERE.rglob("*.py"))) + SIMD.encode()
).hexdigest()


class _OneFilePerKey(IndexDataCacheFile):
    """A store without an index: the name of the file is the key."""

    def load(self, key: Any) -> Any:
        try:
            return self._load_data(self._name_of(key))
        except (OSError, EOFError, pickle.UnpicklingError):
            return None

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name_of(key), data)

    def has(self, key: Any) -> bool:
        return os.path.exists(self._data_path(self._name_of(key)))

    def _name_of(self, key: Any) -> str:
        digest = hashlib.sha256(repr((numba.__version__, _STAMP, key)).encode()).hexdigest()
        return self._index_name.removesuffix(".nbi") + f".{digest[:20]}.nbc"


class _Cache(FunctionCache):
    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file = _OneFilePerKey(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full or read-only disk: the code is in memory
            super().save_overload(sig, data)

    def has(self, sig: Any, codegen: Any) -> bool:
        return self._cache_file.has(self._index_key(sig, codegen))


class Kernel:
    """A function that Numba compiles for float32 or float64 when that is first asked for.

    The signature is spelt out, with read-only inputs, so that an array's flags never cause a
    second compilation.

    Parameters
    ----------
    py_func : function
        What to compile.
    signature : function
        Takes a Numba float type, returns the tuple of argument types.
    parallel : bool
        Whether ``prange`` in it uses threads.
    optimize : int
        LLVM's level of optimization. Level 1 is enough for what is vectorized by hand, and takes a
        sixth less time; loops that LLVM is to turn into vector code need level 3.
    """

    def __init__(
        self, py_func: Callable[..., Any], signature: Callable[[Any], tuple[Any, ...]],
        parallel: bool, optimize: int,
    ) -> None:
        self.py_func = py_func
        self.__doc__ = py_func.__doc__
        self.__name__ = py_func.__name__
        self._signature = signature
        self._parallel = parallel
        self._optimize = optimize
        self._compiled: dict[str, Any] = {}

    def compile(self, dtype: str) -> Callable[..., Any]:
        """Return the machine code for "float32" or "float64", compiling or loading it."""
        if dtype not in self._compiled:
            dispatcher = self._dispatcher()
            with _level_of_optimization(self._optimize):
                dispatcher.compile(self._signature(getattr(numba, dtype)))
            dispatcher.disable_compile()
            self._compiled[dtype] = dispatcher
        return self._compiled[dtype]

    def is_ready(self, dtype: str) -> bool:
        """Whether :meth:`compile` has nothing to compile: done before, or kept on disk."""
        if dtype in self._compiled:
            return True
        dispatcher = self._dispatcher()
        sig = self._signature(getattr(numba, dtype))
        cache = dispatcher._cache
        return isinstance(cache, _Cache) and cache.has(sig, dispatcher.targetctx.codegen())

    def _dispatcher(self) -> Any:
        dispatcher = numba.njit(
            self.py_func, parallel=self._parallel, nogil=True, error_model="numpy"
        )
        with contextlib.suppress(RuntimeError):  # no folder can be written: nothing is kept
            dispatcher._cache = _Cache(self.py_func)
        return dispatcher


@contextlib.contextmanager
def _level_of_optimization(level: int) -> Iterator[None]:
    """Set the level, which is Numba's for the whole process: nobody else may compile meanwhile."""
    with global_compiler_lock:
        usual = numba.config.OPT
        numba.config.OPT = type(usual)(level)
        try:
            yield
        finally:
            numba.config.OPT = usual


def kernel(
    signature: Callable[[Any], tuple[Any, ...]], parallel: bool = False, optimize: int = 1
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate an outermost function: one that Python calls."""
    return lambda py_func: Kernel(py_func, signature, parallel, optimize)


def inner(py_func: Callable[..., Any]) -> Any:
    """Decorate a function that only compiled code calls; it is kept with its caller.

    Numba would compile it once more for every 0 or False among its arguments, because these
    have types of their own: a third of all compiling. So they are made plain numbers first.
    """
    dispatcher = numba.njit(py_func, nogil=True, error_model="numpy", no_cpython_wrapper=True,
                            no_cfunc_wrapper=True)
    find, plain = dispatcher.get_call_template, numba.types.unliteral
    dispatcher.get_call_template = lambda args, kws: find(
        tuple(plain(a) for a in args), {key: plain(a) for key, a in kws.items()})
    return dispatcher


def once(py_func: Callable[..., Any]) -> Any:
    """Decorate a function that compiled code calls in one place: it becomes part of its caller.

    A function of its own would be optimised on its own first, and all that it calls with it.
    """
    return numba.njit(py_func, nogil=True, error_model="numpy", inline="always")


def const(dtype: Any, ndim: int) -> Any:
    """Type of a C-contiguous array that is only read (writable ones are taken as well)."""
    return numba.types.Array(dtype, ndim, "C", readonly=True)
