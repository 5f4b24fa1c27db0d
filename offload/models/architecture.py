"""What finemoe has to know about a model family, and the vocabulary in which a family says it.

``docs/adding-a-model.md`` goes through an entry step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offload.errors import CorruptCheckpoint


class ConfigFields:
    """The values of a ``config.json``, each checked when it is read."""

    LARGEST = 1 << 24

    def __init__(self, path: Path, config: dict[str, Any], defaults: dict[str, int]) -> None:
        self._path = path
        self._config = config
        self._defaults = defaults

    def count(self, name: str, *other_names: str, default: int | None = None, least: int = 1) -> int:
        """The count under `name`, or under another name that some writers of checkpoints use."""
        present = (self._config[key] for key in (name, *other_names) if self._config.get(key) is not None)
        value = next(present, None)
        if value is None:
            value = self._defaults.get(name, default)
        if type(value) is not int or not least <= value <= self.LARGEST:
            raise self._wrong(name, value)
        return value

    def indices(self, name: str) -> set[int]:
        """The list of layers under `name`; none where it is absent or null."""
        value = self._config.get(name)
        if value is None:
            return set()
        if not isinstance(value, list) or not all(type(index) is int for index in value):
            raise self._wrong(name, value)
        return set(value)

    def table(self, name: str) -> dict[str, Any]:
        """The object under `name`; empty where it is absent or null."""
        value = self._config.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(name, value)
        return value

    def _wrong(self, name: str, value: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self._path} says {name} = {value!r}", "fetch the model again")


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Widths of a family's attention, in weights.

    Attributes:
        num_heads: Query heads.
        head_dim: Width of one query.
        num_kv_heads: Heads of the key-value cache.
        key_dim / value_dim: Width of one cached key and one cached value.
        unpacked_dim: What a forward pass works out of each cached position before it can attend, all heads
            together; 0 where attention uses the cache as it is.
    """

    num_heads: int
    head_dim: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    unpacked_dim: int = 0


def grouped_query_attention(fields: ConfigFields) -> AttentionShape:
    """Keys and values of one width, each shared by a group of query heads."""
    num_heads = fields.count("num_attention_heads")
    head_dim = fields.count("head_dim", default=max(fields.count("hidden_size") // num_heads, 1))
    num_kv_heads = fields.count("num_key_value_heads", default=num_heads)
    return AttentionShape(num_heads, head_dim, num_kv_heads, head_dim, head_dim)


def every_layer(fields: ConfigFields) -> tuple[int, ...]:
    """Experts in all decoder layers."""
    return tuple(range(fields.count("num_hidden_layers")))


def every_nth_layer(fields: ConfigFields) -> tuple[int, ...]:
    """Experts in each ``decoder_sparse_step``-th layer that ``mlp_only_layers`` does not name."""
    step = fields.count("decoder_sparse_step", default=1)
    dense = fields.indices("mlp_only_layers")
    return tuple(i for i in range(fields.count("num_hidden_layers")) if i not in dense and (i + 1) % step == 0)


def no_shared_expert(fields: ConfigFields) -> int:
    """Every expert is routed to."""
    return 0


def max_position_embeddings(fields: ConfigFields) -> int:
    """All positions that the configuration names."""
    return fields.count("max_position_embeddings")


def nothing_refused(fields: ConfigFields) -> str:
    """Every configuration of the family runs."""
    return ""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known about one model family.

    Attributes:
        model_type: ``model_type`` in ``config.json``.
        experts_class: Name of transformers' module that holds a layer's routed experts.
        experts_prefix: Checkpoint prefix of a layer's experts stored one by one, with ``{layer}`` for the layer.
        projections: An expert's gate, up and down projection under that prefix.
        renamed: Parts of transformers' parameter names and what checkpoints on the hub call them; the first that
            occurs in a name counts.
        expert_size_field: Name in ``config.json`` of a routed expert's width.
        config_defaults: Values that transformers assumes where ``config.json`` says nothing.
        moe_layers: Which decoder layers have routed experts.
        shared_expert_size: Neurons of what every token goes through beside its routed experts.
        attention: The shape of queries and of the key-value cache.
        max_context: Positions that are exact; at most those the model was made for.
        refused: Why a configuration of this family does not run here, in a few words; empty if it does.
        fast_kernels: Whether the decode kernels compute this family's layers.
    """

    model_type: str
    experts_class: str
    experts_prefix: str = "model.layers.{layer}.mlp.experts"
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    renamed: tuple[tuple[str, str], ...] = ()
    expert_size_field: str = "moe_intermediate_size"
    config_defaults: dict[str, int] = field(default_factory=dict)
    moe_layers: Callable[[ConfigFields], tuple[int, ...]] = every_layer
    shared_expert_size: Callable[[ConfigFields], int] = no_shared_expert
    attention: Callable[[ConfigFields], AttentionShape] = grouped_query_attention
    max_context: Callable[[ConfigFields], int] = max_position_embeddings
    refused: Callable[[ConfigFields], str] = nothing_refused
    fast_kernels: bool = False

    def expert_keys(self, layer: int, expert: int) -> tuple[str, str, str]:
        """Checkpoint keys of the gate, up and down projection of one expert, stored one by one."""
        prefix = f"{self.experts_prefix.format(layer=layer)}.{expert}"
        gate, up, down = self.projections
        return f"{prefix}.{gate}.weight", f"{prefix}.{up}.weight", f"{prefix}.{down}.weight"

    def fused_keys(self, layer: int) -> tuple[str, str]:
        """Checkpoint keys of a layer's fused experts: ``[E, 2I, H]`` (gate over up) and ``[E, H, I]``.

        Only transformers writes them, so they are its own names in every family.
        """
        prefix = f"model.layers.{layer}.mlp.experts"
        return f"{prefix}.gate_up_proj", f"{prefix}.down_proj"

    def hub_key(self, parameter: str) -> str:
        """What checkpoints on the hub call a dense parameter of transformers' model."""
        for ours, theirs in self.renamed:
            if ours in parameter:
                return parameter.replace(ours, theirs)
        return parameter
