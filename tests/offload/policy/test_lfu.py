"""Decayed frequency: how often, how long ago."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import ConfigError
from offload.policy.frequency import DecayedFrequency
from offload.policy.lfu import DecayedLFU
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from tests.support.policies import Table


def test_the_least_frequent_leaves() -> None:
    table = Table(layers=1, experts=6, decay=1.0)
    policy = DecayedLFU(table.around)
    table.put(0, 1, 2, 3)
    for chosen in ([0, 1], [0, 2], [1, 3], [2, 0]):
        table.token(policy, [chosen])
    assert policy.victim(table.evictable, 5, True) == 3  # once; demand would take 1


def test_old_uses_fade() -> None:
    chosen = ([0, 1], [0, 1], [2, 3], [2, 3], [1, 4])
    lasting, fading = Table(layers=1, experts=6, decay=1.0), Table(layers=1, experts=6, decay=0.5)
    victims = []
    for table in (lasting, fading):
        policy = DecayedLFU(table.around)
        table.put(0, 2, 3)
        for one in (*chosen, [2, 5]):
            table.token(policy, [one])
        victims.append(policy.victim(table.evictable, 4, True))
    assert victims == [0, 0]  # 0 and 3 have two uses each: the older leaves
    table = Table(layers=1, experts=6, decay=0.5)
    policy = DecayedLFU(table.around)
    table.put(0, 3)
    for one in ([0, 1], [0, 1], [2, 1], [2, 1], [3, 1]):
        table.token(policy, [one])
    assert policy.victim(table.evictable, 4, True) == 0  # .5 ** 4 + .5 ** 3 < 1


def test_of_equals_the_least_recent_leaves() -> None:
    table = Table(layers=1, experts=6, decay=1.0)
    policy = DecayedLFU(table.around)
    table.put(0, 1, 2)
    for chosen in ([2, 4], [0, 4], [1, 4]):
        table.token(policy, [chosen])
    assert policy.victim(table.evictable, 5, True) == 2


def test_an_expert_that_the_running_token_brought_counts() -> None:
    """Layers are told at the token's end, and a later layer may ask for a victim before."""
    table = Table(layers=2, experts=4, decay=0.5)
    policy = DecayedLFU(table.around)
    table.put(0, 1, 2)
    table.token(policy, [[0, 1], [0, 1]])
    table.begin(policy)
    table.around.last_used[[2, 3]] = table.clock
    assert policy.victim(np.array([0, 2]), 5, True) == 0


@pytest.mark.parametrize("decay", [0.3, 1.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError):
        DecayedLFU(Table(decay=decay).around)


@given(
    passes=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), max_size=8),
    decay=st.sampled_from([0.5, 0.9, 0.97, 1.0]),
    late=st.booleans(),
)
def test_counts_are_sums_of_powers(passes: list[list[int]], decay: float, late: bool) -> None:
    """However tokens are cut into passes, and whether layers are told at once or at the end."""
    table = Table(layers=1, experts=5, top_k=1, slots=5)
    frequency = DecayedFrequency(table.around, decay)
    tokens = [expert for one in passes for expert in one]
    for number, one in enumerate(passes, start=1):
        frequency.begin_pass(ForwardPass(Phase.DECODE, 1, one, 0, np.zeros(1, np.float32)))
        picked = np.array(one, np.int32)[:, None]
        routing = Routing(0, np.zeros((len(one), 5), np.float32), picked, None, None)
        if not late:
            frequency.routed(routing)
        table.around.last_used[one] = number
        if late:
            frequency.routed(routing)
        frequency.end_pass()
    expected = [
        sum(decay**age for age, used in enumerate(reversed(tokens)) if used == expert) for expert in range(5)
    ]
    assert np.allclose(frequency.of(np.arange(5)), expected)
