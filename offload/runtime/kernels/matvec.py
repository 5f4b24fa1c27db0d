"""What reads a matrix's weights, for bfloat16; `quantised` adds the other precisions.

Numba chooses the implementation by the type of the weights, when a kernel is compiled: uint16 is bfloat16,
int8 is int8, uint8 is int4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from offload.runtime.kernels.rows import bf16_dot

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}
INSIDE: dict[str, Any] = {"fastmath": True, "error_model": "numpy"}
"""Of what is chosen by types: compiled as a part of kernels only."""


@njit(inline="always")
def widen(bits):
    """The float32 that a bfloat16's bits mean."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def narrow(value):
    """The bits of the bfloat16 nearest to a finite float32, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def level(weights, x, levels):
    """Make a vector ready for products with weights of this type; returns the step of its levels, float32.

    Args:
        x: [columns] float32.
        levels: Scratch for x as whole numbers: ([columns] int16, [columns / 32] int32), or longer.
    """
    raise NotImplementedError


def unit(weights, columns):
    """What is computed as one: so many rows of a matrix, and the items of `weights` that they take."""
    raise NotImplementedError


def multiply_units(weights, at, first, count, x, levels, step, out, to):
    """out[to + r] = sum_c w[r, c] * x[c], of `count` units of the matrix w at weights[at], from number `first` on.

    Args:
        weights: 1-D, uint16, int8 or uint8.
        levels, step: What `level` made of x.
        out: float32.
    """
    raise NotImplementedError


@njit(**INSIDE)
def matvec(weights, at, rows, x, out, levels):
    """out[r] = sum_c w[r, c] * x[c], of the matrix w with `rows` rows that begins at weights[at], on one thread.

    out: [rows] float32, or longer.
    """
    step = level(weights, x, levels)
    multiply_units(weights, at, 0, rows // unit(weights, x.shape[0])[0], x, levels, step, out, 0)


def widen_row(weights, at, row, out):
    """out[c] = w[row, c], of the matrix w with len(out) columns that begins at weights[at]."""
    raise NotImplementedError


@overload(level, jit_options=INSIDE)
def _level_bf16(weights, x, levels):
    if weights.dtype is types.uint16:
        return lambda weights, x, levels: np.float32(1.0)
    return None


@overload(unit, jit_options=INSIDE)
def _unit_bf16(weights, columns):
    if weights.dtype is types.uint16:
        return lambda weights, columns: (1, columns)
    return None


@overload(multiply_units, jit_options=INSIDE)
def _multiply_units_bf16(weights, at, first, count, x, levels, step, out, to):
    if weights.dtype is not types.uint16:
        return None

    def bf16(weights, at, first, count, x, levels, step, out, to):
        columns = x.shape[0]
        begin = at + first * columns  # Worked out in the loop, it costs a third of the speed.
        for row in range(count):
            out[to + row] = bf16_dot(weights, begin + row * columns, columns, x)

    return bf16


@overload(widen_row, jit_options=INSIDE)
def _widen_row_bf16(weights, at, row, out):
    if weights.dtype is not types.uint16:
        return None

    def bf16(weights, at, row, out):
        columns = out.shape[0]
        start = at + row * columns
        bits = weights[start : start + columns]
        for c in range(columns):
            out[c] = widen(bits[c])

    return bf16
