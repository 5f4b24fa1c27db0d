"""The dense model that the demo is made of: SmolLM2-135M-Instruct, read from a GGUF file.

The file is mapped, and a tensor is dequantised when it is asked for, so that reading costs little memory.
Tensors come out as transformers' Llama would hold them: `[out, in]` float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from offload.errors import PullError

Float32 = npt.NDArray[np.float32]

_CONTROL_TOKEN = 3
"""GGUF's type of a token that is never part of ordinary text."""


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One decoder layer; H is the hidden size, N the neurons of the MLP.

    Attributes:
        input_norm / mlp_norm: Weights of the two RMS norms, ``[H]``.
        query / key / value / output: Attention projections, ``[out, in]``.
        gate / up: MLP input projections, ``[N, H]``.
        down: MLP output projection, ``[H, N]``.
    """

    input_norm: Float32
    mlp_norm: Float32
    query: Float32
    key: Float32
    value: Float32
    output: Float32
    gate: Float32
    up: Float32
    down: Float32


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    Attributes:
        tokens: Every token in GPT-2's byte alphabet, by id.
        merges: Merge rules, best first, two tokens parted by a blank.
        special: Ids of control tokens.
        chat_template: Jinja template of a conversation.
    """

    tokens: list[str]
    merges: list[str]
    special: list[int]
    chat_template: str


class DenseModel:
    """SmolLM2 in a GGUF file.

    Args:
        path: The file; it must stay in place while this object is used.

    Attributes:
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        mlp_size: Neurons of one MLP.
        num_heads / num_kv_heads: Attention heads and key-value heads.
        max_context: Positions the model was made for.
        rope_theta: Base of the rotary embedding.
        norm_eps: Epsilon of the RMS norms.

    Raises:
        PullError: The file is no GGUF file, or lacks what is needed.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self.num_layers = int(self._field("llama.block_count"))
            self.hidden_size = int(self._field("llama.embedding_length"))
            self.mlp_size = int(self._field("llama.feed_forward_length"))
            self.num_heads = int(self._field("llama.attention.head_count"))
            self.num_kv_heads = int(self._field("llama.attention.head_count_kv"))
            self.max_context = int(self._field("llama.context_length"))
            self.rope_theta = float(self._field("llama.rope.freq_base"))
            # Stored as float32; seven digits give back the number that was meant.
            self.norm_eps = float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.7g}")
        except (ValueError, KeyError, IndexError) as error:
            raise PullError(f"{path.name} is not the GGUF file that was expected: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self._tensors["token_embd.weight"].data.shape[0])

    def vocabulary(self) -> Vocabulary:
        """The tokenizer's parts."""
        types = self._field("tokenizer.ggml.token_type")
        return Vocabulary(
            tokens=self._field("tokenizer.ggml.tokens"),
            merges=self._field("tokenizer.ggml.merges"),
            special=[token for token, kind in enumerate(types) if kind == _CONTROL_TOKEN],
            chat_template=self._field("tokenizer.chat_template"),
        )

    def embedding_rows(self, rows_at_once: int = 4096) -> Iterator[Float32]:
        """The embedding table ``[vocab, H]`` (also the head), some rows at a time."""
        tensor = self._tensors["token_embd.weight"]
        for start in range(0, self.vocab_size, rows_at_once):
            yield self._dequantised(tensor.data[start : start + rows_at_once], tensor.tensor_type)

    def final_norm(self) -> Float32:
        """Weight of the last RMS norm, ``[H]``."""
        return self._tensor("output_norm.weight")

    def layer(self, index: int) -> DenseLayer:
        """Decoder layer ``index``."""
        prefix = f"blk.{index}"
        return DenseLayer(
            input_norm=self._tensor(f"{prefix}.attn_norm.weight"),
            mlp_norm=self._tensor(f"{prefix}.ffn_norm.weight"),
            query=_halves_apart(self._tensor(f"{prefix}.attn_q.weight"), self.num_heads),
            key=_halves_apart(self._tensor(f"{prefix}.attn_k.weight"), self.num_kv_heads),
            value=self._tensor(f"{prefix}.attn_v.weight"),
            output=self._tensor(f"{prefix}.attn_output.weight"),
            gate=self._tensor(f"{prefix}.ffn_gate.weight"),
            up=self._tensor(f"{prefix}.ffn_up.weight"),
            down=self._tensor(f"{prefix}.ffn_down.weight"),
        )

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def _tensor(self, name: str) -> Float32:
        tensor = self._tensors[name]
        return self._dequantised(tensor.data, tensor.tensor_type)

    @staticmethod
    def _dequantised(data: npt.NDArray[Any], kind: gguf.GGMLQuantizationType) -> Float32:
        return np.asarray(gguf.quants.dequantize(data, kind), dtype=np.float32)


def _halves_apart(weight: Float32, heads: int) -> Float32:
    """Rows of a query or key projection in transformers' order.

    GGUF interleaves the two halves that the rotary embedding turns against each other; transformers keeps
    all of the first half before the second.
    """
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)
