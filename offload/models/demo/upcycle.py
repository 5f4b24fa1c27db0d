"""Sparse upcycling (https://arxiv.org/abs/2212.05055): one dense MLP a layer becomes a mixture of experts.

The neurons that add most to the residual stream become the shared expert. The rest are copied into every
routed expert, each copy with its neurons in an order of its own and its weights changed a little. The
weights of the chosen experts sum to one, so that shared and routed part together give back the dense MLP,
nearly.

All arithmetic is of single float32 operations and integers, and the random numbers are PCG64's raw ones, so
that every machine makes the same bytes.
"""

from __future__ import annotations

from concurrent.futures import Executor
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from offload.models.demo.source import DenseLayer, DenseModel
from offload.models.shards import BFloat16, Tensor, bfloat16

NUM_EXPERTS = 60
TOP_K = 4
EXPERT_SIZE = 192
NOISE = 0.02
"""Standard deviation of what a copied weight is multiplied with, around 1; uniformly distributed."""

# Any would do; with this one the near-tie that starts the answer on the capital of France falls as it does
# in the dense model.
_SEED = 1
_NOISE_POOL = 1 << 20


class Upcycler:
    """Turns a dense model's layers into mixture-of-experts layers.

    Args:
        source: The dense model.

    Attributes:
        shared_size: Neurons of the shared expert.
    """

    def __init__(self, source: DenseModel) -> None:
        self.source = source
        self.shared_size = source.mlp_size - EXPERT_SIZE
        with as_file(files(__package__) / "routers.safetensors") as path:
            fitted = load_file(path)
        self._routers = fitted["router"]  # [layers, NUM_EXPERTS, H] float16
        self._neuron_order = fitted["neuron_order"]  # [layers, N] int16, most important first
        noise = np.random.PCG64(_SEED).random_raw(_NOISE_POOL // 4).view(np.int16).astype(np.float32)
        self._noise = noise * np.float32(NOISE * 3**0.5 / 32768) + np.float32(1)

    def attention(self, layer: DenseLayer) -> list[BFloat16]:
        """Query, key, value and output projection."""
        return [bfloat16(part) for part in (layer.query, layer.key, layer.value, layer.output)]

    def shared_expert(self, index: int, layer: DenseLayer) -> list[BFloat16]:
        """Gate, up and down projection of the shared expert.

        Its sigmoid gate has weights of zero and so lets half through: the down projection is doubled for it.
        """
        chosen = self._neuron_order[index, : self.shared_size]
        down = layer.down[:, chosen] * np.float32(2)
        return [bfloat16(layer.gate[chosen]), bfloat16(layer.up[chosen]), bfloat16(down)]

    def small_tensors(self, index: int, layer: DenseLayer) -> list[BFloat16]:
        """The two norms, the router and the shared expert's gate."""
        router = bfloat16(self._routers[index].astype(np.float32))
        shared_gate = np.zeros((1, self.source.hidden_size), np.uint16)
        return [bfloat16(layer.input_norm), bfloat16(layer.mlp_norm), router, shared_gate]

    def routed_experts(self, index: int, layer: DenseLayer, pool: Executor) -> BFloat16:
        """All routed experts, ``[NUM_EXPERTS, 3 * EXPERT_SIZE * H]``: a row is one's gate, up and down."""
        hidden = self.source.hidden_size
        chosen = self._neuron_order[index, self.shared_size :]
        gate, up = layer.gate[chosen], layer.up[chosen]
        down = np.ascontiguousarray(layer.down[:, chosen])
        part = EXPERT_SIZE * hidden
        records = np.empty((NUM_EXPERTS, 3 * part), np.uint16)

        def fill(expert: int) -> None:
            order, starts = self._draw(index, expert, part)
            for place, copy in enumerate((gate[order], up[order], np.take(down, order, axis=1))):
                start = starts[place]
                copy *= self._noise[start : start + part].reshape(copy.shape)
                records[expert, place * part : (place + 1) * part] = bfloat16(copy).ravel()

        list(pool.map(fill, range(NUM_EXPERTS)))
        return records

    def _draw(self, index: int, expert: int, part: int) -> tuple[npt.NDArray[np.intp], list[int]]:
        """An order of neurons, and where in the pool of noise each of the three projections reads."""
        seed = np.random.SeedSequence((_SEED, index, expert))
        raw = np.random.PCG64(seed).random_raw(EXPERT_SIZE + 3)
        order = np.argsort(raw[:EXPERT_SIZE], kind="stable")
        return order, [int(number) for number in raw[EXPERT_SIZE:] % np.uint64(_NOISE_POOL - part)]


def page_sized_tensors(source: DenseModel, shared_size: int, index: int) -> list[Tensor]:
    """A layer's attention and shared expert, in the order of :class:`Upcycler`'s methods."""
    hidden = source.hidden_size
    kv_size = hidden // source.num_heads * source.num_kv_heads
    attention, shared = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp.shared_expert"
    return [
        Tensor(f"{attention}.q_proj.weight", (hidden, hidden)),
        Tensor(f"{attention}.k_proj.weight", (kv_size, hidden)),
        Tensor(f"{attention}.v_proj.weight", (kv_size, hidden)),
        Tensor(f"{attention}.o_proj.weight", (hidden, hidden)),
        Tensor(f"{shared}.gate_proj.weight", (shared_size, hidden)),
        Tensor(f"{shared}.up_proj.weight", (shared_size, hidden)),
        Tensor(f"{shared}.down_proj.weight", (hidden, shared_size)),
    ]


def small_tensors(source: DenseModel, index: int) -> list[Tensor]:
    """A layer's norms, router and shared gate, in the order of :meth:`Upcycler.small_tensors`."""
    hidden, prefix = source.hidden_size, f"model.layers.{index}"
    return [
        Tensor(f"{prefix}.input_layernorm.weight", (hidden,)),
        Tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        Tensor(f"{prefix}.mlp.gate.weight", (NUM_EXPERTS, hidden)),
        Tensor(f"{prefix}.mlp.shared_expert_gate.weight", (1, hidden)),
    ]


def expert_tensors(source: DenseModel, index: int) -> list[Tensor]:
    """A layer's routed experts, in the order of :meth:`Upcycler.routed_experts`."""
    hidden = source.hidden_size
    shapes = {
        "gate_proj": (EXPERT_SIZE, hidden),
        "up_proj": (EXPERT_SIZE, hidden),
        "down_proj": (hidden, EXPERT_SIZE),
    }
    return [
        Tensor(f"model.layers.{index}.mlp.experts.{expert}.{part}.weight", shape)
        for expert in range(NUM_EXPERTS)
        for part, shape in shapes.items()
    ]
