"""The paper's policy: which layer is predicted from what, what is selected, and who leaves."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from offload.errors import ConfigError
from offload.policy.base import Surroundings
from offload.policy.finemoe import FineMoE, select
from offload.policy.maps import MapStore, StoreModel
from offload.policy.maps.iteration import iterations
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.simulator import Simulation, Timing, simulate
from tests.support.policies import Table, one_hot_routers
from tests.support.routing import synthetic_model, synthetic_requests

LAYERS, EXPERTS = 5, 4
STORE = StoreModel(LAYERS, EXPERTS, 4)


def map_of(*likeliest: int) -> NDArray[np.float32]:
    """[L, E]: in each layer one expert has .7 and the others .1."""
    rows = np.full((LAYERS, EXPERTS), 0.1, np.float32)
    rows[np.arange(LAYERS), likeliest] = 0.7
    return rows


def unit(number: int) -> NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[number]


@pytest.fixture
def store() -> MapStore:
    """Two iterations, alike in nothing."""
    store = MapStore(STORE, 10)
    store.add(unit(0), map_of(0, 0, 0, 0, 0))
    store.add(unit(1), map_of(1, 1, 1, 1, 1))
    return store


def table(store: MapStore | None, **options: float) -> Table:
    knowledge = SimpleNamespace(maps=store)
    return Table(layers=LAYERS, experts=EXPERTS, top_k=1, slots=12, knowledge=knowledge, **options)


def begin(policy: FineMoE, embedding: NDArray[np.float32], request: int = 1, tokens: int = 1) -> None:
    phase = Phase.DECODE if tokens == 1 else Phase.PREFILL
    policy.begin_pass(ForwardPass(phase, request, range(tokens), 0, embedding))


def see(policy: FineMoE, layer: int, *rows: NDArray[np.float32]) -> list[tuple[int, int]]:
    """`layer` routes so; the (layer, expert) that are asked for behind it."""
    of_tokens = np.stack(rows)
    policy.routed(Routing(layer, of_tokens, of_tokens.argmax(axis=1)[:, None].astype(np.int32), None, None))
    return [divmod(fetch.expert, EXPERTS) for fetch in policy.decide(layer).fetch]


@pytest.mark.parametrize("distance", range(1, LAYERS + 1))
def test_every_layer_is_predicted_once(store: MapStore, distance: int) -> None:
    """Those before the distance by the embedding, which is of entry 0; the others by what is seen, entry 1."""
    policy = FineMoE(table(store, distance=distance, delta=0).around)
    begin(policy, unit(0))
    asked = [see(policy, layer, map_of(1, 1, 1, 1, 1)[layer]) for layer in range(LAYERS)]
    by_embedding = [(layer, 0) for layer in range(1, distance)]
    by_trajectory = [(layer, 1) for layer in range(distance, LAYERS)]
    assert sorted(asked[0]) == sorted(by_embedding + by_trajectory[:1])
    assert asked[1:] == [[each] for each in by_trajectory[1:]] + [[]] * (LAYERS - max(1, len(by_trajectory)))


def test_what_the_ablation_switches_off(store: MapStore) -> None:
    def asked(**options: float) -> list[tuple[int, int]]:
        policy = FineMoE(table(store, distance=2, delta=0, **options).around)
        begin(policy, unit(0))
        return [one for layer in range(LAYERS) for one in see(policy, layer, map_of(1, 1, 1, 1, 1)[layer])]

    assert sorted(asked(semantic=0)) == [(2, 1), (3, 1), (4, 1)]
    assert sorted(asked(trajectory=0)) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert asked(semantic=0, trajectory=0) == []


def test_the_nearer_layer_goes_first(store: MapStore) -> None:
    policy = FineMoE(table(store, distance=3, delta=0).around)
    begin(policy, unit(0))
    policy.routed(Routing(0, map_of(0, 0, 0, 0, 0)[:1], np.array([[0]], np.int32), None, None))
    fetches = policy.decide(0).fetch
    assert [fetch.expert // EXPERTS for fetch in fetches] == [1, 2, 3]
    assert [fetch.priority for fetch in fetches] == pytest.approx([0.7, 0.7 / 2, 0.7 / 3], rel=1e-3)


def test_the_less_alike_the_more_is_read(store: MapStore) -> None:
    policy = FineMoE(table(store, distance=4, semantic=0).around)
    begin(policy, unit(0))
    alike = see(policy, 0, map_of(1, 1, 1, 1, 1)[0])
    begin(policy, unit(0))
    other = see(policy, 0, np.array([0, 0, 1, 0], np.float32))
    assert len(alike) == 1 < len(other)


def test_what_is_there_is_not_asked_for_and_what_is_over_is_taken_back(store: MapStore) -> None:
    around = table(store, distance=1, delta=0)
    policy = FineMoE(around.around)
    around.put(1 * EXPERTS + 1)
    begin(policy, unit(0))
    rows = map_of(1, 1, 1, 1, 1)
    assert see(policy, 0, rows[0]) == []
    assert see(policy, 1, rows[1]) == [(2, 1)]
    around.residency.start_load(2 * EXPERTS + 1)
    policy.routed(Routing(2, rows[2:3], np.array([[1]], np.int32), None, None))
    assert policy.decide(2).cancel == [2 * EXPERTS + 1]
    policy.routed(Routing(3, rows[3:4], np.array([[1]], np.int32), None, None))
    assert policy.decide(3).cancel == []


@given(
    raw=arrays.arrays(np.float64, 12, elements=st.floats(1e-3, 1)),
    mass=st.floats(-1, 2),
    top_k=st.integers(1, 12),
)
def test_the_crossing_expert_belongs_to_the_selection(raw: NDArray[np.float64], mass: float, top_k: int) -> None:
    probabilities = (raw / raw.sum()).astype(np.float32)
    chosen = select(probabilities, mass, top_k)
    assert len(set(chosen.tolist())) == len(chosen) >= top_k
    left = np.delete(probabilities, chosen)
    assert left.size == 0 or left.max() <= probabilities[chosen].min()
    needed = min(max(mass, 0), 1)
    assert len(chosen) == 12 or probabilities[chosen].sum() >= needed - 1e-6
    assert len(chosen) == top_k or probabilities[chosen[:-1]].sum() < needed + 1e-6


def test_who_leaves_is_the_least_likely_times_the_least_frequent(store: MapStore) -> None:
    around = table(store, distance=1, delta=0)
    around.put(4, 5, 8, 9)
    policies = {
        name: FineMoE(table(store, distance=1, delta=0, **given).around)
        for name, given in {"paper": {}, "lfu": {"eviction": 1}, "lru": {"eviction": 2}}.items()
    }
    for policy in policies.values():
        policy.around = around.around
        for _ in range(3):  # expert 5, layer 1: used three times, and then not expected (.1)
            begin(policy, unit(0))
            policy.routed(Routing(1, map_of(0, 1, 0, 0, 0)[1:2], np.array([[1]], np.int32), None, None))
        begin(policy, unit(1))
        see(policy, 0, map_of(0, 0, 0, 0, 0)[0])
    evictable = around.evictable
    around.around.last_used[[4, 5, 8, 9]] = [4, 3, 1, 2]
    victims = {name: policy.victim(evictable, 0, True) for name, policy in policies.items()}
    # Worth: 4 is expected (.7) and never used, 5 (.1 * 3), 8 and 9 (1/4 * 1, not predicted).
    assert victims == {"paper": 8, "lfu": 4, "lru": 8}


def test_a_prompt_is_one_iteration_however_it_is_cut(store: MapStore) -> None:
    draw = np.random.default_rng(0)
    rows = draw.dirichlet(np.ones(EXPERTS), (LAYERS, 6)).astype(np.float32)
    vectors = draw.normal(size=(6, 4)).astype(np.float32)

    def learnt(*cuts: tuple[int, int]) -> MapStore:
        policy = FineMoE(table(None).around)
        for first, last in cuts:
            begin(policy, vectors[first:last].mean(axis=0), tokens=last - first)
            for layer in range(LAYERS):
                see(policy, layer, *rows[layer, first:last])
            policy.end_pass()
        assert policy.maps is not None and len(policy.maps) == 0  # another piece could come
        begin(policy, unit(0))
        assert len(policy.maps) == 1
        assert policy.note in ("", "0 of 1,000 expert maps")
        return policy.maps

    whole, cut = learnt((0, 6)), learnt((0, 4), (4, 6))
    assert cut.maps[:, 0] == pytest.approx(whole.maps[:, 0], abs=1e-3)
    assert cut.embeddings[0] == pytest.approx(whole.embeddings[0], abs=2e-3)
    assert whole.maps[:, 0] == pytest.approx(rows.mean(axis=1), abs=1e-3)


def test_what_runs_is_learnt_as_it_is_from_a_trace() -> None:
    model = synthetic_model()
    requests = list(synthetic_requests(model))
    simulation = Simulation(model, 20, Timing(), FineMoE)
    simulation.run(requests)
    policy = simulation.policy
    assert isinstance(policy, FineMoE) and policy.maps is not None
    built = MapStore(policy.maps.model)
    for request in requests:
        for iteration in iterations(request):
            built.add(*iteration)
    assert len(built) == sum(len(request.passes) for request in requests)
    online = policy.maps
    assert set(online.ids[: len(online)].tolist()) == set(built.ids[: len(built)].tolist())
    assert policy.note == f"{len(online)} of 1,000 expert maps"


def test_what_was_learnt_before_is_used_and_goes_on_growing(store: MapStore) -> None:
    policy = FineMoE(table(store).around)
    assert (policy.maps, policy.note) == (store, "2 of 10 expert maps")
    smaller = FineMoE(table(store, capacity=1).around)
    assert smaller.maps is store and (len(store), store.capacity) == (1, 1)
    other = MapStore(StoreModel(LAYERS, EXPERTS + 1, 4), 10)
    assert FineMoE(table(other).around).maps is not other
    by_mean = FineMoE(table(store, embedding=1).around).maps
    assert by_mean is not store  # its entries would be of another kind


def test_the_running_mean_is_over_the_request(store: MapStore) -> None:
    policy = FineMoE(table(None, embedding=1).around)
    rows = map_of(0, 1, 2, 3, 0)
    for request, tokens, embedding in ((1, 3, unit(0)), (1, 1, unit(1)), (2, 1, unit(2))):
        begin(policy, embedding, request, tokens)
        for layer in range(LAYERS):
            see(policy, layer, *[rows[layer]] * tokens)
        policy.end_pass()
    assert policy.maps is not None and len(policy.maps) == 3
    expected = [[1, 0, 0, 0], [3 / 10**0.5, 1 / 10**0.5, 0, 0], [0, 0, 1, 0]]
    assert policy.maps.embeddings[:3] == pytest.approx(np.array(expected), abs=1e-3)


def test_speculation_asks_the_routers_themselves() -> None:
    routers = one_hot_routers(LAYERS, 4)
    around = Table(layers=LAYERS, experts=4, top_k=1, slots=12, routers=routers, predictor=1, distance=2).around
    policy = FineMoE(around)
    assert policy.wants_residual and policy.maps is None
    begin(policy, unit(0))
    residual = np.array([[0, 0, 9, 0]], np.float32)
    policy.routed(Routing(0, map_of(0, 0, 0, 0, 0)[:1], np.array([[0]], np.int32), residual, None))
    assert [fetch.expert for fetch in policy.decide(0).fetch] == [2 * 4 + 2]


def test_hit_counts_are_those_of_requests(store: MapStore) -> None:
    policy = FineMoE(table(store, predictor=2, distance=1).around)

    def token(request: int, likeliest: int) -> list[tuple[int, int]]:
        begin(policy, unit(0), request)
        rows = map_of(*[likeliest] * LAYERS)
        return [one for layer in range(LAYERS) for one in see(policy, layer, rows[layer])]

    assert token(1, 2) == []  # of a request's first token nothing is known
    token(1, 2)
    token(1, 2)
    assert token(2, 3) == []
    assert token(2, 2) == [(layer, 2) for layer in range(1, LAYERS)]
    assert policy._predictor.note == "hit counts; past requests: 1"


@pytest.mark.parametrize(
    ("name", "value"), [("distance", 0), ("distance", 1.5), ("eviction", 3), ("capacity", 0), ("predictor", -1)]
)
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        FineMoE(table(None, **{name: value}).around)


def test_a_repeated_request_is_foreseen() -> None:
    """The second time every layer but the first is predicted, so only layer 0 misses."""
    model = synthetic_model()
    requests = list(synthetic_requests(model, requests=2))
    store = MapStore(StoreModel(model.layers, model.experts, model.hidden))
    for request in requests:
        for iteration in iterations(request):
            store.add(*iteration)
    known = SimpleNamespace(maps=store)
    make = partial(simulate, model, requests, 24, Timing(1.0, 0.6))
    seen, new = make(FineMoE, knowledge=known).decode, make(FineMoE).decode
    demand = make(FineMoE, options={"semantic": 0, "trajectory": 0}).decode
    assert demand.bytes_prefetch == 0
    assert seen.stall_s < new.stall_s < demand.stall_s
    assert seen.missed <= seen.selections / model.layers < new.missed < demand.missed


def test_surroundings_without_knowledge_are_enough(store: MapStore) -> None:
    around: Surroundings = Table(layers=LAYERS, experts=EXPERTS).around
    assert FineMoE(around).maps is not None
