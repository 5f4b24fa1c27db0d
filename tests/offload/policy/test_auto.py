"""`auto`: what stays, what is fetched, what is taken back, and when it stops looking."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offload.errors import ConfigError
from offload.memory.residency import ABSENT, LOADING
from offload.policy import Decision, Policy, RouterWeights, Surroundings, make_policy
from offload.policy.auto import FEW, QUIET_TOKENS, Auto
from offload.policy.knowledge import Knowledge
from offload.policy.past import Past
from offload.policy.probe_fitting import fit_probes
from offload.policy.probes import Probes
from offload.telemetry.counters import Phase
from offload.trace.records import TraceModel, TracePass, TraceRequest
from offload.trace.simulator import Outcome, Simulation, Timing
from tests.support.policies import Table, one_hot_routers
from tests.support.routing import synthetic_model, synthetic_requests

MODEL = synthetic_model(layers=5, experts=12, top_k=2)
REQUESTS = list(synthetic_requests(MODEL, requests=3, prompt=7, tokens=12))


@pytest.fixture(scope="module")
def probes() -> Probes:
    return fit_probes(MODEL, list(synthetic_requests(MODEL, requests=10, prompt=4, tokens=40, seed=5)))


def looking(hot: int, *, threshold: float = 0.3, **more: float) -> tuple[Table, Auto]:
    """A token of 3 layers with 4 experts whose routers all point at expert `hot`, behind layer 0."""
    table = Table(hidden=4, top_k=1, routers=one_hot_routers(3, 4), threshold=threshold, **more)
    policy = Auto(table.around)
    table.begin(policy)
    point(table, policy, 0, hot)
    return table, policy


def point(table: Table, policy: Auto, layer: int, hot: int) -> None:
    """`layer` has chosen, from a residual at which the routers see `hot`."""
    residual = np.full(4, 0.1)
    residual[hot] = 2.0
    table.route(policy, layer, [[hot]], residual.tolist())


def test_a_layer_is_looked_at_from_eight_four_two_and_one_before_it() -> None:
    table = Table(layers=12, hidden=4, top_k=1, routers=one_hot_routers(12, 4), threshold=0.8, depth=8)
    policy = Auto(table.around)

    def fetched(layer: int) -> list[tuple[int, int]]:
        return sorted(divmod(one.expert, 4) for one in policy.decide(layer).fetch)

    table.begin(policy)
    point(table, policy, 0, 2)
    assert fetched(0) == [(1, 2), (2, 2), (4, 2), (8, 2)]
    point(table, policy, 1, 3)
    assert fetched(1) == [(2, 3), (3, 3), (4, 2), (5, 3), (8, 2), (9, 3)], "layers 4 and 8 as they were seen before"
    point(table, policy, 4, 1)
    assert (8, 1) in fetched(4), "and anew from nearer"
    table.begin(policy)
    assert fetched(-1) == [], "another token has another residual"


def test_probes_stay_with_the_routers_they_were_fitted_with(probes: Probes) -> None:
    for learnt, expected in ((None, [0, 1, 2, 0, 4]), (probes, [0, 1, 2, 0, 0])):
        table = Table(
            layers=MODEL.layers, experts=MODEL.experts, hidden=MODEL.hidden, routers=MODEL.routers,
            knowledge=None if learnt is None else Knowledge(probes=learnt),
        )  # fmt: skip
        policy = Auto(table.around)
        table.begin(policy)
        table.route(policy, 0, [[0, 1]], [0.5] * MODEL.hidden)
        assert policy._seen_from.tolist() == expected


def test_what_the_next_routers_point_at_is_fetched_nearest_first() -> None:
    _, policy = looking(2, depth=2)
    decision = policy.decide(0)
    assert decision.cancel == []
    assert [one.expert for one in decision.fetch] == [4 + 2, 8 + 2]
    assert decision.fetch[0].priority > decision.fetch[1].priority


def test_what_is_there_or_on_its_way_is_not_fetched() -> None:
    table, policy = looking(2, depth=2)
    table.put(2, 6)  # 2 was used just now
    table.residency.start_load(10)
    assert policy.decide(0) == Decision([], [])


def test_what_has_become_unlikely_is_taken_back() -> None:
    table, policy = looking(2, depth=2)
    for one in policy.decide(0).fetch:
        table.residency.start_load(one.expert)
    point(table, policy, 1, 3)  # layer 2 will choose 3 and not 2; layer 1 has chosen, and not 2
    decision = policy.decide(1)
    assert sorted(decision.cancel) == [6, 10]
    assert 8 + 3 in [one.expert for one in decision.fetch]
    assert policy.decide(1).cancel == []


def test_only_so_many_are_asked_for_at_once() -> None:
    table, policy = looking(2, threshold=0.0, depth=1)
    table.link.count = 2
    asked = policy.decide(0).fetch
    assert len(asked) == 2
    for one in asked:
        table.residency.start_load(one.expert)
    assert policy.decide(0).fetch == []
    table.residency.finish_load(asked[0].expert)
    assert len(policy.decide(0).fetch) == 1
    table.link.count = 100
    assert len(policy.decide(0).fetch) <= FEW


@pytest.mark.parametrize(
    ("read_s", "waits", "asks"),
    [(1e-5, True, True), (4e-3, True, False), (4e-3, False, True)],
    ids=["fast", "slow", "slow and idle"],
)
def test_a_slow_link_that_is_busy_asks_for_more_certainty(read_s: float, waits: bool, asks: bool) -> None:
    """With nothing but the past to go by: what six tokens of ten have used is fetched unless others wait long."""
    table = Table(hidden=4, top_k=1)
    table.around.rates.read_s = read_s
    policy = Auto(table.around)
    for token in range(60):
        table.around.misses[11] += 3 * waits
        table.token(policy, [[[0, 1, 0, 0, 2][token % 5]]] * 3)
        table.around.misses[11] += token % QUIET_TOKENS == 0  # now and then, so that it goes on looking
    table.begin(policy)
    assert 0.5 < policy._chance[0] < 0.8
    assert bool(policy.decide(-1).fetch) == asks


def test_prompts_fetch_nothing() -> None:
    table = Table(hidden=4, top_k=1, routers=one_hot_routers(3, 4), threshold=0.0)
    policy = Auto(table.around)
    table.begin(policy, tokens=3)
    table.route(policy, 0, [[2]] * 3, [0.1, 0.1, 2.0, 0.1])
    assert policy.decide(0) == Decision([], [])


def test_the_likely_stay() -> None:
    table, policy = looking(2)
    table.put(5, 6, 9, 10)
    assert policy.victim(table.evictable, 0, True) in (5, 9)
    assert policy.victim(np.array([6, 9, 10]), 0, True) == 9
    assert policy.victim(np.array([6, 10]), 0, True) == 10  # of two as likely, the one that is needed later


def test_the_often_used_stay() -> None:
    table = Table(slots=12)
    policy = Auto(table.around)
    table.put(*range(12))
    for _ in range(30):
        table.token(policy, [[3, 0], [3, 1], [3, 2]])
    given = table.evictable
    for _ in range(6):
        leaving = policy.victim(given, 3, True)
        assert leaving in (1, 2, 4, 6, 8, 9)
        given = given[given != leaving]


def test_what_has_just_been_used_counts_at_once() -> None:
    """Before the token is over, of a layer whose experts were all alike until then."""
    table = Table(top_k=1)
    policy = Auto(table.around)
    table.put(0, 3)
    table.begin(policy)
    assert policy.victim(np.array([3, 0]), 4, True) == 3
    table.route(policy, 0, [[3]])
    assert policy.victim(np.array([3, 0]), 4, True) == 0


def test_what_is_worth_more_does_not_leave_for_a_guess() -> None:
    table, policy = looking(2)
    table.put(6, 9)
    assert policy.victim(np.array([6]), 9, False) == -1
    assert policy.victim(np.array([9]), 6, False) == 9
    assert policy.victim(np.array([6]), 9, True) == 6


@settings(deadline=None, max_examples=30)
@given(resident=st.sets(st.integers(0, 11), min_size=1), wanted=st.integers(-1, 11), tokens=st.integers(0, 5))
def test_a_demand_read_always_gets_a_slot(resident: set[int], wanted: int, tokens: int) -> None:
    table = Table(slots=12)
    policy = Auto(table.around)
    table.put(*resident)
    for token in range(tokens):
        table.token(policy, [[token % 4, 3 - token % 4]] * 3)
    assert policy.victim(table.evictable, wanted, True) in resident


def test_it_stops_looking_when_nothing_is_missed_and_looks_again_when_something_is() -> None:
    table = Table()
    policy = Auto(table.around)
    chosen = [[0, 1]] * 3
    for _ in range(QUIET_TOKENS):
        assert policy.looks_ahead
        table.token(policy, chosen)
    table.token(policy, chosen)
    assert not policy.looks_ahead
    assert "not looking" in policy.note
    table.around.misses[5] += 1
    table.token(policy, chosen)
    assert policy.looks_ahead
    assert policy.note == ""


def test_it_goes_on_learning_while_it_does_not_look() -> None:
    table = Table()
    policy = Auto(table.around)
    for _ in range(QUIET_TOKENS + 1):
        table.token(policy, [[0, 1]] * 3)
    for _ in range(10):
        table.token(policy, [[2, 3]] * 3)
    assert not policy.looks_ahead
    assert policy._chance[2] > policy._chance[0] or policy._odds[2] > policy._odds[0]


def test_without_a_residual_what_is_behind_is_a_token_away() -> None:
    table = Table(top_k=1)
    policy = Auto(table.around)
    table.begin(policy)
    first = policy._worth.copy()
    assert first[0] > first[4] > first[8]
    table.route(policy, 0, [[0]])
    policy._appraise()
    assert policy._worth[4] > policy._worth[8] > policy._worth[1]


def test_it_begins_with_the_past_that_it_is_given() -> None:
    past = Past(12, 0.5)
    for _ in range(50):
        past.see(np.array([1, 4, 11]))
    known = Knowledge(past=np.concatenate([past.frequency, past.recency]))
    policy = Auto(Table(knowledge=known).around)
    assert set(policy.likeliest()[:3]) == {1, 4, 11}
    assert np.array_equal(policy.past, known.past)
    assert Auto(Table().around).likeliest() == []


@pytest.mark.parametrize("options", [{"threshold": 2}, {"horizon": 99}, {"depth": 1.5}, {"gamma_tokens": 0}])
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Auto(Table(**options).around)


class Kept:
    """Makes `auto`, keeps it, and checks each decision against its limits."""

    def __call__(self, around: Surroundings) -> Policy:
        self.policy = Limited(around)
        return self.policy


class Limited(Auto):
    def decide(self, layer: int) -> Decision:
        decision = super().decide(layer)
        state = self.around.residency.state
        assert all(state[one.expert] == ABSENT for one in decision.fetch)
        assert all(state[expert] == LOADING for expert in decision.cancel)
        under_way = [expert for expert in self._asked if state[expert] == LOADING]
        assert len(under_way) + len(decision.fetch) <= max(FEW, self._depth * self.around.link.count)
        assert len(self._asked) <= self._depth * self.around.link.count
        assert np.isfinite(self._chance).all() and np.isfinite(self._worth).all()
        return decision


def run(
    model: TraceModel, requests: list[TraceRequest], slots: int, know: object = None, read_s: float = 0.6
) -> Outcome:
    simulation = Simulation(model, slots, Timing(read_s=read_s, lanes=2), Kept(), know)
    simulation.run(requests)
    return simulation.outcome()


def bare(requests: list[TraceRequest]) -> list[TraceRequest]:
    """The same without residuals."""
    return [
        TraceRequest(one.name, one.text, [replace(each, residual=None, shared=None) for each in one.passes])
        for one in requests
    ]


@pytest.mark.parametrize("routers", [True, False], ids=["routers", "no routers"])
@pytest.mark.parametrize("trained", [True, False], ids=["probes", "no probes"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "no residual"])
def test_it_works_with_what_there_is(routers: bool, trained: bool, residual: bool, probes: Probes) -> None:
    model = MODEL if routers else replace(MODEL, routers=None)
    requests = REQUESTS if residual else bare(REQUESTS)
    know = Knowledge(probes=probes) if trained else None
    outcome = run(model, requests, 20, know)
    assert outcome == run(model, requests, 20, know)
    assert outcome.decode.selections == outcome.tokens * MODEL.layers * MODEL.top_k
    assert outcome.decode.missed < outcome.decode.selections


def test_the_more_it_knows_the_less_it_misses(probes: Probes) -> None:
    requests = list(synthetic_requests(MODEL, requests=4, prompt=4, tokens=30, seed=9))
    demand = Simulation(MODEL, 20, Timing(read_s=0.6, lanes=2), partial(make_policy, "demand"))
    demand.run(requests)
    blind = run(replace(MODEL, routers=None), bare(requests), 20).decode
    routers = run(MODEL, requests, 20).decode
    trained = run(MODEL, requests, 20, Knowledge(probes=probes)).decode
    assert trained.missed < routers.missed < blind.missed
    assert routers.stall_s < 0.8 * demand.outcome().decode.stall_s
    assert trained.prefetched > 0


def cyclic(layers: int, experts: int, tokens: int, period: int) -> tuple[TraceModel, list[TraceRequest]]:
    """Token t uses expert t mod `period` of each layer."""
    model = TraceModel("cyclic", "", layers, experts, 1, 4, 4096, None)
    passes = [one_token(layers, experts, token, np.full((layers, 1, 1), token % period)) for token in range(tokens)]
    return model, [TraceRequest("cyclic", "", passes)]


def one_token(layers: int, experts: int, token: int, chosen: NDArray[np.int64]) -> TracePass:
    return TracePass(
        phase=Phase.DECODE,
        position=token,
        token_ids=np.zeros(1, np.int32),
        embedding=np.zeros(4, np.float16),
        probabilities=np.full((layers, 1, experts), 1 / experts, np.float16),
        margins=np.zeros((layers, 1), np.float16),
        chosen=chosen.astype(np.int16),
        residual=None,
        shared=None,
        seconds=0.0,
        stall_s=np.zeros(layers, np.float32),
        reads=(),
    )


@pytest.mark.parametrize(("slots", "period"), [(8, 1), (12, 1), (20, 2)], ids=str)
def test_below_the_working_set_of_a_token_it_has_hits_where_lru_has_none(slots: int, period: int) -> None:
    """What is used in turn leaves, with the least recently used, always just before it is used again."""
    model, requests = cyclic(16, 8, 60, period)
    lru = Simulation(model, slots, Timing(), partial(make_policy, "demand"))
    lru.run(requests)
    assert lru.outcome().decode.hit_rate == 0
    auto = run(model, requests, slots)
    assert auto.decode.resident + auto.decode.prefetched > 0.15 * auto.decode.selections
    assert auto.decode.missed < lru.outcome().decode.missed


def test_a_router_tells_nothing_without_its_weights() -> None:
    """Without routers the next layers' weights, which were made to go with them, must not speak."""
    table = Table(top_k=1, threshold=0.0)
    assert table.around.routers is None
    policy = Auto(table.around)
    table.begin(policy)
    table.route(policy, 0, [[0]], [1.0, 0.0, 0.0, 0.0])
    policy._appraise()
    assert policy._chance[4:].max() < 0.4  # one of four, as far as anybody knows


def test_routers_may_be_read_only() -> None:
    weights = one_hot_routers(3, 4)
    for array in (*weights.gate, *weights.norm):
        array.flags.writeable = False
    table = Table(top_k=1, routers=RouterWeights(weights.gate, weights.norm, 1e-6))
    policy = Auto(table.around)
    table.begin(policy)
    point(table, policy, 0, 1)
