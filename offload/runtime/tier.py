"""The fast tier of one device: its slots, how bytes land in them, and how they are seen as tensors."""

from __future__ import annotations

from typing import Protocol

import torch

from offload.memory.arena import HostArena
from offload.transfer.cuda import CudaArena, CudaStage
from offload.transfer.stage import HostStage, Stage


class Tier(Protocol):
    """What the runtime needs of a device's slots.

    Attributes:
        device: Where the slots are.
        stage: Where lanes read to, and how it gets into a slot.
    """

    device: torch.device
    stage: Stage

    def tensor(self, slot: int) -> torch.Tensor:
        """Slot ``slot``: uint8 ``[slot_bytes]`` on the device, a view."""
        ...

    def prepare(self, slot: int) -> None:
        """Make sure that ``slot`` has memory, before anything is read into it.

        Raises:
            FinemoeError: The device has none left.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Copy what slot ``source`` holds to slot ``target``."""
        ...

    def use(self, slots: int) -> None:
        """From now on the first ``slots`` slots may hold experts; the others give their memory back."""
        ...

    def close(self) -> None:
        """Give everything back; the lanes are closed."""
        ...


class HostTier:
    """Slots in the process's own memory, which they take when they are first written.

    Attributes:
        arena: The slots, as the decode kernels see them.
    """

    def __init__(self, slot_bytes: int, max_slots: int) -> None:
        self.device = torch.device("cpu")
        self.arena = HostArena(slot_bytes, max_slots)
        self.stage: Stage = HostStage(self.arena)
        self._bytes = torch.from_numpy(self.arena.buffer)

    def tensor(self, slot: int) -> torch.Tensor:
        return self._bytes.narrow(0, slot * self.arena.slot_bytes, self.arena.slot_bytes)

    def prepare(self, slot: int) -> None:
        """Nothing: the addresses are there, and memory comes with the first write."""

    def move(self, source: int, target: int) -> None:
        self.tensor(target).copy_(self.tensor(source))

    def use(self, slots: int) -> None:
        self.arena.use(slots)

    def close(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self.arena.close()


class CudaTier:
    """Slots in the memory of a GPU. Not yet run on real hardware."""

    def __init__(self, slot_bytes: int, max_slots: int, device: torch.device) -> None:
        self.device = device
        self._arena = CudaArena(slot_bytes, max_slots, device)
        self._stage = CudaStage(self._arena, torch.cuda.current_stream(device))
        self.stage: Stage = self._stage

    def tensor(self, slot: int) -> torch.Tensor:
        return self._arena.slot(slot)

    def prepare(self, slot: int) -> None:
        self._arena.reserve((slot,))

    def move(self, source: int, target: int) -> None:
        self.prepare(target)
        self.tensor(target).copy_(self.tensor(source))

    def use(self, slots: int) -> None:
        self._arena.use(slots)

    def close(self) -> None:
        self._stage.close()
        self._arena.close()
