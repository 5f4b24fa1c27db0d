"""Belady's MIN against every possible choice, and against LRU."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.trace.oracle import belady_hits

steps_of_few = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True), max_size=7)


def best_hits(steps: list[list[int]], capacity: int, resident: frozenset[int]) -> int:
    """The most hits that any choice of victims gives: all of them are tried."""

    @cache
    def best(number: int, resident: frozenset[int]) -> int:
        if number == len(steps):
            return 0
        step = frozenset(steps[number])
        others = sorted(resident - step)
        room = capacity - len(step)
        kept = [frozenset(some) for count in range(len(others) + 1) for some in combinations(others, count)]
        return len(resident & step) + max(best(number + 1, step | some) for some in kept if len(some) <= room)

    return best(0, resident)


def lru_hits(steps: list[list[int]], capacity: int) -> int:
    """What evicting the least recently used gives."""
    resident: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for step in steps:
        hits += sum(item in resident for item in step)
        for item in step:
            resident[item] = None
            resident.move_to_end(item)
        while len(resident) > capacity:
            resident.popitem(last=False)
    return hits


@given(steps=steps_of_few, capacity=st.integers(3, 5), resident=st.frozensets(st.integers(0, 5), max_size=3))
def test_nothing_does_better(steps: list[list[int]], capacity: int, resident: frozenset[int]) -> None:
    hits = belady_hits(steps, capacity, resident)
    assert len(hits) == len(steps)
    assert hits.sum() == best_hits(steps, capacity, resident)


@given(
    steps=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True), max_size=60),
    capacity=st.integers(6, 20),
)
def test_lru_does_not_do_better(steps: list[list[int]], capacity: int) -> None:
    assert belady_hits(steps, capacity).sum() >= lru_hits(steps, capacity)


@given(steps=steps_of_few)
def test_with_room_for_everything_only_first_uses_miss(steps: list[list[int]]) -> None:
    total = sum(map(len, steps))
    assert belady_hits(steps, 6).sum() == total - len({item for step in steps for item in step})


def test_hits_are_counted_in_the_step_that_has_them() -> None:
    assert belady_hits([[1, 2], [2, 3], [1], [3]], 2, {1}).tolist() == [1, 1, 0, 1]


def test_a_capacity_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="step 0 needs 3, of 2"):
        belady_hits([[1, 2, 3]], 2)
    with pytest.raises(ValueError, match="2 resident in the beginning, of 1"):
        belady_hits([[1]], 1, {1, 2})
