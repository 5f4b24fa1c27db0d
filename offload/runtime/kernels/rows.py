"""Products of rows of bfloat16 weights with a vector: of each row, and of each column.

A loop that widens weights keeps fewer reads under way than memory could serve, so it asks for what comes a few
kilobytes later. Numba's own loops are not made vector code any more where they do, so this one is written in LLVM's
vector operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic

from offload.runtime.kernels.vectors import (
    F32,
    I32,
    I64,
    LANES,
    NEAR,
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
_STEP = _CHAINS * LANES
_FAST = ("fast",)


@intrinsic
def bf16_dot(typing_context: Any, weights: Any, at: Any, columns: Any, x: Any) -> Any:
    """sum_c weights[at + c] * x[c], float32. weights: uint16, bfloat16 bits; x: [columns] float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        _, at, columns, _ = arguments
        row = builder.gep(data(context, builder, signature, arguments, 0), [at])
        x = data(context, builder, signature, arguments, 3)
        whole = builder.mul(builder.sdiv(columns, I64(_STEP)), I64(_STEP))
        with Loop(builder, whole, _STEP, [constant(F32, 0.0)] * _CHAINS) as loop:
            prefetch(builder, builder.gep(row, [loop.index]), 2 * _STEP, NEAR)
            for chain in range(_CHAINS):
                column = builder.add(loop.index, I64(chain * LANES))
                weights = widened(builder, builder.gep(row, [column]), align=2)
                values = load(builder, builder.gep(x, [column]), vector(F32), align=4)
                product = builder.fmul(weights, values, flags=_FAST)
                loop.sums[chain] = builder.fadd(loop.sums[chain], product, flags=_FAST)
        total = loop.sums[0]
        for chain in range(1, _CHAINS):
            total = builder.fadd(total, loop.sums[chain], flags=_FAST)
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            halves = (shuffle(builder, total, total, range(first, first + lanes)) for first in (0, lanes))
            total = builder.fadd(*halves, flags=_FAST)
        with Loop(builder, builder.sub(columns, whole), 1, [builder.extract_element(total, I32(0))]) as rest:
            column = builder.add(whole, rest.index)
            bits = builder.zext(builder.load(builder.gep(row, [column])), I32)
            weight = builder.bitcast(builder.shl(bits, I32(16)), F32)
            product = builder.fmul(weight, builder.load(builder.gep(x, [column])), flags=_FAST)
            rest.sums[0] = builder.fadd(rest.sums[0], product, flags=_FAST)
        return rest.sums[0]

    return types.float32(weights, types.int64, types.int64, x), generate


@intrinsic
def bf16_columns(typing_context: Any, weights: Any, at: Any, rows: Any, columns: Any, x: Any, out: Any) -> Any:
    """out[c] = sum_r x[r] * weights[at + r * columns + c]. weights: uint16, bfloat16 bits; x: [rows], float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        _, at, rows, columns, _, _ = arguments
        begin = builder.gep(data(context, builder, signature, arguments, 0), [at])
        x = data(context, builder, signature, arguments, 4)
        out = data(context, builder, signature, arguments, 5)
        wide = builder.mul(builder.sdiv(columns, I64(LANES)), I64(LANES))
        four = builder.mul(builder.sdiv(rows, I64(_CHAINS)), I64(_CHAINS))
        with Loop(builder, wide, LANES, []) as block:
            place = builder.gep(begin, [block.index])
            with Loop(builder, four, _CHAINS, [constant(F32, 0.0)] * _CHAINS) as loop:
                for chain in range(_CHAINS):
                    row = builder.add(loop.index, I64(chain))
                    loop.sums[chain] = _add_row(builder, loop.sums[chain], place, row, columns, x)
            total = loop.sums[0]
            for chain in range(1, _CHAINS):
                total = builder.fadd(total, loop.sums[chain], flags=_FAST)
            with Loop(builder, builder.sub(rows, four), 1, [total]) as rest:
                row = builder.add(four, rest.index)
                rest.sums[0] = _add_row(builder, rest.sums[0], place, row, columns, x)
            store(builder, builder.gep(out, [block.index]), rest.sums[0], align=4)
        with Loop(builder, builder.sub(columns, wide), 1, []) as block:
            column = builder.add(wide, block.index)
            place = builder.gep(begin, [column])
            with Loop(builder, rows, 1, [F32(0.0)]) as loop:
                bits = builder.zext(builder.load(builder.gep(place, [builder.mul(loop.index, columns)])), I32)
                weight = builder.bitcast(builder.shl(bits, I32(16)), F32)
                product = builder.fmul(weight, builder.load(builder.gep(x, [loop.index])), flags=_FAST)
                loop.sums[0] = builder.fadd(loop.sums[0], product, flags=_FAST)
            builder.store(loop.sums[0], builder.gep(out, [column]))
        return context.get_dummy_value()

    return types.void(weights, types.int64, types.int64, types.int64, x, out), generate


def _add_row(builder: Any, total: Any, place: Any, row: Any, columns: Any, x: Any) -> Any:
    """total + x[row] times the sixteen weights of the row that are `row` * `columns` behind `place`."""
    weights = widened(builder, builder.gep(place, [builder.mul(row, columns)]), align=2)
    share = splat(builder, builder.load(builder.gep(x, [row])))
    return builder.fadd(total, builder.fmul(weights, share, flags=_FAST), flags=_FAST)
