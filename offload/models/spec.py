"""A model folder's facts: the numbers of its configuration that residency, planning and reading need.

Only ``config.json`` is read. Neither torch nor transformers is imported here, so that planning and ``doctor``
answer at once; transformers' own configuration class is used where the model is built.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.errors import CorruptCheckpoint, ModelNotFound, UnsupportedModel
from offload.models.architecture import Architecture, ConfigFields
from offload.models.architectures import ARCHITECTURES

BYTES_PER_WEIGHT = 2
"""Bytes of one weight: unquantised models run in bfloat16."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model's shape. Layers with routed experts are counted 0..``num_layers``-1 in order of depth.

    Attributes:
        folder: The checkpoint's folder.
        architecture: What is known about its family.
        moe_layers: For each layer with routed experts, its index among all decoder layers.
        num_experts: Routed experts a layer.
        top_k: Routed experts a token uses in each layer.
        hidden_size: Width of the residual stream.
        expert_size: Neurons of one routed expert.
        shared_expert_size: Neurons of the shared experts together; 0 where there are none.
        dense_mlp_size: Neurons of the MLP in layers without routed experts; 0 where there are no such layers.
        decoder_layers: All decoder layers, with routed experts or without.
        num_heads / head_dim: Query heads, and the width of one.
        num_kv_heads / key_dim / value_dim: Heads of the key-value cache, and the widths of one key and one value.
        unpacked_dim: Weights that attention works out of each cached position in a forward pass; 0 where it uses
            the cache as it is.
        vocab_size: Rows of the head.
        max_context: Positions that can be used.
        tied_embeddings: Whether the head is the embedding table.
    """

    folder: Path
    architecture: Architecture
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    hidden_size: int
    expert_size: int
    shared_expert_size: int
    dense_mlp_size: int
    decoder_layers: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    unpacked_dim: int
    vocab_size: int
    max_context: int
    tied_embeddings: bool

    @property
    def name(self) -> str:
        """The folder's name: what people call the model."""
        return self.folder.name

    @property
    def num_layers(self) -> int:
        """Layers with routed experts."""
        return len(self.moe_layers)

    @property
    def total_experts(self) -> int:
        """Routed experts of all layers together."""
        return self.num_layers * self.num_experts

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert: gate, up and down projection in bfloat16."""
        return 3 * self.hidden_size * self.expert_size * BYTES_PER_WEIGHT

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one position takes in the key-value cache, all layers together, in bfloat16."""
        return self.decoder_layers * self.num_kv_heads * (self.key_dim + self.value_dim) * BYTES_PER_WEIGHT


def read_spec(folder: Path) -> ModelSpec:
    """The facts of the model in ``folder``.

    Raises:
        ModelNotFound: ``folder`` is not there, or has no ``config.json``.
        UnsupportedModel: An architecture that finemoe does not run.
        CorruptCheckpoint: ``config.json`` cannot be read, or has values that no model can have.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise ModelNotFound(f"no model folder at {folder}", "give the path of a folder, or 'demo'")
    if not path.is_file():
        raise ModelNotFound(f"{folder} has no config.json", "a model folder is one in Hugging Face layout")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}", "fetch the model again") from error
    if not isinstance(config, dict):
        raise CorruptCheckpoint(f"{path} is not a JSON object", "fetch the model again")
    return spec_from_config(folder, config)


def spec_from_config(folder: Path, config: dict[str, Any]) -> ModelSpec:
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        raise UnsupportedModel(
            f"{folder.name} is of type '{config.get('model_type')}', which finemoe does not run",
            f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    if config.get("quantization_config"):
        raise UnsupportedModel(
            f"{folder.name} is quantised in a format that finemoe does not read",
            "use the unquantised checkpoint",
        )
    fields = ConfigFields(folder / "config.json", config, architecture.config_defaults)
    refused = architecture.refused(fields)
    if refused:
        raise UnsupportedModel(f"{folder.name} cannot be run: {refused}", "choose another model of this type")
    decoder_layers = fields.count("num_hidden_layers")
    moe_layers = architecture.moe_layers(fields)
    attention = architecture.attention(fields)
    spec = ModelSpec(
        folder=folder,
        architecture=architecture,
        moe_layers=moe_layers,
        num_experts=fields.count("num_experts", "num_local_experts", "n_routed_experts"),
        top_k=fields.count("num_experts_per_tok"),
        hidden_size=fields.count("hidden_size"),
        expert_size=fields.count(architecture.expert_size_field),
        shared_expert_size=architecture.shared_expert_size(fields),
        dense_mlp_size=fields.count("intermediate_size") if len(moe_layers) < decoder_layers else 0,
        decoder_layers=decoder_layers,
        num_heads=attention.num_heads,
        head_dim=attention.head_dim,
        num_kv_heads=attention.num_kv_heads,
        key_dim=attention.key_dim,
        value_dim=attention.value_dim,
        unpacked_dim=attention.unpacked_dim,
        vocab_size=fields.count("vocab_size"),
        max_context=architecture.max_context(fields),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    if not moe_layers or spec.top_k > spec.num_experts:
        raise CorruptCheckpoint(
            f"{folder / 'config.json'} describes no working mixture of experts "
            f"({len(moe_layers)} expert layers, top-{spec.top_k} of {spec.num_experts})",
            "fetch the model again",
        )
    return spec
