"""The key-value cache: one block of memory that transformers' attention and the decode kernels both use.

The block is laid out once for the whole context and takes memory only as positions are filled, so the budget
plans for all of it and a short chat pays for what it uses. Layers with sliding-window attention keep all positions
too, so that a chat can be cut back anywhere; they show the window's.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from offload.models import ModelSpec


class _KVLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys, [1, G, C, K], and values, [1, G, C, V], each filled up to `length`."""

    is_croppable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.length = 0
        self.is_initialized = True
        self.is_sliding = window is not None
        self._window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the memory is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, G, T, K] keys and [1, G, T, V] values; returns views of those that the new tokens may see."""
        first, end = self._first_visible(), self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end].copy_(key_states)
        self.values[:, :, self.length : end].copy_(value_states)
        self.length = end
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = self._first_visible()
        return self.length + query_length - first, first

    def _first_visible(self) -> int:
        """The first position that the next token may see."""
        return 0 if self._window is None else max(self.length - self._window + 1, 0)

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        # "No maximum": a fixed one makes transformers treat the cache as a static one and mask all of it.
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        self.length = 0


def attention_windows(config: Any) -> list[int | None]:
    """Each decoder layer's window of sliding attention, None for full attention, as transformers has it."""
    return [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]


class KVCache(Cache):  # type: ignore[misc]
    """A transformers cache over one fixed block.

    Args:
        spec: The model.
        context: C, positions.
        device: Where the block lies.
        windows: See `attention_windows`; full attention in all layers if not given.
    """

    def __init__(
        self, spec: ModelSpec, context: int, device: torch.device, windows: Sequence[int | None] | None = None
    ) -> None:
        self.context = context
        heads, key_dim, value_dim = spec.num_kv_heads, spec.key_dim, spec.value_dim
        shape = (spec.decoder_layers, heads * context * (key_dim + value_dim))
        if device.type == "cpu":
            # Straight from the system, so that positions never used never take memory.
            memory = mmap.mmap(-1, context * spec.kv_bytes_per_token, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._block = torch.frombuffer(memory, dtype=torch.bfloat16).view(shape)
        else:
            self._block = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self._alike = (spec.decoder_layers, 2, heads, context, key_dim) if key_dim == value_dim else None
        layers = []
        for block, window in zip(self._block, windows or [None] * spec.decoder_layers, strict=True):
            keys, values = block.split((heads * context * key_dim, heads * context * value_dim))
            layers.append(
                _KVLayer(keys.view(1, heads, context, key_dim), values.view(1, heads, context, value_dim), window)
            )
        super().__init__(layers=layers)

    @property
    def bits(self) -> NDArray[np.uint16]:
        """The block as numpy sees it, for the decode kernels: [L, 2, G, C, D], per layer keys, then values.

        In host memory only, and where keys and values are of one width.
        """
        assert self._alike is not None
        return self._block.view(torch.uint16).numpy().reshape(self._alike)

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
