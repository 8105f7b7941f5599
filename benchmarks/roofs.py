"""What the machine can do at most: sgemm, multiply-adds in registers, and a triad.

The loop of multiply-adds is written in LLVM's own language, so that it depends on none of the
kernels under test: twelve vectors of sums, more than latency times units of today's processors,
each multiplied and added to in turn.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .cases import Case, Roof
from .ours import Call, Implementation, NotOffered, Prepared

_CHAINS = 12


def _sgemm(size: int) -> Call:
    rng = np.random.default_rng(0)
    a, b = (rng.random((size, size), np.float32) for _ in range(2))
    c = np.empty((size, size), np.float32)
    return lambda: np.matmul(a, b, out=c)


def _lanes() -> int:
    import llvmlite.binding as llvm

    has = llvm.get_host_cpu_features()
    return 16 if has.get("avx512f") else 8 if has.get("avx") else 4


@cache
def _fma_loop() -> tuple[Any, Callable[[int], float]]:
    """Compile ``loop(rounds)``; return what must be kept alive, and the function."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    vector, lanes = f"<{_lanes()} x float>", _lanes()
    splat = f"<{', '.join(['float 0x3FEFFFFFE0000000'] * lanes)}>"  # just below 1
    phis = [f"%a{i} = phi {vector} [zeroinitializer, %entry], [%n{i}, %loop]"
            for i in range(_CHAINS)]
    steps = [f"%n{i} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{i}, {vector} {splat}, "
             f"{vector} {splat})" for i in range(_CHAINS)]
    sums = [f"%s{i} = fadd {vector} %s{i - 1}, %n{i}" for i in range(1, _CHAINS)]
    text = "\n".join([
        f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})",
        "define float @loop(i64 %rounds) {", "entry:", "br label %loop", "loop:",
        "%r = phi i64 [0, %entry], [%next, %loop]", *phis, *steps, "%next = add i64 %r, 1",
        "%more = icmp ult i64 %next, %rounds", "br i1 %more, label %loop, label %end", "end:",
        f"%s0 = fadd {vector} %n0, zeroinitializer", *sums,
        f"%x = extractelement {vector} %s{_CHAINS - 1}, i32 0", "ret float %x", "}"])
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), target)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(
        engine.get_function_address("loop"))
    return engine, function


def _on_all(threads: int, work: Callable[[int], Any]) -> Call:
    """Return a call that does ``work(0)``, ``work(1)``, ... side by side."""
    def call() -> None:
        helpers = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
        for helper in helpers:
            helper.start()
        work(0)
        for helper in helpers:
            helper.join()

    return call


def _triad(size: int, threads: int) -> Call:
    import numba

    @numba.njit("void(f4[::1], f4[::1], f4[::1], f4)", nogil=True, fastmath=True)
    def triad(a: Any, b: Any, c: Any, s: Any) -> None:
        for i in range(a.size):
            a[i] = b[i] + s * c[i]

    a, b, c = (np.ones(size, np.float32) for _ in range(3))
    pieces = np.array_split(np.arange(size), threads)
    bounds = [(int(p[0]), int(p[-1]) + 1) for p in pieces]
    return _on_all(threads, lambda i: triad(*(v[slice(*bounds[i])] for v in (a, b, c)),
                                            np.float32(0.5)))


def _prepare(case: Case, threads: int) -> Prepared:
    if not isinstance(case, Roof):
        raise NotOffered
    if case.name == "sgemm":
        return Prepared({"": _sgemm(case.size)})
    if case.name == "triad":
        return Prepared({"": _triad(case.size, threads)})
    _, loop = _fma_loop()
    return Prepared({"": _on_all(threads, lambda i: loop(case.size))},
                    mflop=2e-6 * case.size * _CHAINS * _lanes() * threads)


IMPLEMENTATION = Implementation("roof", _prepare, suites=("roofs",), kind="roof")
