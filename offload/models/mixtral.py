"""Mixtral: Mixtral-8x7B and 8x22B. Checkpoints on the hub keep the names that Mistral gave the tensors."""

from __future__ import annotations

from offload.models.architecture import Architecture

MIXTRAL = Architecture(
    model_type="mixtral",
    experts_class="MixtralExperts",
    experts_prefix="model.layers.{layer}.block_sparse_moe.experts",
    projections=("w1", "w3", "w2"),
    renamed=((".mlp.", ".block_sparse_moe."),),
    expert_size_field="intermediate_size",
    config_defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_experts": 8,
    },
)
