"""Least recently used, with an equal share of the slots for every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import Blind, Surroundings


class LayerShares:
    """Says which layers hold more than their share of the slots."""

    def __init__(self, around: Surroundings) -> None:
        self._residency = around.residency
        self._layers, self._experts = around.layers, around.experts
        self._layer_of = np.arange(around.layers * around.experts) // around.experts

    def crowding(self, evictable: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
        """Of `evictable` [n, n > 0], those in the layer that holds the most, `wanted` counting for its own.

        All shares are equal, so the layer farthest above its share is the one that holds the most. Of several
        such layers the experts of all are returned.
        """
        held = np.bincount(self._layer_of[np.flatnonzero(self._residency.state)], minlength=self._layers)
        if wanted >= 0:
            held[wanted // self._experts] += 1
        of_each = held[self._layer_of[evictable]]
        crowding: NDArray[np.int64] = evictable[of_each == of_each.max()]
        return crowding


class LayerLRU(Blind):
    """Evicts from the layer that is farthest above its share of the slots, there the least recently used expert.

    A layer that is wanted by one more expert counts it as its own already: with all layers at their share, an
    expert takes the place of one of its own layer.
    """

    name = "layer-lru"

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._shares = LayerShares(around)

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        crowding = self._shares.crowding(evictable, wanted)
        return int(crowding[self.around.last_used[crowding].argmin()])
