"""Modules with quantised weights, put in the place of transformers' own.

They keep a weight as it is packed and unpack it for each call, some rows at a time, so that a matrix is never in
memory in both forms. That is worth it for many tokens at once; single ones go through the decode kernels, where
they can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from offload.memory.budget import UNPACKED_WEIGHTS
from offload.precision import BF16, TILE_ROWS, Precision, dense_precision
from offload.runtime.unpack import Unpacker


class QuantisedLinear(nn.Module):
    """`nn.Linear` with a packed weight.

    Attributes:
        packed: uint8, the weight [out_features, in_features]; set when it is loaded.
        bias: [out_features] bfloat16, or None.
    """

    packed: torch.Tensor

    def __init__(self, plain: nn.Linear, unpacker: Unpacker) -> None:
        super().__init__()
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self.bias = plain.bias
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8, device="meta"), persistent=False)
        self._unpacker = unpacker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias. x: [..., in_features] bfloat16."""
        step = max(UNPACKED_WEIGHTS // self.in_features // TILE_ROWS, 1) * TILE_ROWS
        row_bytes = self.packed.numel() // self.out_features
        out = x.new_empty((*x.shape[:-1], self.out_features))
        unpacked = self._unpacker.scratch(min(step, self.out_features), self.in_features, x.device)
        for first in range(0, self.out_features, step):
            end = min(first + step, self.out_features)
            weight = unpacked[: end - first]
            self._unpacker.unpack(self.packed[first * row_bytes : end * row_bytes], weight)
            bias = None if self.bias is None else self.bias[first:end]
            out[..., first:end] = nn.functional.linear(x, weight, bias)
        return out


class QuantisedEmbedding(nn.Module):
    """`nn.Embedding` with a packed table.

    Attributes:
        packed: uint8, the table [V, H]; set when it is loaded.
    """

    packed: torch.Tensor

    def __init__(self, plain: nn.Embedding, unpacker: Unpacker) -> None:
        super().__init__()
        self.embedding_dim = plain.embedding_dim
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8, device="meta"), persistent=False)
        self._unpacker = unpacker

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows of some tokens: [..., H] bfloat16."""
        rows = self._unpacker.rows(self.packed, tokens.reshape(-1), self.embedding_dim)
        return rows.view(*tokens.shape, self.embedding_dim)


def use_quantised_modules(model: Any, precision: Precision, unpacker: Unpacker) -> None:
    """Replace the modules of a model, on the meta device, whose weights are quantised."""
    for path, module in list(model.named_modules()):
        if dense_precision(precision, f"{path}.weight") == BF16:
            continue
        quantised = QuantisedEmbedding if isinstance(module, nn.Embedding) else QuantisedLinear
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, quantised(module, unpacker))
