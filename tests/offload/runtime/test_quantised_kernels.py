"""Products with quantised matrices, and unpacking them: against plain arithmetic, on any processor."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

from offload.precision import QUANTISED, Precision, matrix_bytes
from offload.runtime.compile import compile_kernels
from offload.runtime.decode import ITEMS
from offload.runtime.kernels import quantised  # noqa: F401  What it adds to matvec.
from offload.runtime.kernels.matvec import INSIDE, matvec, widen_row
from offload.runtime.unpack import Unpacker
from offload.store.quantise import dequantise, quantise

SHAPES = ((16, 32), (48, 96), (320, 64), (176, 1408))


@njit(**INSIDE)
def multiply(weights, rows, x, out, levels):
    matvec(weights, 0, rows, x, out, levels)


@njit(**INSIDE)
def rows_of(weights, out):
    for row in range(out.shape[0]):
        widen_row(weights, 0, row, out[row])


def packed(precision: Precision, weights: np.ndarray) -> np.ndarray:
    """Bytes of the matrix, which begin at a page as slots do."""
    nbytes = matrix_bytes(precision, *weights.shape)
    content = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)[:nbytes]
    quantise(precision, (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), content)
    return content


def product(precision: Precision, content: np.ndarray, rows: int, x: np.ndarray) -> np.ndarray:
    out = np.full(rows, np.nan, np.float32)
    levels = np.zeros(len(x), np.int16), np.zeros(len(x) // 32, np.int32)
    multiply(content.view(ITEMS[precision]), rows, x.astype(np.float32), out, levels)
    return out


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_product_is_nearer_than_one_with_bfloat16(precision: Precision, rows: int, columns: int) -> None:
    generator = np.random.default_rng(rows)
    content = packed(precision, generator.standard_normal((rows, columns)))
    weights = dequantise(precision, content, rows, columns).astype(np.float64)
    for outlier in (0, 30, 1000):
        x = generator.standard_normal(columns)
        x[columns // 3] += outlier
        x = x.astype(np.float32)
        rounded = torch.from_numpy(x).bfloat16().double().numpy()
        error = np.linalg.norm(product(precision, content, rows, x) - weights @ x.astype(np.float64))
        assert error < 2e-3 * np.linalg.norm(weights) * np.linalg.norm(x) / rows**0.5
        if not outlier:
            assert error < np.linalg.norm(weights @ (rounded - x))


@pytest.mark.parametrize("precision", QUANTISED)
def test_the_largest_sums_do_not_overflow(precision: Precision) -> None:
    rows, columns = 16, 32768
    weights = np.ones((rows, columns))
    weights[1] = -1
    content = packed(precision, weights)
    exact = dequantise(precision, content, rows, columns).astype(np.float64).sum(axis=1)
    for size in (1e-30, 1.0, 1e30):
        got = product(precision, content, rows, np.full(columns, size)) / size
        assert np.allclose(got, exact, rtol=1e-3)


@pytest.mark.parametrize("precision", QUANTISED)
def test_nothing_times_anything(precision: Precision) -> None:
    content = packed(precision, np.zeros((16, 32)))
    assert not product(precision, content, 16, np.ones(32)).any()
    content = packed(precision, np.ones((16, 32)))
    assert not product(precision, content, 16, np.zeros(32)).any()


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_unpacked_by_kernels_by_torch_and_row_by_row(precision: Precision, rows: int, columns: int) -> None:
    compile_kernels(precision=precision)
    content = packed(precision, np.random.default_rng(rows).standard_normal((rows, columns)))
    plain = dequantise(precision, content, rows, columns)
    expected = torch.from_numpy(plain).bfloat16()
    for compiled in (True, False):
        out = torch.zeros(rows, columns, dtype=torch.bfloat16)
        unpacker = Unpacker(precision, compiled)
        unpacker.unpack(torch.from_numpy(content), out)
        assert torch.equal(out, expected)
        some = torch.tensor([rows - 1, 0, 5, 5])
        assert torch.equal(unpacker.rows(torch.from_numpy(content), some, columns), expected[some])
    one_by_one = np.zeros((rows, columns), np.float32)
    rows_of(content.view(ITEMS[precision]), one_by_one)
    assert np.array_equal(one_by_one, plain)


ELSEWHERE = """
import sys
import numpy as np
from tests.offload.runtime.test_quantised_kernels import packed, product

generator = np.random.default_rng(7)
weights, x = generator.standard_normal((48, 96)), generator.standard_normal(96)
np.savez(sys.argv[1], **{p: product(p, packed(p, weights), 48, x) for p in ("int8", "int4")})
"""


def test_the_plainest_processor_gives_the_same(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "out.npz")]
    subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[3])
    theirs = np.load(tmp_path / "out.npz")
    generator = np.random.default_rng(7)
    weights, x = generator.standard_normal((48, 96)), generator.standard_normal(96)
    assert np.array_equal(product("int8", packed("int8", weights), 48, x), theirs["int8"])
    # Groups are summed as floats, with or without fused operations.
    assert np.allclose(product("int4", packed("int4", weights), 48, x), theirs["int4"], rtol=1e-5, atol=1e-5)
