"""A synthetic checkpoint's files: sharded safetensors under the hub's names, index, configuration, tokenizer.

Shards have at most 4 GB, are filled in the order of the layers, and keep their tensors in alphabetical order
behind a header that is padded to 8 bytes: as the safetensors library writes them, with experts that begin anywhere
in a page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offload.models.shards import BFloat16, ShardWriter, Tensor, bfloat16
from offload.models.synthetic.card import write_card
from offload.models.synthetic.recipe import Recipe
from offload.models.synthetic.tokenizer import Vocabulary, write_tokenizer
from offload.models.synthetic.weights import Embedding, RandomBlock, router

SHARD_BYTES = 4_000_000_000
_ROUTER_DEVIATION = 1.5
_BIAS_DEVIATION = 0.02
_NORM_DEVIATION = 0.05
_PIECE = 1 << 22

Source = Callable[[], Iterator[BFloat16]]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor, and where its numbers come from."""

    tensor: Tensor
    source: Source


def checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of all tensors that a recipe makes."""
    return sum(part.tensor.nbytes for part in _Parts(recipe).plan())


def write_checkpoint(
    recipe: Recipe, folder: Path, progress: Callable[[int, int], None], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the checkpoint into ``folder``, which is there and empty.

    Takes some 300 MB of memory, whatever the model's size.

    Args:
        progress: Told the bytes of weights written, and how many there will be.
        shard_bytes: Bytes of a file at most, unless a single tensor has more.

    Raises:
        OSError: A file could not be written.
    """
    parts = _Parts(recipe)
    shards = _shards(parts.plan(), shard_bytes)
    total = sum(part.tensor.nbytes for shard in shards for part in shard)
    parts.prepare()
    done = 0
    keys: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        keys |= {part.tensor.name: name for part in shard}
        with ShardWriter(folder / name, [part.tensor for part in shard], align=8) as writer:
            for part in shard:
                for piece in part.source():
                    for first in range(0, piece.size, _PIECE):
                        done += writer.append(piece.reshape(-1)[first : first + _PIECE])
                        progress(done, total)
            writer.finish()
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": keys})
    config = recipe.made_config()
    vocabulary = parts.vocabulary
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": vocabulary.special[0],
            "pad_token_id": vocabulary.special[0],
            "eos_token_id": [vocabulary.special[2], vocabulary.special[0]],
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
        },
    )
    write_tokenizer(vocabulary, int(config["max_position_embeddings"]), folder)
    (folder / "README.md").write_text(_readme(recipe), encoding="utf-8")
    write_card(recipe, folder)


