"""What every policy keeps to, driven by the live fetcher over a simulated link."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offload.config import POLICIES
from offload.errors import ConfigError
from offload.memory.residency import ABSENT, LOADING
from offload.policy import REFUSE, Decision, Policy, Surroundings, check_policy, make_policy
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.records import TraceRequest
from offload.trace.simulator import Outcome, Simulation, Timing
from tests.support.routing import synthetic_model, synthetic_requests

MODEL = synthetic_model(layers=5, experts=12, top_k=2)
REQUESTS = list(synthetic_requests(MODEL, requests=3, prompt=7, tokens=9))


class Checked:
    """A policy under the eyes of a checker."""

    def __init__(self, policy: Policy, around: Surroundings) -> None:
        self._policy, self._around = policy, around
        self._running = False
        self.name, self.note = policy.name, policy.note
        self.decides_early, self.wants_residual = policy.decides_early, policy.wants_residual

    @property
    def looks_ahead(self) -> bool:
        return self._policy.looks_ahead

    def begin_pass(self, forward: ForwardPass) -> None:
        self._policy.begin_pass(forward)

    def routed(self, routing: Routing) -> None:
        self._policy.routed(routing)

    def decide(self, layer: int) -> Decision:
        assert 0 <= layer < self._around.layers or (layer == -1 and self.decides_early)
        state = self._around.residency.state
        decision = self._policy.decide(layer)
        experts = [one.expert for one in decision.fetch]
        assert len(set(experts)) == len(experts)
        for one in decision.fetch:
            assert isinstance(one.expert, int) and 0 <= one.expert < len(state)
            assert state[one.expert] == ABSENT
            assert math.isfinite(one.priority)
        assert all(state[expert] == LOADING for expert in decision.cancel)
        assert not set(experts) & set(decision.cancel)
        return decision

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        before = evictable.copy()
        victim = self._policy.victim(evictable, wanted, demand)
        assert np.array_equal(evictable, before)
        assert victim in evictable or (victim == REFUSE and not demand)
        assert victim != wanted
        return victim

    def end_pass(self) -> None:
        self._policy.end_pass()


def run(name: str, requests: list[TraceRequest], slots: int, read_s: float, lanes: int = 1) -> Outcome:
    timing = Timing(layer_s=1.0, read_s=read_s, lanes=lanes)
    simulation = Simulation(MODEL, slots, timing, lambda around: Checked(make_policy(name, around), around))
    simulation.run(requests)
    return simulation.outcome()


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=15)
@given(
    slots=st.integers(2 * MODEL.top_k, 60),
    read_s=st.sampled_from([0.01, 0.5, 3.0]),
    lanes=st.integers(1, 3),
)
def test_decisions_are_valid_and_repeatable(name: str, slots: int, read_s: float, lanes: int) -> None:
    outcome = run(name, REQUESTS, slots, read_s, lanes)
    assert outcome == run(name, REQUESTS, slots, read_s, lanes)
    assert outcome.decode.selections == outcome.tokens * MODEL.layers * MODEL.top_k


@pytest.mark.parametrize("name", ["demand", "lfu", "layer-lru"])
def test_requests_are_nothing_to_those_that_read_nothing_ahead(name: str) -> None:
    """Others may see that the simulator waits for the link between requests, or keep count of requests."""
    joined = [TraceRequest("joined", "", [one for request in REQUESTS for one in request.passes])]
    assert run(name, REQUESTS, 20, 0.3).decode == run(name, joined, 20, 0.3).decode


@pytest.mark.parametrize("name", ["deepspeed", "mixtral-offloading", "promoe"])
def test_the_past_is_nothing_to_those_that_predict_from_the_running_token(name: str) -> None:
    """Where all is absent again, a policy that has seen other requests decides as a new one."""
    old = Simulation(MODEL, 20, Timing(read_s=0.317), partial(make_policy, name))
    new = Simulation(MODEL, 20, Timing(read_s=0.317), partial(make_policy, name))
    old.run(REQUESTS[:2])
    old._fetcher.make_way(0)
    before = old.counters.phase(Phase.DECODE)
    for simulation in (old, new):
        simulation.run(REQUESTS[2:], prefill=False)
    used, alone = old.counters.phase(Phase.DECODE) - before, new.counters.phase(Phase.DECODE)
    assert (used.missed, used.late, used.prefetched) == (alone.missed, alone.late, alone.prefetched)


@pytest.mark.parametrize("name", POLICIES)
def test_everything_resident_is_never_waited_for(name: str) -> None:
    requests = REQUESTS * 2
    total = MODEL.layers * MODEL.experts
    simulation = Simulation(MODEL, total, Timing(layer_s=1.0, read_s=0.2), partial(make_policy, name))
    simulation.run(requests)
    assert simulation.counters.evictions == [0, 0]
    before = simulation.outcome()
    simulation.run(requests)
    after = simulation.outcome()
    assert after.decode.missed == before.decode.missed
    assert after.stall_s == before.stall_s


@pytest.mark.parametrize("name", ["mixtral-offloading", "promoe"])
def test_reading_ahead_on_a_fast_link_waits_less_than_demand(name: str) -> None:
    demand, ahead = (run(one, REQUESTS, 20, 0.6).decode for one in ("demand", name))
    assert ahead.prefetched > 0
    assert ahead.missed < demand.missed
    assert ahead.stall_s < demand.stall_s


def test_names_are_checked() -> None:
    for name in POLICIES:
        check_policy(name)
    with pytest.raises(ConfigError):
        check_policy("fastest")
