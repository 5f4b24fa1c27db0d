"""A learnt predictor a few layers ahead."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from offload.errors import ConfigError
from offload.policy.promoe import ProMoE
from tests.support.policies import Table, one_hot_routers

RESIDUAL = [0.0, 3.0, 1.0, 2.0]


class Learnt:
    """Probes that see the residual backwards."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def scores(
        self, layer: int, distance: int, residual: NDArray[np.float32], shared: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        self.asked.append((layer, distance))
        assert shared is None and residual.shape == (4,)
        return residual[::-1] * 10


def test_the_predictor_is_asked_a_stride_ahead() -> None:
    probes = Learnt()
    table = Table(
        layers=5, slots=20, routers=one_hot_routers(5, 4), knowledge=SimpleNamespace(probes=probes), stride=3
    )
    policy = ProMoE(table.around)
    assert policy.note == ""
    table.begin(policy)
    found = []
    for layer in range(5):
        table.route(policy, layer, [[0, 1]], RESIDUAL)
        found.append([one.expert for one in policy.decide(layer).fetch])
    assert probes.asked == [(0, 3), (1, 3)]
    assert found == [[12 + 2, 12 + 0], [16 + 2, 16 + 0], [], [], []]


def test_the_earlier_layer_goes_first() -> None:
    table = Table(layers=5, slots=20, routers=one_hot_routers(5, 4))
    policy = ProMoE(table.around)
    table.begin(policy)
    table.route(policy, 0, [[0, 1]], [0.0, 0.1, 0.0, 0.0])  # hardly a preference
    unsure = policy.decide(0).fetch
    table.route(policy, 1, [[0, 1]], [0.0, 100.0, 0.0, 0.0])
    sure = policy.decide(1).fetch
    assert min(one.priority for one in unsure) > max(one.priority for one in sure)
    assert sure[0].priority > sure[1].priority


def test_reads_whose_layer_is_over_are_taken_back() -> None:
    table = Table(layers=5, slots=20, routers=one_hot_routers(5, 4))
    policy = ProMoE(table.around)
    table.begin(policy)
    cancelled = []
    for layer in range(5):
        table.route(policy, layer, [[0, 2]], RESIDUAL)
        decision = policy.decide(layer)
        cancelled.append(decision.cancel)
        for one in decision.fetch:
            table.residency.start_load(one.expert)
    assert cancelled == [[], [], [9, 11], [13, 15], [17, 19]]


@pytest.mark.parametrize("knowledge", [None, SimpleNamespace(probes=None)])
def test_without_predictors_the_routers_stand_in_and_it_says_so(knowledge: object) -> None:
    table = Table(routers=one_hot_routers(3, 4), knowledge=knowledge)
    policy = ProMoE(table.around)
    assert "no trained predictors" in policy.note
    table.begin(policy)
    table.route(policy, 0, [[0, 1]], RESIDUAL)
    assert [one.expert for one in policy.decide(0).fetch] == [9, 11]


def test_without_anything_it_does_not_look() -> None:
    policy = ProMoE(Table().around)
    assert not policy.looks_ahead and not policy.wants_residual
    assert "nothing is read ahead" in policy.note


@pytest.mark.parametrize("stride", [0, 1.5, 5])
def test_a_stride_out_of_range_is_refused(stride: float) -> None:
    with pytest.raises(ConfigError):
        ProMoE(Table(stride=stride).around)
