"""Quantised matrices: every weight near enough, and every byte where the description of the layout says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.precision import GROUP, QUANTISED, TILE_ROWS, Precision, expert_layout, matrix_bytes
from offload.store.quantise import dequantise, quantise


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Bits of the bfloat16 next below in size."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def packed(precision: Precision, bits: np.ndarray) -> np.ndarray:
    out = np.full(matrix_bytes(precision, *bits.shape), 0xAA, np.uint8)
    quantise(precision, bits, out)
    return out


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Bits of bfloat16 matrices: ordinary ones, with rows or groups of zeros, with a few very large weights."""
    rows, columns = TILE_ROWS * draw(st.integers(1, 18)), GROUP * draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = generator.standard_normal((rows, columns)) * 2.0 ** draw(st.integers(-40, 40))
    if draw(st.booleans()):
        values[generator.random(rows) < 0.3] = 0
    if draw(st.booleans()):
        values[:, : GROUP // 2] *= generator.random((rows, 1)) < 0.5
        values[generator.integers(rows), generator.integers(columns)] *= -1000
    return to_bf16(values)


@settings(max_examples=40, deadline=None)
@given(bits=matrices())
def test_int8_is_within_half_a_step(bits: np.ndarray) -> None:
    weights = widened(bits)
    back = dequantise("int8", packed("int8", bits), *bits.shape)
    step = np.abs(weights).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(back - weights) <= step * 0.5001)


@settings(max_examples=40, deadline=None)
@given(bits=matrices())
def test_int4_is_within_half_a_step(bits: np.ndarray) -> None:
    rows, columns = bits.shape
    weights = widened(bits).reshape(rows, columns // GROUP, GROUP)
    back = dequantise("int4", packed("int4", bits), rows, columns).reshape(weights.shape)
    largest = np.abs(weights).max(axis=2, keepdims=True)
    step = (weights.max(axis=2, keepdims=True) - weights.min(axis=2, keepdims=True)) / 15
    # Scale and minimum are rounded to 8 bits; at the upper end that may be a part of a step.
    assert np.all(np.abs(back - weights) <= 0.53 * step + largest / 128)


@pytest.mark.parametrize("precision", QUANTISED)
def test_rows_are_packed_by_themselves(precision: Precision) -> None:
    bits = to_bf16(np.random.default_rng(1).standard_normal((23 * TILE_ROWS, 3 * GROUP)))
    whole = packed(precision, bits)
    for first, end in ((0, TILE_ROWS), (5 * TILE_ROWS, 22 * TILE_ROWS)):
        begin, behind = (matrix_bytes(precision, row, bits.shape[1]) for row in (first, end))
        assert np.array_equal(packed(precision, bits[first:end]), whole[begin:behind])


def test_the_bytes_of_an_int8_weight() -> None:
    bits = to_bf16(np.random.default_rng(2).standard_normal((3 * TILE_ROWS, 2 * GROUP)))
    content, weights = packed("int8", bits), dequantise("int8", packed("int8", bits), *bits.shape)
    for row, column in ((0, 0), (17, 5), (47, 63)):
        tile = content[row // 16 * (64 + 16 * 64) :]
        scale = tile[4 * (row % 16) :][:4].view("<f4")[0]
        number = tile[64 + column // 2 * 32 + row % 16 * 2 + column % 2].view(np.int8)
        assert -127 <= number <= 127
        assert weights[row, column] == scale * np.float32(number)


def test_the_bytes_of_an_int4_weight() -> None:
    bits = to_bf16(np.random.default_rng(3).standard_normal((3 * TILE_ROWS, 2 * GROUP)))
    content, weights = packed("int4", bits), dequantise("int4", packed("int4", bits), *bits.shape)
    for row, column in ((0, 0), (17, 5), (30, 35), (47, 63)):
        group = content[row // 16 * 2 * 320 + column // 32 * 320 :]
        scale, minimum = (widened(group[2 * (first + row % 16) :][:2].view("<u2"))[0] for first in (0, 16))
        within = column % 32
        both = int(group[64 + within // 4 * 32 + row % 16 * 2 + within % 2])
        number = both >> 4 if within % 4 >= 2 else both & 15
        assert weights[row, column] == minimum + scale * np.float32(number)


def test_sizes() -> None:
    assert matrix_bytes("bf16", 32, 64) == 2 * 32 * 64
    assert matrix_bytes("int8", 32, 64) == 32 * 64 + 4 * 32
    assert matrix_bytes("int4", 32, 64) == 32 * 64 // 2 + 2 * 32 * 2 * 2
    for precision in QUANTISED:
        layout = expert_layout(precision, hidden_size=64, expert_size=48)
        assert layout.down >= matrix_bytes(precision, 96, 64)
        assert layout.down % 64 == 0
