"""How well later layers are foreseen in a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offload.policy.lookahead import GateLookahead
from offload.telemetry.counters import Phase
from offload.trace import recall as module
from offload.trace.file import Trace, TraceHeader
from offload.trace.recall import BEFORE, COUNTS, MAPS, PREDICTORS, PROBES, ROUTERS, Recall, recall_by_distance
from offload.trace.records import TraceModel, TraceRequest
from tests.support.routing import synthetic_model, synthetic_requests
from tests.support.traces import random_model, random_request

MODEL = synthetic_model(layers=5, experts=12, top_k=2)


def asked(tmp_path: Path, model: TraceModel, requests: list[TraceRequest]) -> Recall | None:
    path = tmp_path / "some.trace"
    path.unlink(missing_ok=True)
    Trace.write(path, model, TraceHeader(), requests)
    with Trace.open(path) as trace:
        return recall_by_distance(trace, lambda stage, done, total: None)


@pytest.fixture(scope="module")
def requests() -> list[TraceRequest]:
    return list(synthetic_requests(MODEL, requests=10, tokens=44))


@pytest.fixture(scope="module")
def found(requests: list[TraceRequest], tmp_path_factory: pytest.TempPathFactory) -> Recall:
    recall = asked(tmp_path_factory.mktemp("trace"), MODEL, requests)
    assert recall is not None
    return recall


def share(pairs: list[tuple[set[int], set[int]]]) -> float:
    return sum(len(named & chosen) for named, chosen in pairs) / sum(len(chosen) for _, chosen in pairs)


def decoded(request: TraceRequest) -> list:
    return [one for one in request.passes if one.phase == Phase.DECODE]


def test_all_are_asked_of_conversations_that_they_did_not_learn_from(found, requests):
    assert tuple(found.by_predictor) == PREDICTORS
    assert (found.distances, found.tokens, found.by_chance) == (4, 3 * 44, 2 / 12)
    for values in found.by_predictor.values():
        assert len(values) == 4 and all(value is not None and 0 <= value <= 1 for value in values)


def test_the_routers_are_asked_on_residuals_of_layers_before(found, requests):
    """Worked out again, one by one."""
    assert MODEL.routers is not None
    gates = GateLookahead(MODEL.routers)
    for distance in (1, 3):
        pairs = []
        for request in requests[7:]:
            for one in decoded(request):
                for layer in range(MODEL.layers - distance):
                    expected = gates.probabilities(layer + distance, one.residual[layer, 0].astype(np.float32))
                    named = set(np.argsort(-expected, kind="stable")[:2].tolist())
                    pairs.append((named, set(one.chosen[layer + distance, 0].tolist())))
        assert found.by_predictor[ROUTERS][distance - 1] == pytest.approx(share(pairs))


def test_the_token_before_is_asked_of_each_later_layer(found, requests):
    for distance in (1, 4):
        pairs = []
        for request in requests[7:]:
            for number, one in enumerate(request.passes[1:], 1):
                before = request.passes[number - 1]
                for layer in range(distance, MODEL.layers):
                    pairs.append((set(before.chosen[layer, -1].tolist()), set(one.chosen[layer, 0].tolist())))
        assert found.by_predictor[BEFORE][distance - 1] == pytest.approx(share(pairs))


def test_what_is_known_helps(found):
    """The residual of all layers is the same but for noise, so routers see nearly what later ones will."""
    first = {name: values[0] for name, values in found.by_predictor.items()}
    assert first[ROUTERS] > first[MAPS] > found.by_chance
    assert first[PROBES] > found.by_chance and first[COUNTS] > found.by_chance


def test_without_residuals_the_others_are_left(tmp_path):
    model = random_model(layers=3)
    some = [random_request(model, seed, name=f"{seed}/1", decoded=6) for seed in range(4)]
    bare = [replace(one, passes=[replace(each, residual=None) for each in one.passes]) for one in some]
    found = asked(tmp_path, model, bare)
    assert found is not None and set(found.by_predictor) == {BEFORE, COUNTS, MAPS}


def test_turns_of_a_conversation_stay_together(tmp_path, monkeypatch):
    model = random_model(layers=3, routers=False)
    some = [random_request(model, seed, name=f"talk-{seed // 2}/{seed % 2 + 1}", decoded=4) for seed in range(8)]
    found = asked(tmp_path, model, some)
    assert found is not None and found.tokens == 2 * 4  # three of four conversations are learnt from
    monkeypatch.setattr(module, "TOKENS", 3)
    found = asked(tmp_path, model, some)
    assert found is not None and found.tokens == 4


def test_nothing_to_ask(tmp_path):
    model = random_model(layers=3)
    assert asked(tmp_path, model, [random_request(model, 1, decoded=0)]) is None
    flat = random_model(layers=1)
    assert asked(tmp_path, flat, [random_request(flat, seed, name=f"{seed}/1") for seed in range(4)]) is None
