"""The model families that finemoe runs, one entry each.

An entry says how transformers names the family's experts module, under which keys checkpoints keep the
experts, and what the family's configuration leaves unsaid. A family belongs in here when the equality test
(``tests/offload/runtime/test_exactness.py``) passes for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known about one model family.

    Attributes:
        model_type: ``model_type`` in ``config.json``.
        experts_class: Name of transformers' module that holds a layer's routed experts.
        experts_prefix: Checkpoint prefix of a layer's experts, with ``{layer}`` for the decoder layer.
        has_shared_expert: Whether every token also goes through a shared expert behind a sigmoid gate.
        has_qk_norm: Whether queries and keys are normalised head by head.
        config_defaults: Values that transformers assumes where ``config.json`` says nothing.
    """

    model_type: str
    experts_class: str
    experts_prefix: str
    has_shared_expert: bool
    has_qk_norm: bool
    config_defaults: dict[str, int] = field(default_factory=dict)

    def expert_keys(self, layer: int, expert: int) -> tuple[str, str, str]:
        """Checkpoint keys of the gate, up and down projection of one expert, stored one by one."""
        prefix = f"{self.experts_prefix.format(layer=layer)}.{expert}"
        return f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight", f"{prefix}.down_proj.weight"

    def fused_keys(self, layer: int) -> tuple[str, str]:
        """Checkpoint keys of a layer's fused experts: ``[E, 2I, H]`` (gate over up) and ``[E, H, I]``."""
        prefix = self.experts_prefix.format(layer=layer)
        return f"{prefix}.gate_up_proj", f"{prefix}.down_proj"


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    experts_class="Qwen2MoeExperts",
    experts_prefix="model.layers.{layer}.mlp.experts",
    has_shared_expert=True,
    has_qk_norm=False,
    config_defaults={
        "vocab_size": 151936,
        "hidden_size": 2048,
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

QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    experts_class="Qwen3MoeExperts",
    experts_prefix="model.layers.{layer}.mlp.experts",
    has_shared_expert=False,
    has_qk_norm=True,
    config_defaults={
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
    },
)

ARCHITECTURES = {family.model_type: family for family in (QWEN2_MOE, QWEN3_MOE)}
"""Every family by its ``model_type``."""
