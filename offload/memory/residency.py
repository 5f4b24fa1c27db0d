"""Which expert is in which slot, and in which state: the one place that knows.

::

    ABSENT --start_load--> LOADING --finish_load--> RESIDENT --evict--> ABSENT
                              '-----abort_load------> ABSENT

An expert has a slot exactly while it is not absent. A loading or resident expert may be pinned, any number of
times; as long as it is, it keeps its slot. All transitions happen on one thread, the engine's. A transition
that is not in the drawing is a bug of the caller and raises :class:`ResidencyError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ABSENT = 0
"""The expert has no slot."""
LOADING = 1
"""The expert has a slot, and its bytes are on their way there."""
RESIDENT = 2
"""The expert's bytes are in its slot."""

Scalar = TypeVar("Scalar", bound=np.generic)

_NO_SLOT = -1
_NO_EXPERT = -1
_NAMES = ("absent", "loading", "resident")


class ResidencyError(AssertionError):
    """A transition that cannot be: a bug, not something that a user can cause."""


class Residency:
    """The slots of one arena and the experts in them.

    The first ``capacity`` slots are in use by the arena, of ``max_slots`` that there are addresses for; the others
    hold nothing and own no memory.

    Attributes:
        state: uint8 ``[num_experts]``: :data:`ABSENT`, :data:`LOADING` or :data:`RESIDENT`.
        slot_of: int32 ``[num_experts]``: the expert's slot, -1 if absent.
        expert_in: int32 ``[max_slots]``: the slot's expert, -1 if empty.
        pins: int32 ``[num_experts]``: how many times the expert is pinned.

    The arrays are views that change with every transition and refuse to be written.
    """

    def __init__(self, num_experts_total: int, max_slots: int, capacity: int) -> None:
        if not 0 <= capacity <= max_slots:
            raise ResidencyError(f"capacity {capacity} of {max_slots} slots")
        self._state = np.full(num_experts_total, ABSENT, dtype=np.uint8)
        self._slot_of = np.full(num_experts_total, _NO_SLOT, dtype=np.int32)
        self._expert_in = np.full(max_slots, _NO_EXPERT, dtype=np.int32)
        self._pins = np.zeros(num_experts_total, dtype=np.int32)
        # Both end with the slot that is taken next: the lowest at first, later the one freed last, whose
        # memory is there already.
        self._free = list(range(capacity - 1, -1, -1))
        self._resident = 0
        self._capacity = capacity
        self.state = _read_only(self._state)
        self.slot_of = _read_only(self._slot_of)
        self.expert_in = _read_only(self._expert_in)
        self.pins = _read_only(self._pins)

    @property
    def capacity(self) -> int:
        """Slots that may hold experts."""
        return self._capacity

    @property
    def free_slots(self) -> int:
        """Slots of the capacity that hold nothing."""
        return len(self._free)

    @property
    def resident_count(self) -> int:
        """Experts that are resident; those loading are not counted."""
        return self._resident

    def start_load(self, expert: int) -> int:
        """Absent to loading. Returns the slot that the expert's bytes go to; one must be free."""
        self._expect(expert, ABSENT, "start_load")
        if not self._free:
            raise ResidencyError(f"start_load({expert}): no slot is free of {self._capacity}")
        slot = self._free.pop()
        self._state[expert] = LOADING
        self._slot_of[expert] = slot
        self._expert_in[slot] = expert
        return slot

    def finish_load(self, expert: int) -> None:
        """Loading to resident: the bytes have arrived."""
        self._expect(expert, LOADING, "finish_load")
        self._state[expert] = RESIDENT
        self._resident += 1

    def abort_load(self, expert: int) -> None:
        """Loading to absent: the bytes will not arrive, and nobody writes to the slot any more.

        Pins must have been taken off before: whoever pinned the expert counts on it.
        """
        self._expect(expert, LOADING, "abort_load")
        self._vacate(expert, "abort_load")

    def evict(self, expert: int) -> int:
        """Resident and unpinned to absent. Returns the slot that is free now."""
        self._expect(expert, RESIDENT, "evict")
        slot = self._vacate(expert, "evict")
        self._resident -= 1
        return slot

    def pin(self, expert: int) -> None:
        """Keeps a loading or resident expert in its slot until :meth:`unpin` was called as often."""
        if expert < 0 or self._state[expert] == ABSENT:
            raise ResidencyError(f"pin({expert}): the expert is absent")
        self._pins[expert] += 1

    def unpin(self, expert: int) -> None:
        """Takes one pin off."""
        if expert < 0 or self._pins[expert] == 0:
            raise ResidencyError(f"unpin({expert}): the expert is not pinned")
        self._pins[expert] -= 1

    def evictable(self) -> NDArray[np.intp]:
        """The experts that :meth:`evict` would take now, in ascending order."""
        return np.flatnonzero((self._state == RESIDENT) & (self._pins == 0))

    def resize(self, capacity: int, move: Callable[[int, int], None]) -> None:
        """Changes how many slots may hold experts.

        Shrinking needs as many free slots as are to go, wherever they are, and none of the experts in those that go
        may be loading or pinned: the caller sees to it before. Those experts move to slots that stay.

        Args:
            move: Copies a slot's bytes, (from, to). If it raises, the capacity stays what it was, and what has been
                moved is where it was moved to.
        """
        before, used = self._capacity, self._capacity - len(self._free)
        if not used <= capacity <= len(self._expert_in):
            raise ResidencyError(f"resize({capacity}): {used} slots used of {before}")
        held = self._expert_in[capacity:before]
        moving = held[held != _NO_EXPERT].tolist()
        for expert in moving:
            self._expect(expert, RESIDENT, "resize")
            if self._pins[expert]:
                raise ResidencyError(f"resize({capacity}): expert {expert} is pinned")
        staying = [slot for slot in self._free if slot < capacity]
        for expert in moving:
            source, target = int(self._slot_of[expert]), staying.pop()
            move(source, target)
            self._expert_in[source], self._expert_in[target] = _NO_EXPERT, expert
            self._slot_of[expert] = target
            self._free[self._free.index(target)] = source
        if capacity < before:
            self._free = [slot for slot in self._free if slot < capacity]
        else:
            self._free[:0] = range(capacity - 1, before - 1, -1)  # behind those that own memory already
        self._capacity = capacity

    def check(self) -> None:
        """Verifies every invariant in full; for tests. Raises :class:`ResidencyError`."""
        holding = np.flatnonzero(self._expert_in != _NO_EXPERT)
        present = np.flatnonzero(self._state != ABSENT)
        slots = sorted([*holding.tolist(), *self._free])
        invariants = {
            "each of the first slots holds an expert or is free, no other does": slots
            == list(range(self._capacity)),
            "an expert has a slot exactly while it is not absent": bool(
                np.array_equal(present, np.flatnonzero(self._slot_of != _NO_SLOT))
            ),
            "slot_of and expert_in say the same": bool(
                np.array_equal(self._expert_in[self._slot_of[present]], present)
            )
            and len(holding) == len(present),
            "states are known": bool(np.all(self._state <= RESIDENT)),
            "resident_count counts": self._resident == int(np.count_nonzero(self._state == RESIDENT)),
            "only experts with a slot are pinned": bool(np.all(self._pins[self._state == ABSENT] == 0)),
            "pins are not negative": bool(np.all(self._pins >= 0)),
        }
        broken = [name for name, holds in invariants.items() if not holds]
        if broken:
            raise ResidencyError(f"broken: {'; '.join(broken)}")

    def _expect(self, expert: int, state: int, transition: str) -> None:
        if expert < 0 or self._state[expert] != state:
            found = "no expert" if expert < 0 else _NAMES[self._state[expert]]
            raise ResidencyError(f"{transition}({expert}): the expert is {found}, not {_NAMES[state]}")

    def _vacate(self, expert: int, transition: str) -> int:
        if self._pins[expert]:
            raise ResidencyError(f"{transition}({expert}): the expert is pinned {self._pins[expert]} times")
        slot = int(self._slot_of[expert])
        assert self._expert_in[slot] == expert
        self._state[expert] = ABSENT
        self._slot_of[expert] = _NO_SLOT
        self._expert_in[slot] = _NO_EXPERT
        self._free.append(slot)
        return slot


def _read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    view = array.view()
    view.flags.writeable = False
    return view
