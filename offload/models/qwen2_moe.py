"""Qwen2-MoE: Qwen1.5-MoE-A2.7B and its Chat, Qwen2-57B-A14B, and the demo."""

from __future__ import annotations

from offload.models.architecture import Architecture, ConfigFields, every_nth_layer


def _shared_expert_size(fields: ConfigFields) -> int:
    return fields.count("shared_expert_intermediate_size")


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    experts_class="Qwen2MoeExperts",
    moe_layers=every_nth_layer,
    shared_expert_size=_shared_expert_size,
    fast_kernels=True,
    config_defaults={
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
    },
)
