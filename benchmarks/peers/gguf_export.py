"""A checkpoint's very weights as a GGUF file, for llama.cpp: bf16 as they are, or quantised by the package gguf.

    python -m benchmarks.peers.gguf_export MODEL_FOLDER OUT.gguf [--precision bf16|q8_0|q4_0]

Qwen2-MoE without normalised shares becomes the architecture ``qwen2moe``, Qwen3-MoE ``qwen3moe``. Qwen2-MoE with
them, such as the demo model, has no architecture of its own there: ``bailingmoe`` normalises them, but has no gate
on the shared expert. The demo's gate is zero, a constant half, which goes into the shared expert's down projection
without rounding; any other gate is refused. Tensors are written one after another, so a layer's experts are all
that memory has to hold. No tokenizer goes along: contestants are given token ids.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open

KINDS = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {"bf16": 32, "q8_0": 7, "q4_0": 2}


class NoGguf(Exception):
    """The model has no counterpart there; the message says why."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: There.
        shape: Rows last but one, columns last.
        kind: How it is kept.
        load: Reads it, float32 or bfloat16.
    """

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    load: Callable[[], torch.Tensor]


class Checkpoint:
    """Tensors of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        self._place: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt")
            self._place.update(dict.fromkeys(file.keys(), file))

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __call__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._place[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading it."""
        return tuple(self._place[name].get_slice(name).get_shape())


def export(folder: Path, out: Path, precision: str) -> None:
    """Write `folder`'s weights to `out`; a file that is there is replaced once the new one is whole.

    Raises:
        NoGguf: llama.cpp has no architecture that computes the same.
        OSError: `out` cannot be written.
    """
    model = Checkpoint(folder)
    arch = _architecture(model)
    unfinished = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(unfinished, arch)
    _describe(writer, model.config, arch)
    writer.add_file_type(_FILE_TYPES[precision])
    tensors = [_kept(tensor) for tensor in _tensors(model, arch, KINDS[precision])]
    for tensor in tensors:
        plain = tensor.kind in (gguf.GGMLQuantizationType.F32,)
        shape = tensor.shape if plain else gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
        nbytes = int(np.prod(shape)) * (4 if plain else 1)
        dtype = np.dtype(np.float32 if plain else np.uint8)
        writer.add_tensor_info(tensor.name, shape, dtype, nbytes, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_encode(tensor.load(), tensor.kind))
    writer.close()
    unfinished.replace(out)


def _kept(tensor: Tensor) -> Tensor:
    """The tensor, in bf16 if its rows are no whole number of blocks."""
    if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[tensor.kind][0]:
        return replace(tensor, kind=KINDS["bf16"])
    return tensor


def _encode(weights: torch.Tensor, kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    if kind == gguf.GGMLQuantizationType.F32:
        return weights.float().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.BF16:
        return weights.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    encoded: NDArray[Any] = quantize(weights.float().contiguous().numpy(), kind)
    return encoded


def _architecture(model: Checkpoint) -> str:
    config = model.config
    if config["model_type"] == "qwen3_moe":
        return "qwen3moe"
    if config["model_type"] != "qwen2_moe":
        raise NoGguf(f"{config['model_type']} is not exported; Qwen2-MoE and Qwen3-MoE are")
    if not config.get("norm_topk_prob", False):
        return "qwen2moe"
    gates = (f"model.layers.{n}.mlp.shared_expert_gate.weight" for n in range(config["num_hidden_layers"]))
    if any(bool(model(gate).any()) for gate in gates):
        raise NoGguf("llama.cpp does not normalise shares beside a gated shared expert")
    if config["shared_expert_intermediate_size"] % config["moe_intermediate_size"]:
        raise NoGguf("the shared expert is no whole number of experts wide")
    return "bailingmoe"


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], arch: str) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if arch == "bailingmoe":
        writer.add_leading_dense_block_count(0)
        writer.add_expert_shared_count(config["shared_expert_intermediate_size"] // config["moe_intermediate_size"])
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(True)


def _rope_theta(config: dict[str, Any]) -> float:
    return float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])


def _tensors(model: Checkpoint, arch: str, kind: gguf.GGMLQuantizationType) -> Iterator[Tensor]:
    config, plain = model.config, gguf.GGMLQuantizationType.F32

    def one(name: str, source: str, as_kind: gguf.GGMLQuantizationType = kind, change: Any = None) -> Tensor:
        def load() -> torch.Tensor:
            weights = model(source)
            return weights if change is None else change(weights)

        return Tensor(name, model.shape(source), as_kind, load)

    def stacked(name: str, layer: int, which: str) -> Tensor:
        sources = [f"model.layers.{layer}.mlp.experts.{e}.{which}.weight" for e in range(config["num_experts"])]
        shape = (len(sources), *model.shape(sources[0]))
        return Tensor(name, shape, kind, lambda: torch.stack([model(source) for source in sources]))

    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]

    def interleaved(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Rows in the order that llama.cpp rotates bailingmoe's heads in."""
        return lambda w: w.reshape(count, 2, w.shape[0] // count // 2, -1).swapaxes(1, 2).reshape(w.shape)

    pairs = arch == "bailingmoe"
    yield one("token_embd.weight", "model.embed_tokens.weight")
    yield one("output_norm.weight", "model.norm.weight", plain)
    yield one("output.weight", "lm_head.weight" if "lm_head.weight" in model else "model.embed_tokens.weight")
    for layer in range(config["num_hidden_layers"]):
        here, there = f"model.layers.{layer}", f"blk.{layer}"
        yield one(f"{there}.attn_norm.weight", f"{here}.input_layernorm.weight", plain)
        for letter, count in (("q", heads), ("k", groups), ("v", None)):
            change = interleaved(count) if pairs and count is not None else None
            yield one(f"{there}.attn_{letter}.weight", f"{here}.self_attn.{letter}_proj.weight", change=change)
            if f"{here}.self_attn.{letter}_proj.bias" in model:
                yield one(f"{there}.attn_{letter}.bias", f"{here}.self_attn.{letter}_proj.bias", plain)
            if f"{here}.self_attn.{letter}_norm.weight" in model:
                yield one(f"{there}.attn_{letter}_norm.weight", f"{here}.self_attn.{letter}_norm.weight", plain)
        yield one(f"{there}.attn_output.weight", f"{here}.self_attn.o_proj.weight")
        yield one(f"{there}.ffn_norm.weight", f"{here}.post_attention_layernorm.weight", plain)
        yield one(f"{there}.ffn_gate_inp.weight", f"{here}.mlp.gate.weight", plain)
        for which in ("gate", "up", "down"):
            yield stacked(f"{there}.ffn_{which}_exps.weight", layer, f"{which}_proj")
        if arch == "qwen3moe":
            continue
        for which in ("gate", "up", "down"):
            half = (lambda w: w / 2) if pairs and which == "down" else None
            source = f"{here}.mlp.shared_expert.{which}_proj.weight"
            yield one(f"{there}.ffn_{which}_shexp.weight", source, change=half)
        if arch == "qwen2moe":
            gate = f"{here}.mlp.shared_expert_gate.weight"
            shape = (config["hidden_size"],)
            name = f"{there}.ffn_gate_inp_shexp.weight"
            yield Tensor(name, shape, plain, lambda gate=gate: model(gate).reshape(-1))  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=KINDS, default="bf16")
    options = parser.parse_args()
    try:
        export(options.model, options.out, options.precision)
    except (NoGguf, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
