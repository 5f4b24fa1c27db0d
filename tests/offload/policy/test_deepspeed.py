"""Whole layers, streamed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from offload.policy import REFUSE, make_policy
from offload.policy.deepspeed import DeepSpeed
from offload.trace.simulator import Timing, simulate
from tests.support.policies import Table
from tests.support.routing import synthetic_model, synthetic_requests


def at(table: Table, layer: int) -> DeepSpeed:
    policy = DeepSpeed(table.around)
    table.begin(policy)
    table.route(policy, layer, [[0, 1]])
    return policy


def test_the_next_layer_is_read_as_a_whole() -> None:
    table = Table(slots=8)
    table.put(6)
    assert [one.expert for one in at(table, 0).decide(0).fetch] == [4, 5, 7]
    assert [one.expert for one in at(table, 2).decide(2).fetch] == [0, 1, 2, 3]  # for the next token


def test_as_many_layers_as_there_are_slots_for_one_at_a_time() -> None:
    table = Table(layers=5, slots=12)
    table.put(4, 5, 6)
    fetch = at(table, 0).decide(0).fetch
    assert [one.expert for one in fetch] == [7, 8, 9, 10]
    assert fetch[0].priority > fetch[1].priority == fetch[3].priority
    table.put(7, 8, 9, 10, 11)
    assert at(table, 0).decide(0).fetch == []  # a third layer would have no slots


def test_the_layer_that_was_just_left_gives_first() -> None:
    table = Table(slots=6)
    table.put(1, 2, 5, 9)
    policy = at(table, 1)
    assert policy.victim(np.array([1, 5, 9]), 8, True) == 9  # waiting in layer 2, whose others are needed last
    assert policy.victim(np.array([1, 5]), 8, True) == 5
    assert policy.victim(np.array([1, 5, 9]), 8, False) == 5
    assert policy.victim(np.array([1, 9]), 8, False) == 1
    assert policy.victim(np.array([9]), 8, False) == REFUSE
    assert policy.victim(np.array([9]), 0, False) == REFUSE  # 9's layer comes before the next token


def test_below_two_layers_of_slots_it_says_so_and_streams_what_fits() -> None:
    table = Table(slots=6)
    policy = at(table, 0)
    assert "6 slots" in policy.note
    assert len(policy.decide(0).fetch) == 4
    table.residency.resize(8, lambda source, target: None)
    table.begin(policy)
    assert policy.note == ""


@pytest.mark.parametrize("slots", [32, 48])
def test_a_fast_link_leaves_no_misses_behind_the_first_layer(slots: int) -> None:
    model = synthetic_model(layers=4)
    requests = list(synthetic_requests(model))
    timing = Timing(layer_s=1.0, read_s=0.01)
    outcome = simulate(model, requests, slots, timing, partial(make_policy, "deepspeed"))
    assert outcome.decode.missed <= model.top_k
    assert outcome.stall_s <= model.top_k * timing.read_s
    slow = simulate(model, requests, slots, Timing(layer_s=1.0, read_s=1.0), partial(make_policy, "deepspeed"))
    assert slow.stall_s > 10
