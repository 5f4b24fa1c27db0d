"""Will a model run here, and how fast: arithmetic over its sizes and this machine's rates, before anything is read.

Memory is the engine's own plan (:mod:`offload.memory.budget`); the rest is a model of two costs a token:

    seconds = active bytes / memory rate x kernel factor + layers x overhead  +  misses x expert bytes / disk rate

Active bytes are the dense weights that every token reads and its routed experts. Misses come from
:func:`hit_rate`, which is a fit to published figures, not a law: natively trained routers differ, the prompt
matters, and the key-value cache, which grows with the conversation, is left out. Expect a factor of 2 either way.
``docs/plan.md`` works the numbers out by hand.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from offload.errors import BudgetTooLarge, BudgetTooSmall, CorruptCheckpoint
from offload.memory.budget import FixedCosts, MemoryPlan, plan_budget, plan_slots, workspace_bytes
from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec
from offload.store.base import BLOCK
from offload.units import MIB, format_bytes

Kernels = Literal["fast", "reference"]
Verdict = Literal["resident", "fast", "usable", "slow", "does not fit"]

BASE_BYTES: dict[Kernels, int] = {"fast": 420 * MIB, "reference": 300 * MIB}
"""The process before a weight is read: interpreter, torch, transformers, tokenizer, and for ``fast`` Numba with
the compiled kernels. The line "base of the memory plan" of ``benchmarks/base_memory.py``, rounded up; Python 3.11,
torch 2.13 for CPUs, transformers 5.23."""

KERNEL_FACTOR: dict[Kernels, float] = {"fast": 1.25, "reference": 2.6}
"""How much longer a decode pass takes than reading its weights once at the measured memory rate."""

LAYER_OVERHEAD_S: dict[Kernels, float] = {"fast": 0.1e-3, "reference": 0.4e-3}
"""Python and calls, for each decoder layer of a decode pass."""

PROMPT_TOKENS = 40
"""Length of the prompt that the time to first token is for: the mean of chat prompts in the field's data sets."""

FAST_TOKENS_PER_S = 5.0
"""From here on a model is ``fast``: faster than most people read."""

USABLE_TOKENS_PER_S = 1.0
"""From here on it is ``usable``; below, ``slow``."""

