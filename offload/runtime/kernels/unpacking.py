"""Quantised tiles as bfloat16 rows. Layouts are those of `offload.precision`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from offload.precision import GROUP, INT4_HEAD_BYTES
from offload.runtime.kernels.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    STEP,
    constant,
    data,
    load,
    shuffle,
    splat,
    store,
    vector,
)


@intrinsic
def unpack_int8(typing_context: Any, weights: Any, at: Any, column: Any, out: Any, to: Any, columns: Any) -> Any:
    """out[to + r * columns + c] = w[r, column + c] as bfloat16 bits, 16 rows and 32 columns of the tile at
    weights[at].

    column: a multiple of 32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        _, at, column, _, to, columns = arguments
        tile = builder.gep(data(context, builder, signature, arguments, 0), [at])
        out = builder.gep(data(context, builder, signature, arguments, 3), [to])
        first = builder.gep(tile, [builder.add(I64(4 * LANES), builder.mul(column, I64(LANES)))])
        pairs = [load(builder, builder.gep(first, [I64(STEP * i)]), vector(I16)) for i in range(GROUP // 2)]
        for row, codes in enumerate(_transposed(builder, pairs)):
            scale = load(builder, builder.gep(tile, [I64(4 * row)]), F32, align=4)
            numbers = builder.sext(builder.bitcast(codes, vector(I8, GROUP)), vector(I32, GROUP))
            _store_row(builder, out, row, columns, numbers, scale)
        return context.get_dummy_value()

    return types.void(weights, types.int64, types.int64, out, types.int64, types.int64), generate


@intrinsic
def unpack_int4(typing_context: Any, weights: Any, at: Any, out: Any, to: Any, columns: Any) -> Any:
    """out[to + r * columns + c] = w[r, c] as bfloat16 bits, 16 rows and 32 columns of the group at weights[at]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        _, at, _, to, columns = arguments
        group = builder.gep(data(context, builder, signature, arguments, 0), [at])
        out = builder.gep(data(context, builder, signature, arguments, 2), [to])
        parts = [
            load(builder, builder.gep(group, [I64(INT4_HEAD_BYTES + STEP * i)]), vector(I16))
            for i in range(GROUP // 4)
        ]
        half = GROUP // 2
        # Two bytes of low halves, the same two of high halves, the next two of low halves, ...
        order = [lane for first in range(0, half, 2) for lane in (first, first + 1, half + first, half + first + 1)]
        for number, two_rows in enumerate(_transposed(builder, parts)):
            nothing = ir.Constant(two_rows.type, ir.Undefined)
            for side in range(2):
                lanes = shuffle(builder, two_rows, nothing, range(side * LANES // 2, (side + 1) * LANES // 2))
                both = builder.bitcast(lanes, vector(I8, half))
                low = builder.and_(both, constant(I8, 15, half))
                high = builder.lshr(both, constant(I8, 4, half))
                codes = builder.zext(shuffle(builder, low, high, order), vector(I32, GROUP))
                row = 2 * number + side
                scale, minimum = (_number(builder, group, 2 * (first + row)) for first in (0, LANES))
                _store_row(builder, out, row, columns, codes, scale, minimum)
        return context.get_dummy_value()

    return types.void(weights, types.int64, out, types.int64, types.int64), generate


def _transposed(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """Vectors with the items of `rows`, a power of two of them, column by column.

    Interleaving the first half with the second half moves each item's row number one bit further behind its column
    number; after as many rounds as the row number has bits it is all behind.
    """
    rows = list(rows)
    lanes = rows[0].type.count
    half = len(rows) // 2
    for _ in range(len(rows).bit_length() - 1):
        mixed = []
        for a, b in zip(rows[:half], rows[half:], strict=True):
            for first in (0, lanes // 2):
                order = [lane for k in range(first, first + lanes // 2) for lane in (k, lanes + k)]
                mixed.append(shuffle(builder, a, b, order))
        rows = mixed
    return rows


def _number(builder: Any, group: Any, place: int) -> Any:
    """The bfloat16 at some byte of a group, as float32."""
    bits = builder.zext(load(builder, builder.gep(group, [I64(place)]), I16, align=2), I32)
    return builder.bitcast(builder.shl(bits, I32(16)), F32)


def _store_row(
    builder: Any, out: Any, row: int, columns: Any, numbers: Any, scale: Any, minimum: Any = None
) -> None:
    """out[row * columns + c] = minimum + scale * numbers[c], rounded to bfloat16, ties to even."""
    values = builder.fmul(builder.sitofp(numbers, vector(F32, GROUP)), splat(builder, scale, GROUP))
    if minimum is not None:
        values = builder.fadd(splat(builder, minimum, GROUP), values)
    bits = builder.bitcast(values, vector(I32, GROUP))
    sixteen = constant(I32, 16, GROUP)
    odd = builder.and_(builder.lshr(bits, sixteen), constant(I32, 1, GROUP))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, constant(I32, 0x7FFF, GROUP))), sixteen)
    place = builder.gep(out, [builder.mul(I64(row), columns)])
    store(builder, place, builder.trunc(rounded, vector(I16, GROUP)), align=2)
