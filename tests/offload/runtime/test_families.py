"""The families beside Qwen's against plain transformers: logits bit for bit, however much is resident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.errors import ConfigError, UnsupportedModel
from offload.models import read_spec
from offload.models.architectures import ARCHITECTURES
from tests.support.checkpoints import swap_experts, tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine
from tests.support.reference import Continuation, PlainTransformers

FAMILIES = sorted(set(ARCHITECTURES) - {"qwen2_moe", "qwen3_moe"})
PROMPTS = ([5], list(range(20, 57)), list(range(3, 300, 2)))
NEW_TOKENS = 6


@pytest.fixture(scope="module", params=FAMILIES)
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Continuation]]:
    """A family, and what plain transformers answers with the weights that all its checkpoints here have."""
    folder = tmp_path_factory.mktemp("plain") / request.param
    plain = PlainTransformers(tiny_checkpoint(folder, family=request.param, experts=20))
    return request.param, [plain.greedy(prompt, NEW_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize(("layout", "shards"), [("per-expert", 1), ("fused", 3), ("scattered", 2)])
def test_reference_is_transformers_bit_for_bit(
    tmp_path: Path, answers: tuple[str, list[Continuation]], layout: str, shards: int
) -> None:
    family, expected = answers
    folder = tiny_checkpoint(tmp_path / "model", family=family, layout=layout, shards=shards, experts=20)
    with open_engine(folder, 0.1, "reference") as engine:
        for fraction in (0.1, 0.5, 1.0):
            engine.set_budget(experts_fraction=fraction)
            for prompt, theirs in zip(PROMPTS, expected, strict=True):
                engine.forget()
                assert_same(greedy(engine, prompt, NEW_TOKENS), theirs)
            assert engine.snapshot().memory.slots == round(fraction * read_spec(folder).total_experts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_is_exact(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family, experts=16)
    assert_turns_are_exact(folder)


@pytest.mark.parametrize("family", ["mixtral", "phimoe"])
def test_sliding_window_attention_is_exact(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family, experts=16, sliding_window=16)
    assert_turns_are_exact(folder)
    plain = PlainTransformers(folder).greedy(PROMPTS[1], NEW_TOKENS)
    with open_engine(folder, 0.25, "reference") as engine:
        assert_same(greedy(engine, PROMPTS[1], NEW_TOKENS), plain)


def test_compressed_queries_and_groups_of_experts_are_exact(tmp_path: Path) -> None:
    # What the large DeepSeek-V2 has beyond V2-Lite.
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
    folder = tiny_checkpoint(
        tmp_path / "model", family="deepseek_v2", experts=16, top_k=4, q_lora_rank=24, **groups
    )
    assert_turns_are_exact(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swapped_expert_is_noticed(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family)
    right = PlainTransformers(folder).greedy(PROMPTS[1], 4)
    swap_experts(folder, layer=1, one=0, other=5)
    with open_engine(folder, 0.5, "reference") as engine:
        assert not torch.equal(greedy(engine, PROMPTS[1], 4).logits, right.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_as_the_hub_has_it(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family)
    spec = read_spec(folder)
    rewrite_as_before_transformers_5(folder)
    assert read_spec(folder) == spec
    with open_engine(folder, 0.5, "reference") as engine:
        assert_same(greedy(engine, PROMPTS[1], 4), PlainTransformers(folder).greedy(PROMPTS[1], 4))


def test_longrope_ends_the_context_where_it_would_change(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family="phimoe")
    prompt = list(range(4, 254))
    with open_engine(folder, 0.5, "reference") as engine:
        assert engine.context == 256
        ours = greedy(engine, prompt, 20)
    assert len(ours.token_ids) == 6
    assert_same(ours, PlainTransformers(folder).greedy(prompt, 6))


def test_latent_attention_caches_the_latents(tmp_path: Path) -> None:
    spec = read_spec(tiny_checkpoint(tmp_path / "model", family="deepseek_v2", layers=3))
    assert spec.kv_bytes_per_token == 3 * (32 + 8) * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_kernels_say_that_they_do_not_know_the_family(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family)
    with pytest.raises(ConfigError, match=f"do not compute layers of type {family}"):
        open_engine(folder, 0.5, "fast")
    with open_engine(folder, 0.5, "auto") as engine:
        assert engine.snapshot().kernels == "reference"


def test_experts_with_biases_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family="mixtral", biased_expert=True)
    with pytest.raises(UnsupportedModel, match=r"have biases \('model\.layers\.0\..*w1\.bias'\)"):
        open_engine(folder, 0.5, "reference")


def assert_turns_are_exact(folder: Path) -> None:
    first, question = list(range(40, 60)), [11, 12, 13]
    with open_engine(folder, 0.25, "reference") as engine:
        one = greedy(engine, first, 5)
        two = greedy(engine, [*first, *one.token_ids, *question], 3)
    # The last token of an answer has not been through the model when the answer ends.
    pieces = [first, *([t] for t in one.token_ids[:-1]), [one.token_ids[-1], *question]]
    pieces += [[t] for t in two.token_ids[:-1]]
    expected = PlainTransformers(folder).replay(pieces)
    assert torch.equal(torch.cat((one.logits, two.logits)), torch.stack(expected))


def rewrite_as_before_transformers_5(folder: Path) -> None:
    """Rotary embedding under ``rope_theta`` and ``rope_scaling``, with what remote code left behind."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    if config["model_type"] == "phimoe":
        config["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_phimoe.PhiMoEForCausalLM"}
    if config["model_type"] == "deepseek_v2":
        config |= {"moe_layer_freq": 1, "ep_size": 1, "scoring_func": "softmax", "seq_aux": True}
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"}
        del config["head_dim"]
    path.write_text(json.dumps(config))
