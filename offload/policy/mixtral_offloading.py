"""mixtral-offloading: a cache for each layer, and guessing the next layer's experts with its own router."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.ahead import Ahead
from offload.policy.base import Decision, Surroundings
from offload.policy.layer_lru import LayerShares
from offload.policy.lookahead import GateLookahead, likeliest
from offload.telemetry.routing import Routing


class MixtralOffloading(Ahead):
    """Eliseev and Mazur, "Fast Inference of Mixture-of-Experts Language Models with Offloading", arXiv 2312.17238.

    - Eviction: as `LayerLRU`, where an expert guessed for a layer counts as used there.
    - Prefetch: layer l+1's norm and router applied to the residual in front of layer l's router; of the top-k those
      that are absent. Single tokens only, and nothing past the last layer, as in the original.

    The original reads its guesses into buffers of their own, which join the cache once they were right. Here they
    come into slots at once, in the place of the least recently used expert of the layer farthest above its share,
    and the one that was wrong ages out of there.
    """

    name = "mixtral-offloading"
    wants_residual = True

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._shares = LayerShares(around)
        self._residual: NDArray[np.float32] | None = None
        self._gates = GateLookahead(around.routers) if around.routers is not None else None
        if self._gates is None:
            self.looks_ahead = self.wants_residual = False
            self.note = "the model's routers are not at hand: nothing is read ahead"

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        super().routed(routing)
        single = routing.residual is not None and len(routing.residual) == 1
        self._residual = routing.residual[0] if single and routing.residual is not None else None

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        cancel = self.stale()
        if self._residual is None or self._gates is None or layer + 1 == self.around.layers:
            return Decision(cancel, [])
        probabilities = self._gates.probabilities(layer + 1, self._residual)
        guesses = likeliest(probabilities, self.around.top_k)
        first = (layer + 1) * self.around.experts
        return Decision(cancel, self.expect(first + guesses, 1, probabilities[guesses]))

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return self.least_recent(self._shares.crowding(evictable, wanted), demand)
