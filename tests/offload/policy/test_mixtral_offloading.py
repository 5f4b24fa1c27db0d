"""Guessing the next layer with its own router."""

from __future__ import annotations

import numpy as np

from offload.policy import REFUSE
from offload.policy.mixtral_offloading import MixtralOffloading
from tests.support.policies import Table, one_hot_routers

RESIDUAL = [0.0, 3.0, 1.0, 2.0]
"""With one-hot routers: expert 1 first, then 3."""


def table_of(*experts: int) -> tuple[Table, MixtralOffloading]:
    table = Table(routers=one_hot_routers(3, 4))
    table.put(*experts)
    policy = MixtralOffloading(table.around)
    table.begin(policy)
    return table, policy


def test_the_next_layers_router_reads_this_residual() -> None:
    table = Table(routers=one_hot_routers(3, 4, shift=1))
    policy = MixtralOffloading(table.around)
    table.begin(policy)
    table.route(policy, 0, [[0, 1]], RESIDUAL)
    assert [one.expert for one in policy.decide(0).fetch] == [4 + 0, 4 + 2]  # layer 1's expert e looks at e + 1
    table.route(policy, 1, [[0, 1]], RESIDUAL)
    assert [one.expert for one in policy.decide(1).fetch] == [8 + 3, 8 + 1]


def test_guesses_that_are_there_are_not_read_but_kept() -> None:
    table, policy = table_of(0, 5, 6)
    table.around.last_used[[5, 6]] = 1, 2
    table.route(policy, 0, [[0, 1]], RESIDUAL)
    assert [one.expert for one in policy.decide(0).fetch] == [7]
    assert policy.victim(np.array([5, 6]), 7, False) == 6
    assert policy.victim(np.array([5]), 7, False) == REFUSE


def test_wrong_guesses_are_taken_back() -> None:
    table, policy = table_of()
    table.route(policy, 0, [[0, 1]], RESIDUAL)
    for one in policy.decide(0).fetch:
        table.residency.start_load(one.expert)
    table.route(policy, 1, [[0, 2]], RESIDUAL)
    decision = policy.decide(1)
    assert decision.cancel == [5, 7]
    assert [one.expert for one in decision.fetch] == [9, 11]


def test_nothing_is_guessed_past_the_last_layer_for_prompts_or_without_residuals() -> None:
    table, policy = table_of()
    table.route(policy, 2, [[0, 1]], RESIDUAL)
    assert policy.decide(2).fetch == []
    table.route(policy, 0, [[0, 1]])
    assert policy.decide(0).fetch == []
    table.begin(policy, tokens=2)
    table.route(policy, 0, [[0, 1], [2, 3]], RESIDUAL)
    assert policy.decide(0).fetch == []


def test_without_routers_it_says_so_and_does_not_look() -> None:
    policy = MixtralOffloading(Table().around)
    assert not policy.looks_ahead and not policy.wants_residual
    assert "routers" in policy.note


def test_every_layer_has_its_share() -> None:
    table, policy = table_of(0, 1, 4, 5, 8, 9)
    table.around.last_used[[0, 1, 4, 5, 8, 9]] = range(1, 7)
    assert policy.victim(table.evictable, 6, True) == 4
