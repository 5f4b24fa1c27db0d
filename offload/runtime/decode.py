"""The fast decode step: one token through the kernels, stopping only where an expert is absent."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offload.memory.arena import HostArena
from offload.memory.residency import Residency
from offload.models import ModelSpec
from offload.precision import Precision
from offload.runtime.kernels.places import IN_PACKED
from offload.runtime.kv import KVCache
from offload.runtime.loading import DenseWeights
from offload.runtime.team import Team, make_scratch
from offload.runtime.watch import Watch
from offload.store.base import ExpertStore
from offload.telemetry.counters import Counters
from offload.telemetry.routing import Routing
from offload.transfer.fetch import ExpertFetcher

ITEMS: dict[Precision, type[np.generic]] = {"bf16": np.uint16, "int8": np.int8, "int4": np.uint8}
"""The type of an array's items that tells the kernels how weights are kept."""


@dataclass(frozen=True, slots=True)
class DenseView:
    """The dense weights as the kernels read them.

    Attributes:
        precision: How matrices are kept.
        layers: [L, N] uint16, one row of bfloat16 bits a layer.
        packed: All weights as items of the type that stands for the precision, layers first.
        packed_layers: [L, N or 2N], the layers' rows of them.
        at: [11] int64, where each matrix begins in a row (see `kernels.places`).
        embedding_at / head_at: Where in `packed` the tables [V, H] begin.
        norm: [H] uint16, the last norm.
        rope: [C, D] float32, cosines then sines of each position.
        eps: Of the norms.
        norm_topk: Whether the chosen probabilities are made to sum to 1.
    """

    precision: Precision
    layers: NDArray[np.uint16]
    packed: NDArray[Any]
    packed_layers: NDArray[Any]
    at: NDArray[np.int64]
    embedding_at: int
    head_at: int
    norm: NDArray[np.uint16]
    rope: NDArray[np.float32]
    eps: np.float32
    norm_topk: bool


def dense_view(spec: ModelSpec, model: Any, dense: DenseWeights, context: int) -> DenseView:
    """The view of loaded dense weights for a cache of `context` positions."""
    layout = dense.layout
    kind = ITEMS[layout.precision]
    items = 2 // kind().itemsize  # in the place of one bfloat16
    at = np.array(layout.group_at, np.int64)
    present = [place for place in IN_PACKED if at[place] >= 0]
    at[present] *= items
    embedding_at = items * layout.begin["model.embed_tokens.weight"]
    has_head = "lm_head.weight" in layout.begin
    rotary = model.model.rotary_emb
    angles = torch.arange(context, dtype=torch.float32)[:, None] * rotary.inv_freq.float()
    cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
    return DenseView(
        precision=layout.precision,
        layers=dense.layers,
        packed=dense.bits.view(kind),
        packed_layers=dense.layers.view(kind),
        at=at,
        embedding_at=embedding_at,
        head_at=items * layout.begin["lm_head.weight"] if has_head else embedding_at,
        norm=dense.tensor("model.norm.weight", (spec.hidden_size,)),
        rope=torch.cat((cos, sin), dim=1).contiguous().numpy(),
        eps=np.float32(model.config.rms_norm_eps),
        norm_topk=bool(getattr(model.config, "norm_topk_prob", False)),
    )


