"""A policy changes time, never text: logits bit for bit as with all experts resident, with either kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from offload import Engine, EngineConfig
from offload.config import POLICIES
from offload.policy.base import Blind, Decision, Fetch
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine
from tests.support.reference import Continuation

PROMPTS = ([7], list(range(20, 57)), list(range(3, 120, 2)))
AHEAD = ("deepspeed", "mixtral-offloading", "moe-infinity", "promoe")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return tiny_checkpoint(folder, layers=4, experts=16, top_k=4, shards=2)


@pytest.fixture(scope="module", params=["reference", "fast"])
def expected(request: pytest.FixtureRequest, tiny: Path) -> tuple[str, list[Continuation]]:
    """The kernels, and what they answer with everything resident."""
    with open_engine(tiny, 1.0, request.param) as engine:
        return request.param, [greedy(engine, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_no_policy_reaches_the_logits(
    tiny: Path, expected: tuple[str, list[Continuation]], fraction: float
) -> None:
    """One engine goes through all policies, each beginning with what the one before it has left."""
    kernels, answers = expected
    with open_engine(tiny, fraction, kernels) as engine:
        before = engine.snapshot().experts.decode
        for policy in POLICIES:
            engine.set_policy(policy)
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                assert_same(greedy(engine, prompt, 8), answer)
            assert engine.snapshot().policy == policy
            after = engine.snapshot().experts.decode
            used = after - before
            before = after
            assert used.selections == sum(len(answer.token_ids) - 1 for answer in answers) * 4 * 4
            if policy in ("demand", "lfu", "layer-lru"):
                assert used.bytes_prefetch == 0
            if policy in AHEAD and fraction:
                assert used.bytes_prefetch > 0


class Spiteful(Blind):
    """Has others read behind every router, and for them gives up the layer that runs wherever it is allowed to."""

    looks_ahead = True
    left_of_the_layer = offered = 0

    def begin_pass(self, forward: ForwardPass) -> None:
        self.decoding = forward.phase == Phase.DECODE
        self.first, self.chosen = 0, np.zeros(0, np.int64)

    def routed(self, routing: Routing) -> None:
        self.first = routing.layer * self.around.experts
        self.chosen = self.first + routing.chosen[-1]

    def decide(self, layer: int) -> Decision:
        absent = np.flatnonzero(self.around.residency.state == 0)
        return Decision([], [Fetch(int(expert), 1.0) for expert in absent[:3]])

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        own = evictable[(evictable >= self.first) & (evictable < self.first + self.around.experts)]
        self.offered += 1
        self.left_of_the_layer += len(own) > 0
        if self.decoding and not demand:
            assert not np.isin(self.chosen, evictable).any()
        return int(own[0] if len(own) else evictable[0])


def test_no_look_takes_an_expert_from_the_layer_that_runs(
    tiny: Path, expected: tuple[str, list[Continuation]]
) -> None:
    kernels, answers = expected
    with open_engine(tiny, 0.75, kernels) as engine:
        policy = Spiteful(engine.surroundings)
        engine._loaded.watch.set_policy(policy)
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            assert_same(greedy(engine, prompt, 8), answer)
        assert policy.offered > policy.left_of_the_layer > 10
        counts = engine.snapshot().experts.decode
        assert counts.resident + counts.prefetched > 0 and counts.bytes_prefetch > 0
        assert not engine._loaded.residency.pins.any()


def test_a_policy_given_at_the_start_is_the_one_that_runs(tiny: Path) -> None:
    config = EngineConfig(
        model=tiny,
        experts_fraction=0.4,
        kernels="reference",
        device="cpu",
        context=256,
        policy="promoe",
        policy_options={"stride": 1},
    )
    with Engine(config) as engine:
        greedy(engine, PROMPTS[0], 8)
        assert engine.snapshot().policy == "promoe"
        assert engine.snapshot().experts.decode.bytes_prefetch > 0
