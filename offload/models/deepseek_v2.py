"""DeepSeek-V2: DeepSeek-V2-Lite and its Chat.

Attention is multi-head latent attention (arXiv 2405.04434). What is cached of a position is one latent vector, as
the key, and the rotated part that all heads share, as the value; keys and values of all heads are worked out of
them in every forward pass.
"""

from __future__ import annotations

from offload.models.architecture import Architecture, AttentionShape, ConfigFields


def _moe_layers(fields: ConfigFields) -> tuple[int, ...]:
    dense = fields.count("first_k_dense_replace", default=0, least=0)
    return tuple(range(dense, fields.count("num_hidden_layers")))


def _shared_experts_size(fields: ConfigFields) -> int:
    return fields.count("n_shared_experts") * fields.count("moe_intermediate_size")


def _attention(fields: ConfigFields) -> AttentionShape:
    num_heads = fields.count("num_attention_heads")
    plain, rotated = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    value = fields.count("v_head_dim")
    return AttentionShape(
        num_heads=num_heads,
        head_dim=plain + rotated,
        num_kv_heads=1,
        key_dim=fields.count("kv_lora_rank"),
        value_dim=rotated,
        unpacked_dim=num_heads * (plain + value + plain + rotated),
    )


def _refused(fields: ConfigFields) -> str:
    return "" if fields.count("moe_layer_freq", default=1) == 1 else "some of its later layers have no experts"


DEEPSEEK_V2 = Architecture(
    model_type="deepseek_v2",
    experts_class="DeepseekV2Experts",
    moe_layers=_moe_layers,
    shared_expert_size=_shared_experts_size,
    attention=_attention,
    refused=_refused,
    config_defaults={
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "num_experts": 64,
        "n_shared_experts": 2,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
)
