"""What a topic's neighbours used is what is brought in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offload.errors import KnowledgeError
from offload.policy.maps import TopicStore, topics_file
from tests.offload.policy.maps.stores import MODEL

EXPERTS = MODEL.layers * MODEL.experts


def uses(*experts: int) -> np.ndarray:
    """Each a time less than the one before."""
    counts = np.zeros(EXPERTS)
    counts[list(experts)] = np.arange(len(experts), 0, -1)
    return counts


@pytest.fixture
def store() -> TopicStore:
    store = TopicStore(MODEL, 3, capacity=4)
    assert store.add(np.array([1, 0.1, 0]), uses(3, 5, 7), 4)
    assert store.add(np.array([0, 1, 0.1]), uses(20, 21), 4)
    return store


def test_the_nearest_topics_experts_come_first(store: TopicStore) -> None:
    assert store.warm_set(np.array([2.0, 0, 0]), 3).tolist() == [3, 5, 7]
    assert store.warm_set(np.array([0, 1.0, 0]), 2).tolist() == [20, 21]
    assert sorted(store.warm_set(np.array([0, 1.0, 0]), 99).tolist()) == [3, 5, 7, 20, 21]


def test_nothing_is_known_at_first() -> None:
    assert TopicStore(MODEL, 3).warm_set(np.ones(3), 5).tolist() == []


def test_a_long_request_counts_as_much_as_a_short_one() -> None:
    store = TopicStore(MODEL, 2)
    store.add(np.array([1, 0.0]), 100 * uses(1, 2), 400)
    store.add(np.array([1, 1e-3]), uses(3, 4), 2)
    assert store.warm_set(np.array([1, 0.0]), 1).tolist() == [3]


def test_a_full_store_gives_up_the_most_similar_topic(store: TopicStore) -> None:
    store.add(np.array([0, 0, 1.0]), uses(9), 1)
    store.add(np.array([-1.0, 0, 0]), uses(11), 1)
    store.add(np.array([0.9, 0.1, 0]), uses(15), 1)
    assert len(store) == 4
    assert store.warm_set(np.array([1.0, 0, 0]), 1).tolist() == [15]


def test_topics_are_kept_and_put_together(store: TopicStore, tmp_path: Path) -> None:
    path = topics_file(tmp_path, MODEL.fingerprint)
    store.save(path)
    one, other = TopicStore.load(path), TopicStore.load(path, fingerprint=MODEL.fingerprint)
    one.add(np.array([0, 0, 1.0]), uses(9), 1)
    other.add(np.array([-1.0, 0, 0]), uses(11), 1)
    one.save(path)
    other.save(path)
    kept = TopicStore.load(path)
    assert len(kept) == 4
    assert kept.warm_set(np.array([0, 0, 1.0]), 1).tolist() == [9]
    assert kept.memory_bytes == 4 * (3 * 4 + EXPERTS * 2 + 8)


def test_topics_of_another_embedder_do_not_mix(store: TopicStore, tmp_path: Path) -> None:
    store.save(tmp_path / "topics.fmm")
    with pytest.raises(KnowledgeError, match="embedded with 3 numbers"):
        TopicStore(MODEL, 5).save(tmp_path / "topics.fmm")
