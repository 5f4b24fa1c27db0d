"""The fast tier where there is no GPU: a bounded piece of RAM, cut into equal slots.

The whole range of addresses is reserved at once and costs nothing; a slot takes memory when it is first
written and gives it back when it is released. So slots never move, whatever the budget does.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from offload.errors import FinemoeError
from offload.units import format_bytes

_MAP_NORESERVE = 0x4000  # Linux; mmap names it only from Python 3.13 on
_MADV_NOHUGEPAGE = 15


class HostArena:
    """``max_slots`` slots of ``slot_bytes`` bytes each in one private anonymous mapping, page-aligned.

    Attributes:
        slot_bytes: Bytes of one slot.
        max_slots: How many there are addresses for.
        buffer: uint8 ``[max_slots * slot_bytes]``, writable: all slots, one after another.

    Raises:
        FinemoeError: The system refuses to reserve that many addresses.
    """

    def __init__(self, slot_bytes: int, max_slots: int) -> None:
        if slot_bytes <= 0 or slot_bytes % mmap.PAGESIZE or max_slots <= 0:
            raise ValueError(f"{max_slots} slots of {slot_bytes} bytes: whole pages are needed")
        self.slot_bytes = slot_bytes
        self.max_slots = max_slots
        total = slot_bytes * max_slots
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._mapping = mmap.mmap(-1, total, flags=flags)
        except (OSError, OverflowError) as error:
            raise FinemoeError(
                f"the system refuses to reserve {format_bytes(total)} of addresses for experts: {error}",
                "lower the memory budget, or raise the limit on addresses (ulimit -v)",
            ) from error
        try:
            # A huge page would make memory resident that belongs to slots nobody has written.
            self._mapping.madvise(_MADV_NOHUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages does not know the advice
        self.buffer: NDArray[np.uint8] = np.frombuffer(self._mapping, dtype=np.uint8)
        self._view = memoryview(self._mapping)

    def slot(self, index: int) -> memoryview:
        """Slot ``index``: writable bytes that begin at a page."""
        begin = self._begin(index)
        return self._view[begin : begin + self.slot_bytes]

    def release(self, index: int) -> None:
        """Gives the memory of slot ``index`` back to the system; its bytes read as zeros from then on."""
        self._mapping.madvise(mmap.MADV_DONTNEED, self._begin(index), self.slot_bytes)

    def close(self) -> None:
        """Gives all memory back. No slot may be used afterwards; may be called twice."""
        if self._mapping.closed:
            return
        self._mapping.madvise(mmap.MADV_DONTNEED)
        self.buffer = np.empty(0, dtype=np.uint8)
        self._view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still holds a view: the addresses go with it, the memory has gone already

    def _begin(self, index: int) -> int:
        if not 0 <= index < self.max_slots:
            raise IndexError(f"slot {index} of {self.max_slots}")
        return index * self.slot_bytes
