"""Synthetic checkpoints of the published shapes' kinds, and a thousandth of their size."""

from __future__ import annotations

from offload.models.synthetic import SHAPES, Recipe

SMALL = {
    "vocab_size": 1024,
    "bos_token_id": 1000,
    "eos_token_id": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
}


def small_recipe(shape: str = "qwen1.5-moe-a2.7b", *, layers: int = 3, **more: object) -> Recipe:
    """A recipe with the names, layers and routing of ``shape``, in matrices that take no time.

    ``more``: seed, skew and persistence.
    """
    config = SHAPES[shape] | SMALL
    if "shared_expert_intermediate_size" in config:
        config |= {"shared_expert_intermediate_size": 128}
    if "head_dim" in config:
        config |= {"head_dim": 64}
    return Recipe(shape, config, layers, **more)  # type: ignore[arg-type]
