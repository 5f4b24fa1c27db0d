"""What reads a matrix's weights, for int8 and int4.

The vector is made whole numbers too, of 16 bits, so that products are summed in integers, exactly and in any
order, and a weight is never widened to a float: int8 then takes a third of the instructions and keeps up with
memory. What that costs is less than what bfloat16 costs an activation: with M the largest of K values, the error
of a vector is at most sqrt(K / 12) * M / 32767, a 2,500th of the vector's length for K = 2048 and M all of it,
and less otherwise; rounding to bfloat16 is an 800th or so.

Layouts are those of `offload.precision`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from offload.precision import GROUP, INT4_GROUP_BYTES, INT4_HEAD_BYTES, TILE_ROWS
from offload.runtime.kernels.matvec import INSIDE, level, multiply_units, unit, widen, widen_row
from offload.runtime.kernels.tiles import int4_tile, int8_tile
from offload.runtime.kernels.unpacking import unpack_int4, unpack_int8

_LARGEST = np.float32(32767)
_INT8_SUM = np.float32((2**31 - 1) // 127)  # what 127 times may still fit into 32 bits
_TILE_HEAD = 4 * TILE_ROWS  # bytes of an int8 tile's scales
_HALF = GROUP // 4  # steps of an int4 group


@njit(**INSIDE)
def _to_levels(x, at_most, levels):
    """levels[c] = the whole number nearest to x[c] / step; returns step.

    at_most: what the sum of their absolute values stays within.
    """
    columns = x.shape[0]
    top = np.float32(0.0)
    total = np.float32(0.0)
    for c in range(columns):
        size = abs(x[c])
        top = max(top, size)
        total += size
    # Rounding adds up to half a level for each value; the rest of it is for the sum's own rounding.
    step = max(top / _LARGEST, total / (at_most * np.float32(0.999) - np.float32(columns)))
    inverse = np.float32(1.0) / step if step > np.float32(0.0) else np.float32(0.0)
    for c in range(columns):
        levels[c] = np.int16(np.rint(x[c] * inverse))
    return step


@overload(level, jit_options=INSIDE)
def _level_int8(weights, x, levels):
    if weights.dtype is types.int8:
        return lambda weights, x, levels: _to_levels(x, _INT8_SUM, levels[0])
    return None


@overload(level, jit_options=INSIDE)
def _level_int4(weights, x, levels):
    if weights.dtype is not types.uint8:
        return None

    def int4(weights, x, levels):
        whole, sums = levels
        step = _to_levels(x, np.float32(2.0**40), whole)  # a group's sum always fits
        for group in range(x.shape[0] // GROUP):
            total = np.int32(0)
            for c in range(group * GROUP, (group + 1) * GROUP):
                total += np.int32(whole[c])
            sums[group] = total
        return step

    return int4


@overload(unit, jit_options=INSIDE)
def _unit_quantised(weights, columns):
    if weights.dtype is types.int8:
        return lambda weights, columns: (TILE_ROWS, _TILE_HEAD + TILE_ROWS * columns)
    if weights.dtype is types.uint8:
        return lambda weights, columns: (TILE_ROWS, INT4_GROUP_BYTES * (columns // GROUP))
    return None


@overload(multiply_units, jit_options=INSIDE)
def _multiply_units_int8(weights, at, first, count, x, levels, step, out, to):
    if weights.dtype is not types.int8:
        return None

    def int8(weights, at, first, count, x, levels, step, out, to):
        columns = x.shape[0]
        tile = _TILE_HEAD + TILE_ROWS * columns
        for number in range(count):
            int8_tile(weights, at + (first + number) * tile, columns, levels[0], step, out, to + number * TILE_ROWS)

    return int8


@overload(multiply_units, jit_options=INSIDE)
def _multiply_units_int4(weights, at, first, count, x, levels, step, out, to):
    if weights.dtype is not types.uint8:
        return None

    def int4(weights, at, first, count, x, levels, step, out, to):
        columns = x.shape[0]
        tile = INT4_GROUP_BYTES * (columns // GROUP)
        for number in range(count):
            place = at + (first + number) * tile
            int4_tile(weights, place, columns, levels[0], levels[1], step, out, to + number * TILE_ROWS)

    return int4


@njit(inline="always")
def _float_at(weights, at):
    """The float32 whose four bytes begin at weights[at]."""
    bits = np.uint32(0)
    for byte in range(4):
        bits = np.uint32(bits | np.uint32(np.uint32(np.uint8(weights[at + byte])) << np.uint32(8 * byte)))
    return np.uint32(bits).view(np.float32)


@njit(inline="always")
def _bf16_at(weights, at):
    """The bfloat16 whose two bytes begin at weights[at], as float32."""
    low, high = np.uint32(weights[at]), np.uint32(weights[at + 1])
    return widen(np.uint32(low | np.uint32(high << np.uint32(8))))


@overload(widen_row, jit_options=INSIDE)
def _widen_row_int8(weights, at, row, out):
    if weights.dtype is not types.int8:
        return None

    def int8(weights, at, row, out):
        columns = out.shape[0]
        lane = row % TILE_ROWS
        tile = at + row // TILE_ROWS * (_TILE_HEAD + TILE_ROWS * columns)
        scale = _float_at(weights, tile + 4 * lane)
        body = tile + _TILE_HEAD + 2 * lane
        for pair in range(columns // 2):
            first = body + pair * 2 * TILE_ROWS
            out[2 * pair] = scale * np.float32(weights[first])
            out[2 * pair + 1] = scale * np.float32(weights[first + 1])

    return int8


@overload(widen_row, jit_options={"error_model": "numpy"})  # as everybody else rounds: no fused operations
def _widen_row_int4(weights, at, row, out):
    if weights.dtype is not types.uint8:
        return None

    def int4(weights, at, row, out):
        groups = out.shape[0] // GROUP
        lane = row % TILE_ROWS
        tile = at + row // TILE_ROWS * (INT4_GROUP_BYTES * groups)
        for group in range(groups):
            start = tile + group * INT4_GROUP_BYTES
            scale = _bf16_at(weights, start + 2 * lane)
            minimum = _bf16_at(weights, start + 2 * (TILE_ROWS + lane))
            for part in range(_HALF):
                place = start + INT4_HEAD_BYTES + 2 * TILE_ROWS * part + 2 * lane
                column = group * GROUP + 4 * part
                for side in range(2):
                    both = np.int32(weights[place + side])
                    out[column + side] = minimum + scale * np.float32(both & 15)
                    out[column + 2 + side] = minimum + scale * np.float32(both >> 4)

    return int4


def unpack_int8_matrix(weights, rows, columns, out):
    """out[r * columns + c] = the bfloat16 nearest to w[r, c], of the int8 matrix w that begins at weights[0]."""
    tile = _TILE_HEAD + TILE_ROWS * columns
    for number in range(rows // TILE_ROWS):
        for column in range(0, columns, GROUP):
            to = number * TILE_ROWS * columns + column
            unpack_int8(weights, number * tile, column, out, to, columns)


def unpack_int4_matrix(weights, rows, columns, out):
    """out[r * columns + c] = the bfloat16 nearest to w[r, c], of the int4 matrix w that begins at weights[0]."""
    at = 0
    for number in range(rows // TILE_ROWS):
        for column in range(0, columns, GROUP):
            unpack_int4(weights, at, out, number * TILE_ROWS * columns + column, columns)
            at += INT4_GROUP_BYTES
