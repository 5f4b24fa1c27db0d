"""The demo's files in Hugging Face layout: weights in three shards, configuration, tokenizer, card.

The first file holds what every token needs; the other two hold the routed experts, one page-aligned record
each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from offload.models.demo.card import CARD
from offload.models.demo.source import DenseModel
from offload.models.demo.tokenizer import TURN_END, TURN_START, write_tokenizer
from offload.models.demo.upcycle import (
    EXPERT_SIZE,
    NUM_EXPERTS,
    TOP_K,
    Upcycler,
    expert_tensors,
    page_sized_tensors,
    small_tensors,
)
from offload.models.shards import BFloat16, ShardWriter, Tensor, bfloat16

_SHARD = "model-{:05d}-of-00003.safetensors"


def write_checkpoint(gguf: Path, folder: Path, layers: int, progress: Callable[[int, int], None]) -> None:
    """Upcycle the first ``layers`` layers of the dense model in ``gguf`` into ``folder``.

    Args:
        gguf: SmolLM2-135M-Instruct.
        folder: An existing folder.
        layers: Decoder layers.
        progress: Told the bytes of weights written, and how many there will be.

    Raises:
        PullError: ``gguf`` is not what was expected.
        OSError: A file could not be written.
    """
    source = DenseModel(gguf)
    _write_weights(source, folder, layers, progress)
    _write_json(folder / "config.json", _config(source, layers))
    _write_json(folder / "generation_config.json", _GENERATION)
    write_tokenizer(source.vocabulary(), source.max_context, folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "NOTICE").write_bytes((files(__package__) / "NOTICE").read_bytes())


def _write_weights(source: DenseModel, folder: Path, layers: int, progress: Callable[[int, int], None]) -> None:
    upcycler = Upcycler(source)
    tensors = _plan(source, upcycler.shared_size, layers)
    total = sum(tensor.nbytes for shard in tensors for tensor in shard)
    done = 0
    small: list[BFloat16] = []
    with (
        ShardWriter(folder / _SHARD.format(1), tensors[0]) as always,
        ShardWriter(folder / _SHARD.format(2), tensors[1]) as lower,
        ShardWriter(folder / _SHARD.format(3), tensors[2]) as upper,
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    ):
        for rows in source.embedding_rows():
            done += always.append(bfloat16(rows))
            progress(done, total)
        for index in range(layers):
            layer = source.layer(index)
            for tensor in upcycler.attention(layer) + upcycler.shared_expert(index, layer):
                done += always.append(tensor)
            small += upcycler.small_tensors(index, layer)
            experts = lower if index < _first_upper(layers) else upper
            done += experts.append(upcycler.routed_experts(index, layer, pool))
            progress(done, total)
        for tensor in [*small, bfloat16(source.final_norm())]:
            done += always.append(tensor)
        for shard in (always, lower, upper):
            shard.finish()
    progress(done, total)
    keys = {tensor.name: _SHARD.format(i) for i, shard in enumerate(tensors, 1) for tensor in shard}
    index_file = {"metadata": {"total_size": total}, "weight_map": keys}
    _write_json(folder / "model.safetensors.index.json", index_file)


def _plan(source: DenseModel, shared_size: int, layers: int) -> list[list[Tensor]]:
    """What each shard holds.

    In the first, tensors of whole pages come before the others, so that they lie on pages.
    """
    every = range(layers)
    hidden = source.hidden_size
    always = [Tensor("model.embed_tokens.weight", (source.vocab_size, hidden))]
    always += [tensor for index in every for tensor in page_sized_tensors(source, shared_size, index)]
    always += [tensor for index in every for tensor in small_tensors(source, index)]
    always += [Tensor("model.norm.weight", (hidden,))]
    middle = _first_upper(layers)
    lower = [tensor for index in every[:middle] for tensor in expert_tensors(source, index)]
    upper = [tensor for index in every[middle:] for tensor in expert_tensors(source, index)]
    return [always, lower, upper]


def _first_upper(layers: int) -> int:
    """The first layer whose experts are in the last file."""
    return (layers + 1) // 2


def _config(source: DenseModel, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "torch_dtype": "bfloat16",
        "vocab_size": source.vocab_size,
        "hidden_size": source.hidden_size,
        "intermediate_size": source.mlp_size,
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "num_attention_heads": source.num_heads,
        "num_key_value_heads": source.num_kv_heads,
        "max_position_embeddings": source.max_context,
        "rope_theta": source.rope_theta,
        "rms_norm_eps": source.norm_eps,
        "qkv_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": EXPERT_SIZE,
        "shared_expert_intermediate_size": source.mlp_size - EXPERT_SIZE,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": TURN_START,
        "eos_token_id": TURN_END,
        "pad_token_id": TURN_END,
    }


# Temperature and top_p are what SmolLM2's own model card advises.
_GENERATION = {
    "bos_token_id": TURN_START,
    "eos_token_id": TURN_END,
    "pad_token_id": TURN_END,
    "do_sample": True,
    "temperature": 0.2,
    "top_p": 0.9,
}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
