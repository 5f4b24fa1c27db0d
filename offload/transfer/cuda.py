"""The last step on an NVIDIA GPU: slots in device memory, and pinned slabs that lanes read into.

Not yet run on real hardware; ``tests/offload/transfer/test_cuda.py`` holds the checks (``pytest -m gpu``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import torch

from offload.errors import FinemoeError
from offload.memory.arena import HostArena
from offload.units import MIB, format_bytes

_CHUNK_BYTES = 20 * MIB  # what torch's allocator takes from the driver at once for middling sizes


class CudaArena:
    """Up to ``max_slots`` slots of ``slot_bytes`` bytes in device memory, taken and given back in chunks.

    A chunk holds as many slots as 20 MiB do, at least one; its memory goes back when all of them are released.
    The engine's thread reserves and releases; lanes may call :meth:`slot` for reserved slots at the same time.

    Attributes:
        slot_bytes: Bytes of one slot.
        max_slots: The highest number of slots.
        device: Where they are.
    """

    def __init__(self, slot_bytes: int, max_slots: int, device: torch.device) -> None:
        if slot_bytes <= 0 or max_slots <= 0:
            raise ValueError(f"{max_slots} slots of {slot_bytes} bytes")
        self.slot_bytes = slot_bytes
        self.max_slots = max_slots
        self.device = device
        self._per_chunk = max(1, _CHUNK_BYTES // slot_bytes)
        self._chunks: dict[int, torch.Tensor] = {}
        self._reserved: set[int] = set()

    @property
    def allocated_bytes(self) -> int:
        """Device memory of all chunks."""
        return sum(chunk.numel() for chunk in self._chunks.values())

    def reserve(self, indices: Iterable[int]) -> None:
        """Takes memory for these slots, as far as they have none.

        Raises:
            FinemoeError: The device has not enough memory. Slots before the one that failed are reserved.
        """
        for index in indices:
            if not 0 <= index < self.max_slots:
                raise IndexError(f"slot {index} of {self.max_slots}")
            number = index // self._per_chunk
            if number not in self._chunks:
                self._chunks[number] = self._allocate(number)
            self._reserved.add(index)

    def slot(self, index: int) -> torch.Tensor:
        """Slot ``index``, which must be reserved: uint8 ``[slot_bytes]`` on the device, a view."""
        if index not in self._reserved:
            raise IndexError(f"slot {index} is not reserved")
        number, place = divmod(index, self._per_chunk)
        return self._chunks[number].narrow(0, place * self.slot_bytes, self.slot_bytes)

    def release(self, index: int) -> None:
        """Gives slot ``index`` back; nobody may hold its tensor."""
        self._reserved.discard(index)
        number = index // self._per_chunk
        first = number * self._per_chunk
        if self._reserved.isdisjoint(range(first, first + self._per_chunk)):
            self._chunks.pop(number, None)
            self._return_to_driver()

    def use(self, slots: int) -> None:
        """Gives all slots but the first ``slots`` back."""
        for index in sorted(index for index in self._reserved if index >= slots):
            self.release(index)

    def close(self) -> None:
        """Gives all memory back. May be called twice."""
        self._reserved.clear()
        self._chunks.clear()
        self._return_to_driver()

    def _allocate(self, number: int) -> torch.Tensor:
        slots = min(self._per_chunk, self.max_slots - number * self._per_chunk)
        try:
            return torch.empty(slots * self.slot_bytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise FinemoeError(
                f"{self.device} has no {format_bytes(slots * self.slot_bytes)} left for experts",
                "lower the memory budget, or end other programs that use the GPU",
            ) from error

    def _return_to_driver(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class CudaStage:
    """Lanes read into a pinned slab of their own; a copy stream of their own brings it into the slot.

    A copy begins after everything that the computation's stream was given before, so that an expert evicted by
    the engine is not overwritten under kernels that still read it. It is complete when :meth:`land` returns.
    Each lane takes ``slot_bytes`` bytes of pinned host memory. :meth:`close` after the lanes.

    Args:
        arena: The slots.
        compute_stream: The stream that computes with them.
    """

    in_place = False

    def __init__(self, arena: CudaArena, compute_stream: torch.cuda.Stream) -> None:
        self._arena = arena
        self._compute_stream = compute_stream
        self._local = threading.local()
        self._lanes: list[_LaneBuffer] = []

    def target(self, slot: int) -> memoryview:
        """The calling lane's slab, page-aligned, ``slot_bytes`` bytes."""
        return self._lane().slab.slot(0)

    def land(self, slot: int) -> None:
        """Copies the calling lane's slab into ``slot`` and waits for the copy, without holding the GIL."""
        lane = self._lane()
        lane.stream.wait_stream(self._compute_stream)
        with torch.cuda.stream(lane.stream):
            self._arena.slot(slot).copy_(lane.tensor, non_blocking=True)
            lane.event.record(lane.stream)
        lane.event.synchronize()

    def close(self) -> None:
        """Gives the slabs back. No transfer may be under way; may be called twice."""
        while self._lanes:
            self._lanes.pop().close()
        self._local = threading.local()

    def _lane(self) -> _LaneBuffer:
        lane: _LaneBuffer | None = getattr(self._local, "lane", None)
        if lane is None:
            lane = self._local.lane = _LaneBuffer(self._arena.slot_bytes, self._arena.device)
            self._lanes.append(lane)
        return lane


class _LaneBuffer:
    """One lane's slab, stream and event. The slab is registered rather than allocated by torch, whose pinned
    allocator rounds sizes up to powers of two."""

    def __init__(self, slot_bytes: int, device: torch.device) -> None:
        self.slab = HostArena(slot_bytes, 1)
        self.tensor = torch.from_numpy(np.frombuffer(self.slab.slot(0), dtype=np.uint8))
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(int(self._runtime.cudaHostRegister(self.tensor.data_ptr(), slot_bytes, 0)))

    def close(self) -> None:
        self.stream.synchronize()
        torch.cuda.check_error(int(self._runtime.cudaHostUnregister(self.tensor.data_ptr())))
        del self.tensor
        self.slab.close()
