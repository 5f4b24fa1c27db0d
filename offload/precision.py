"""Precisions of weights, and how quantised matrices lie in memory and in packs.

A quantised matrix ``[R, C]`` is made of tiles of 16 rows, one behind another, each of which keeps its rows side by
side: the decode kernels compute sixteen rows at once. R is a multiple of 16 and C of 32. Numbers are little-endian.

``int8``: a tile begins with a float32 scale a row, 64 bytes. Then come C / 2 pieces of 32 bytes, one for each
pair of columns: row 0's two weights, row 1's two, ... A weight is its scale times an int8 within -127..127.

``int4``: a tile is C / 32 groups of 320 bytes, one for each 32 columns. A group begins with a bfloat16 scale a row
and a bfloat16 minimum a row, 32 bytes each. Then come 8 pieces of 32 bytes, one for each four columns: two bytes of
row 0, two of row 1, ... Of a row's two bytes the low halves are the piece's columns 0 and 1, the high halves its
columns 2 and 3. A weight is its minimum plus its scale times a number within 0..15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offload.errors import UnsupportedModel

Precision = Literal["bf16", "int8", "int4"]

BF16: Precision = "bf16"
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
QUANTISED: tuple[Precision, ...] = PRECISIONS[1:]

BITS: dict[Precision, int] = {"bf16": 16, "int8": 8, "int4": 4}
"""Of one weight, without scales."""

TILE_ROWS = 16
GROUP = 32
"""Columns that have a scale together in int4; every quantised matrix has a multiple of them."""

INT4_HEAD_BYTES = TILE_ROWS * 4
"""Scales and minima of a group."""

INT4_GROUP_BYTES = INT4_HEAD_BYTES + TILE_ROWS * GROUP // 2

_MATRICES = (
    "embed_tokens.weight",
    "lm_head.weight",
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *(f"mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")),
)
_ALIGN = 64


def check_family(precision: Precision, model: str, model_type: str, fast_kernels: bool) -> None:
    """See that models of a family are quantised: those that the decode kernels compute.

    Raises:
        UnsupportedModel: They are not.
    """
    if precision != BF16 and not fast_kernels:
        raise UnsupportedModel(
            f"{model} is of type {model_type}, which finemoe does not quantise", "run it in bf16"
        )


def matrix_bytes(precision: Precision, rows: int, columns: int) -> int:
    """Bytes of a matrix, scales included."""
    if precision == "int8":
        return rows * (columns + 4)
    if precision == "int4":
        return rows * columns // GROUP * (INT4_GROUP_BYTES // TILE_ROWS)
    return 2 * rows * columns


def can_be_quantised(rows: int, columns: int) -> bool:
    """Whether a matrix is made of whole tiles."""
    return rows % TILE_ROWS == 0 and columns % GROUP == 0


def dense_precision(precision: Precision, name: str) -> Precision:
    """How the dense weight called `name` is kept in a model of a precision: norms, biases and routers are bf16."""
    return precision if name.endswith(_MATRICES) else BF16


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Where an expert's two matrices lie in its record: gate over up ``[2I, H]``, and down ``[H, I]``.

    Attributes:
        gate_up / down: Byte where it begins.
        nbytes: Bytes of both.
    """

    gate_up: int
    down: int
    nbytes: int


def expert_layout(precision: Precision, hidden_size: int, expert_size: int) -> ExpertLayout:
    """The layout of packed experts."""
    gate_up = matrix_bytes(precision, 2 * expert_size, hidden_size)
    down = gate_up if precision == BF16 else -(-gate_up // _ALIGN) * _ALIGN
    return ExpertLayout(0, down, down + matrix_bytes(precision, hidden_size, expert_size))
