"""How well later layers are foreseen in a trace: the share of their experts that a predictor names beforehand.

A predictor names as many experts as a token uses, once the router of a layer has chosen, for the layer that is some
layers on. What it learns, it learns from one part of the conversations; it is asked of the others. Whether that is
worth anything in time is for the simulator to say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.policy.lookahead import likeliest
from offload.policy.maps import MapStore, StoreModel
from offload.policy.maps.iteration import iterations
from offload.policy.maps.predictors import ByHitCounts, ByMaps, BySpeculation, Predictor
from offload.policy.probe_fitting import TooLittle, fit_probes
from offload.policy.probes import Probes
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.file import Trace
from offload.trace.records import TraceModel, TracePass, TraceRequest

Progress = Callable[[str, int, int], None]

HISTORY = 0.7
"""Share of the conversations that is learnt from; at least one is asked."""
FARTHEST = 8
"""Layers ahead."""
TOKENS = 400
"""Decoded tokens that are asked of, about: more whole requests are not begun with."""
BEFORE, COUNTS, MAPS, ROUTERS, PROBES = (
    "the token before",
    "hit counts of requests",
    "expert maps",
    "the later layer's router",
    "fitted probes",
)
PREDICTORS = (BEFORE, COUNTS, MAPS, ROUTERS, PROBES)
"""By name; the last two need residuals."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Of one trace.

    Attributes:
        distances: The largest, in layers.
        by_predictor: For each predictor that could be asked, the recall at distances 1, 2, ...; None where there is
            nothing to take it of.
        by_chance: Of as many experts drawn by chance.
        tokens: Decoded tokens that were asked of.
    """

    distances: int
    by_predictor: dict[str, list[float | None]]
    by_chance: float
    tokens: int


def recall_by_distance(trace: Trace, progress: Progress) -> Recall | None:
    """Ask all predictors of a part of a trace; None if there are too few conversations or layers.

    Args:
        progress: Told of the stages ``fit`` and ``foresee``.

    Raises:
        TraceError: A request is damaged.
    """
    model = trace.model
    history, asked = _split(trace)
    distances = min(FARTHEST, model.layers - 1)
    if not asked or distances < 1:
        return None
    requests = [trace[number] for number in history]
    try:
        probes: Probes | None = fit_probes(model, requests, progress)
    except TooLittle:
        probes = None
    store = MapStore(StoreModel(model.layers, model.experts, model.hidden, model.name, model.fingerprint))
    for request in requests:
        for entry in iterations(request):
            store.add(*entry)
    asked = _first_tokens(trace, asked)
    tally = _Tally(model, distances)
    for done, number in enumerate(asked):
        progress("foresee", done, len(asked) + distances)
        request = trace[number]
        _ask_token_before(request, tally)
        if probes is not None:
            _ask_probes(request, probes, tally)
        if model.routers is not None:
            for distance in range(1, distances + 1):
                _ask(ROUTERS, distance, BySpeculation(model.routers, distance), request, 0, tally)
    # The others learn from each request for the next one.
    counts = ByHitCounts(model.layers, model.experts, 1, capacity=len(trace))
    for number, request in enumerate(requests):
        _ask("", 1, counts, request, number, tally)
    for number in asked:
        _ask(COUNTS, 1, counts, trace[number], len(trace) + number, tally)
    for distance in range(1, distances + 1):
        progress("foresee", len(asked) + distance - 1, len(asked) + distances)
        maps = ByMaps(copy.deepcopy(store), distance)
        for number in asked:
            _ask(MAPS, distance, maps, trace[number], len(trace) + number, tally)
    progress("foresee", len(asked) + distances, len(asked) + distances)
    return tally.recall(sum(trace.entries[number].decoded_tokens for number in asked))


class _Tally:
    """How many experts were named before they were chosen, by predictor and distance."""

    def __init__(self, model: TraceModel, distances: int) -> None:
        self._model = model
        self._distances = distances
        self._named = {name: np.zeros(distances + 1, np.int64) for name in PREDICTORS}
        self._chosen = {name: np.zeros(distances + 1, np.int64) for name in PREDICTORS}

    def add(
        self, predictor: str, first: int, last: int, expected: NDArray[np.floating], one: TracePass, layer: int
    ) -> None:
        """Count a layer for distances `first` to `last`, or to the largest. expected: [E], more is likelier."""
        if not predictor:
            return
        last = min(last, self._distances)
        named = likeliest(expected.astype(np.float32), self._model.top_k)
        self._named[predictor][first : last + 1] += int(np.isin(one.chosen[layer, 0], named).sum())
        self._chosen[predictor][first : last + 1] += self._model.top_k

    def recall(self, tokens: int) -> Recall:
        """What was counted."""
        by_predictor: dict[str, list[float | None]] = {}
        for name in PREDICTORS:
            pairs = list(zip(self._named[name][1:].tolist(), self._chosen[name][1:].tolist(), strict=True))
            if any(chosen for _, chosen in pairs):
                by_predictor[name] = [named / chosen if chosen else None for named, chosen in pairs]
        return Recall(self._distances, by_predictor, self._model.top_k / self._model.experts, tokens)


def _ask(name: str, distance: int, predictor: Predictor, request: TraceRequest, number: int, tally: _Tally) -> None:
    """Show a request to a predictor, and count what it says of decoded tokens."""
    whatever_distance = isinstance(predictor, ByHitCounts)  # It says the same from all layers before.
    for one in request.passes:
        forward = ForwardPass(
            one.phase, number + 1, one.token_ids.tolist(), one.position, one.embedding.astype(np.float32)
        )
        predictor.begin_pass(forward)
        for routing in _routings(one, residual=predictor.wants_residual):
            predictor.routed(routing)
            for said in predictor.predictions(routing.layer):
                if one.phase != Phase.DECODE:
                    continue
                if whatever_distance:
                    tally.add(name, 1, said.layer, said.probabilities, one, said.layer)
                elif said.layer == routing.layer + distance:
                    tally.add(name, distance, distance, said.probabilities, one, said.layer)
        predictor.end_pass()


def _routings(one: TracePass, *, residual: bool) -> Iterator[Routing]:
    chosen = one.chosen.astype(np.int32)
    with_residual = residual and one.residual is not None
    for layer in range(len(chosen)):
        seen = one.residual[layer].astype(np.float32) if with_residual and one.residual is not None else None
        yield Routing(layer, one.probabilities[layer].astype(np.float32), chosen[layer], seen, None)


def _ask_token_before(request: TraceRequest, tally: _Tally) -> None:
    """A layer chooses what it chose for the token before. What is known is the same at all distances."""
    before: TracePass | None = None
    for one in request.passes:
        if one.phase == Phase.DECODE and before is not None:
            for layer in range(1, len(one.chosen)):
                tally.add(BEFORE, 1, layer, before.probabilities[layer, -1], one, layer)
        before = one


def _ask_probes(request: TraceRequest, probes: Probes, tally: _Tally) -> None:
    for one in request.passes:
        if one.phase != Phase.DECODE or one.residual is None:
            continue
        for layer in range(len(one.chosen) - 1):
            residual = one.residual[layer, 0].astype(np.float32)
            shared = None if one.shared is None else one.shared[layer, 0].astype(np.float32)
            for target in range(layer + 1, min(layer + FARTHEST, len(one.chosen) - 1) + 1):
                distance = target - layer
                expected = probes.scores(layer, distance, residual, shared)
                tally.add(PROBES, distance, distance, expected, one, target)


def _split(trace: Trace) -> tuple[list[int], list[int]]:
    """Numbers of the requests to learn from, and of those to ask of; the turns of a conversation stay together."""
    talks: dict[str, list[int]] = {}
    for number, entry in enumerate(trace.entries):
        if entry.decoded_tokens:
            talks.setdefault(entry.name.rpartition("/")[0] or entry.name, []).append(number)
    count = min(round(HISTORY * len(talks)), len(talks) - 1)
    groups = list(talks.values())
    return [n for group in groups[:count] for n in group], [n for group in groups[count:] for n in group]


def _first_tokens(trace: Trace, numbers: Sequence[int]) -> list[int]:
    """As many of the requests as make `TOKENS` decoded tokens."""
    kept, tokens = [], 0
    for number in numbers:
        if tokens >= TOKENS:
            break
        kept.append(number)
        tokens += trace.entries[number].decoded_tokens
    return kept
