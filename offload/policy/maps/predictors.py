"""Who says which experts a later layer will need: expert maps, and what the paper compares them with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import RouterWeights
from offload.policy.lookahead import GateLookahead
from offload.policy.maps.iteration import Prompt
from offload.policy.maps.matcher import Match, Matcher
from offload.policy.maps.store import Floats, MapStore, inverse
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing


class Prediction(NamedTuple):
    """What is expected of one layer.

    Attributes:
        layer: Which.
        probabilities: [E] float32.
        score: How far to trust it: 1 fully.
    """

    layer: int
    probabilities: Floats
    score: float


class Predictor(Protocol):
    """Called in this order: `begin_pass`; for each layer `routed` and `predictions`; `end_pass`."""

    wants_residual: bool
    note: str

    def begin_pass(self, forward: ForwardPass) -> None:
        """A forward pass begins."""
        ...

    def routed(self, routing: Routing) -> None:
        """A layer's router has chosen."""
        ...

    def predictions(self, layer: int) -> Iterator[Prediction]:
        """What can be said behind `layer`'s router that could not be said before."""
        ...

    def end_pass(self) -> None:
        """The pass is over."""
        ...


class ByMaps:
    """Expert maps: every layer is predicted once, the first `distance` by the embedding, then by the trajectory.

    Args:
        store: Searched, and added to when an iteration is over.
        distance: From the last layer that was seen to the one that is predicted.
        neighbours: Entries that predict together.
        semantic: Whether to search by the embedding; without, the first layers go unpredicted.
        trajectory: Whether to search by the layers seen; without, the embedding predicts all.
        running_mean: Take as embedding of a decoded token not its own but the mean over the request so far.
    """

    wants_residual = False

    def __init__(
        self,
        store: MapStore,
        distance: int,
        neighbours: int = 1,
        *,
        semantic: bool = True,
        trajectory: bool = True,
        running_mean: bool = False,
    ) -> None:
        self.store = store
        store.distance = distance
        self._matcher = Matcher(store, neighbours)
        self._distance = distance
        self._semantic = semantic
        self._trajectory = trajectory
        self._running = _RunningMean() if running_mean else None
        self._phase = Phase.PREFILL
        self._tokens = 0
        self._request = 0
        self._own: Floats
        self._embedding: Floats
        self._map: Floats = np.zeros((store.model.layers, store.model.experts), np.float32)
        self._prompt = Prompt()
        self._first: Match | None = None
        self._next = 0  # the first layer that has not been predicted
        self.note = ""
        self._tell()

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Predictor`."""
        if forward.phase == Phase.DECODE or forward.request != self._request:
            self._add_prompt()
        self._phase, self._request, self._tokens = forward.phase, forward.request, len(forward.token_ids)
        self._own = forward.embedding.copy()
        self._embedding = self._running.after(forward) if self._running else self._own
        self._matcher.begin(self._embedding)
        self._first = self._matcher.semantic() if self._semantic else None
        self._next = 0

    def routed(self, routing: Routing) -> None:
        """See `Predictor`."""
        seen = routing.probabilities
        row = self._map[routing.layer]
        row[:] = seen[0] if len(seen) == 1 else seen.mean(axis=0)
        self._matcher.observe(row)

    def predictions(self, layer: int) -> Iterator[Prediction]:
        """See `Predictor`."""
        target, layers = layer + self._distance, self.store.model.layers
        last = min(target, layers - 1)
        first, self._next = max(self._next, layer + 1), last + 1
        for each in range(first, last + 1):
            by_trajectory = self._trajectory and each >= self._distance
            match = self._matcher.trajectory() if by_trajectory else self._first
            if match is not None:
                yield Prediction(each, self._matcher.predict(match, each), match.score)

    def end_pass(self) -> None:
        """See `Predictor`."""
        if self._phase == Phase.PREFILL:
            self._prompt.add(self._tokens, self._own, self._map)
            return
        self.store.add(self._embedding, self._map, self._matcher.cosines())
        self._tell()

    def _add_prompt(self) -> None:
        whole = self._prompt.take()
        if whole is not None:
            self.store.add(whole.embedding, whole.expert_map)
            self._tell()

    def _tell(self) -> None:
        self.note = f"{len(self.store):,} of {self.store.capacity:,} expert maps"


class BySpeculation:
    """The router of the layer `distance` ahead, applied to the residual of now; single tokens only."""

    wants_residual = True

    def __init__(self, routers: RouterWeights, distance: int) -> None:
        self._gates = GateLookahead(routers)
        self._layers = len(routers.gate)
        self._distance = distance
        self._residual: Floats | None = None
        self.note = "speculation with the model's own routers"

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Predictor`."""

    def routed(self, routing: Routing) -> None:
        """See `Predictor`."""
        single = routing.residual is not None and len(routing.residual) == 1
        self._residual = routing.residual[0] if single and routing.residual is not None else None

    def predictions(self, layer: int) -> Iterator[Prediction]:
        """See `Predictor`."""
        target = layer + self._distance
        if self._residual is not None and layer >= 0 and target < self._layers:
            yield Prediction(target, self._gates.probabilities(target, self._residual), 1.0)

    def end_pass(self) -> None:
        """See `Predictor`."""


class ByHitCounts:
    """How often a whole request used each expert: the coarse maps of earlier systems.

    The counts of the request so far are looked for among those of past requests, all layers at once, and the
    nearest ones predict; before anything of a request is known, nothing is.
    """

    wants_residual = False

    def __init__(self, layers: int, experts: int, distance: int, capacity: int) -> None:
        self._distance = distance
        self._layers = layers
        self._past: list[Floats] = []  # [L*E] of length 1
        self._capacity = capacity
        self._counts: Floats = np.zeros((layers, experts), np.float32)
        self._request = 0
        self._expected: NDArray[np.float32] | None = None
        self._next = 0
        self.note = "hit counts; past requests: 0"

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Predictor`."""
        if forward.request != self._request:
            self._keep()
            self._request = forward.request
        self._next = 0
        self._expected = None
        if not self._counts.any():
            return
        counts = self._counts
        if self._past:
            cosines = np.stack(self._past) @ counts.ravel()
            counts = self._past[int(cosines.argmax())].reshape(counts.shape)
        self._expected = counts * inverse(counts.sum(axis=1, keepdims=True))

    def routed(self, routing: Routing) -> None:
        """See `Predictor`."""
        experts = self._counts.shape[1]
        self._counts[routing.layer] += np.bincount(routing.chosen.ravel(), minlength=experts)

    def predictions(self, layer: int) -> Iterator[Prediction]:
        """See `Predictor`."""
        last = min(layer + self._distance, self._layers - 1)
        first, self._next = max(self._next, layer + 1), last + 1
        if self._expected is not None:
            for each in range(first, last + 1):
                yield Prediction(each, self._expected[each], 1.0)

    def end_pass(self) -> None:
        """See `Predictor`."""

    def _keep(self) -> None:
        counts = self._counts.ravel()
        if counts.any():
            self._past.append(counts * inverse(np.sqrt(counts @ counts)))
            del self._past[: -self._capacity]
            self.note = f"hit counts; past requests: {len(self._past):,}"
        self._counts[:] = 0


class _RunningMean:
    """The mean input embedding of all tokens of a request so far."""

    def __init__(self) -> None:
        self._request = 0
        self._tokens = 0
        self._sum: Floats

    def after(self, forward: ForwardPass) -> Floats:
        """The mean [H] with the tokens of this pass."""
        tokens = len(forward.token_ids)
        if forward.request != self._request:
            self._request, self._tokens = forward.request, 0
        added = tokens * forward.embedding
        self._sum = added if self._tokens == 0 else self._sum + added
        self._tokens += tokens
        return np.divide(self._sum, self._tokens, dtype=np.float32)
