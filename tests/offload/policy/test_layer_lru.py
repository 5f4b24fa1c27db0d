"""LRU with an equal share of the slots for every layer."""

from __future__ import annotations

import numpy as np

from offload.policy.layer_lru import LayerLRU
from tests.support.policies import Table


def table_of(*experts: int, slots: int = 6) -> tuple[Table, LayerLRU]:
    """Three layers of four experts: 0-3, 4-7, 8-11. Resident in the order of their last use."""
    table = Table(slots=slots)
    table.put(*experts)
    table.around.last_used[list(experts)] = np.arange(1, len(experts) + 1)
    return table, LayerLRU(table.around)


def test_at_its_share_a_layer_replaces_its_own() -> None:
    table, policy = table_of(0, 1, 4, 5, 8, 9)
    assert policy.victim(table.evictable, 6, True) == 4  # 0 and 1 were used before


def test_a_layer_above_its_share_gives_first() -> None:
    table, policy = table_of(0, 4, 8, 9, 10, 11)
    assert policy.victim(table.evictable, 5, True) == 8


def test_below_its_share_a_layer_takes_from_another() -> None:
    table, policy = table_of(0, 1, 2, 4, 5, 6)
    assert policy.victim(table.evictable, 8, True) == 0  # both others hold three: the oldest of them all


def test_what_is_loading_is_held() -> None:
    table, policy = table_of(0, 1, 4, 5, 8)
    table.residency.start_load(9)
    assert policy.victim(table.evictable, 10, True) == 8


def test_where_a_layer_cannot_give_the_next_one_does() -> None:
    table, policy = table_of(0, 1, 4, 8, 9, 10)
    for expert in (8, 9, 10):
        table.residency.pin(expert)
    assert policy.victim(table.evictable, 5, True) == 0


def test_shrinking_wants_nobody() -> None:
    table, policy = table_of(4, 0, 5, 8)
    assert policy.victim(table.evictable, -1, True) == 4
