"""How the kernels are compiled, and where the compiled code is kept.

Numba's own ``cache=True`` has gaps that matter here. It does not see that a *called* function in
another file has changed; it does not know for which vector unit the tiles were emitted; two
processes that compile different signatures at the same moment can leave an index that points at
each other's code; and it unpickles whatever it finds. :func:`kernel` closes them: every compiled
function has one file, named by a digest of all that it depends on (signature, processor, Numba,
the sources of this folder, the vector unit) and put in place by a rename. There is no index, so
there is nothing to race for. The file begins with a digest of the rest: a damaged one is compiled
anew. And since compiled code is run, it is read only from a folder and a file that are this
user's and that nobody else can write to.

The folder is ``cpu-kernels-UID`` in ``NUMBA_CACHE_DIR``, else in ``MINISRCNN_CACHE``, else in
``$XDG_CACHE_HOME/minisrcnn`` or ``~/.cache/minisrcnn``; files that nobody has used for two months
are removed. Where it cannot be made, :mod:`..cache` finds another one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pickle
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment, lookup_environment
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numpy.typing import DTypeLike

from ..cache import Refused, is_private, private_folder, user


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

_SOURCES = sorted(Path(__file__).parent.rglob("*.py"))
_STAMP = hashlib.sha256(b"".join(p.read_bytes() for p in _SOURCES) + SIMD.encode()).hexdigest()
_VERSIONS = (sys.implementation.cache_tag, numba.__version__, llvmlite.__version__)
_DIGEST = 32  # bytes, at the start of a file
_UNUSED = 60 * 86400  # seconds after which a file is removed


@functools.cache
def cache_folder() -> tuple[Path | None, str]:
    """Return the folder for compiled kernels, made if need be, and what is wrong with it.

    None where there can be none, with a warning; in words, where it is not the usual one.
    """
    try:
        return private_folder(f"cpu-kernels-{user()}", "NUMBA_CACHE_DIR", "MINISRCNN_CACHE")
    except Refused as error:
        warnings.warn(f"{error}; each process compiles them anew", RuntimeWarning, stacklevel=2)
        return None, str(error)


class _Unpickler(pickle.Unpickler):
    """Reads compiled code without importing the modules of the functions that became part of it.

    Numba imports them for their global names, which only its object mode looks at; some of its
    own take a fifteenth of a program's start.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numba.core.environment", "_rebuild_env"):
            return _rebuild_environment
        return super().find_class(module, name)


def _rebuild_environment(module: str, consts: Any, name: str) -> Environment:
    """Return the environment of a compiled function: its constants that are Python objects."""
    environment = lookup_environment(name)
    if environment is None:
        environment = Environment(vars(sys.modules.get(module, types.ModuleType(module))))
        environment.consts[:] = consts
        environment.env_name = name
        Environment._memo[name] = environment
    return environment


class _Store:
    """What Numba asks for the compiled code of one function, and gives it to."""

    cache_path = ""  # Numba's statistics ask for it

    def __init__(self, py_func: Callable[..., Any], optimize: int) -> None:
        code = py_func.__code__
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        cells = dumps([cell.cell_contents for cell in py_func.__closure__ or ()])
        self._name = py_func.__name__
        self._key = (_VERSIONS, _STAMP, py_func.__module__, py_func.__qualname__, code.co_code,
                     code.co_names, constants, cells, optimize)

    def path(self, sig: Any, codegen: Any) -> Path | None:
        """Return the file for a signature; None where nothing is kept."""
        folder, _ = cache_folder()
        if folder is None:
            return None
        key = repr((self._key, sig, codegen.magic_tuple()))
        return folder / f"{self._name}.{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # All that code needs at run time. Numba calls `refresh` here, which makes ready to compile:
        # it imports SciPy and registers a thousand functions, a third of a program's start.
        rtsys.initialize(target_context)
        path = self.path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                if not is_private(os.fstat(file.fileno())):
                    return None
                digest, data = file.read(_DIGEST), file.read()
            if hashlib.sha256(data).digest() != digest:
                return None
            result = CompileResult._rebuild(target_context, *_Unpickler(io.BytesIO(data)).load())
            with contextlib.suppress(OSError):  # of a disk that is read only
                os.utime(path)
        except Exception:  # whatever is wrong with the file, compiling is the cure
            return None
        return result

    def save_overload(self, sig: Any, result: Any) -> None:
        if result.lifted or result.library.has_dynamic_globals:
            return
        path = self.path(sig, result.codegen)
        if path is None:
            return
        data = dumps(result._reduce())
        with contextlib.suppress(OSError):  # a full or read-only disk: the code is in memory
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with open(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
            for old in path.parent.iterdir():
                if old.stat().st_mtime < time.time() - _UNUSED:
                    old.unlink()

    def flush(self) -> None:
        """Numba's dispatcher may ask for this."""


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
        self._compiled: dict[DTypeLike, Any] = {}

    def compile(self, dtype: DTypeLike) -> Callable[..., Any]:
        """Return the machine code for float32 or float64, compiling or loading it.

        Arrays are asked for their ``dtype``, not for its name: that takes NumPy three
        microseconds.
        """
        if dtype not in self._compiled:
            dispatcher = self._dispatcher()
            with _level_of_optimization(self._optimize):
                dispatcher.compile(self._signature(numba.from_dtype(np.dtype(dtype))))
            dispatcher.disable_compile()
            self._compiled[dtype] = dispatcher
        return self._compiled[dtype]

    def is_ready(self, dtype: DTypeLike) -> bool:
        """Whether :meth:`compile` has nothing to compile: done before, or kept on disk."""
        if dtype in self._compiled:
            return True
        dispatcher = self._dispatcher()
        sig = self._signature(numba.from_dtype(np.dtype(dtype)))
        path = dispatcher._cache.path(sig, dispatcher.targetctx.codegen())
        return path is not None and path.is_file()

    def _dispatcher(self) -> Any:
        dispatcher = numba.njit(
            self.py_func, parallel=self._parallel, nogil=True, error_model="numpy"
        )
        dispatcher._cache = _Store(self.py_func, self._optimize)
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


# A child that is forked while another thread compiles, or frees compiled code, would wait for its
# lock for ever: so the fork waits. The one registered last is taken first: Numba's, then LLVM's.
if hasattr(os, "register_at_fork"):
    _llvm_lock = getattr(llvmlite.binding.ffi.lib, "_lock", contextlib.nullcontext())
    for _lock in (_llvm_lock, global_compiler_lock):
        _release = functools.partial(_lock.__exit__, None, None, None)
        os.register_at_fork(before=_lock.__enter__, after_in_parent=_release,
                            after_in_child=_release)


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
