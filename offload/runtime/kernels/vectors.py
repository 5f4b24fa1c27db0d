"""Vectors of sixteen lanes in LLVM's own terms: what `rows`, `tiles` and `unpacking` are written with.

Numba's own loops over tiles do not come out as vector code (they widen to 64 bits and sum within rows). LLVM's
vector operations are the same for all processors; LLVM finds the instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_name
from numba.core import cgutils

from offload.precision import TILE_ROWS

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
LANES = TILE_ROWS
STEP = 2 * LANES
"""Bytes of one load from a tile: two weights of each row, or four."""

_ALIGN = 32  # bytes; of every load from a tile
_LINE = 64  # bytes that memory gives at once
FAR = 3072
"""Bytes that are asked for before they are used. Measured on an Intel Xeon, where half of it did nearly as well."""
NEAR = 1024 if get_host_cpu_name().startswith("znver") else FAR
"""The same, of loops that do little with a byte. On an AMD EPYC (Zen 3) 3072 were slower than asking for nothing,
and 1024 a sixth faster than 3072."""


def vector(kind: Any, lanes: int = LANES) -> Any:
    """The type of a vector."""
    return ir.VectorType(kind, lanes)


def constant(kind: Any, value: float, lanes: int = LANES) -> Any:
    """A vector with the same number in all lanes."""
    return ir.Constant(vector(kind, lanes), [value] * lanes)


def data(context: Any, builder: Any, signature: Any, arguments: Sequence[Any], number: int) -> Any:
    """Pointer to the first item of the array that is one of the arguments."""
    array = cgutils.create_struct_proxy(signature.args[number])(context, builder, value=arguments[number])
    return array.data


def load(builder: Any, place: Any, kind: Any, align: int = _ALIGN) -> Any:
    """A value of some type from memory that is aligned to `align` bytes."""
    value = builder.load(builder.bitcast(place, kind.as_pointer()))
    value.align = align
    return value


def widened(builder: Any, place: Any, align: int = _ALIGN) -> Any:
    """Sixteen bfloat16 numbers as float32."""
    bits = builder.zext(load(builder, place, vector(I16), align), vector(I32))
    return builder.bitcast(builder.shl(bits, constant(I32, 16)), vector(F32))


def prefetch(builder: Any, place: Any, nbytes: int, ahead: int) -> None:
    """Ask for what comes `ahead` bytes behind the `nbytes` bytes from `place` on. It need not be there."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    first = builder.bitcast(place, I8.as_pointer())
    for line in range(0, nbytes, _LINE):
        to_read, to_every_cache, data = I32(0), I32(3), I32(1)
        builder.call(function, [builder.gep(first, [I64(ahead + line)]), to_read, to_every_cache, data])


def store(builder: Any, place: Any, value: Any, align: int) -> None:
    """The opposite."""
    stored = builder.store(value, builder.bitcast(place, value.type.as_pointer()))
    stored.align = align


def shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    """The lanes with these numbers of two vectors, b's behind a's."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(lanes)), list(lanes)))


def splat(builder: Any, value: Any, lanes: int = LANES) -> Any:
    """The value in all lanes."""
    nothing = ir.Constant(vector(value.type, lanes), ir.Undefined)
    return shuffle(builder, builder.insert_element(nothing, value, I32(0)), nothing, [0] * lanes)


class Loop:
    """``for index in range(0, end, step)`` with sums that are carried from one turn to the next.

    Attributes:
        index: int64.
        sums: Their values so far; set anew within the block, final behind it.
    """

    def __init__(self, builder: Any, end: Any, step: int, begin: Sequence[Any]) -> None:
        self._builder = builder
        self._end = end
        self._step = step
        self._begin = begin

    def __enter__(self) -> Loop:
        builder = self._builder
        before = builder.block
        self._head, self._body, self._behind = (
            builder.append_basic_block(name) for name in ("head", "body", "end")
        )
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self._phis = [builder.phi(value.type) for value in (I64(0), *self._begin)]
        for phi, value in zip(self._phis, (I64(0), *self._begin), strict=True):
            phi.add_incoming(value, before)
        self.index, *self.sums = self._phis
        builder.cbranch(builder.icmp_signed("<", self.index, self._end), self._body, self._behind)
        builder.position_at_end(self._body)
        return self

    def __exit__(self, *raised: object) -> None:
        builder = self._builder
        following = (builder.add(self.index, I64(self._step)), *self.sums)
        for phi, value in zip(self._phis, following, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(self._head)
        builder.position_at_end(self._behind)
        self.sums = self._phis[1:]
