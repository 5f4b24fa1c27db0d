"""Residency against a model made of plain dictionaries, under random interleavings of all it can do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from offload.memory.residency import ABSENT, LOADING, RESIDENT, Residency, ResidencyError

EXPERTS = 12
MAX_SLOTS = 8


class ResidencyMachine(RuleBasedStateMachine):
    """Loads that end or fail in any order, pins, evictions and changes of the budget, right and wrong."""

    @initialize(capacity=st.integers(0, MAX_SLOTS))
    def begin(self, capacity):
        self.residency = Residency(EXPERTS, MAX_SLOTS, capacity)
        self.capacity = capacity
        self.slot = {}  # expert -> slot
        self.loading = set()
        self.pins = dict.fromkeys(range(EXPERTS), 0)

    def free(self):
        return set(range(self.capacity)) - set(self.slot.values())

    def resident(self):
        return set(self.slot) - self.loading

    def evictable(self):
        return {expert for expert in self.resident() if not self.pins[expert]}

    def refused(self, transition, *arguments):
        before = [array.copy() for array in self.arrays()]
        with pytest.raises(ResidencyError):
            transition(*arguments)
        for old, new in zip(before, self.arrays(), strict=True):
            assert np.array_equal(old, new)

    def arrays(self):
        residency = self.residency
        return residency.state, residency.slot_of, residency.expert_in, residency.pins

    expert = st.integers(0, EXPERTS - 1)

    @rule(expert=expert)
    def start_load(self, expert):
        if expert in self.slot or not self.free():
            return self.refused(self.residency.start_load, expert)
        slot = self.residency.start_load(expert)
        assert slot in self.free()
        self.slot[expert] = slot
        self.loading.add(expert)

    @rule(expert=expert)
    def finish_load(self, expert):
        if expert not in self.loading:
            return self.refused(self.residency.finish_load, expert)
        self.residency.finish_load(expert)
        self.loading.remove(expert)

    @rule(expert=expert)
    def read_fails(self, expert):
        if expert not in self.loading or self.pins[expert]:
            return self.refused(self.residency.abort_load, expert)
        self.residency.abort_load(expert)
        self.loading.remove(expert)
        del self.slot[expert]

    @rule(expert=expert)
    def pin(self, expert):
        if expert not in self.slot:
            return self.refused(self.residency.pin, expert)
        self.residency.pin(expert)
        self.pins[expert] += 1

    @rule(expert=expert)
    def unpin(self, expert):
        if not self.pins[expert]:
            return self.refused(self.residency.unpin, expert)
        self.residency.unpin(expert)
        self.pins[expert] -= 1

    @rule(expert=expert)
    def evict(self, expert):
        if expert not in self.evictable():
            return self.refused(self.residency.evict, expert)
        assert self.residency.evict(expert) == self.slot.pop(expert)

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def finish_one_of_those_loading(self, data):
        self.finish_load(data.draw(st.sampled_from(sorted(self.loading))))

    @rule(capacity=st.integers(-1, MAX_SLOTS + 1))
    def resize(self, capacity):
        behind = {expert for expert, slot in self.slot.items() if slot >= capacity}
        moves = []
        if not len(self.slot) <= capacity <= MAX_SLOTS or not behind <= self.evictable():
            self.refused(self.residency.resize, capacity, lambda source, target: moves.append((source, target)))
            assert not moves
            return
        free = self.free()
        self.residency.resize(capacity, lambda source, target: moves.append((source, target)))
        assert [source for source, _ in moves] == sorted(self.slot[expert] for expert in behind)
        targets = [target for _, target in moves]
        assert len(set(targets)) == len(targets) and set(targets) <= free & set(range(capacity))
        for expert in behind:
            self.slot[expert] = dict(moves)[self.slot[expert]]
        self.capacity = capacity

    @rule(capacity=st.integers(0, MAX_SLOTS))
    def profile_switch(self, capacity):
        """What the engine does: sees to what is in the way first."""
        for expert in [expert for expert in self.loading if self.slot[expert] >= capacity]:
            self.finish_load(expert)
        while len(self.slot) > capacity and self.evictable():
            self.evict(min(self.evictable()))
        self.resize(capacity)

    @invariant()
    def agrees_with_the_model(self):
        residency = self.residency
        residency.check()
        states = [
            LOADING if expert in self.loading else RESIDENT if expert in self.slot else ABSENT
            for expert in range(EXPERTS)
        ]
        assert residency.state.tolist() == states
        assert residency.slot_of.tolist() == [self.slot.get(expert, -1) for expert in range(EXPERTS)]
        holder = {slot: expert for expert, slot in self.slot.items()}
        assert residency.expert_in.tolist() == [holder.get(slot, -1) for slot in range(MAX_SLOTS)]
        assert residency.pins.tolist() == list(self.pins.values())
        assert residency.evictable().tolist() == sorted(self.evictable())
        assert residency.capacity == self.capacity
        assert residency.free_slots == len(self.free())
        assert residency.resident_count == len(self.resident())


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def no_moves(source, target):
    raise AssertionError(f"slot {source} moves to {target}")


def test_one_expert_through_all_states():
    residency = Residency(num_experts_total=4, max_slots=2, capacity=1)
    slot = residency.start_load(3)
    residency.pin(3)
    residency.finish_load(3)
    assert (residency.state[3], residency.slot_of[3], residency.expert_in[slot]) == (RESIDENT, slot, 3)
    with pytest.raises(ResidencyError, match=r"evict\(3\): the expert is pinned 1 times"):
        residency.evict(3)
    residency.unpin(3)
    assert residency.evict(3) == slot
    assert residency.state[3] == ABSENT


def test_a_slot_freed_last_is_taken_first():
    residency = Residency(num_experts_total=4, max_slots=4, capacity=3)
    for expert in range(3):
        residency.start_load(expert)
        residency.finish_load(expert)
    freed = residency.evict(1)
    residency.resize(4, no_moves)
    assert residency.start_load(3) == freed


def test_an_expert_in_a_slot_that_goes_moves_to_one_that_was_used():
    residency = Residency(num_experts_total=4, max_slots=4, capacity=4)
    for expert in range(3):
        residency.start_load(expert)
        residency.finish_load(expert)
    residency.evict(0)
    moves = []
    residency.resize(2, lambda source, target: moves.append((source, target)))
    assert moves == [(2, 0)]
    assert (residency.slot_of[2], residency.free_slots) == (0, 0)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_copy_that_fails_leaves_every_expert_where_its_bytes_are(fails_at):
    residency = Residency(num_experts_total=6, max_slots=6, capacity=6)
    for expert in range(6):
        residency.finish_load(residency.expert_in[residency.start_load(expert)])
    for expert in range(3):
        residency.evict(expert)
    bytes_in = residency.expert_in.tolist()

    def move(source, target):
        nonlocal fails_at
        fails_at -= 1
        if fails_at < 0:
            raise KeyboardInterrupt
        bytes_in[target] = bytes_in[source]

    with pytest.raises(KeyboardInterrupt):
        residency.resize(3, move)
    residency.check()
    assert (residency.capacity, residency.resident_count, residency.free_slots) == (6, 3, 3)
    assert all(bytes_in[residency.slot_of[expert]] == expert for expert in range(3, 6))
    fails_at = 6
    residency.resize(3, move)
    residency.check()
    assert sorted(bytes_in[:3]) == [3, 4, 5]


def test_nobody_else_can_write_the_arrays():
    residency = Residency(num_experts_total=4, max_slots=4, capacity=3)
    for array in (residency.state, residency.slot_of, residency.expert_in, residency.pins):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_no_expert_is_not_an_expert():
    residency = Residency(num_experts_total=4, max_slots=4, capacity=3)
    for transition in (residency.start_load, residency.pin, residency.unpin, residency.evict):
        with pytest.raises(ResidencyError):
            transition(-1)


def test_more_capacity_than_slots_is_a_bug():
    with pytest.raises(ResidencyError):
        Residency(num_experts_total=4, max_slots=4, capacity=5)


@pytest.mark.parametrize("array", ["_state", "_slot_of", "_expert_in", "_pins"])
def test_check_notices_a_change_made_behind_its_back(array):
    residency = Residency(num_experts_total=4, max_slots=4, capacity=3)
    residency.start_load(0)
    residency.check()
    getattr(residency, array)[1] = 2
    with pytest.raises(ResidencyError, match="broken"):
        residency.check()
