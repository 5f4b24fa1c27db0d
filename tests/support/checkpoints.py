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

from offload.models import read_spec
from offload.store.safetensors_index import CheckpointIndex

Family = Literal["qwen2_moe", "qwen3_moe", "mixtral", "phimoe", "olmoe", "deepseek_v2"]
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
    biased_expert: bool = False,
    **more: object,
) -> Path:
    """A random bf16 model in ``folder``, loadable by transformers as it is. Returns ``folder``.

    Args:
        folder: Made if it is not there.
        family: ``model_type`` of the configuration.
        layers: Decoder layers.
        experts: Routed experts a layer.
        top_k: Routed experts a token uses.
        hidden: Width of the residual stream; 4 attention heads, 2 key-value heads (DeepSeek: one latent).
        expert_size: Neurons of one routed expert.
        shared: Neurons of the shared expert (Qwen2 only; DeepSeek has two of ``expert_size``).
        vocab: Rows of the embedding table.
        layout: ``per-expert`` keeps experts one by one in alphabetical order (down, gate, up, touching one
            another), ``fused`` a layer at a time, ``scattered`` one by one in random order, so that the three
            matrices of an expert lie anywhere.
        shards: Files; the cuts fall anywhere, also inside of an expert.
        dense_layers: Decoder layers with one plain MLP in the place of experts (Qwen only; DeepSeek's first
            layer is one).
        seed: Of weights and order.
        biased_expert: Gives an expert's first matrix a bias, which no family here has.
        more: Further values of the configuration.
    """
    torch.manual_seed(seed)
    values: dict[str, object] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "moe_intermediate_size": expert_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "mlp_only_layers": list(dense_layers),
        "norm_topk_prob": family == "qwen3_moe",
        "shared_expert_intermediate_size": shared,
    }
    config = AutoConfig.for_model(family, **(_values_of_family(family, values) | more))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        _randomise(name, parameter)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    _write_config(folder / "config.json", family, config.to_dict())
    tensors = dict(_saved_tensors(family, model.state_dict(), fused=layout == "fused"))
    if biased_expert:
        first = min(key for key in tensors if key.endswith((".experts.0.w1.weight", ".experts.0.gate_proj.weight")))
        tensors[first.replace(".weight", ".bias")] = torch.zeros(expert_size, dtype=torch.bfloat16)
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


def swap_experts(folder: Path, layer: int, one: int, other: int) -> None:
    """Puts two experts of a layer in each other's place, in files that keep experts one by one."""
    spec, index = read_spec(folder), CheckpointIndex.open(folder)
    keys = (spec.architecture.expert_keys(layer, expert) for expert in (one, other))
    for a, b in zip(*keys, strict=True):
        first, second = index.tensors[a], index.tensors[b]
        bits = [np.empty(entry.nbytes, np.uint8) for entry in (first, second)]
        index.read_tensor(a, bits[0].data)
        index.read_tensor(b, bits[1].data)
        for entry, data in ((first, bits[1]), (second, bits[0])):
            with entry.path.open("r+b") as file:
                file.seek(entry.offset)
                file.write(data.tobytes())


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of ``tensor``, row-major."""
    return np.asarray(tensor.detach().contiguous().flatten().view(torch.uint8)).tobytes()


def _values_of_family(family: Family, values: dict[str, object]) -> dict[str, object]:
    """The values under the names that the family's configuration has for them, with what makes it special."""

    def without(*names: str, **special: object) -> dict[str, object]:
        return {name: value for name, value in values.items() if name not in names} | special

    no_qwen = ("mlp_only_layers", "shared_expert_intermediate_size", "norm_topk_prob", "moe_intermediate_size")
    expert_size, experts, head_dim = values["moe_intermediate_size"], values["num_experts"], values["head_dim"]
    assert isinstance(head_dim, int)
    match family:
        case "qwen2_moe":
            return values
        case "qwen3_moe":
            return without("shared_expert_intermediate_size")
        case "mixtral":
            return without(*no_qwen, "num_experts", num_local_experts=experts, intermediate_size=expert_size)
        case "phimoe":
            rope = {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + 0.1 * i for i in range(head_dim // 2)],
                "long_factor": [1.0 + 2.0 * i for i in range(head_dim // 2)],
                "short_mscale": 1.24,
                "long_mscale": 1.24,
                "original_max_position_embeddings": 256,
            }
            return without(
                *no_qwen,
                "num_experts",
                "head_dim",
                num_local_experts=experts,
                intermediate_size=expert_size,
                attention_bias=True,
                lm_head_bias=True,
                sliding_window=512,
                rope_parameters=rope,
            )
        case "olmoe":
            return without(*no_qwen, "head_dim", intermediate_size=expert_size, clip_qkv=1.0)
        case "deepseek_v2":
            rope = {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 128,
            }
            return without(
                "mlp_only_layers",
                "shared_expert_intermediate_size",
                "num_experts",
                "num_key_value_heads",
                "head_dim",
                n_routed_experts=experts,
                n_shared_experts=2,
                first_k_dense_replace=1,
                kv_lora_rank=32,
                q_lora_rank=None,
                qk_nope_head_dim=head_dim,
                qk_rope_head_dim=head_dim // 2,
                v_head_dim=head_dim,
                topk_method="greedy",
                rope_parameters=rope,
            )


def _write_config(path: Path, family: Family, config: dict[str, object]) -> None:
    # transformers 5 writes Qwen3's expert count under a new name; checkpoints on the hub have the old one.
    if family == "qwen3_moe":
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
        gain = 2.0 if name.endswith(("mlp.gate.weight", "mlp.router.weight")) else 1.0
        parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5)


def _saved_tensors(
    family: Family, state: dict[str, torch.Tensor], *, fused: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as checkpoints keep them: transformers fuses experts, and names them anew, only in memory."""
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    if family in ("mixtral", "phimoe"):
        names = {"gate": "w1", "up": "w3", "down": "w2"}
    for key, tensor in state.items():
        if fused:
            yield key, tensor
            continue
        if family in ("mixtral", "phimoe"):
            key = key.replace(".mlp.router.", ".mlp.gate.").replace(".mlp.", ".block_sparse_moe.")
        prefix, _, last = key.rpartition(".")
        if last not in ("gate_up_proj", "down_proj"):
            yield key, tensor
            continue
        for expert, matrix in enumerate(tensor):
            if last == "down_proj":
                yield f"{prefix}.{expert}.{names['down']}.weight", matrix
            else:
                gate, up = matrix.chunk(2)
                yield f"{prefix}.{expert}.{names['gate']}.weight", gate
                yield f"{prefix}.{expert}.{names['up']}.weight", up