class _Parts:
    """All tensors of a recipe, in the order of the model."""

    def __init__(self, recipe: Recipe) -> None:
        config = recipe.config
        self._recipe = recipe
        self._hidden = int(config["hidden_size"])
        self._vocab = int(config["vocab_size"])
        end_of_text = int(config["bos_token_id"])
        self.vocabulary = Vocabulary.of_size(self._vocab, end_of_text)
        # The outputs of all layers together have half the variance that the embedding has.
        self._gain = float(recipe.all_layers) ** -0.5
        self._block: RandomBlock | None = None
        self._embedding: Embedding | None = None
        self._count = 0
        self._largest = 0

    def prepare(self) -> None:
        """Makes the random numbers that matrices are cut from; after ``plan``."""
        recipe = self._recipe
        self._block = RandomBlock(recipe.seed, self._largest)
        self._embedding = Embedding(recipe.seed, self.vocabulary, self._hidden, recipe.skew, recipe.persistence)

    def plan(self) -> list[Part]:
        """The tensors with their sources, which give something only after ``prepare``."""
        self._count = self._largest = 0
        shape = (self._vocab, self._hidden)
        parts = [Part(Tensor("model.embed_tokens.weight", shape), self._table)]
        for layer in range(self._recipe.layers):
            parts += self._layer(layer)
        # Counted as behind the last layer of the whole model, so that a shorter one has the same.
        parts += [self._norm("model.norm.weight", self._hidden, self._recipe.all_layers * 10)]
        parts += [Part(Tensor("lm_head.weight", shape), self._head)]
        return parts

    def _layer(self, layer: int) -> Iterator[Part]:
        config, hidden = self._recipe.config, self._hidden
        heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        yield self._norm(f"{prefix}.input_layernorm.weight", hidden, layer * 10)
        yield self._norm(f"{prefix}.post_attention_layernorm.weight", hidden, layer * 10 + 1)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield self._matrix(f"{attention}.{name}_proj.weight", count * width, hidden)
            if config["model_type"] == "qwen2_moe":
                yield self._matrix(f"{attention}.{name}_proj.bias", count * width, None, _BIAS_DEVIATION)
        yield self._matrix(
            f"{attention}.o_proj.weight", hidden, heads * width, self._gain * (heads * width) ** -0.5
        )
        if config["model_type"] == "qwen3_moe":
            yield self._norm(f"{attention}.q_norm.weight", width, layer * 10 + 2)
            yield self._norm(f"{attention}.k_norm.weight", width, layer * 10 + 3)
        yield self._router(f"{mlp}.gate.weight", layer)
        for expert in range(int(config["num_experts"])):
            yield from self._mlp(f"{mlp}.experts.{expert}", int(config["moe_intermediate_size"]))
        shared = int(config.get("shared_expert_intermediate_size", 0))
        if shared:
            yield from self._mlp(f"{mlp}.shared_expert", shared)
            yield self._matrix(f"{mlp}.shared_expert_gate.weight", 1, hidden)

    def _mlp(self, prefix: str, size: int) -> Iterator[Part]:
        yield self._matrix(f"{prefix}.gate_proj.weight", size, self._hidden)
        yield self._matrix(f"{prefix}.up_proj.weight", size, self._hidden)
        yield self._matrix(f"{prefix}.down_proj.weight", self._hidden, size, self._gain * size**-0.5)

    def _matrix(self, name: str, rows: int, columns: int | None, deviation: float | None = None) -> Part:
        """[rows, columns], or [rows] where ``columns`` is None; by default of unit gain."""
        shape = (rows,) if columns is None else (rows, columns)
        scale = (columns or 1) ** -0.5 if deviation is None else deviation
        number, count = self._count, math.prod(shape)
        self._count += 1
        self._largest = max(self._largest, count)

        def source() -> Iterator[BFloat16]:
            assert self._block is not None
            yield self._block.take(number, count, scale)

        return Part(Tensor(name, shape), source)

    def _norm(self, name: str, size: int, number: int) -> Part:
        def source() -> Iterator[BFloat16]:
            spread = np.random.default_rng([self._recipe.seed, size, number]).standard_normal(size, np.float32)
            yield bfloat16(np.float32(1) + np.float32(_NORM_DEVIATION) * spread)

        return Part(Tensor(name, (size,)), source)

    def _router(self, name: str, layer: int) -> Part:
        experts = int(self._recipe.config["num_experts"])

        def source() -> Iterator[BFloat16]:
            yield router(self._recipe.seed, layer, experts, self._hidden, _ROUTER_DEVIATION)

        return Part(Tensor(name, (experts, self._hidden)), source)

    def _table(self) -> Iterator[BFloat16]:
        assert self._embedding is not None
        return self._embedding.table()

    def _head(self) -> Iterator[BFloat16]:
        assert self._embedding is not None
        return self._embedding.head()


def _shards(parts: list[Part], most: int) -> list[list[Part]]:
    """Filled one after the other, each in alphabetical order."""
    shards: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if shards[-1] and size + part.tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part.tensor.nbytes
    return [sorted(shard, key=lambda part: part.tensor.name) for shard in shards]


def _readme(recipe: Recipe) -> str:
    return (
        f"# {recipe.shape}, synthetic\n\n"
        f"The shape of {recipe.shape} with random weights: {recipe.layers} of {recipe.all_layers} layers, "
        f"seed {recipe.seed}, skew {recipe.skew}, persistence {recipe.persistence}. Made on this machine by "
        f"finemoe bench make-model.\n\n"
        "It is for measuring time and memory. It was never trained: what it writes are made-up words.\n"
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
