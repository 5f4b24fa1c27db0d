"""Products of one row of bfloat16 weights with a vector.

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
    Loop,
    constant,
    data,
    load,
    prefetch,
    shuffle,
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
            prefetch(builder, builder.gep(row, [loop.index]), 2 * _STEP)
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
