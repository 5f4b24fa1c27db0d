"""Will a model run here, and how fast: arithmetic over its sizes and this machine's rates, before anything is read.

Memory is the engine's own plan (:mod:`offload.memory.budget`). A decoded token takes

    active bytes / kernel rate + layers x overhead + choosing      computing, with everything resident
    + for each layer that misses experts: a stop + waiting         reading
    + what reads that are not waited for take from computing

where waiting is the time that the lanes take for so many experts, less what is computed meanwhile. Misses come
from a :class:`~offload.hits.HitCurve`, and policies that read ahead wait less (:data:`AUTO_WAIT`). The key-value
cache, which grows with the conversation, is left out. ``docs/plan.md`` works the numbers out by hand.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import comb
from typing import Any, Literal

from offload.errors import BudgetTooLarge, BudgetTooSmall
from offload.hits import HitCurve, known_curve
from offload.memory.budget import FixedCosts, MemoryPlan, lendable_bytes, make_plan, plan_slots, workspace_bytes
from offload.models.spec import BYTES_PER_WEIGHT
from offload.precision import BF16, Precision
from offload.processor import compiles_products
from offload.sizes import ModelSizes
from offload.units import MIB, format_bytes

Kernels = Literal["fast", "reference"]
Verdict = Literal["resident", "fast", "usable", "slow", "does not fit"]

BASE_BYTES: dict[Kernels, int] = (
    {"fast": 310 * MIB, "reference": 300 * MIB}
    if compiles_products()
    else {"fast": 270 * MIB, "reference": 260 * MIB}
)
"""The process before a weight is read: interpreter, torch, transformers, tokenizer, and for ``fast`` Numba with
the compiled kernels, less the code that is given back. The line "base of the memory plan" of
``benchmarks/base_memory.py``, rounded up; Python 3.11, torch 2.13 for CPUs, transformers 5.23."""

REFERENCE_RATE = 0.38
"""Rate of the ``reference`` kernels for one token / that of reading memory: transformers' modules, in bfloat16."""

UNPACKED_PER_S: dict[Precision, float] = {"int8": 0.8e9, "int4": 0.25e9}
"""Weights a second that torch unpacks, which the ``reference`` kernels do for each token; on one machine."""

LAYER_OVERHEAD_S: dict[Kernels, float] = {"fast": 0.08e-3, "reference": 0.4e-3}
"""For each decoder layer of a decode pass: what is no product of a matrix with a vector."""

TOKEN_OVERHEAD_S: dict[Kernels, float] = {"fast": 0.5e-3, "reference": 2e-3}
"""For each decode pass: transformers' own loop, counting."""

CHOOSING_S = 0.06e-6
"""For each token of the vocabulary: choosing one of them, as transformers draws."""

STOP_S = 0.35e-3
"""For each layer that misses an expert: leaving the kernels, choosing victims, asking the lanes, going on."""

LOOK_S = 0.15e-3
"""For each layer, where policy ``auto`` looks ahead."""

READ_TRAFFIC = 3
"""Bytes that memory moves for one that is read, as the disk of a virtual machine copies. Measured: computing took
0.10 ms longer for each megabyte where memory gives 29 GB/s."""

PROMPT_LAYER_S = 2.5e-3
"""For each decoder layer of a prompt: calls of transformers' modules."""

PROMPT_EXPERT_S = 0.1e-3
"""For each expert that a prompt needs: calls."""

AUTO_WAIT = ((0.0, 0.30), (0.5, 0.36), (1.5, 0.69), (4.0, 0.80))
"""Waiting of policy ``auto`` / waiting of ``demand``, by the time that reading an expert takes in units of
computing a layer: about what it is without predictors, .60 to .83 at 1.5; with them it waits less
(``docs/policies.md``). From the last on it stays."""

PROMPT_TOKENS = 40
"""Length of the prompt that the time to first token is for: the mean of chat prompts in the field's data sets."""

FAST_TOKENS_PER_S = 5.0
"""From here on a model is ``fast``: faster than most people read."""

