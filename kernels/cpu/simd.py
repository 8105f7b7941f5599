"""Vectors for Numba: the registers of the processor, and what it does to them.

Numba has no way to keep an array in registers. So there is a type here, what C calls
``__m512``, that lives in one: a compiled function may hold vectors in local variables, pass
them to other functions and return them. A loop over V numbers then takes one instruction a step,
and a result that is summed in a variable stays in its register until it is stored:

    total = broadcast(bias)
    for k in range(K):
        total = fma(broadcast(a[k]), load(b, k * lanes(b.itemsize)), total)
    store(y, 0, total)

``load_rows``, ``store_rows`` and ``fma_rows`` do so with several at once, and :func:`tile` is the
register tile that the lessons from the seventh on build on.

:class:`Emit` is the same one floor below: the LLVM instructions themselves, for the tiles in
``production`` whose shape is a parameter.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_jitable, register_model

from .jit import SIMD, inner

BITS = {"avx512": 512, "avx2": 256, "neon": 128, "sse": 128, "plain": 128}[SIMD]
FMA = SIMD in ("avx512", "avx2", "neon")  # multiply and add in one instruction, rounded once


@register_jitable
def lanes(itemsize: int) -> int:
    """Return how many numbers of that size, in bytes, one vector holds; for compiled code too."""
    return BITS // (8 * itemsize)


@register_jitable
def whole(count: int, itemsize: int) -> int:
    """Return a count of numbers of that size rounded up to whole pairs of vectors."""
    return -(-count // (2 * lanes(itemsize))) * 2 * lanes(itemsize)


class Emit:
    """The LLVM instructions that vectors are made of, for the body of an ``@intrinsic``."""

    def __init__(self, context: Any, builder: ir.IRBuilder, dtype: Any) -> None:
        self.context, self.b = context, builder
        self.scalar = context.get_value_type(dtype)
        bits = dtype.bitwidth
        self.V = BITS // bits
        self.vector = ir.VectorType(self.scalar, self.V)
        self.align = bits // 8
        vvv = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(
            builder.module, vvv, f"llvm.fma.v{self.V}f{bits}"
        ) if FMA else None

    def data(self, array_type: Any, value: Any) -> Any:
        """Return the address of an array's first element."""
        return self.context.make_array(array_type)(self.context, self.b, value).data

    def at(self, pointer: Any, offset: Any) -> Any:
        """Return the address ``offset`` elements further on."""
        if isinstance(offset, int):
            offset = ir.Constant(ir.IntType(64), offset)
        return self.b.gep(pointer, [offset])

    def load(self, pointer: Any) -> Any:
        """Load V numbers; any address will do."""
        value = self.b.load(self.b.bitcast(pointer, self.vector.as_pointer()))
        value.align = self.align
        return value

    def store(self, value: Any, pointer: Any) -> None:
        """Store V numbers; any address will do."""
        self.b.store(value, self.b.bitcast(pointer, self.vector.as_pointer())).align = self.align

    def zero(self) -> Any:
        """Return a vector of zeros."""
        return ir.Constant(self.vector, [0.0] * self.V)

    def constant(self, number: float) -> Any:
        """Return a vector with one constant in all lanes."""
        return ir.Constant(self.vector, [number] * self.V)

    def broadcast(self, number: Any) -> Any:
        """Return a vector with one number in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.b.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.V), [0] * self.V)
        return self.b.shuffle_vector(first, undefined, zeros)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """Return x y + z."""
        if self._fma is not None:
            return self.b.call(self._fma, [x, y, z])
        return self.b.fadd(self.b.fmul(x, y), z)

    def at_least(self, value: Any, low: Any) -> Any:
        """max(value, low); NaN stays NaN."""
        return self.b.select(self.b.fcmp_ordered("<", value, low), low, value)

    def load_first(self, n: Any, pointer: Any) -> Any:
        """Load n numbers, n < V; the other lanes are zero, and nothing beyond is read."""
        i1, i32 = ir.IntType(1), ir.IntType(32)
        masks = ir.VectorType(i1, self.V)
        lane = ir.Constant(ir.VectorType(i32, self.V), list(range(self.V)))
        undefined = ir.Constant(lane.type, ir.Undefined)
        first = self.b.insert_element(undefined, n, ir.Constant(i32, 0))
        n = self.b.shuffle_vector(first, undefined, ir.Constant(lane.type, [0] * self.V))
        mask = self.b.icmp_signed("<", lane, n)
        pointer = self.b.bitcast(pointer, self.vector.as_pointer())
        load = cgutils.get_or_insert_function(
            self.b.module, ir.FunctionType(self.vector, [pointer.type, i32, masks, self.vector]),
            f"llvm.masked.load.v{self.V}f{8 * self.align}.p0")
        return self.b.call(load, [pointer, ir.Constant(i32, self.align), mask, self.zero()])

    def exchange(self, x: Any, y: Any, half: int) -> tuple[Any, Any]:
        """Return x and y after y's lanes without bit ``half`` and x's with it changed places."""
        def pick(lanes: list[int]) -> Any:
            return self.b.shuffle_vector(
                x, y, ir.Constant(ir.VectorType(ir.IntType(32), self.V), lanes))

        # Lanes of y count from V on.
        return (pick([self.V + i - half if i & half else i for i in range(self.V)]),
                pick([self.V + i if i & half else i + half for i in range(self.V)]))

    def sum_each(self, vectors: list[Any]) -> Any:
        """Sum the lanes of each of V vectors, to the lanes of one."""
        half = self.V // 2
        while half:
            vectors = [self.b.fadd(*self.exchange(vectors[i], vectors[i + half], half))
                       for i in range(half)]
            half //= 2
        return vectors[0]

    def sum_lanes(self, value: Any) -> Any:
        """Sum the lanes of a vector in halves: always the same tree."""
        n = self.V
        while n > 1:
            n //= 2
            both = [ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(first, first + n)))
                    for first in (0, n)]
            undefined = ir.Constant(value.type, ir.Undefined)
            low, high = (self.b.shuffle_vector(value, undefined, mask) for mask in both)
            value = self.b.fadd(low, high)
        return self.b.extract_element(value, ir.Constant(ir.IntType(32), 0))


class Vector(types.Type):
    """Numba's type of a vector of float32 or float64."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"Vector({dtype})")
        self.dtype = dtype


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Any) -> None:
        number = ir.FloatType() if vector.dtype.bitwidth == 32 else ir.DoubleType()
        super().__init__(manager, vector, ir.VectorType(number, BITS // vector.dtype.bitwidth))


@intrinsic
def load(typingctx: Any, a: Any, i: Any) -> Any:
    """Return the vector a[i:i + V] of a flat array."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, a.dtype)
        return e.load(e.at(e.data(sig.args[0], args[0]), args[1]))

    return Vector(a.dtype)(a, types.intp), codegen


@intrinsic
def store(typingctx: Any, a: Any, i: Any, x: Any) -> Any:
    """Set a[i:i + V] = x."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, a.dtype)
        e.store(args[2], e.at(e.data(sig.args[0], args[0]), args[1]))
        return context.get_dummy_value()

    return types.void(a, types.intp, x), codegen


@intrinsic
def broadcast(typingctx: Any, number: Any) -> Any:
    """Return the vector with ``number``, a float32 or float64, in all lanes."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return Emit(context, builder, number).broadcast(args[0])

    return Vector(number)(number), codegen


@intrinsic
def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, lane by lane; x is a vector, or one number for all lanes."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e, (factor, *rest) = Emit(context, builder, y.dtype), args
        if not isinstance(x, Vector):
            factor = e.broadcast(context.cast(builder, factor, sig.args[0], y.dtype))
        return e.fma(factor, *rest)

    return y(x, y, z), codegen


@intrinsic
def add(typingctx: Any, x: Any, y: Any) -> Any:
    """Return x + y, lane by lane."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return x(x, y), codegen


@intrinsic
def total(typingctx: Any, x: Any) -> Any:
    """Return the sum of all lanes, always taken in the same order: a number."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return Emit(context, builder, x.dtype).sum_lanes(args[0])

    return x.dtype(x), codegen


# Several vectors at once, as a tuple: the rows of a tile that stays in registers.

@intrinsic(prefer_literal=True)
def load_rows(typingctx: Any, a: Any, i: Any, step: Any, count: Any, width: Any) -> Any:
    """Return ``count`` rows, ``step`` numbers apart, of ``width`` vectors each: all in a tuple."""
    count, width = count.literal_value, width.literal_value
    rows = types.UniTuple(Vector(a.dtype), count * width)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, a.dtype)
        at = e.at(e.data(sig.args[0], args[0]), args[1])
        loaded = []
        for _ in range(count):
            loaded += [e.load(e.at(at, v * e.V)) for v in range(width)]
            at = e.at(at, args[2])
        return context.make_tuple(builder, rows, loaded)

    return rows(a, types.intp, types.intp, types.literal(count), types.literal(width)), codegen


@intrinsic(prefer_literal=True)
def store_rows(typingctx: Any, a: Any, i: Any, step: Any, rows: Any, width: Any) -> Any:
    """Store what :func:`load_rows` returned."""
    width = width.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, a.dtype)
        at = e.at(e.data(sig.args[0], args[0]), args[1])
        for v, vector in enumerate(cgutils.unpack_tuple(builder, args[3])):
            e.store(vector, e.at(at, v % width * e.V))
            if v % width == width - 1:
                at = e.at(at, args[2])
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, rows, types.literal(width)), codegen


@intrinsic
def fma_rows(typingctx: Any, a: Any, i: Any, step: Any, y: Any, rows: Any) -> Any:
    """Return rows[r] + a[i + r step] y for each r: y is a row, a[...] single numbers."""
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = Emit(context, builder, a.dtype)
        at = e.at(e.data(sig.args[0], args[0]), args[1])
        y, sums = (cgutils.unpack_tuple(builder, each) for each in args[3:])
        for r in range(0, len(sums), len(y)):
            x = e.broadcast(builder.load(at))
            sums[r:r + len(y)] = [e.fma(x, *each) for each in zip(y, sums[r:], strict=False)]
            at = e.at(at, args[2])
        return context.make_tuple(builder, rows, sums)

    return rows(a, types.intp, types.intp, y, rows), codegen


def linear(matrix: Any) -> Any:
    """Return a compiled function of a tuple of vectors x: matrix x, which skips the zeros."""
    terms = [sorted(((float(m), j) for j, m in enumerate(line) if m), key=lambda term: term[0] != 1)
             for line in matrix]  # a 1 first: no multiplication

    @intrinsic
    def product(typingctx: Any, x: Any) -> Any:
        result = types.UniTuple(x.dtype, len(terms))

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            e, vectors = Emit(context, builder, x.dtype.dtype), cgutils.unpack_tuple(builder, *args)
            sums = []
            for (first, at), *others in terms:
                y = vectors[at] if first == 1 else builder.fmul(e.constant(first), vectors[at])
                for factor, j in others:
                    y = e.fma(e.constant(factor), vectors[j], y)
                sums.append(y)
            return context.make_tuple(builder, result, sums)

        return result(x), codegen

    return product


TILE = 6  # rows of :func:`tile`


@inner
def tile(a, at, step, R, step_r, K, step_k, b, bt, F, c, ct):
    """C[i] += sum over r < R and k < K of a[at + i step + r step_r + k step_k] B[r K + k].

    The register tile, which lesson 6 explains: i < TILE; rows of B and C are F apart and begin at
    bt and ct, and two vectors of each are taken.
    """
    V = lanes(a.itemsize)
    sums = load_rows(c, ct, F, 6, 2)
    for r in range(R):
        s = at + r * step_r
        for _ in range(K):
            sums = fma_rows(a, s, step, load_rows(b, bt, V, 1, 2), sums)
            bt += F
            s += step_k
    store_rows(c, ct, F, sums, 2)
