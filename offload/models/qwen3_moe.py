"""Qwen3-MoE: Qwen3-30B-A3B and its kin."""

from __future__ import annotations

from offload.models.architecture import Architecture, every_nth_layer

QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    experts_class="Qwen3MoeExperts",
    moe_layers=every_nth_layer,
    fast_kernels=True,
    config_defaults={
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
    },
)
