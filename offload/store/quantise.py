"""Quantising matrices into tiles, and back. `offload.precision` describes the layouts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.precision import BF16, GROUP, INT4_GROUP_BYTES, INT4_HEAD_BYTES, TILE_ROWS, Precision, matrix_bytes

_ROWS_AT_ONCE = 16 * TILE_ROWS  # so that intermediate results stay small


def quantise(precision: Precision, bits: NDArray[np.uint16], out: NDArray[np.uint8]) -> None:
    """Write a matrix ``[R, C]``, bfloat16 bits, to ``out``, ``[matrix_bytes]``, in a precision."""
    rows, columns = bits.shape
    if precision == BF16:
        out[:] = bits.view(np.uint8).reshape(-1)
        return
    write = _to_int8 if precision == "int8" else _to_int4
    for first in range(0, rows, _ROWS_AT_ONCE):
        part = bits[first : first + _ROWS_AT_ONCE]
        begin, end = (matrix_bytes(precision, row, columns) for row in (first, first + len(part)))
        write(part, out[begin:end])


def dequantise(precision: Precision, packed: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
    """The weights ``[R, C]`` of a packed matrix."""
    if precision == BF16:
        return _widened(packed.view(np.uint16).reshape(rows, columns))
    tiles, groups = rows // TILE_ROWS, columns // GROUP
    if precision == "int8":
        lanes = packed.reshape(tiles, -1)
        by_row = lanes[:, : 4 * TILE_ROWS].copy().view(np.float32)
        pairs = lanes[:, 4 * TILE_ROWS :].reshape(tiles, columns // 2, TILE_ROWS, 2).view(np.int8)
        codes = pairs.swapaxes(1, 2).astype(np.float32).reshape(tiles, TILE_ROWS, columns)
        return np.asarray((codes * by_row[:, :, None]).reshape(rows, columns))
    parts = packed.reshape(tiles, groups, INT4_GROUP_BYTES)
    heads = _widened(parts[:, :, :INT4_HEAD_BYTES].copy().view(np.uint16))
    scales, minima = (head.swapaxes(1, 2)[..., None] for head in np.split(heads, 2, axis=2))
    both = parts[:, :, INT4_HEAD_BYTES:].reshape(tiles, groups, GROUP // 4, TILE_ROWS, 2)
    halves = np.stack((both & 15, both >> 4), axis=4).transpose(0, 3, 1, 2, 4, 5)
    weights = minima + scales * halves.reshape(tiles, TILE_ROWS, groups, GROUP).astype(np.float32)
    return np.asarray(weights.reshape(rows, columns))


def _to_int8(bits: NDArray[np.uint16], out: NDArray[np.uint8]) -> None:
    """A scale a row, so that the largest of its weights is 127."""
    rows, columns = bits.shape
    weights = _widened(bits)
    scales = np.abs(weights).max(axis=1) / np.float32(127)
    weights *= _inverse(scales)[:, None]
    codes = np.rint(weights, out=weights).astype(np.int8)
    lanes = out.reshape(rows // TILE_ROWS, -1)
    lanes[:, : 4 * TILE_ROWS] = scales.view(np.uint8).reshape(len(lanes), -1)
    pairs = codes.view(np.uint16).reshape(len(lanes), TILE_ROWS, columns // 2).swapaxes(1, 2)
    lanes[:, 4 * TILE_ROWS :] = np.ascontiguousarray(pairs).view(np.uint8).reshape(len(lanes), -1)


def _to_int4(bits: NDArray[np.uint16], out: NDArray[np.uint8]) -> None:
    """A scale and a minimum a group, so that its weights lie from 0 to 15."""
    rows, columns = bits.shape
    tiles, groups = rows // TILE_ROWS, columns // GROUP
    # Rows last: numpy is slow along short axes.
    weights = _widened(np.ascontiguousarray(bits.T)).reshape(groups, GROUP, rows)
    minima = _nearest_bf16(weights.min(axis=1))
    weights -= _widened(minima)[:, None]
    scales = _nearest_bf16(weights.max(axis=1) / np.float32(15))
    weights *= _inverse(_widened(scales))[:, None]
    np.rint(weights, out=weights)
    np.clip(weights, 0, 15, out=weights)
    codes = weights.astype(np.uint8).reshape(groups, GROUP // 4, 2, 2, rows)
    both = codes[:, :, 0] | codes[:, :, 1] << 4
    lanes = out.reshape(tiles, groups, INT4_GROUP_BYTES)
    heads = np.stack((scales, minima), axis=1).reshape(groups, 2, tiles, TILE_ROWS).transpose(2, 0, 1, 3)
    lanes[:, :, :INT4_HEAD_BYTES] = np.ascontiguousarray(heads).view(np.uint8).reshape(tiles, groups, -1)
    by_row = both.reshape(groups, GROUP // 4, 2, tiles, TILE_ROWS).transpose(3, 0, 1, 4, 2)
    lanes[:, :, INT4_HEAD_BYTES:] = by_row.reshape(tiles, groups, -1)


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale; 0 where all weights are 0."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _nearest_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
