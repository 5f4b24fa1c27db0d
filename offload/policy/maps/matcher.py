"""Recognising an iteration: which stored ones it resembles, layer by layer as it becomes known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.policy.maps.store import Floats, MapStore, inverse, multiply

SHARPNESS = 20.0
"""How much more a nearer neighbour counts: weights are softmax(SHARPNESS * cosine)."""


class Match(NamedTuple):
    """The nearest entries.

    Attributes:
        entries: [K] numbers of them in the store.
        weights: [K] float32, summing to 1.
        score: Cosine of the nearest.
    """

    entries: NDArray[np.int64]
    weights: Floats
    score: float


class Matcher:
    """Follows one iteration after the other through the store.

    The cosine with a stored map's rows 0..l is dot / (length of the stored rows * length of the rows seen). The
    dots are carried along, and the stored lengths are known, so that a layer costs one product of [N, E] with [E]
    whichever layer it is.

    Args:
        store: Not to be changed between `begin` and the iteration's last `observe`.
        neighbours: K, at most so many entries predict together; the paper has 1.
    """

    def __init__(self, store: MapStore, neighbours: int = 1) -> None:
        self._store = store
        self._neighbours = neighbours
        self._dots: Floats = np.zeros(store.capacity, np.float32)
        self._product: Floats = np.zeros(store.capacity, np.float32)
        self._semantic: Floats | None = None
        self._embedding: Floats | None = None
        self._square = 0.0
        self._seen = 0
        self._size = 0

    def begin(self, embedding: Floats) -> None:
        """An iteration begins. embedding: [H]."""
        self._size = len(self._store)
        self._embedding = embedding.copy()
        self._semantic = None
        self._dots[: self._size] = 0
        self._square = 0.0
        self._seen = 0

    def observe(self, probabilities: Floats) -> None:
        """The next layer's router has spoken. probabilities: [E] float32."""
        size, product = self._size, self._product[: self._size]
        multiply(self._store.maps[self._seen, :size], probabilities, product)
        self._dots[:size] += product
        self._square += float(probabilities @ probabilities)
        self._seen += 1

    def semantic(self) -> Match | None:
        """By the embedding; None from an empty store."""
        return self._nearest(self._semantic_cosines()) if self._size else None

    def trajectory(self) -> Match | None:
        """By the layers seen so far; None from an empty store, or before the first layer."""
        return self._nearest(self._map_cosines()) if self._size and self._seen else None

    def cosines(self) -> tuple[Floats, Floats] | None:
        """Of embeddings and of whole maps, [N] each, as `MapStore.add` takes them; None before the last layer."""
        if self._seen < self._store.model.layers:
            return None
        return self._semantic_cosines(), self._map_cosines().copy()

    def predict(self, match: Match, layer: int) -> Floats:
        """Probabilities [E] of `layer`, as the entries of `match` had them."""
        rows: Floats = self._store.maps[layer, match.entries]
        return rows[0] if len(rows) == 1 else match.weights @ rows

    def _semantic_cosines(self) -> Floats:
        if self._semantic is None:
            assert self._embedding is not None
            self._semantic = self._store.semantic_cosines(self._embedding)
        return self._semantic

    def _map_cosines(self) -> Floats:
        """[N], valid until the next call."""
        out = self._product[: self._size]
        np.multiply(self._dots[: self._size], self._store.scales[self._seen - 1, : self._size], out=out)
        out *= inverse(np.sqrt(self._square))
        return out

    def _nearest(self, cosines: Floats) -> Match:
        count = min(self._neighbours, len(cosines))
        if count == 1:
            best = int(cosines.argmax())
            return Match(np.array([best]), np.ones(1, np.float32), float(cosines[best]))
        entries = np.argpartition(cosines, -count)[-count:]
        near = cosines[entries]
        weights = np.exp(SHARPNESS * (near - near.max()))
        return Match(entries, (weights / weights.sum()).astype(np.float32), float(near.max()))
