"""ProMoE: a learnt predictor looks a few layers ahead of the computation."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from offload.policy.ahead import Ahead
from offload.policy.base import Decision, Surroundings
from offload.policy.lookahead import GateLookahead, likeliest, softmax
from offload.policy.options import whole_option
from offload.telemetry.routing import Routing

STRIDE = 2
"""Layers between a prediction and the layer that it is for."""
FARTHEST = 4
"""The largest stride that predictors are trained for."""


class Probes(Protocol):
    """Predictors of later layers' routers, trained on traces."""

    def scores(
        self, layer: int, distance: int, residual: NDArray[np.float32], shared: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Logits [E] of layer `layer + distance`. residual, shared: [H], as `layer` left them."""
        ...


class ProMoE(Ahead):
    """Song et al., "ProMoE: Fast MoE-based LLM Serving using Proactive Caching", arXiv 2410.22134.

    - Prefetch: behind layer l's router, a small predictor of layer l + stride is asked with layer l's residual; of
      its top-k those that are absent are read, the layer that comes first going first. Single tokens only.
    - Early termination: what no lane has begun with when its layer is over is taken back, and the layer's own
      demand reads went ahead of it before.
    - Eviction: least recently used, where an expert predicted for a layer counts as used there.

    The predictors are linear probes (`Probes`) where the original has small MLPs; they come from
    `Surroundings.knowledge`. Without them the router of layer l + stride is applied to the residual, which `note`
    says. What the original does with prompts, computing residents first, the engine does for every policy.

    Option ``stride``: 1 to 4 layers.
    """

    name = "promoe"
    wants_residual = True

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._stride = whole_option(around, "stride", STRIDE, 1, FARTHEST)
        self._probes: Probes | None = getattr(around.knowledge, "probes", None)
        self._gates: GateLookahead | None = None
        self._routing: Routing | None = None
        if self._probes is not None:
            return
        if around.routers is None:
            self.looks_ahead = self.wants_residual = False
            self.note = "neither trained predictors nor the model's routers are at hand: nothing is read ahead"
            return
        self._gates = GateLookahead(around.routers)
        self.note = "no trained predictors: looking ahead with the model's own routers"

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        super().routed(routing)
        self._routing = routing

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        cancel = self.stale()
        target = layer + self._stride
        if target >= self.around.layers:
            return Decision(cancel, [])
        probabilities = self._predict(layer)
        if probabilities is None:
            return Decision(cancel, [])
        predicted = likeliest(probabilities, self.around.top_k)
        # A probability is at most 1: the earlier layer always goes first.
        priorities = probabilities[predicted] - target
        return Decision(cancel, self.expect(target * self.around.experts + predicted, self._stride, priorities))

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return self.least_recent(evictable, demand)

    def _predict(self, layer: int) -> NDArray[np.float32] | None:
        """Probabilities [E] of layer `layer` + stride; None if there is nothing to predict from."""
        routing = self._routing
        if routing is None or routing.residual is None or len(routing.residual) != 1:
            return None
        residual = routing.residual[0]
        if self._probes is None:
            return self._gates.probabilities(layer + self._stride, residual) if self._gates is not None else None
        shared = None if routing.shared is None else routing.shared[0]
        return softmax(self._probes.scores(layer, self._stride, residual, shared))