class FastDecoder:
    """Computes one token with a few kernel calls, exactly the same whatever is resident.

    Scratch arrays are made once; nothing is allocated per token but the logits.
    """

    def __init__(
        self,
        spec: ModelSpec,
        dense: DenseView,
        cache: KVCache,
        store: ExpertStore,
        arena: HostArena,
        residency: Residency,
        fetcher: ExpertFetcher,
        counters: Counters,
        watch: Watch,
        threads: int,
    ) -> None:
        """Args: threads: That multiply matrices with vectors, the caller's among them."""
        self._watch = watch
        self._spec = spec
        self._dense = dense
        self._cache = cache
        self._cache_bits = cache.bits
        self._fetcher = fetcher
        self._counters = counters
        self._kernels: Any = importlib.import_module(f"offload.runtime.kernels.{dense.precision}")
        kind = ITEMS[dense.precision]
        size = kind().itemsize
        self._weights = arena.buffer.view(kind)
        self._slot_size = arena.slot_bytes // size
        self._gate_up_at = store.gate_up_offset // size
        self._down_at = store.down_offset // size
        self._residency = residency
        self._dims = np.array(
            [
                spec.hidden_size,
                spec.num_experts,
                spec.top_k,
                spec.expert_size,
                spec.shared_expert_size,
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                int(dense.norm_topk),
            ],
            np.int64,
        )
        hidden, layers = spec.hidden_size, spec.num_layers
        widest = max(spec.expert_size, spec.shared_expert_size)
        self._embedding = _floats(hidden)
        self._x = _floats(hidden)
        self._normed = _floats(hidden)
        self._qkv = _floats((spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim)
        self._heads = _floats(spec.num_heads * spec.head_dim)
        self._scores = _floats(spec.num_heads // spec.num_kv_heads, cache.context)
        self._wide = _floats(hidden)
        self._gate_up = _floats(spec.top_k, 2 * widest)
        self._gated = _floats(spec.top_k, widest)
        columns = max(hidden, widest, spec.num_heads * spec.head_dim)
        self._scratch = make_scratch(spec.top_k, columns)
        of_experts = spec.top_k * max(2 * spec.expert_size, hidden)
        rows = max(of_experts, 2 * spec.shared_expert_size, len(self._qkv), spec.vocab_size)
        self._team = Team(threads, self._kernels, self._weights, rows)
        self._rows = _floats(spec.top_k, hidden)
        self._done = np.zeros(spec.top_k, np.uint8)
        self._residuals = _floats(layers, hidden)
        self._shared = _floats(layers, hidden)
        self._probabilities = _floats(layers, spec.num_experts)
        self._chosen = np.zeros((layers, spec.top_k), np.int32)  # likeliest first
        self._shares = _floats(layers, spec.top_k)
        self._routings = self._make_routings()

    def step(self, token: int) -> torch.Tensor:
        """Logits after `token` at the next position of the cache: [1, 1, V] float32.

        Raises:
            ExpertReadError: An expert could not be read; the cache is as before.
        """
        watch, layers = self._watch, self._spec.num_layers
        self._kernels.embed(self._dense.packed, self._dense.embedding_at, token, self._embedding)
        self._x[:] = self._embedding
        watch.begin((token,), self._cache.length, self._embedding)
        pause = watch.looks_ahead
        if pause and watch.policy.decides_early:
            self._fetcher.look_ahead(-1)
        stop = self._run(0, False, pause)
        while stop < layers:
            if stop < 0:
                self._look(-1 - stop)
            else:
                self._experts_of(stop, pause)
            stop = self._run(stop if stop >= 0 else -1 - stop, True, pause)
        if not pause:
            for routing in self._routings:
                watch.routed(routing)
        watch.end(self._chosen)
        self._cache.advance()
        logits = np.empty(self._spec.vocab_size, np.float32)
        dense = self._dense
        self._kernels.head(
            self._x,
            dense.norm,
            dense.eps,
            dense.packed,
            dense.head_at,
            self._normed,
            self._scratch,
            self._team.board,
            logits,
        )
        return torch.from_numpy(logits).view(1, 1, -1)

    def close(self) -> None:
        """Have the helpers end; nobody calls `step` any more."""
        self._team.close()

    def _look(self, layer: int) -> None:
        """Have the policy look behind the router of a layer that has all it needs."""
        self._watch.routed(self._routings[layer])
        self._fetcher.look_ahead(layer, self._chosen[layer])

    def _experts_of(self, layer: int, look: bool) -> None:
        """Bring in and compute the experts of a layer that the kernels stopped at.

        Demand reads start first. What the policy works out meanwhile, and what it fetches, comes behind them.
        """
        first = layer * self._spec.num_experts
        needed = [first + expert for expert in self._chosen[layer].tolist()]
        fetcher = self._fetcher
        try:
            fetcher.request(layer, needed)
            self._compute_shared(layer)
            if look:
                self._watch.routed(self._routings[layer])
                fetcher.look_ahead(layer)
            while self._compute_rows(layer):
                fetcher.wait(layer)
            fetcher.release(needed)
        except BaseException:
            fetcher.abandon(needed)
            raise

    def _make_routings(self) -> list[Routing]:
        """What the watch is told of each layer: views of the scratch arrays."""
        spec = self._spec
        shared = self._shared if spec.shared_expert_size else None
        return [
            Routing(
                layer=layer,
                probabilities=self._probabilities[layer : layer + 1],
                chosen=self._chosen[layer : layer + 1],
                residual=self._residuals[layer : layer + 1],
                shared=None if shared is None else shared[layer : layer + 1],
            )
            for layer in range(spec.num_layers)
        ]

    def _run(self, first: int, resume: bool, pause: bool) -> int:
        dense, fetcher, counters = self._dense, self._fetcher, self._counters
        return int(
            self._kernels.run_layers(
                first, self._spec.num_layers, resume, pause, self._cache.length, self._dims, dense.at,
                dense.eps, dense.layers, dense.packed_layers, dense.rope, self._cache_bits, self._weights,
                self._gate_up_at, self._down_at, self._residency.slot_of, self._residency.state, self._slot_size,
                self._x, self._normed, self._qkv, self._heads, self._scores, self._wide, self._residuals,
                self._shared, self._probabilities, self._chosen, self._shares, self._gate_up, self._gated,
                self._scratch, self._team.board, self._rows, self._done, fetcher.fresh, fetcher.kind_of,
                counters.tally[fetcher.phase], counters.uses, fetcher.last_used, fetcher.clock,
            )
        )  # fmt: skip

    def _compute_shared(self, layer: int) -> None:
        dense = self._dense
        self._kernels.compute_shared(
            layer, self._dims, dense.at, dense.layers, dense.packed_layers, self._normed, self._gate_up,
            self._gated, self._scratch, self._team.board, self._shared,
        )  # fmt: skip

    def _compute_rows(self, layer: int) -> int:
        return int(
            self._kernels.compute_rows(
                layer, self._dims, self._weights, self._gate_up_at, self._down_at, self._residency.slot_of,
                self._residency.state, self._slot_size, self._normed, self._chosen, self._gate_up, self._gated,
                self._scratch, self._team.board, self._rows, self._done,
            )
        )  # fmt: skip


def _floats(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)
