"""An expert's two matrices, as views of the slot it lies in."""

from __future__ import annotations

import torch

from offload.memory.residency import Residency
from offload.models import ModelSpec
from offload.precision import matrix_bytes
from offload.runtime.tier import Tier
from offload.runtime.unpack import Unpacker
from offload.store.base import ExpertStore


class ExpertViews:
    """Views of resident experts. Valid while the expert is pinned; of quantised ones, until the next is asked for.

    Attributes:
        device: Where the experts are.
    """

    def __init__(
        self,
        spec: ModelSpec,
        store: ExpertStore,
        tier: Tier,
        residency: Residency,
        unpacker: Unpacker | None = None,
    ) -> None:
        self.device = tier.device
        self._tier = tier
        self._slot_of = residency.slot_of
        self._gate_up_at = store.gate_up_offset
        self._down_at = store.down_offset
        self._gate_up_shape = (2 * spec.expert_size, spec.hidden_size)
        self._down_shape = (spec.hidden_size, spec.expert_size)
        self._unpacker = unpacker
        self._unpacked: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate over up projection, [2I, H], and down projection, [H, I], bfloat16."""
        slot = self._tier.tensor(int(self._slot_of[expert]))
        if self._unpacker is not None:
            return self._unpack(self._unpacker, slot, expert)
        return (
            _matrix(slot, int(self._gate_up_at[expert]), self._gate_up_shape),
            _matrix(slot, int(self._down_at[expert]), self._down_shape),
        )

    def give_back(self) -> None:
        """Let go of the memory that quantised experts were unpacked to. No view is in use."""
        self._unpacked = None
        if self._unpacker is not None:
            self._unpacker.give_back()

    def _unpack(self, unpacker: Unpacker, slot: torch.Tensor, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._unpacked is None:
            self._unpacked = (
                torch.empty(self._gate_up_shape, dtype=torch.bfloat16, device=self.device),
                torch.empty(self._down_shape, dtype=torch.bfloat16, device=self.device),
            )
        for begin, out in zip((self._gate_up_at[expert], self._down_at[expert]), self._unpacked, strict=True):
            unpacker.unpack(slot.narrow(0, int(begin), matrix_bytes(unpacker.precision, *out.shape)), out)
        return self._unpacked


def _matrix(slot: torch.Tensor, begin: int, shape: tuple[int, int]) -> torch.Tensor:
    return slot.narrow(0, begin, 2 * shape[0] * shape[1]).view(torch.bfloat16).view(shape)
