"""OLMoE: OLMoE-1B-7B. Queries and keys are normalised over all heads together."""

from __future__ import annotations

from offload.models.architecture import Architecture

OLMOE = Architecture(
    model_type="olmoe",
    experts_class="OlmoeExperts",
    expert_size_field="intermediate_size",
    config_defaults={
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "num_experts_per_tok": 8,
        "num_experts": 64,
    },
)
