"""Searching layer by layer gives what comparing whole prefixes gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.policy.maps import MapStore, Matcher
from tests.offload.policy.maps.stores import MODEL, filled, random_map
from tests.offload.policy.maps.test_store import cosine


@given(seeds=st.lists(st.integers(0, 999), min_size=1, max_size=30, unique=True), seed=st.integers(1000, 1999))
def test_running_dots_are_cosines_of_prefixes(seeds: list[int], seed: int) -> None:
    store = filled(*seeds)
    embedding, rows = random_map(seed)
    matcher = Matcher(store)
    matcher.begin(embedding)
    semantic = matcher.semantic()
    assert semantic is not None and matcher.trajectory() is None
    cosines = [cosine(embedding, random_map(one)[0]) for one in seeds]
    assert semantic.score == pytest.approx(max(cosines), abs=2e-3)
    for layer in range(MODEL.layers):
        assert matcher.cosines() is None
        matcher.observe(rows[layer])
        found = matcher.trajectory()
        assert found is not None
        expected = [cosine(rows[: layer + 1], random_map(one)[1][: layer + 1]) for one in seeds]
        assert found.score == pytest.approx(max(expected), abs=2e-3)
        assert expected[int(found.entries[0])] == pytest.approx(max(expected), abs=2e-3)
        assert np.array_equal(matcher.predict(found, 2), store.maps[2, found.entries[0]])
    whole = matcher.cosines()
    assert whole is not None
    assert whole[0] == pytest.approx(store.semantic_cosines(embedding), abs=1e-5)
    assert whole[1] == pytest.approx(store.map_cosines(rows), abs=1e-5)


def test_an_iteration_that_is_there_is_found() -> None:
    store = filled(*range(20))
    matcher = Matcher(store)
    for seed in (3, 17, 3):
        embedding, rows = random_map(seed)
        matcher.begin(embedding)
        semantic = matcher.semantic()
        matcher.observe(rows[0])
        trajectory = matcher.trajectory()
        assert semantic is not None and trajectory is not None
        assert semantic.entries.tolist() == trajectory.entries.tolist() == [seed]
        assert semantic.score == pytest.approx(1, abs=1e-3)
        assert trajectory.score == pytest.approx(1, abs=1e-3)


def test_several_neighbours_predict_together_the_nearest_most() -> None:
    store = filled(*range(20))
    matcher = Matcher(store, 5)
    embedding, rows = random_map(3)
    matcher.begin(embedding)
    matcher.observe(rows[0])
    found = matcher.trajectory()
    assert found is not None
    expected = [cosine(rows[:1], random_map(seed)[1][:1]) for seed in range(20)]
    assert set(found.entries.tolist()) == set(np.argsort(expected)[-5:].tolist())
    assert found.entries[found.weights.argmax()] == 3
    assert found.weights.sum() == pytest.approx(1)
    mixed = sum(weight * store.maps[1, entry] for weight, entry in zip(found.weights, found.entries, strict=True))
    assert matcher.predict(found, 1) == pytest.approx(mixed)


def test_more_neighbours_than_entries_are_all_of_them() -> None:
    matcher = Matcher(filled(1, 2), 8)
    matcher.begin(random_map(1)[0])
    found = matcher.semantic()
    assert found is not None and sorted(found.entries.tolist()) == [0, 1]


def test_an_empty_store_matches_nothing() -> None:
    matcher = Matcher(MapStore(MODEL))
    embedding, rows = random_map(1)
    matcher.begin(embedding)
    matcher.observe(rows[0])
    assert matcher.semantic() is None and matcher.trajectory() is None