PUBLISHED_HITS = ((0.0, 0.0), (0.06, 0.40), (0.12, 0.60), (0.22, 0.78), (0.355, 0.87), (0.64, 0.96), (1.0, 1.0))
"""Share of the experts that is resident, and LRU's hit rate at that share, as published for decoding with models
of 128 and more experts a layer; middles where a range was given."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model's bytes.

    Attributes:
        spec: Its facts.
        tensor_bytes: All tensors together.
        download_bytes: What there is to fetch; 0 for a model that is here.
        slot_bytes: One slot of the arena.
        staging_bytes: What each reading lane takes beside the slots.
    """

    spec: ModelSpec
    tensor_bytes: int
    download_bytes: int
    slot_bytes: int
    staging_bytes: int

    def __post_init__(self) -> None:
        if self.dense_bytes <= 0:
            raise CorruptCheckpoint(
                f"{self.spec.name} has {format_bytes(self.tensor_bytes)} of tensors, and its config.json describes "
                f"{format_bytes(self.experts_bytes)} of experts",
                "the configuration and the weights are not of one model, or not in bfloat16",
            )

    @classmethod
    def unread(cls, spec: ModelSpec, tensor_bytes: int, download_bytes: int) -> ModelSizes:
        """The sizes of a model whose experts lie as the safetensors library writes them: by name, touching.

        Gate, up and down then come in one read that begins within a block. Where up does not follow gate in the
        alphabet, the read goes through the lane's staging buffer.
        """
        gate, up, down = spec.architecture.expert_keys(spec.moe_layers[0], 0)
        order = sorted((gate, up, down))
        covering = -(-spec.expert_bytes // BLOCK) * BLOCK + BLOCK
        if order.index(up) == order.index(gate) + 1:
            return cls(spec, tensor_bytes, download_bytes, covering, 0)
        return cls(spec, tensor_bytes, download_bytes, covering - BLOCK, covering)

    @property
    def experts_bytes(self) -> int:
        """All routed experts."""
        return self.spec.total_experts * self.spec.expert_bytes

    @property
    def dense_bytes(self) -> int:
        """Everything that is no routed expert and is always in memory."""
        return self.tensor_bytes - self.experts_bytes

    @property
    def active_dense_bytes(self) -> int:
        """Dense weights that a token reads: of an embedding table that is not also the head, only a row."""
        table = 0 if self.spec.tied_embeddings else self.spec.vocab_size * self.spec.hidden_size * BYTES_PER_WEIGHT
        return max(self.dense_bytes - table, 0)

    @property
    def active_expert_bytes(self) -> int:
        """Routed experts that a token reads."""
        return self.spec.num_layers * self.spec.top_k * self.spec.expert_bytes

    def to_dict(self) -> dict[str, int]:
        """For ``--json``."""
        return {
            "tensor_bytes": self.tensor_bytes,
            "dense_bytes": self.dense_bytes,
            "experts_bytes": self.experts_bytes,
            "expert_bytes": self.spec.expert_bytes,
            "experts": self.spec.total_experts,
            "kv_bytes_per_token": self.spec.kv_bytes_per_token,
            "active_bytes_per_token": self.active_dense_bytes + self.active_expert_bytes,
            "download_bytes": self.download_bytes,
        }


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What this machine does, as measured.

    Attributes:
        disk_bytes_per_s: Random reads of this model's expert size, past the page cache where that is allowed.
        lanes: Reading threads that took.
        memory_bytes_per_s: One thread reading a buffer that no cache holds.
        flops: Floating-point operations a second in a float32 matrix product, all threads.
        memory_bytes: Memory that a process may take.
    """

    disk_bytes_per_s: float
    lanes: int
    memory_bytes_per_s: float
    flops: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """One model at one budget on one machine.

    Attributes:
        verdict: One word.
        reason: Why, in one line.
        plan: How the budget is spent; None if it cannot be kept.
        share: Resident experts / all experts.
        hit_rate: Selections that need no read, once the arena is warm.
        misses_per_token: Those that do.
        tokens_per_s: Decoding, once the arena is warm, early in a conversation.
        ttft_cold_s: First token of the first prompt (:data:`PROMPT_TOKENS` tokens), nothing resident.
        ttft_warm_s: The same with a full arena.
    """

    verdict: Verdict
    reason: str
    plan: MemoryPlan | None
    share: float = 0.0
    hit_rate: float = 0.0
    misses_per_token: float = 0.0
    tokens_per_s: float = 0.0
    ttft_cold_s: float = 0.0
    ttft_warm_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: flat; without a plan only the verdict."""
        if self.plan is None:
            return {"verdict": self.verdict, "reason": self.reason}
        fields = asdict(self)
        del fields["plan"]
        return fields | self.plan.to_dict()


def forecast(
    sizes: ModelSizes,
    rates: MachineRates,
    *,
    context: int,
    kernels: Kernels,
    budget_bytes: int | None = None,
    experts_fraction: float | None = None,
) -> Forecast:
    """What to expect of a model at a budget: bytes, or a share of its experts (0 for the smallest arena)."""
    spec = sizes.spec
    fixed = fixed_costs(sizes, context, kernels, rates.lanes)
    smallest = plan_slots(spec, fixed, sizes.slot_bytes, 0.0).budget_bytes
    if smallest > rates.memory_bytes:
        return _does_not_fit(f"it needs at least {format_bytes(smallest)}", rates)
    if experts_fraction is not None:
        budget_bytes = plan_slots(spec, fixed, sizes.slot_bytes, experts_fraction).budget_bytes
    assert budget_bytes is not None
    try:
        plan = plan_budget(spec, fixed, sizes.slot_bytes, budget_bytes, rates.memory_bytes)
    except BudgetTooLarge:
        return _does_not_fit(f"this budget is {format_bytes(budget_bytes)}", rates)
    except BudgetTooSmall as error:
        need = format_bytes(error.smallest_bytes)
        return Forecast("does not fit", f"the budget is {format_bytes(budget_bytes)}, the least is {need}", None)

    selections = spec.num_layers * spec.top_k
    share = plan.slots / spec.total_experts
    hits = hit_rate(spec, plan.slots)
    misses = selections * (1.0 - hits)
    seconds = decode_seconds(sizes, rates, kernels) + misses * spec.expert_bytes / rates.disk_bytes_per_s
    speed = 1.0 / seconds
    verdict, reason = _judge(share, speed, misses, selections)
    return Forecast(
        verdict,
        reason,
        plan,
        share=share,
        hit_rate=hits,
        misses_per_token=misses,
        tokens_per_s=speed,
        ttft_cold_s=prefill_seconds(sizes, rates, kernels, resident=0.0),
        ttft_warm_s=prefill_seconds(sizes, rates, kernels, resident=share),
    )


def fixed_costs(sizes: ModelSizes, context: int, kernels: Kernels, lanes: int) -> FixedCosts:
    """What the process takes whatever the budget, with :data:`BASE_BYTES` in the place of a measurement."""
    context = min(context, sizes.spec.max_context)
    return FixedCosts(
        base_bytes=BASE_BYTES[kernels],
        dense_bytes=sizes.dense_bytes,
        kv_bytes=context * sizes.spec.kv_bytes_per_token,
        workspace_bytes=workspace_bytes(sizes.spec, context),
        staging_bytes=lanes * sizes.staging_bytes,
    )


def hit_rate(spec: ModelSpec, slots: int) -> float:
    """The share of a token's selections that find their expert resident, with LRU, once the arena is warm.

    :data:`PUBLISHED_HITS` between its points by straight lines. Up to one token's working set (a slot for each
    layer's choice) every expert is evicted before its layer comes again: none. From there the rate rises to the
    published one, which it has at twice the working set.
    """
    if slots >= spec.total_experts:
        return 1.0
    share = slots / spec.total_experts
    working_set = spec.top_k / spec.num_experts
    ramp = min(max(share / working_set - 1.0, 0.0), 1.0)
    return ramp * _interpolate(share)


def decode_seconds(sizes: ModelSizes, rates: MachineRates, kernels: Kernels) -> float:
    """One token with every expert resident."""
    active = sizes.active_dense_bytes + sizes.active_expert_bytes
    overhead = sizes.spec.decoder_layers * LAYER_OVERHEAD_S[kernels]
    return active / rates.memory_bytes_per_s * KERNEL_FACTOR[kernels] + overhead


def prefill_seconds(sizes: ModelSizes, rates: MachineRates, kernels: Kernels, resident: float) -> float:
    """A prompt of :data:`PROMPT_TOKENS` tokens, with the share ``resident`` of its experts in memory.

    Each layer reads the union of what its tokens are routed to, taken as if experts were drawn at random, and
    computes for as long as its weights take to come from memory or its products take the processor, whichever
    is longer. Prompts go through torch with both kinds of kernels.
    """
    spec = sizes.spec
    untouched = (1.0 - spec.top_k / spec.num_experts) ** PROMPT_TOKENS
    union_bytes = spec.num_layers * spec.num_experts * (1.0 - untouched) * spec.expert_bytes
    reading = (1.0 - resident) * union_bytes / rates.disk_bytes_per_s
    weights = (sizes.active_dense_bytes + union_bytes) / rates.memory_bytes_per_s
    # Two operations for each weight (of two bytes) and token.
    products = PROMPT_TOKENS * (sizes.active_dense_bytes + sizes.active_expert_bytes) / rates.flops
    return reading + max(weights, products)


def _interpolate(share: float) -> float:
    points = [x for x, _ in PUBLISHED_HITS]
    place = min(max(bisect_right(points, share), 1), len(points) - 1)
    (x0, y0), (x1, y1) = list(pairwise(PUBLISHED_HITS))[place - 1]
    return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


def _judge(share: float, speed: float, misses: float, selections: int) -> tuple[Verdict, str]:
    pace = f"about {speed:.1f} tokens/s" if speed < 10 else f"about {speed:.0f} tokens/s"
    if share >= 1.0:
        return "resident", f"{pace}: every expert stays in memory once it was read"
    reads = f"{pace}: of the {selections} experts a token needs, about {misses:.0f} come from disk"
    if speed >= FAST_TOKENS_PER_S:
        return "fast", reads
    return ("usable" if speed >= USABLE_TOKENS_PER_S else "slow"), reads


def _does_not_fit(what: str, rates: MachineRates) -> Forecast:
    return Forecast("does not fit", f"{what}, and this machine has {format_bytes(rates.memory_bytes)}", None)
