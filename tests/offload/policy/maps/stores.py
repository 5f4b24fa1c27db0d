"""Stores made of chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.maps import MapStore, StoreModel

MODEL = StoreModel(layers=4, experts=6, hidden=5, name="tiny", fingerprint="ab" * 32)


def random_map(seed: int, model: StoreModel = MODEL) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An embedding and an expert map."""
    draw = np.random.default_rng(seed)
    raw = draw.random((model.layers, model.experts)) ** 3 + 1e-3
    rows = raw / raw.sum(axis=1, keepdims=True)
    return draw.normal(size=model.hidden).astype(np.float32), rows.astype(np.float32)


def filled(*seeds: int, model: StoreModel = MODEL, capacity: int = 50) -> MapStore:
    """A store with these entries."""
    store = MapStore(model, capacity)
    for seed in seeds:
        assert store.add(*random_map(seed, model))
    return store


def ids(store: MapStore) -> set[int]:
    """What is in it."""
    return set(store.ids[: len(store)].tolist())
