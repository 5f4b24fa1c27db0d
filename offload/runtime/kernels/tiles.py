"""Products of one tile of sixteen quantised rows with a vector.

A tile keeps sixteen rows side by side, so that each of the sixteen lanes of a vector register is a row: no sum
has to be brought together at a row's end, and one scale is loaded for all of them. Of each product of pairs LLVM
makes one or two instructions where a processor has them (``vpmaddwd``, ``vpdpwssd``), and more elsewhere, with
the same whole numbers.

Layouts are those of `offload.precision`; the vector x comes as 16-bit whole numbers, see `quantised`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from offload.precision import GROUP, INT4_GROUP_BYTES, INT4_HEAD_BYTES
from offload.runtime.kernels.vectors import (
    F32,
    FAR,
    I8,
    I16,
    I32,
    I64,
    LANES,
    NEAR,
    STEP,
    Loop,
    constant,
    data,
    load,
    prefetch,
    shuffle,
    splat,
    store,
    vector,
    widened,
)

_CHAINS = 4  # independent sums, so that none waits for the one before


@intrinsic
def int8_tile(
    typing_context: Any, weights: Any, at: Any, columns: Any, levels: Any, step: Any, out: Any, row: Any
) -> Any:
    """out[row + r] = step * scale[r] * sum_c w[r, c] * levels[c], of the int8 tile at weights[at].

    columns: a multiple of 8. The sum of 127 * abs(levels) must fit into 32 bits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        _, at, columns, _, step, _, row = arguments
        tile = builder.gep(data(context, builder, signature, arguments, 0), [at])
        levels = data(context, builder, signature, arguments, 3)
        out = data(context, builder, signature, arguments, 5)
        body = builder.gep(tile, [I64(4 * LANES)])
        with Loop(builder, columns, 2 * _CHAINS, [constant(I32, 0)] * _CHAINS) as loop:
            turn = builder.gep(body, [builder.mul(loop.index, I64(LANES))])
            prefetch(builder, turn, 2 * _CHAINS * LANES, NEAR)
            for chain in range(_CHAINS):
                column = builder.add(loop.index, I64(2 * chain))
                place = builder.gep(body, [builder.mul(column, I64(LANES))])
                weights = builder.sext(load(builder, place, vector(I8, STEP)), vector(I16, STEP))
                loop.sums[chain] = _add_pairs(builder, loop.sums[chain], weights, _pair(builder, levels, column))
        total = loop.sums[0]
        for chain in range(1, _CHAINS):
            total = builder.add(total, loop.sums[chain])
        scales = builder.fmul(load(builder, tile, vector(F32)), splat(builder, step))
        product = builder.fmul(builder.sitofp(total, vector(F32)), scales)
        store(builder, builder.gep(out, [row]), product, align=4)
        return context.get_dummy_value()

    return types.void(weights, types.int64, types.int64, levels, types.float32, out, types.int64), generate


@intrinsic
def int4_tile(
    typing_context: Any,
    weights: Any,
    at: Any,
    columns: Any,
    levels: Any,
    sums: Any,
    step: Any,
    out: Any,
    row: Any,
) -> Any:
    """out[row + r] = step * sum_g (scale[g, r] * sum_c w[r, c] * levels[c] + minimum[g, r] * sums[g]).

    Of the int4 tile at weights[at]. columns: a multiple of 32. sums[g]: the sum of the group's levels.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        _, at, columns, _, _, step, _, row = arguments
        tile = builder.gep(data(context, builder, signature, arguments, 0), [at])
        levels = data(context, builder, signature, arguments, 3)
        sums = data(context, builder, signature, arguments, 4)
        out = data(context, builder, signature, arguments, 6)
        low, high = constant(I16, 0x0F, STEP), constant(I16, 0xF0, STEP)
        with Loop(builder, builder.sdiv(columns, I64(GROUP)), 1, [constant(F32, 0.0)]) as loop:
            group = builder.gep(tile, [builder.mul(loop.index, I64(INT4_GROUP_BYTES))])
            column = builder.mul(loop.index, I64(GROUP))
            prefetch(builder, group, INT4_GROUP_BYTES, FAR)
            # The high halves are summed as they stand, sixteen times too large, and all shifted together.
            lows = highs = constant(I32, 0)
            for part in range(GROUP // 4):
                place = builder.gep(group, [I64(INT4_HEAD_BYTES + part * STEP)])
                both = builder.zext(load(builder, place, vector(I8, STEP)), vector(I16, STEP))
                first = builder.add(column, I64(4 * part))
                second = builder.add(column, I64(4 * part + 2))
                lows = _add_pairs(builder, lows, builder.and_(both, low), _pair(builder, levels, first))
                highs = _add_pairs(builder, highs, builder.and_(both, high), _pair(builder, levels, second))
            total = builder.sitofp(builder.add(lows, builder.ashr(highs, constant(I32, 4))), vector(F32))
            levels_sum = builder.sitofp(builder.load(builder.gep(sums, [loop.index])), F32)
            minima = widened(builder, builder.gep(group, [I64(2 * LANES)]))
            for factor, term in ((widened(builder, group), total), (minima, splat(builder, levels_sum))):
                scaled = builder.fmul(factor, term, flags=("fast",))
                loop.sums[0] = builder.fadd(loop.sums[0], scaled, flags=("fast",))
        product = builder.fmul(loop.sums[0], splat(builder, step))
        store(builder, builder.gep(out, [row]), product, align=4)
        return context.get_dummy_value()

    return types.void(weights, types.int64, types.int64, levels, sums, types.float32, out, types.int64), generate


def _pair(builder: Any, levels: Any, column: Any) -> Any:
    """levels[column] and levels[column + 1], for every row: [32] int16."""
    both = load(builder, builder.gep(levels, [column]), I32, align=2)
    return builder.bitcast(splat(builder, both), vector(I16, STEP))


def _add_pairs(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """total[r] + a[2 r] * b[2 r] + a[2 r + 1] * b[2 r + 1], in the form that LLVM knows as one instruction."""
    product = builder.mul(builder.sext(a, vector(I32, STEP)), builder.sext(b, vector(I32, STEP)))
    nothing = ir.Constant(product.type, ir.Undefined)
    even, odd = (shuffle(builder, product, nothing, range(first, STEP, 2)) for first in (0, 1))
    return builder.add(total, builder.add(even, odd))
