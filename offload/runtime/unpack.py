"""Quantised matrices as bfloat16, for what computes in bfloat16: prompts, and transformers' modules.

A weight becomes the bfloat16 nearest to its scale times its number, whoever unpacks it: the compiled kernels where
they are loaded anyway, torch elsewhere.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from offload.precision import GROUP, INT4_GROUP_BYTES, INT4_HEAD_BYTES, TILE_ROWS, Precision, matrix_bytes

_WEIGHTS_AT_ONCE = 1 << 17  # that torch makes intermediate results of


class Unpacker:
    """Unpacks matrices of one precision.

    Args:
        precision: How they are packed; not bfloat16.
        compiled: Whether to use the compiled kernels, which have to be compiled by now. On the CPU only.
    """

    def __init__(self, precision: Precision, compiled: bool) -> None:
        self.precision = precision
        self._kernels: Any = importlib.import_module(f"offload.runtime.kernels.{precision}") if compiled else None
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def unpack(self, packed: torch.Tensor, out: torch.Tensor) -> None:
        """Write to ``out``, [R, C] bfloat16, the matrix in ``packed``, uint8 [matrix_bytes], on the same device."""
        rows, columns = out.shape
        if self._kernels is not None:
            weights = packed.numpy().view(np.int8 if self.precision == "int8" else np.uint8)
            self._kernels.unpack(weights, rows, columns, out.view(torch.uint16).numpy().reshape(-1))
            return
        step = max(_WEIGHTS_AT_ONCE // columns // TILE_ROWS, 1) * TILE_ROWS
        unpack = _unpack_int8 if self.precision == "int8" else _unpack_int4
        for first in range(0, rows, step):
            part = out[first : first + step]
            begin, end = (matrix_bytes(self.precision, row, columns) for row in (first, first + len(part)))
            unpack(packed[begin:end], part)

    def scratch(self, rows: int, columns: int, device: torch.device) -> torch.Tensor:
        """Room for some rows of a matrix, [rows, columns] bfloat16: the same whenever it is asked for."""
        if self._scratch.numel() < rows * columns:
            self._scratch = torch.empty(rows * columns, dtype=torch.bfloat16, device=device)
        return self._scratch[: rows * columns].view(rows, columns)

    def give_back(self) -> None:
        """Let go of the room that `scratch` gave out."""
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def rows(self, packed: torch.Tensor, numbers: torch.Tensor, columns: int) -> torch.Tensor:
        """Some rows of a matrix: [len(numbers), columns] bfloat16."""
        tile_bytes = matrix_bytes(self.precision, TILE_ROWS, columns)
        tiles = packed.view(-1, tile_bytes)[numbers // TILE_ROWS].contiguous()
        out = torch.empty((len(numbers) * TILE_ROWS, columns), dtype=torch.bfloat16, device=packed.device)
        self.unpack(tiles.view(-1), out)
        lanes = numbers % TILE_ROWS
        return out.view(len(numbers), TILE_ROWS, columns)[torch.arange(len(numbers), device=lanes.device), lanes]


def _unpack_int8(packed: torch.Tensor, out: torch.Tensor) -> None:
    columns = out.shape[1]
    tiles = packed.view(len(out) // TILE_ROWS, -1)
    scales = tiles[:, : 4 * TILE_ROWS].contiguous().view(torch.float32)
    pairs = tiles[:, 4 * TILE_ROWS :].view(torch.int16).view(-1, columns // 2, TILE_ROWS).transpose(1, 2)
    codes = pairs.contiguous().view(torch.int8).view(-1, TILE_ROWS, columns)
    out.view(-1, TILE_ROWS, columns).copy_(codes.float().mul_(scales[:, :, None]))


def _unpack_int4(packed: torch.Tensor, out: torch.Tensor) -> None:
    groups = out.shape[1] // GROUP
    tiles = packed.view(len(out) // TILE_ROWS, groups, INT4_GROUP_BYTES)
    heads = tiles[:, :, :INT4_HEAD_BYTES].view(torch.bfloat16).float()
    scales, minima = (head.transpose(1, 2)[..., None] for head in heads.chunk(2, dim=2))
    pairs = tiles[:, :, INT4_HEAD_BYTES:].view(torch.int16).view(-1, groups, GROUP // 4, TILE_ROWS)
    both = pairs.permute(0, 3, 1, 2).contiguous().view(torch.uint8).view(-1, TILE_ROWS, groups, GROUP // 4, 1, 2)
    codes = torch.cat((both & 15, both >> 4), dim=4).view(-1, TILE_ROWS, groups, GROUP).float()
    out.view(-1, TILE_ROWS, groups, GROUP).copy_(codes.mul_(scales).add_(minima))