USABLE_TOKENS_PER_S = 1.0
"""From here on it is ``usable``; below, ``slow``."""


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What this machine does, as measured.

    Attributes:
        disk_rates: Threads, rising from 1, and the bytes a second that they read together: random experts of this
            size, past the page cache where that is allowed.
        lanes: Reading threads.
        kernel_bytes_per_s: Weights that the decode kernels multiply a vector with, with all threads of an engine.
        memory_bytes_per_s: One thread reading a buffer that no cache holds.
        prompt_bytes_per_s: Weights that torch multiplies a few tokens with, in bfloat16.
        flops: Operations a second that torch does for a short prompt, in bfloat16.
        memory_bytes: Memory that a process may take.
    """

    disk_rates: tuple[tuple[int, float], ...]
    lanes: int
    kernel_bytes_per_s: float
    memory_bytes_per_s: float
    prompt_bytes_per_s: float
    flops: float
    memory_bytes: int

    def disk_bytes_per_s(self, threads: int) -> float:
        """What so many threads read together; between measured numbers by straight lines, beyond them the last."""
        threads = min(threads, self.lanes)
        for (few, low), (many, high) in pairwise(self.disk_rates):
            if few <= threads <= many:
                return low + (high - low) * (threads - few) / (many - few)
        first, last = self.disk_rates[0], self.disk_rates[-1]
        return first[1] if threads < first[0] else last[1]

    def weights_bytes_per_s(self, kernels: Kernels) -> float:
        """Weights that a decoded token goes through."""
        return self.kernel_bytes_per_s if kernels == "fast" else REFERENCE_RATE * self.memory_bytes_per_s


@dataclass(frozen=True, slots=True)
class Forecast:
    """One model at one budget on one machine.

    Attributes:
        verdict: One word.
        reason: Why, in one line.
        plan: How the budget is spent; None if it cannot be kept.
        share: Resident experts / all experts.
        hit_rate: Selections that a cache with LRU finds resident, once it is warm.
        misses_per_token: Those that it does not.
        stall_s: Time a token that computing waits for reads.
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
    stall_s: float = 0.0
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
    policy: str = "auto",
    hits: HitCurve | None = None,
    budget_bytes: int | None = None,
    experts_fraction: float | None = None,
) -> Forecast:
    """What to expect of a model at a budget: bytes, or a share of its experts (0 for the smallest arena).

    Args:
        policy: Of others than ``auto`` it is taken that they wait as ``demand`` does.
        hits: What is known of the model's routing; None for what is known without having run it.
    """
    spec = sizes.spec
    fixed = fixed_costs(sizes, context, kernels, rates.lanes)
    smallest = plan_slots(spec, fixed, sizes.slot_bytes, 0.0).budget_bytes
    if smallest > rates.memory_bytes:
        return _does_not_fit(f"it needs at least {format_bytes(smallest)}", rates)
    try:
        plan = make_plan(spec, fixed, sizes.slot_bytes, budget_bytes, experts_fraction, rates.memory_bytes)
    except BudgetTooLarge:
        if experts_fraction is not None:
            budget_bytes = plan_slots(spec, fixed, sizes.slot_bytes, experts_fraction).budget_bytes
        assert budget_bytes is not None
        return _does_not_fit(f"this budget is {format_bytes(budget_bytes)}", rates)
    except BudgetTooSmall as error:
        assert budget_bytes is not None
        need = f"{-(-error.smallest_bytes // MIB)} MiB"
        return Forecast("does not fit", f"the budget is {format_bytes(budget_bytes)}, the least is {need}", None)

    selections = spec.num_layers * spec.top_k
    share = plan.slots / spec.total_experts
    found = (hits or known_curve(spec)).at(share)
    misses = selections * (1.0 - found)
    waits = wait_seconds(sizes, rates, kernels, found)
    stops, stall = waits.stops_s, waits.waiting_s
    if policy == "auto":
        stall *= auto_wait(sizes, rates, kernels)
        stops += spec.num_layers * LOOK_S if misses else 0.0
    speed = 1.0 / (decode_seconds(sizes, rates, kernels) + stops + stall + waits.slowed_s(stall, rates))
    verdict, reason = _judge(plan.slots_with(0) >= spec.total_experts, speed, misses, selections)
    return Forecast(
        verdict,
        reason,
        plan,
        share=share,
        hit_rate=found,
        misses_per_token=misses,
        stall_s=stall,
        tokens_per_s=speed,
        ttft_cold_s=prefill_seconds(sizes, rates, resident=0.0),
        ttft_warm_s=prefill_seconds(sizes, rates, resident=share),
    )


def fixed_costs(sizes: ModelSizes, context: int, kernels: Kernels, lanes: int) -> FixedCosts:
    """What the process takes whatever the budget, with :data:`BASE_BYTES` in the place of a measurement."""
    context = min(context, sizes.spec.max_context)
    return FixedCosts(
        base_bytes=BASE_BYTES[kernels],
        dense_bytes=sizes.dense_bytes,
        kv_bytes=context * sizes.spec.kv_bytes_per_token,
        workspace_bytes=workspace_bytes(sizes.spec, context, sizes.precision),
        staging_bytes=lanes * sizes.staging_bytes,
        lendable_bytes=lendable_bytes(sizes.spec, 1, context, sizes.precision, kernels=kernels == "fast"),
    )


def decode_seconds(sizes: ModelSizes, rates: MachineRates, kernels: Kernels) -> float:
    """One token with every expert resident."""
    active = sizes.active_dense_bytes + sizes.active_expert_bytes
    overhead = sizes.spec.decoder_layers * LAYER_OVERHEAD_S[kernels] + _outside_layers_s(sizes, kernels)
    unpacking = 0.0
    if kernels == "reference" and sizes.precision != BF16:
        plain = replace(sizes, precision=BF16)
        weights = (plain.active_dense_bytes + plain.active_expert_bytes) / BYTES_PER_WEIGHT
        unpacking, active = weights / UNPACKED_PER_S[sizes.precision], int(weights) * BYTES_PER_WEIGHT
    return active / rates.weights_bytes_per_s(kernels) + unpacking + overhead


