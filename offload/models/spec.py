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
from offload.models.architectures import ARCHITECTURES, Architecture

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
        shared_expert_size: Neurons of the shared expert; 0 where there is none.
        decoder_layers: All decoder layers, with routed experts or without.
        num_heads / num_kv_heads / head_dim: Attention heads, key-value heads, and the width of one.
        vocab_size: Rows of the head.
        max_context: Positions the model was made for.
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
    decoder_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
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
        return 2 * self.decoder_layers * self.num_kv_heads * self.head_dim * BYTES_PER_WEIGHT


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
    field = _Fields(folder, config, architecture.config_defaults)
    decoder_layers = field.count("num_hidden_layers")
    num_heads = field.count("num_attention_heads")
    hidden_size = field.count("hidden_size")
    head_dim = field.count("head_dim", default=hidden_size // num_heads)
    step = field.count("decoder_sparse_step", default=1)
    dense = set(config.get("mlp_only_layers") or ())
    moe_layers = tuple(i for i in range(decoder_layers) if i not in dense and (i + 1) % step == 0)
    spec = ModelSpec(
        folder=folder,
        architecture=architecture,
        moe_layers=moe_layers,
        num_experts=field.count("num_experts", "num_local_experts"),
        top_k=field.count("num_experts_per_tok"),
        hidden_size=hidden_size,
        expert_size=field.count("moe_intermediate_size"),
        shared_expert_size=field.count("shared_expert_intermediate_size") if architecture.has_shared_expert else 0,
        decoder_layers=decoder_layers,
        num_heads=num_heads,
        num_kv_heads=field.count("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        vocab_size=field.count("vocab_size"),
        max_context=field.count("max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    if not moe_layers or spec.top_k > spec.num_experts:
        raise CorruptCheckpoint(
            f"{folder / 'config.json'} describes no working mixture of experts "
            f"({len(moe_layers)} expert layers, top-{spec.top_k} of {spec.num_experts})",
            "fetch the model again",
        )
    return spec


class _Fields:
    """Counts read from a configuration, each checked once."""

    LARGEST = 1 << 24

    def __init__(self, folder: Path, config: dict[str, Any], defaults: dict[str, int]) -> None:
        self._path = folder / "config.json"
        self._config = config
        self._defaults = defaults

    def count(self, name: str, *other_names: str, default: int | None = None) -> int:
        """The count under `name`, or under another name that some writers of checkpoints use."""
        present = (self._config[key] for key in (name, *other_names) if self._config.get(key) is not None)
        value = next(present, None)
        if value is None:
            value = self._defaults.get(name, default)
        if type(value) is not int or not 0 < value <= self.LARGEST:
            raise CorruptCheckpoint(f"{self._path} says {name} = {value!r}", "fetch the model again")
        return value
