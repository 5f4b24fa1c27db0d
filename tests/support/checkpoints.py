"""Tiny checkpoints in Hugging Face layout: real models with random weights, written in any order."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

Family = Literal["qwen2_moe", "qwen3_moe"]
Layout = Literal["per-expert", "fused", "scattered"]


def tiny_checkpoint(
    folder: Path,
    *,
    family: Family = "qwen2_moe",
    layers: int = 3,
    experts: int = 8,
    top_k: int = 2,
    hidden: int = 64,
    expert_size: int = 32,
    shared: int = 48,
    vocab: int = 320,
    layout: Layout = "per-expert",
    shards: int = 1,
    dense_layers: Sequence[int] = (),
    seed: int = 0,
) -> Path:
    """A random bf16 model in ``folder``, loadable by transformers as it is. Returns ``folder``.

    Args:
        folder: Made if it is not there.
        family: ``model_type`` of the configuration.
        layers: Decoder layers.
        experts: Routed experts a layer.
        top_k: Routed experts a token uses.
        hidden: Width of the residual stream; 4 attention heads, 2 key-value heads.
        expert_size: Neurons of one routed expert.
        shared: Neurons of the shared expert (Qwen2 only).
        vocab: Rows of the embedding table.
        layout: ``per-expert`` keeps experts one by one in alphabetical order (down, gate, up, touching one
            another), ``fused`` a layer at a time, ``scattered`` one by one in random order, so that the three
            matrices of an expert lie anywhere.
        shards: Files; the cuts fall anywhere, also inside of an expert.
        dense_layers: Decoder layers with one plain MLP in the place of experts.
        seed: Of weights and order.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        moe_intermediate_size=expert_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        num_experts=experts,
        num_experts_per_tok=top_k,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=False,
        mlp_only_layers=list(dense_layers),
        norm_topk_prob=family == "qwen3_moe",
        **({"shared_expert_intermediate_size": shared} if family == "qwen2_moe" else {}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        _randomise(name, parameter)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    _write_config(folder / "config.json", config.to_dict())
    tensors = dict(_saved_tensors(model.state_dict(), fused=layout == "fused"))
    keys = sorted(tensors)
    if layout == "scattered":
        random.Random(seed).shuffle(keys)
    cuts = [round(len(keys) * shard / shards) for shard in range(shards + 1)]
    parts = [keys[begin:end] for begin, end in pairwise(cuts)]
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, keys)
        return folder
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, tensors, part)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_safetensors(
    path: Path, tensors: dict[str, torch.Tensor], keys: Sequence[str], *, pad_header: int = 0
) -> None:
    """Writes the tensors in the order of ``keys``, which the safetensors library would not keep.

    ``pad_header`` spaces are appended to the header: an odd number makes every offset odd.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in keys:
        begin, end = end, end + tensors[key].nbytes
        dtype = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[tensors[key].dtype]
        header[key] = {"dtype": dtype, "shape": list(tensors[key].shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad_header)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in keys:
            file.write(tensor_bytes(tensors[key]))


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of ``tensor``, row-major."""
    return np.asarray(tensor.detach().contiguous().flatten().view(torch.uint8)).tobytes()


def _write_config(path: Path, config: dict[str, object]) -> None:
    # transformers 5 writes Qwen3's expert count under a new name; checkpoints on the hub have the old one.
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


@torch.no_grad()
def _randomise(name: str, parameter: torch.Tensor) -> None:
    """A scale at which every part shows in the logits: unit-gain matrices, norms near one, sharp routers."""
    if parameter.ndim == 1:
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
    elif "embed" in name:
        parameter.normal_(0.0, 1.0)
    else:
        gain = 2.0 if name.endswith("mlp.gate.weight") else 1.0
        parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5)


def _saved_tensors(state: dict[str, torch.Tensor], *, fused: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as checkpoints keep them: transformers fuses experts only in memory."""
    for key, tensor in state.items():
        prefix, _, last = key.rpartition(".")
        if fused or last not in ("gate_up_proj", "down_proj"):
            yield key, tensor
            continue
        for expert, matrix in enumerate(tensor):
            if last == "down_proj":
                yield f"{prefix}.{expert}.down_proj.weight", matrix
            else:
                gate, up = matrix.chunk(2)
                yield f"{prefix}.{expert}.gate_proj.weight", gate
                yield f"{prefix}.{expert}.up_proj.weight", up
