"""An expert's two matrices, as views of the slot it lies in."""

from __future__ import annotations

import torch

from offload.memory.arena import HostArena
from offload.memory.residency import Residency
from offload.models import ModelSpec
from offload.store.base import ExpertStore


class ExpertViews:
    """Views of resident experts in host memory. Valid while the expert is pinned."""

    def __init__(self, spec: ModelSpec, store: ExpertStore, arena: HostArena, residency: Residency) -> None:
        self.device = torch.device("cpu")
        self._weights = torch.from_numpy(arena.buffer.view("uint16")).view(torch.bfloat16)
        self._slot_of = residency.slot_of
        self._slot_size = arena.slot_bytes // 2
        self._gate_up_at = store.gate_up_offset // 2
        self._down_at = store.down_offset // 2
        self._gate_up_shape = (2 * spec.expert_size, spec.hidden_size)
        self._down_shape = (spec.hidden_size, spec.expert_size)

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate over up projection, [2I, H], and down projection, [H, I], bfloat16."""
        slot = int(self._slot_of[expert]) * self._slot_size
        return (
            self._matrix(slot + int(self._gate_up_at[expert]), self._gate_up_shape),
            self._matrix(slot + int(self._down_at[expert]), self._down_shape),
        )

    def _matrix(self, begin: int, shape: tuple[int, int]) -> torch.Tensor:
        return self._weights[begin : begin + shape[0] * shape[1]].view(shape)
