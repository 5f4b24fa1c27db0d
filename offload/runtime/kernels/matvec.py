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


def matvec(weights, at, rows, x, out, levels):
    """out[r] = sum_c w[r, c] * x[c], of the matrix w with `rows` rows that begins at weights[at].

    Args:
        weights: 1-D, uint16, int8 or uint8.
        x: [columns] float32.
        out: [rows] float32, or longer.
        levels: Scratch for x as whole numbers: ([columns] int16, [columns / 32] int32), or longer.
    """
    raise NotImplementedError


def widen_row(weights, at, row, out):
    """out[c] = w[row, c], of the matrix w with len(out) columns that begins at weights[at]."""
    raise NotImplementedError


@overload(matvec, jit_options=INSIDE)
def _matvec_bf16(weights, at, rows, x, out, levels):
    if weights.dtype is not types.uint16:
        return None

    def bf16(weights, at, rows, x, out, levels):
        columns = x.shape[0]
        for r in range(rows):
            out[r] = bf16_dot(weights, at + r * columns, columns, x)

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
