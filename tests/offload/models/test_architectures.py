"""Families read from the configurations that their models have on the hub, against sizes worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.models import ModelSpec, read_spec
from offload.models.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Published:
    """A model's published configuration, as far as it matters, and what follows from it."""

    config: dict[str, Any]
    moe_layers: tuple[int, ...]
    total_experts: int
    expert_bytes: int
    kv_bytes_per_token: int
    shared_expert_size: int
    dense_mlp_size: int
    max_context: int
    expert_key: str


MODELS = {
    "Mixtral-8x7B-Instruct-v0.1": Published(
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        moe_layers=tuple(range(32)),
        total_experts=256,
        expert_bytes=3 * 4096 * 14336 * 2,
        kv_bytes_per_token=32 * 8 * (128 + 128) * 2,
        shared_expert_size=0,
        dense_mlp_size=0,
        max_context=32768,
        expert_key="model.layers.3.block_sparse_moe.experts.7.w1.weight",
    ),
    "Phi-3.5-MoE-instruct": Published(
        {
            "model_type": "phimoe",
            "attention_bias": True,
            "hidden_size": 4096,
            "intermediate_size": 6400,
            "lm_head_bias": True,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 16,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"original_max_position_embeddings": 4096, "type": "longrope"},
            "rope_theta": 10000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "vocab_size": 32064,
        },
        moe_layers=tuple(range(32)),
        total_experts=512,
        expert_bytes=3 * 4096 * 6400 * 2,
        kv_bytes_per_token=32 * 8 * (128 + 128) * 2,
        shared_expert_size=0,
        dense_mlp_size=0,
        max_context=4096,
        expert_key="model.layers.3.block_sparse_moe.experts.7.w1.weight",
    ),
    "OLMoE-1B-7B-0924-Instruct": Published(
        {
            "model_type": "olmoe",
            "clip_qkv": None,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "max_position_embeddings": 4096,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 50304,
        },
        moe_layers=tuple(range(16)),
        total_experts=1024,
        expert_bytes=3 * 2048 * 1024 * 2,
        kv_bytes_per_token=16 * 16 * (128 + 128) * 2,
        shared_expert_size=0,
        dense_mlp_size=0,
        max_context=4096,
        expert_key="model.layers.3.mlp.experts.7.gate_proj.weight",
    ),
    "DeepSeek-V2-Lite-Chat": Published(
        {
            "model_type": "deepseek_v2",
            "first_k_dense_replace": 1,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "kv_lora_rank": 512,
            "max_position_embeddings": 163840,
            "moe_intermediate_size": 1408,
            "moe_layer_freq": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_attention_heads": 16,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "tie_word_embeddings": False,
            "v_head_dim": 128,
            "vocab_size": 102400,
        },
        moe_layers=tuple(range(1, 27)),
        total_experts=26 * 64,
        expert_bytes=3 * 2048 * 1408 * 2,
        kv_bytes_per_token=27 * (512 + 64) * 2,
        shared_expert_size=2816,
        dense_mlp_size=10944,
        max_context=163840,
        expert_key="model.layers.3.mlp.experts.7.gate_proj.weight",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_sizes_of_published_models(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    spec = spec_of(tmp_path, model.config)
    assert spec.moe_layers == model.moe_layers
    assert spec.total_experts == model.total_experts
    assert spec.expert_bytes == model.expert_bytes
    assert spec.kv_bytes_per_token == model.kv_bytes_per_token
    assert spec.shared_expert_size == model.shared_expert_size
    assert spec.dense_mlp_size == model.dense_mlp_size
    assert spec.max_context == model.max_context
    assert spec.architecture.expert_keys(3, 7)[0] == model.expert_key


def test_dense_tensors_under_their_names_on_the_hub() -> None:
    def hub_key(family: str, parameter: str) -> str:
        return ARCHITECTURES[family].hub_key(f"model.layers.2.{parameter}").removeprefix("model.layers.2.")

    assert hub_key("mixtral", "mlp.gate.weight") == "block_sparse_moe.gate.weight"
    assert hub_key("phimoe", "mlp.router.weight") == "block_sparse_moe.gate.weight"
    assert hub_key("olmoe", "mlp.gate.weight") == "mlp.gate.weight"
    assert hub_key("deepseek_v2", "mlp.shared_experts.up_proj.weight") == "mlp.shared_experts.up_proj.weight"
    for family in ARCHITECTURES:
        assert hub_key(family, "self_attn.q_proj.weight") == "self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("Phi-3.5-MoE-instruct", {"num_experts_per_tok": 4}, "its router chooses two experts a token"),
        ("DeepSeek-V2-Lite-Chat", {"moe_layer_freq": 2}, "some of its later layers have no experts"),
    ],
)
def test_what_a_family_does_not_run_is_refused(tmp_path: Path, name: str, values: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedModel, match=why):
        spec_of(tmp_path, MODELS[name].config | values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Mixtral-8x7B-Instruct-v0.1", {"num_local_experts": 0}),
        ("Mixtral-8x7B-Instruct-v0.1", {"num_attention_heads": 10**9}),
        ("Phi-3.5-MoE-instruct", {"rope_scaling": ["longrope"]}),
        ("Phi-3.5-MoE-instruct", {"original_max_position_embeddings": "4k"}),
        ("DeepSeek-V2-Lite-Chat", {"first_k_dense_replace": -1}),
        ("DeepSeek-V2-Lite-Chat", {"first_k_dense_replace": 27}),
        ("DeepSeek-V2-Lite-Chat", {"kv_lora_rank": 0.5}),
        ("OLMoE-1B-7B-0924-Instruct", {"num_experts_per_tok": 65}),
    ],
)
def test_values_that_no_model_has_are_refused(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpoint):
        spec_of(tmp_path, MODELS[name].config | values)


def spec_of(folder: Path, config: dict[str, Any]) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return read_spec(folder)
