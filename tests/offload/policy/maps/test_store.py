"""The expert map store: what it keeps, and what it gives up for a new entry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offload.policy.maps import MapStore, StoreModel, memory_bytes
from tests.offload.policy.maps.stores import MODEL, filled, ids, random_map


def cosine(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@given(seeds=st.lists(st.integers(0, 40), max_size=40), capacity=st.integers(1, 20))
def test_the_store_is_bounded_and_holds_nothing_twice(seeds: list[int], capacity: int) -> None:
    store = MapStore(MODEL, capacity)
    for seed in seeds:
        before = ids(store)
        added = store.add(*random_map(seed))
        assert added == (ids(store) != before)
        assert len(ids(store)) == len(store) <= capacity
    assert len(store) == min(len(set(seeds)), capacity)


@pytest.mark.parametrize("distance", [1, 3, 4, 9])
def test_a_full_store_gives_up_what_the_new_entry_resembles_most(distance: int) -> None:
    store = filled(*range(8), capacity=8)
    store.distance = distance
    embedding, rows = random_map(99)
    share = min(distance, 4) / 4
    kept = [random_map(seed) for seed in range(8)]
    redundancy = [share * cosine(embedding, one) + (1 - share) * cosine(rows, map_) for one, map_ in kept]
    victim = int(store.ids[int(np.argmax(redundancy))])
    before = ids(store)
    store.add(embedding, rows)
    assert before - ids(store) == {victim}
    assert len(ids(store) - before) == 1


def test_known_cosines_give_the_same_victim() -> None:
    one, other = filled(*range(8), capacity=8), filled(*range(8), capacity=8)
    entry = random_map(99)
    unit = entry[0] / np.linalg.norm(entry[0])
    one.add(*entry)
    other.add(*entry, (other.semantic_cosines(unit), other.map_cosines(entry[1])))
    assert ids(one) == ids(other)


def test_the_lengths_are_those_of_the_first_rows() -> None:
    store = filled(*range(5))
    for number in range(5):
        for layer in range(MODEL.layers):
            length = np.linalg.norm(store.maps[: layer + 1, number])
            assert store.scales[layer, number] == pytest.approx(1 / length, rel=1e-6)


def test_another_capacity() -> None:
    store = filled(*range(8), capacity=8)
    kept = ids(store)
    store.resize(12)
    assert (ids(store), store.capacity) == (kept, 12)
    store.resize(3)
    assert len(store) == 3 and ids(store) < kept
    assert store.add(*random_map(77))
    assert len(store) == 3


def test_an_embedding_of_zeros_resembles_nothing() -> None:
    store = filled(1, 2)
    assert store.add(np.zeros(5), random_map(3)[1])
    assert store.semantic_cosines(random_map(1)[0])[2] == 0
    assert not store.semantic_cosines(np.zeros(5, np.float32)).any()


@pytest.mark.parametrize("capacity", [1, 100])
def test_memory_is_what_the_arrays_take(capacity: int) -> None:
    model = StoreModel(layers=7, experts=11, hidden=13)
    store = MapStore(model, capacity)
    arrays = (store.maps, store.embeddings, store.scales, store.ids)
    assert sum(array.nbytes for array in arrays) == store.memory_bytes == memory_bytes(7, 11, 13, capacity)
