"""A policy changes time, never text: logits bit for bit as with all experts resident, with either kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload import Engine, EngineConfig
from offload.config import POLICIES
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
