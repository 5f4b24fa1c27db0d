"""Keeping account of what is expected when."""

from __future__ import annotations

import numpy as np
import pytest

from offload.policy import REFUSE, Fetch
from offload.policy.ahead import Ahead
from tests.support.policies import Table


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def policy(table: Table) -> Ahead:
    """Layer 0 of the first token has chosen 0 and 1."""
    policy = Ahead(table.around)
    table.put(0, 1, 4)
    table.begin(policy)
    table.route(policy, 0, [[0, 1]])
    return policy


def test_only_absent_experts_are_read(table: Table, policy: Ahead) -> None:
    table.residency.start_load(5)
    fetches = policy.expect(np.array([7, 4, 5, 6]), 1, np.array([4.0, 3.0, 2.0, 1.0]))
    assert fetches == [Fetch(7, 4.0), Fetch(6, 1.0)]


def test_what_is_over_is_told_once_and_only_if_under_way(table: Table, policy: Ahead) -> None:
    fetches = policy.expect(np.array([5, 6, 9]), np.array([1, 1, 2]), np.ones(3))
    for one in fetches:
        table.residency.start_load(one.expert)
    assert policy.stale() == []
    table.residency.finish_load(6)
    table.route(policy, 1, [[0, 3]])
    assert policy.stale() == [5]
    assert policy.stale() == []
    table.route(policy, 2, [[0, 3]])
    assert policy.stale() == [9]


def test_the_next_token_makes_the_last_ones_stale(table: Table, policy: Ahead) -> None:
    policy.expect(np.array([9]), 2, np.ones(1))
    table.residency.start_load(9)
    table.begin(policy)
    table.route(policy, 0, [[0, 1]])
    assert policy.stale() == [9]


def test_the_expected_do_not_leave_before_their_layer(table: Table, policy: Ahead) -> None:
    table.put(8)
    policy.expect(np.array([4]), 1, np.ones(1))
    assert policy.least_recent(np.array([4, 8]), True) == 8
    assert policy.least_recent(np.array([4]), True) == 4  # but rather than have nothing leave
    assert policy.least_recent(np.array([4]), False) == REFUSE
    table.route(policy, 1, [[1, 2]])
    assert policy.least_recent(np.array([4]), False) == 4


def test_a_guess_ages(table: Table, policy: Ahead) -> None:
    policy.expect(np.array([4]), 1, np.ones(1))
    for _ in range(2):
        table.begin(policy)
        table.route(policy, 0, [[0, 1]])
    assert policy.least_recent(np.array([0, 4]), False) == 4
