"""What attention of the decode kernels is made of: the exponential function, products with rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from offload.runtime.kernels.exponential import exp
from offload.runtime.kernels.matvec import INSIDE
from offload.runtime.kernels.rows import bf16_columns, bf16_dot


@njit(**INSIDE)
def exp_of_all(x, out):
    for i in range(x.shape[0]):
        out[i] = exp(x[i])


@njit(**INSIDE)
def columns_of(weights, at, rows, columns, x, out):
    bf16_columns(weights, at, rows, columns, x, out)


@njit(**INSIDE)
def row_of(weights, at, columns, x):
    return bf16_dot(weights, at, columns, x)


def test_the_exponential_function_is_right_to_three_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-87, 88, 100_001), np.linspace(-1, 1, 10_001)]).astype(np.float32)
    out = np.empty_like(x)
    exp_of_all(x, out)
    right = np.exp(x.astype(np.float64))
    assert np.abs(out / right - 1).max() < 3 * 2.0**-23
    assert out[np.flatnonzero(x == 0)].tolist() == [1.0] * int((x == 0).sum())


def test_beyond_what_float32_holds_it_stays_a_number() -> None:
    x = np.array([-np.inf, -1e9, -100.0, 100.0, 1e9, np.inf], np.float32)
    out = np.empty_like(x)
    exp_of_all(x, out)
    assert (out[:3] < 2e-38).all() and (out[:3] > 0).all()
    assert (out[3:] > 1e38).all() and np.isfinite(out).all()


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7, 130])
@pytest.mark.parametrize("columns", [1, 8, 16, 24, 64, 128])
def test_products_are_those_of_float64(rows: int, columns: int) -> None:
    generator = np.random.default_rng(rows * columns)
    at = 5
    bits = generator.standard_normal(at + rows * columns).astype(np.float32).view(np.uint32) >> 16
    matrix = (bits << 16).view(np.float32)[at:].reshape(rows, columns).astype(np.float64)
    weights = bits.astype(np.uint16)
    x = generator.standard_normal(rows).astype(np.float32)
    out = np.full(columns + 1, np.nan, np.float32)
    columns_of(weights, at, rows, columns, x, out[:columns])
    np.testing.assert_allclose(out[:columns], x.astype(np.float64) @ matrix, rtol=0, atol=1e-5 * (1 + rows) ** 0.5)
    assert np.isnan(out[columns])
    y = generator.standard_normal(columns).astype(np.float32)
    for row in range(rows):
        product = row_of(weights, at + row * columns, columns, y)
        assert product == pytest.approx(matrix[row] @ y.astype(np.float64), abs=1e-5 * (1 + columns) ** 0.5)
