"""The key-value cache: one block of memory that transformers' attention and the decode kernels both use.

The block is laid out once for the whole context and takes memory only as positions are filled, so the budget
plans for all of it and a short chat pays for what it uses.
"""

from __future__ import annotations

import mmap

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from offload.models import ModelSpec


class _KVLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, [1, G, C, D] each, filled up to `length`."""

    is_sliding = False
    is_croppable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.length = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the memory is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, G, T, D] keys and values; returns views of all that are there, [1, G, length, D]."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end].copy_(key_states)
        self.values[:, :, self.length : end].copy_(value_states)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        # "No maximum": a fixed one makes transformers treat the cache as a static one and mask all of it.
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        self.length = 0


class KVCache(Cache):  # type: ignore[misc]
    """A transformers cache over one fixed block.

    Args:
        spec: The model.
        context: C, positions.
        device: Where the block lies.

    Attributes:
        block: [L, 2, G, C, D] bfloat16: per layer keys, then values.
    """

    def __init__(self, spec: ModelSpec, context: int, device: torch.device) -> None:
        shape = (spec.decoder_layers, 2, spec.num_kv_heads, context, spec.head_dim)
        self.context = context
        if device.type == "cpu":
            # Straight from the system, so that positions never used never take memory.
            memory = mmap.mmap(-1, context * spec.kv_bytes_per_token, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.block = torch.frombuffer(memory, dtype=torch.bfloat16).view(shape)
        else:
            self.block = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        super().__init__(layers=[_KVLayer(layer[0:1], layer[1:2]) for layer in self.block])

    @property
    def bits(self) -> NDArray[np.uint16]:
        """The block as numpy sees it, for the decode kernels (host memory only): [L, 2, G, C, D]."""
        return self.block.view(torch.uint16).numpy()

    @property
    def length(self) -> int:
        """Positions filled."""
        return int(self.layers[0].length)

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def advance(self) -> None:
        """Book one position that the decode kernels wrote into every layer."""
        for layer in self.layers:
            layer.length += 1
