"""Phi-3.5-MoE. Tensors on the hub have Mixtral's names; attention, norms and head have biases.

Its rotary embedding is LongRoPE, which changes when the text grows past ``original_max_position_embeddings``.
transformers then throws its key-value cache away and computes all positions again in one piece, larger than any
that a memory budget plans for, so the context ends there: 4,096 positions for Phi-3.5-MoE-instruct.
"""

from __future__ import annotations

from offload.models.architecture import Architecture, ConfigFields


def _max_context(fields: ConfigFields) -> int:
    longest = fields.count("max_position_embeddings")
    rope = fields.table("rope_parameters") or fields.table("rope_scaling")
    original = rope.get("original_max_position_embeddings", longest)
    return min(longest, fields.count("original_max_position_embeddings", default=original))


def _refused(fields: ConfigFields) -> str:
    # transformers' router draws a first and a second expert, whatever the configuration says.
    return "" if fields.count("num_experts_per_tok") == 2 else "its router chooses two experts a token"


PHIMOE = Architecture(
    model_type="phimoe",
    experts_class="PhimoeExperts",
    experts_prefix="model.layers.{layer}.block_sparse_moe.experts",
    projections=("w1", "w3", "w2"),
    renamed=((".mlp.router.", ".block_sparse_moe.gate."), (".mlp.", ".block_sparse_moe.")),
    expert_size_field="intermediate_size",
    max_context=_max_context,
    refused=_refused,
    config_defaults={
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 6400,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_experts": 16,
    },
)
