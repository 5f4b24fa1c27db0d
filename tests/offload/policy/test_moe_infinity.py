"""Activation matrices of requests: alike, replaced, predicted from, kept by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import ConfigError
from offload.policy import REFUSE
from offload.policy.moe_infinity import ActivationCollection, MoEInfinity
from tests.support.policies import Table

LAYERS, EXPERTS = 3, 4
Choices = list[tuple[int, list[int]]]

choices = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=5)),
    max_size=12,
)


def matrix(request: Choices) -> np.ndarray:
    counts = np.zeros((LAYERS, EXPERTS))
    for layer, experts in request:
        np.add.at(counts[layer], experts, 1)
    return counts


def feed(collection: ActivationCollection, request: Choices) -> None:
    for layer, experts in request:
        collection.count(layer, np.array(experts, np.int32)[:, None])


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over layers of the cosines of the rows."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / np.maximum(lengths, 1e-9)).mean())


@given(past=st.lists(choices, max_size=6), running=choices)
def test_the_most_alike_by_the_definition(past: list[Choices], running: Choices) -> None:
    collection = ActivationCollection(LAYERS, EXPERTS, capacity=3)
    stored: list[np.ndarray] = []
    for request in past:
        feed(collection, request)
        collection.finish()
        counts = matrix(request)
        if not counts.any():
            continue
        if len(stored) < 3:
            stored.append(counts)
            continue
        alike = [round(likeness(counts, other), 5) for other in stored]
        # Of equals the oldest goes; any of them will do here, as they are compared by what is stored.
        candidates = [number for number, value in enumerate(alike) if value >= max(alike) - 1e-4]
        rows = [collection.shares(number) for number in range(3)]
        place = next(
            (n for n in candidates if np.allclose(rows[n], counts / np.maximum(counts.sum(1)[:, None], 1))), -1
        )
        assert place >= 0
        stored[place] = counts
    assert collection.size == len(stored)
    feed(collection, running)
    collection.settle()
    if not stored:
        assert collection.most_like() == -1
        return
    of_each = [likeness(matrix(running), other) for other in stored]
    assert of_each[collection.most_like()] >= max(of_each) - 1e-4
    shares = collection.shares(0)
    assert np.allclose(shares, stored[0] / np.maximum(stored[0].sum(axis=1, keepdims=True), 1))


def test_the_oldest_of_equals_is_replaced() -> None:
    collection = ActivationCollection(1, 4, capacity=2)
    for expert in (0, 0, 0):
        collection.count(0, np.array([[expert]], np.int32))
        collection.finish()
    collection.count(0, np.array([[1]], np.int32))
    collection.finish()  # unlike both: the older one, number 1, goes
    assert collection.shares(0)[0].tolist() == [1, 0, 0, 0]
    assert collection.shares(1)[0].tolist() == [0, 1, 0, 0]


def after_two_requests(**options: float) -> tuple[Table, MoEInfinity]:
    """One that used experts 0 and 1 of every layer, and one that used 2 and 3; 2 and 0 more often."""
    table = Table(slots=6, **options)
    policy = MoEInfinity(table.around)
    assert "no past requests" in policy.note or policy.note == ""
    for request, (often, seldom) in enumerate(((0, 1), (2, 3)), start=1):
        for _ in range(3):
            table.token(policy, [[often, seldom]] * 3, request)
        table.token(policy, [[often, often]] * 3, request)
    table.begin(policy, request=3)
    assert policy.note == "2 past requests"
    return table, policy


def test_what_the_most_alike_request_used_is_read_nearest_first() -> None:
    table, policy = after_two_requests()
    table.route(policy, 0, [[2, 1]])
    table.route(policy, 0, [[2, 3]])
    decision = policy.decide(0)
    # shares 5/8 and 3/8, times 2/3 in the next layer and 1/3 in the one behind it
    assert [one.expert for one in decision.fetch] == [6, 7, 10, 11]
    assert decision.fetch[0].priority == pytest.approx(5 / 8 * 2 / 3, rel=1e-3)
    assert decision.fetch[3].priority == pytest.approx(3 / 8 / 3, rel=1e-3)


def test_no_more_is_read_than_may_be_under_way() -> None:
    table, policy = after_two_requests(ahead=3)
    table.route(policy, 0, [[2, 3]])
    table.link.in_flight = 1
    assert [one.expert for one in policy.decide(0).fetch] == [6, 7]
    table.link.in_flight = 3
    assert policy.decide(0).fetch == []


def test_the_first_request_predicts_itself() -> None:
    table = Table()
    policy = MoEInfinity(table.around)
    table.token(policy, [[0, 1], [2, 3], [0, 3]])
    table.begin(policy)
    table.route(policy, 0, [[0, 1]])
    assert sorted(one.expert for one in policy.decide(0).fetch) == [6, 7, 8, 11]


def test_the_first_layers_and_the_used_ones_are_kept() -> None:
    table, policy = after_two_requests()
    table.route(policy, 0, [[2, 3]])
    table.put(0, 2, 6, 10)
    assert policy.victim(np.array([2, 6, 10]), 9, True) == 10  # all used alike: the last layer
    assert policy.victim(np.array([0, 2, 6, 10]), 9, True) == 0  # not used by this one, nor by the one it is like
    assert policy.victim(np.array([2, 6]), 10, False) == REFUSE  # worth more than 10
    assert policy.victim(np.array([10]), 6, False) == 10


def test_a_read_ahead_stays_until_its_layer() -> None:
    table, policy = after_two_requests()
    table.route(policy, 0, [[2, 3]])
    fetched = [one.expert for one in policy.decide(0).fetch]
    assert 10 in fetched
    table.put(2, 10)
    assert policy.victim(np.array([2, 10]), 9, True) == 2
    assert policy.victim(np.array([10]), 9, True) == 10


def test_requests_are_told_apart() -> None:
    table, policy = after_two_requests()
    table.route(policy, 0, [[0, 1]])
    assert [one.expert for one in policy.decide(0).fetch] == [4, 5, 8, 9]
    table.begin(policy, request=4)
    table.route(policy, 0, [[2, 3]])
    assert [one.expert for one in policy.decide(0).fetch] == [6, 7, 10, 11]


@pytest.mark.parametrize("options", [{"capacity": 0}, {"capacity": 1.5}, {"ahead": 65}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MoEInfinity(Table(**options).around)
