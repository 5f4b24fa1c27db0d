"""The fast tier where there is no GPU: a bounded piece of RAM, cut into equal slots.

The whole range of addresses is reserved at once and costs nothing; a slot takes memory when it is first
written, and the budget decides how many of them, from the first on, may keep it.

Reading experts is bound by memory, and with pages of 4 KiB in good part by finding pages. So slots lie in huge
pages as far as those touch no slot behind the last one in use: memory that comes with a neighbour is planned for.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from offload.errors import FinemoeError
from offload.units import format_bytes

_MAP_NORESERVE = 0x4000  # Linux; mmap names it only from Python 3.13 on
_MADV_HUGEPAGE = 14
_MADV_NOHUGEPAGE = 15
_HUGE = 2 << 20
"""Bytes of a huge page where it is smallest; where pages are larger, some slots go without."""


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
        self._huge = True
        self._advise(_MADV_NOHUGEPAGE, 0, total)
        self.buffer: NDArray[np.uint8] = np.frombuffer(self._mapping, dtype=np.uint8)
        self._view = memoryview(self._mapping)
        # Where huge pages can begin, among the bytes of the mapping.
        self._first_huge = -self.buffer.ctypes.data % _HUGE

    def slot(self, index: int) -> memoryview:
        """Slot ``index``: writable bytes that begin at a page."""
        if not 0 <= index < self.max_slots:
            raise IndexError(f"slot {index} of {self.max_slots}")
        begin = index * self.slot_bytes
        return self._view[begin : begin + self.slot_bytes]

    def use(self, slots: int) -> None:
        """From now on the first ``slots`` slots may hold experts; the others give their memory back to the system.

        What is resident in small pages already stays there. Bytes of the others read as zeros.
        """
        if not 0 <= slots <= self.max_slots:
            raise IndexError(f"{slots} of {self.max_slots} slots")
        end, total = slots * self.slot_bytes, self.max_slots * self.slot_bytes
        first, last = self._huge_pages(end)
        self._advise(_MADV_HUGEPAGE, first, last)
        # A huge page with a part of a slot that is not in use could bring its memory back.
        self._advise(_MADV_NOHUGEPAGE, last, total)
        if end < total:
            self._mapping.madvise(mmap.MADV_DONTNEED, end, total - end)

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

    def _huge_pages(self, end: int) -> tuple[int, int]:
        """Where the whole huge pages among the first ``end`` bytes begin and end."""
        first = min(self._first_huge, end)
        return first, first + (end - first) // _HUGE * _HUGE

    def _advise(self, advice: int, begin: int, end: int) -> None:
        if not self._huge or begin >= end:
            return
        try:
            self._mapping.madvise(advice, begin, end - begin)
        except OSError:
            self._huge = False  # a kernel without huge pages does not know the advice
