"""FineMoE: past iterations that resemble this one say which experts it will need.

Yu et al., "Taming Latency-Memory Trade-Off in MoE-Based LLM Serving via Fine-Grained Expert Offloading",
EuroSys '26.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import ABSENT, LOADING
from offload.policy.base import Blind, Decision, Fetch, Surroundings
from offload.policy.maps.file import StoreModel
from offload.policy.maps.predictors import ByHitCounts, ByMaps, BySpeculation, Predictor
from offload.policy.maps.store import CAPACITY, DISTANCE, Floats, MapStore
from offload.policy.options import whole_option
from offload.telemetry.routing import ForwardPass, Routing

BY_MAPS, BY_SPECULATION, BY_HIT_COUNTS = range(3)
"""Values of option ``predictor``."""
BY_PROBABILITY, BY_FREQUENCY, BY_RECENCY = range(3)
"""Values of option ``eviction``."""

LARGEST_CAPACITY = 32_768


class FineMoE(Blind):
    """Prefetches and evicts by expert maps.

    - Search: behind layer l's router, layer l + d is predicted by the stored map whose rows 0..l resemble the ones
      seen most; the layers before d by the stored iteration with the most similar embedding. The protocol first
      asks behind layer 0, so nothing can be read ahead for layer 0 itself.
    - Selection: experts by falling probability until they make up 1 - cosine, the crossing one too, and top-k at
      least. Priority is p / (layers until it is needed).
    - Eviction: 1 / (p * freq), p as it was last predicted for the expert's layer and freq the forward passes that
      used it, at least 1. When it was used does not matter.
    - When an iteration is over, its map goes into the store.

    Options, numbers all: ``distance`` d; ``capacity`` of the store; ``neighbours`` that predict together. And for
    taking it apart as the paper's ablation does: ``semantic``, ``trajectory`` and ``delta``, 0 to do without;
    ``predictor``, 0 expert maps, 1 speculation, 2 hit counts; ``eviction``, 0 the paper's, 1 LFU, 2 LRU;
    ``embedding``, 1 to search by the mean over the request instead of by the token's own.

    Attributes:
        maps: The store; None with another predictor.
    """

    name = "finemoe"
    looks_ahead = True

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._distance = whole_option(around, "distance", min(DISTANCE, around.layers), 1, around.layers)
        self._delta = bool(whole_option(around, "delta", 1, 0, 1))
        self._eviction = whole_option(around, "eviction", BY_PROBABILITY, 0, 2)
        self.maps: MapStore | None = None
        self._predictor = self._make_predictor()
        self.wants_residual = self._predictor.wants_residual
        self.note = self._predictor.note
        total = around.layers * around.experts
        self._probability: Floats = np.full(total, 1 / around.experts, np.float32)
        self._frequency: Floats = np.zeros(total, np.float32)
        self._asked: set[int] = set()  # reads ahead that were asked for in this pass

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        self._predictor.begin_pass(forward)

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        first = routing.layer * self.around.experts
        used = routing.chosen[0] if len(routing.chosen) == 1 else np.unique(routing.chosen)
        self._frequency[first + used] += 1
        self._predictor.routed(routing)

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        around = self.around
        state = around.residency.state
        over = [expert for expert in self._asked if expert // around.experts <= layer or state[expert] != LOADING]
        self._asked.difference_update(over)
        fetches = []
        for target, probabilities, score in self._predictor.predictions(layer):
            first = target * around.experts
            self._probability[first : first + around.experts] = probabilities
            chosen = select(probabilities, 1 - score if self._delta else 0.0, around.top_k)
            for expert in chosen.tolist():
                if state[first + expert] == ABSENT:
                    fetches.append(Fetch(first + expert, float(probabilities[expert]) / (target - layer)))
        fetches.sort(key=lambda fetch: -fetch.priority)
        self._asked.update(fetch.expert for fetch in fetches)
        return Decision([expert for expert in over if state[expert] == LOADING], fetches)

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        if self._eviction == BY_RECENCY:
            return int(evictable[self.around.last_used[evictable].argmin()])
        worth = np.maximum(self._frequency[evictable], 1)
        if self._eviction == BY_PROBABILITY:
            worth *= self._probability[evictable]
        return int(evictable[worth.argmin()])

    def end_pass(self) -> None:
        """See `Policy`."""
        self._predictor.end_pass()
        self.note = self._predictor.note

    def _make_predictor(self) -> Predictor:
        around = self.around
        which = whole_option(around, "predictor", BY_MAPS, 0, 2)
        capacity = whole_option(around, "capacity", CAPACITY, 1, LARGEST_CAPACITY)
        if which == BY_SPECULATION and around.routers is not None:
            return BySpeculation(around.routers, self._distance)
        if which == BY_HIT_COUNTS:
            return ByHitCounts(around.layers, around.experts, self._distance, capacity)
        running_mean = bool(whole_option(around, "embedding", 0, 0, 1))
        self.maps = self._make_store(capacity, learnt=not running_mean)
        return ByMaps(
            self.maps,
            self._distance,
            whole_option(around, "neighbours", 1, 1, 64),
            semantic=bool(whole_option(around, "semantic", 1, 0, 1)),
            trajectory=bool(whole_option(around, "trajectory", 1, 0, 1)),
            running_mean=running_mean,
        )

    def _make_store(self, capacity: int, *, learnt: bool) -> MapStore:
        """What was learnt before, if it may be used and is of this model's shape, or else an empty store."""
        around = self.around
        known: MapStore | None = getattr(around.knowledge, "maps", None)
        model = StoreModel(around.layers, around.experts, around.hidden)
        if known is None or not learnt:
            return MapStore(model, capacity)
        shape = (known.model.layers, known.model.experts, known.model.hidden)
        if shape != (model.layers, model.experts, model.hidden):
            return MapStore(model, capacity)
        if "capacity" in around.options:
            known.resize(capacity)
        return known


def select(probabilities: Floats, mass: float, top_k: int) -> NDArray[np.int64]:
    """The likeliest experts that together reach `mass`, the crossing one included, and at least `top_k` of them.

    Args:
        probabilities: [E].
        mass: Clipped to 0..1; the whole layer if the sum does not reach it.
    """
    order = np.argsort(-probabilities, kind="stable")
    mass = min(max(mass, 0.0), 1.0)
    reached = int(np.searchsorted(np.cumsum(probabilities[order]), mass)) + 1
    return order[: max(top_k, reached)]
