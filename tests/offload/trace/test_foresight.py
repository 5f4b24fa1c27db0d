"""The bounds bound: MIN against all evictions of small caches, and both against policies that cannot look."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.policy import make_policy
from offload.telemetry.counters import Phase
from offload.trace.foresight import NEVER, Belady, Future, Oracle
from offload.trace.records import TraceModel, TraceRequest
from offload.trace.simulator import Timing, simulate
from tests.support.routing import synthetic_model, synthetic_requests
from tests.support.traces import random_model, random_request

MODEL = synthetic_model(layers=4, experts=10, top_k=2)
REQUESTS = list(synthetic_requests(MODEL, requests=3, prompt=5, tokens=10))


def decoded(request: TraceRequest) -> int:
    return sum(one.phase == Phase.DECODE for one in request.passes)


@pytest.mark.parametrize("prefill", [False, True])
def test_the_future_is_what_comes(prefill: bool) -> None:
    future = Future(REQUESTS, MODEL.layers, MODEL.experts, prefill=prefill)
    steps = (sum(map(decoded, REQUESTS)) + prefill * len(REQUESTS)) * MODEL.layers
    assert len(future.needed) == len(future.next_use) == steps
    for step, (needed, again) in enumerate(zip(future.needed, future.next_use, strict=True)):
        for expert, when in zip(needed.tolist(), again.tolist(), strict=True):
            later = [later for later in range(step + 1, steps) if expert in future.needed[later]]
            assert when == (later[0] if later else NEVER)
    for expert, first in enumerate(future.first_use.tolist()):
        uses = [step for step in range(steps) if expert in future.needed[step]]
        assert first == (uses[0] if uses else NEVER)


def fewest_misses(needed: list[list[int]], slots: int) -> int:
    """Of all ways to evict: by trying all of them."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for wanted in needed:
        after: dict[frozenset[int], int] = {}
        for cache, misses in states.items():
            missing = [expert for expert in wanted if expert not in cache]
            cost = misses + len(missing)
            choices = {cache | set(missing)}
            while any(len(choice) > slots for choice in choices):
                choices = {choice - {victim} for choice in choices for victim in choice if victim not in wanted}
            for choice in choices:
                key = frozenset(choice)
                after[key] = min(cost, after.get(key, cost))
        states = after
    return min(states.values())


@given(seed=st.integers(0, 10_000), slots=st.integers(2, 5), tokens=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_no_eviction_misses_less_than_belady(seed: int, slots: int, tokens: int) -> None:
    model = random_model(seed, layers=2, experts=4, top_k=1)
    request = random_request(model, seed, prompt=0, decoded=tokens)
    future = Future([request], 2, 4, prefill=False)
    outcome = simulate(model, [request], slots, Timing(), lambda around: Belady(around, future))
    assert outcome.decode.missed == fewest_misses([step.tolist() for step in future.needed], slots)


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("read_s", [0.7, 2.0])
def test_foresight_waits_least(prefill: bool, read_s: float) -> None:
    future = Future(REQUESTS, MODEL.layers, MODEL.experts, prefill=prefill)
    timing = Timing(read_s=read_s)
    run = partial(simulate, MODEL, REQUESTS, 16, timing, prefill=prefill)
    belady = run(lambda around: Belady(around, future))
    oracle = run(lambda around: Oracle(around, future))
    assert belady.decode.bytes_prefetch == 0 and oracle.decode.bytes_prefetch > 0
    assert oracle.stall_s < belady.stall_s
    for name in ("demand", "lfu", "layer-lru"):
        other = run(partial(make_policy, name))
        misses = [sum((one.prefill.missed, one.decode.missed)) for one in (belady, other)]
        assert misses[0] <= misses[1]
        assert oracle.stall_s < other.stall_s


def test_a_prompt_that_moves_nothing_does_not_shift_the_future() -> None:
    """Prompts are shown to policies in any case; the future counts them only where they need experts."""
    future = Future(REQUESTS, MODEL.layers, MODEL.experts, prefill=False)
    bare = [
        TraceRequest(one.name, "", [each for each in one.passes if each.phase == Phase.DECODE]) for one in REQUESTS
    ]
    with_prompts, without = (
        simulate(MODEL, requests, 16, Timing(), lambda around: Belady(around, future))
        for requests in (REQUESTS, bare)
    )
    assert with_prompts.decode == without.decode


def test_everything_is_there_with_slots_for_all() -> None:
    model = TraceModel("one", "", MODEL.layers, MODEL.experts, MODEL.top_k, MODEL.hidden, 1, None)
    future = Future(REQUESTS, MODEL.layers, MODEL.experts, prefill=False)
    outcome = simulate(model, REQUESTS, 40, Timing(), lambda around: Belady(around, future))
    used = len(np.unique(np.concatenate(future.needed)))
    assert (outcome.decode.missed, outcome.decode.evictions) == (used, 0)
