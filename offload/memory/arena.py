"""The fast tier where there is no GPU: a bounded piece of RAM, cut into equal slots.

The whole range of addresses is reserved at once and costs nothing; a slot takes memory when it is first
written and gives it back when it is released. So slots never move, whatever the budget does.

Reading experts is bound by memory, and with pages of 4 KiB in good part by finding pages. So slots lie in huge
pages where every slot that such a page touches may hold an expert: memory that comes with a neighbour is planned
for.
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
        begin = self._begin(index)
        return self._view[begin : begin + self.slot_bytes]

    def use_huge_pages(self, inside: NDArray[np.bool_]) -> None:
        """Lets the slots that may hold experts lie in huge pages, as far as those touch no other slot.

        What is resident in small pages already stays there.

        Args:
            inside: [max_slots], which slots those are.
        """
        edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2).tolist():
            begin, end = self._inward(first * self.slot_bytes, last * self.slot_bytes)
            if begin < end:
                self._advise(_MADV_HUGEPAGE, begin, end)

    def release(self, index: int) -> None:
        """Gives the memory of slot ``index`` back to the system; its bytes read as zeros from then on."""
        begin = self._begin(index)
        end = begin + self.slot_bytes
        # Otherwise a neighbour could bring the memory back.
        self._advise(_MADV_NOHUGEPAGE, *self._outward(begin, end))
        self._mapping.madvise(mmap.MADV_DONTNEED, begin, self.slot_bytes)

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

    def _inward(self, begin: int, end: int) -> tuple[int, int]:
        """The whole huge pages in a range of bytes."""
        shift = self._first_huge
        return -(-(begin - shift) // _HUGE) * _HUGE + shift, (end - shift) // _HUGE * _HUGE + shift

    def _outward(self, begin: int, end: int) -> tuple[int, int]:
        """The huge pages that a range of bytes touches, as far as they are in the mapping."""
        shift, total = self._first_huge, self.slot_bytes * self.max_slots
        first = (begin - shift) // _HUGE * _HUGE + shift
        return max(0, first), min(total, -(-(end - shift) // _HUGE) * _HUGE + shift)

    def _advise(self, advice: int, begin: int, end: int) -> None:
        if not self._huge:
            return
        try:
            self._mapping.madvise(advice, begin, end - begin)
        except OSError:
            self._huge = False  # a kernel without huge pages does not know the advice