def _outside_layers_s(sizes: ModelSizes, kernels: Kernels) -> float:
    """What a token takes that is neither a layer nor the head."""
    return TOKEN_OVERHEAD_S[kernels] + sizes.spec.vocab_size * CHOOSING_S


@dataclass(frozen=True, slots=True)
class Waits:
    """What misses cost a token, read on demand.

    Attributes:
        stops_s: Stopping at layers.
        waiting_s: Waiting there.
        reading_s: The reads, waited for or not.
        nbytes: Of them.
    """

    stops_s: float
    waiting_s: float
    reading_s: float
    nbytes: float

    def slowed_s(self, waiting_s: float, rates: MachineRates) -> float:
        """What the reads take from computing, if so much of them is waited for. Kernels of both kinds have it of
        the memory whose speed the ``fast`` ones show."""
        if not self.reading_s:
            return 0.0
        beside = max(1.0 - waiting_s / self.reading_s, 0.0)
        return beside * READ_TRAFFIC * self.nbytes / rates.kernel_bytes_per_s


def wait_seconds(sizes: ModelSizes, rates: MachineRates, kernels: Kernels, hits: float) -> Waits:
    """What misses cost a token.

    Each of a layer's experts is missed with the chance 1 - ``hits``, whatever the others are. All that a layer
    misses is asked for at once, read by as many lanes as there are experts, while the shared expert and those that
    are there are computed.
    """
    spec = sizes.spec
    shared = spec.shared_expert_size * sizes.expert_bytes / spec.expert_size
    stops = waiting = all_reading = 0.0
    for missing in range(1, spec.top_k + 1):
        chance = comb(spec.top_k, missing) * (1.0 - hits) ** missing * hits ** (spec.top_k - missing)
        reading = missing * sizes.expert_bytes / rates.disk_bytes_per_s(missing)
        there = shared + (spec.top_k - missing) * sizes.expert_bytes
        stops += chance * STOP_S
        waiting += chance * max(reading - there / rates.weights_bytes_per_s(kernels), 0.0)
        all_reading += chance * reading
    layers = spec.num_layers
    nbytes = layers * spec.top_k * (1.0 - hits) * sizes.expert_bytes
    return Waits(layers * stops, layers * waiting, layers * all_reading, nbytes)


def auto_wait(sizes: ModelSizes, rates: MachineRates, kernels: Kernels) -> float:
    """Waiting of ``auto`` / waiting of ``demand``: the faster the disk beside the computing, the more is hidden."""
    computing = decode_seconds(sizes, rates, kernels) - _outside_layers_s(sizes, kernels)
    layer = computing / sizes.spec.decoder_layers
    reading = sizes.expert_bytes / rates.disk_bytes_per_s(1) / layer
    for (x0, y0), (x1, y1) in pairwise(AUTO_WAIT):
        if reading <= x1:
            return y0 + (y1 - y0) * (reading - x0) / (x1 - x0)
    return AUTO_WAIT[-1][1]


def prefill_seconds(sizes: ModelSizes, rates: MachineRates, resident: float) -> float:
    """A prompt of :data:`PROMPT_TOKENS` tokens, with the share ``resident`` of its experts in memory.

    Each layer reads the union of what its tokens are routed to, taken as if experts were drawn at random, and
    computes with one expert while the next ones are read. Prompts go through torch with both kinds of kernels.
    Dense weights take as long as they take from memory, or as their products take the processor, whichever is
    longer. Quantised weights are computed in bfloat16; unpacking them takes about what is saved by reading less.
    """
    spec, plain = sizes.spec, replace(sizes, precision=BF16)
    untouched = (1.0 - spec.top_k / spec.num_experts) ** PROMPT_TOKENS
    union = spec.num_layers * spec.num_experts * (1.0 - untouched)
    reading = (1.0 - resident) * union * sizes.expert_bytes / rates.disk_bytes_per_s(rates.lanes)
    experts = union * (spec.expert_bytes / rates.prompt_bytes_per_s + PROMPT_EXPERT_S)
    # Two operations for each weight (of two bytes) and token; of the head, only the last token's.
    head = spec.vocab_size * spec.hidden_size * BYTES_PER_WEIGHT
    products = PROMPT_TOKENS * max(plain.active_dense_bytes - head, 0) / rates.flops
    dense = max(plain.active_dense_bytes / rates.prompt_bytes_per_s, products)
    return max(reading, experts) + dense + spec.decoder_layers * PROMPT_LAYER_S


def _judge(resident: bool, speed: float, misses: float, selections: int) -> tuple[Verdict, str]:
    pace = f"about {speed:.1f} tokens/s" if speed < 10 else f"about {speed:.0f} tokens/s"
    if resident:
        return "resident", f"{pace}: every expert stays in memory once it was read"
    reads = f"{pace}: of the {selections} experts a token needs, about {misses:.0f} come from disk"
    if speed >= FAST_TOKENS_PER_S:
        return "fast", reads
    return ("usable" if speed >= USABLE_TOKENS_PER_S else "slow"), reads


def _does_not_fit(what: str, rates: MachineRates) -> Forecast:
    return Forecast("does not fit", f"{what}, and this machine has {format_bytes(rates.memory_bytes)}", None)
