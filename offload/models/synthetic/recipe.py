"""What a synthetic checkpoint is made of: the configuration of a published model, and a few numbers.

The configurations are those that the hub has under ``Qwen/Qwen1.5-MoE-A2.7B`` and ``Qwen/Qwen3-30B-A3B``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offload.errors import ConfigError

DEFAULT_SKEW = 0.2
DEFAULT_PERSISTENCE = 0.6
"""With these an LRU cache hits about as often as published for models of these shapes: ``docs/benchmarks.md``."""

MOST_SKEW = 0.7
MOST_PERSISTENCE = 0.9
"""Beyond these too little is left of a token itself for the next one to follow from it."""

SHAPES: dict[str, dict[str, Any]] = {
    "qwen1.5-moe-a2.7b": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "max_position_embeddings": 8192,
        "max_window_layers": 21,
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 1408,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 5632,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
"""Names of the shapes, and the ``config.json`` of each."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a synthetic checkpoint follows from: equal recipes make equal bytes.

    Attributes:
        shape: What the model is called.
        config: ``config.json`` of the whole model.
        layers: Decoder layers to make. Fewer than all are the first ones of the whole model, weight by weight.
        seed: Of all weights.
        skew: Share of the variance of what routers see that is the same for every token (0..0.7): experts that
            lie in its direction are used more than others.
        persistence: Share of the rest that changes slowly from token to token (0..0.9): experts that were used are
            used again.
    """

    shape: str
    config: dict[str, Any]
    layers: int
    seed: int = 0
    skew: float = DEFAULT_SKEW
    persistence: float = DEFAULT_PERSISTENCE

    @property
    def all_layers(self) -> int:
        """Decoder layers of the whole model."""
        return int(self.config["num_hidden_layers"])

    def made_config(self) -> dict[str, Any]:
        """``config.json`` of what is made."""
        return self.config | {"num_hidden_layers": self.layers}


def recipe(
    shape: str,
    *,
    layers: int | None = None,
    seed: int = 0,
    skew: float = DEFAULT_SKEW,
    persistence: float = DEFAULT_PERSISTENCE,
) -> Recipe:
    """The recipe for one of :data:`SHAPES`, checked; all its layers if ``layers`` is None.

    Raises:
        ConfigError: There is no such shape, or a number is out of its range.
    """
    config = SHAPES.get(shape.lower())
    if config is None:
        raise ConfigError(f"there is no shape '{shape}'", f"choose one of {', '.join(SHAPES)}")
    most = int(config["num_hidden_layers"])
    layers = most if layers is None else layers
    if not 1 <= layers <= most:
        raise ConfigError(f"layers is {layers}", f"{shape} has 1 to {most}")
    for name, value, top in (("skew", skew, MOST_SKEW), ("persistence", persistence, MOST_PERSISTENCE)):
        if not 0 <= value <= top:
            raise ConfigError(f"{name} is {value}", f"it lies between 0 and {top}")
    if seed < 0:
        raise ConfigError(f"seed is {seed}", "it must be at least 0")
    return Recipe(shape.lower(), config, layers, seed, skew, persistence)
