"""The memory plan: what a model takes at a budget, worked out before a weight is read.

A budget is a promise for the whole process. What cannot be chosen comes first: the interpreter with its libraries
(measured, not guessed), the dense weights, the key-value cache for the whole context, working memory for the
longest piece of a prompt, staging of the reading lanes. What is left is the arena.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from offload.errors import BudgetTooLarge, BudgetTooSmall, ConfigError
from offload.models import ModelSpec
from offload.precision import BF16, Precision
from offload.processor import compiles_products
from offload.units import MIB, format_bytes

PREFILL_CHUNK = 1024
"""Tokens of a prompt that go through the model in one piece. The same at every budget: the piece's shape reaches
the last bits of the logits."""

HEADROOM = 24 * MIB
"""Room for what allocators hold beyond what was asked of them."""

MATMUL_PLAN_BYTES = 80 * MIB
"""Machine code and bookkeeping of the matrix products that torch keeps (64 shapes, see `runtime.imports`), with the
holes they leave in the heap. Measured; the same for all models."""

PLAIN_MATMUL_BYTES = 16 * MIB
"""The holes alone, where torch compiles no products. Measured."""

UNPACKED_WEIGHTS = 1 << 22
"""Weights of a quantised matrix that are unpacked to bfloat16 at a time, where whole matrices are too large."""


@dataclass(frozen=True, slots=True)
class FixedCosts:
    """Bytes that the process takes whatever the arena's size.

    Attributes:
        base_bytes: The interpreter and its libraries, as measured just before loading.
        dense_bytes: Weights that are not routed experts.
        kv_bytes: Key-value cache for the whole context.
        workspace_bytes: Working memory of the largest forward pass, and what stays of it.
        staging_bytes: Buffers of the reading lanes.
        policy_bytes: What the policy has learnt, and the tables it works with.
        lendable_bytes: Of the workspace: what only a prompt needs, and gives back when it is through.
    """

    base_bytes: int
    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    staging_bytes: int
    policy_bytes: int = 0
    lendable_bytes: int = 0

    @property
    def total(self) -> int:
        """All parts together; what may be lent is one of them already."""
        return sum(int(size) for size in asdict(self).values()) - self.lendable_bytes

    def __str__(self) -> str:
        parts = (
            ("libraries", self.base_bytes),
            ("dense weights", self.dense_bytes),
            ("KV cache", self.kv_bytes),
            ("workspace", self.workspace_bytes + self.staging_bytes),
            ("policy", self.policy_bytes),
        )
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a budget is spent.

    Attributes:
        budget_bytes: The promise.
        fixed: What it pays before the first expert.
        slots: Experts that can be resident at once while tokens are decoded.
        slot_bytes: Bytes of one slot.
    """

    budget_bytes: int
    fixed: FixedCosts
    slots: int
    slot_bytes: int

    @property
    def arena_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def lent_bytes(self) -> int:
        """Of the workspace: what the arena has between prompts."""
        return max(0, self.fixed.total + self.arena_bytes - self.budget_bytes)

    def slots_with(self, lent_bytes: int) -> int:
        """Slots while so much of the workspace is not needed, at most `fixed.lendable_bytes`."""
        return min(self.slots, (self.budget_bytes - self.fixed.total + lent_bytes) // self.slot_bytes)

    def to_dict(self) -> dict[str, int]:
        """Flat, under the names that every output uses."""
        return {
            "budget_bytes": self.budget_bytes,
            **asdict(self.fixed),
            "lent_bytes": self.lent_bytes,
            "arena_bytes": self.arena_bytes,
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
        }


def smallest_slots(spec: ModelSpec) -> int:
    """Slots without which no token can be computed: one layer's choice, and as many to read into."""
    return min(2 * spec.top_k, spec.total_experts)


def pass_bytes(spec: ModelSpec, tokens: int, context: int, precision: Precision = BF16) -> int:
    """Working memory of a pass of `tokens` tokens through transformers' modules, given back when it ends.

    A formula over the tensors that are alive at once, in bytes; checked against measurement in the tests.
    """
    attention_width = spec.num_heads * spec.head_dim
    rows = tokens * spec.top_k
    attention = tokens * (8 * attention_width + 6 * spec.hidden_size) * 2 + tokens * context
    if spec.unpacked_dim:
        # Keys wider than values have no fused attention: all scores lie in memory, in float32, before and after the
        # softmax, the mask once more, and what was worked out of the cache is widened to float32 as well.
        attention += context * (8 * spec.num_heads * tokens + 5 * tokens + 8 * spec.unpacked_dim)
    elif spec.num_heads > spec.num_kv_heads:
        # From the second piece of a prompt on, keys and values are repeated for every query head.
        attention += context * 2 * attention_width * 2
    experts = rows * (4 * spec.hidden_size + 2 * spec.expert_size) * 2 + tokens * 4 * spec.hidden_size * 2
    shared = tokens * 3 * spec.shared_expert_size * 2
    dense = tokens * (3 * spec.dense_mlp_size + 2 * spec.hidden_size) * 2
    unpacked = 0
    if precision != BF16:
        # An expert, and some rows of another matrix, as bfloat16, with intermediate results of a million weights.
        unpacked = spec.expert_bytes + 2 * UNPACKED_WEIGHTS + 8 * MIB
    return max(attention, experts + shared, dense) + unpacked


def workspace_bytes(spec: ModelSpec, context: int, precision: Precision = BF16) -> int:
    """Working memory of the largest forward pass, one piece of a prompt, and what stays of it, in bytes."""
    logits = 6 * spec.vocab_size * 4
    longest = pass_bytes(spec, min(PREFILL_CHUNK, context), context, precision)
    return longest + logits + (MATMUL_PLAN_BYTES if compiles_products() else PLAIN_MATMUL_BYTES) + HEADROOM


def lendable_bytes(
    spec: ModelSpec, tokens: int, context: int, precision: Precision = BF16, *, kernels: bool
) -> int:
    """Of the workspace: what a pass of `tokens` tokens leaves free, in bytes.

    Args:
        kernels: Whether single tokens go through the decode kernels: of what follows from the context they have
            tables of the rotary embedding, [context, D] float32.
    """
    longest = min(PREFILL_CHUNK, context)
    if tokens >= longest:
        return 0
    taken = 4 * context * spec.head_dim
    if tokens > 1 or not kernels:
        taken += pass_bytes(spec, tokens, context, precision)
    return max(0, pass_bytes(spec, longest, context, precision) - taken)


def plan_slots(spec: ModelSpec, fixed: FixedCosts, slot_bytes: int, fraction: float) -> MemoryPlan:
    """The plan that holds `fraction` (0..1) of the experts; 0 is the smallest arena that works."""
    slots = max(smallest_slots(spec), round(fraction * spec.total_experts))
    return MemoryPlan(fixed.total + slots * slot_bytes, fixed, slots, slot_bytes)


def plan_budget(
    spec: ModelSpec, fixed: FixedCosts, slot_bytes: int, budget_bytes: int, memory_bytes: int
) -> MemoryPlan:
    """The plan that makes the most of `budget_bytes` on a machine (or device) with `memory_bytes`.

    Where not every expert has a slot, those that decoding has are more by what only prompts need of the workspace.

    Raises:
        BudgetTooSmall: Not even the smallest arena fits beside the fixed parts.
        BudgetTooLarge: The machine does not have that much memory.
    """
    smallest = plan_slots(spec, fixed, slot_bytes, 0.0)
    if budget_bytes < smallest.budget_bytes:
        needed = -(-smallest.budget_bytes // MIB)
        raise BudgetTooSmall(
            f"a budget of {format_bytes(budget_bytes)} is too small for {spec.name}: "
            f"it takes {fixed}, {smallest.slots} expert slots {format_bytes(smallest.arena_bytes)}",
            f"the smallest budget that works is {needed}MiB; a smaller --context needs less",
            smallest_bytes=smallest.budget_bytes,
        )
    if budget_bytes > memory_bytes:
        raise BudgetTooLarge(
            f"a budget of {format_bytes(budget_bytes)} is more than the {format_bytes(memory_bytes)} there are",
            "choose a smaller one",
        )
    slots = min((budget_bytes - fixed.total + fixed.lendable_bytes) // slot_bytes, spec.total_experts)
    return MemoryPlan(budget_bytes, fixed, slots, slot_bytes)


def make_plan(
    spec: ModelSpec,
    fixed: FixedCosts,
    slot_bytes: int,
    budget_bytes: int | None,
    experts_fraction: float | None,
    memory_bytes: int,
) -> MemoryPlan:
    """The plan for a budget in bytes or, instead, as a share of the experts, which have their slots at all times.

    Raises:
        BudgetTooSmall, BudgetTooLarge: The budget cannot be kept.
        ConfigError: Neither or both are given.
    """
    if (budget_bytes is None) == (experts_fraction is None):
        raise ConfigError("a budget is either bytes or a share of the experts", "give one of the two")
    if experts_fraction is not None:
        plan = plan_slots(spec, fixed, slot_bytes, experts_fraction)
        plan_budget(spec, fixed, slot_bytes, plan.budget_bytes, memory_bytes)
        return plan
    assert budget_bytes is not None
    return plan_budget(spec, fixed, slot_bytes, budget_bytes, memory_bytes)


def check_host_budget(spec: ModelSpec, budget_bytes: int, base_bytes: int, staging_bytes: int) -> None:
    """On CUDA: see that the host's part, libraries and pinned slabs, keeps to its own budget.

    Raises:
        BudgetTooSmall: It does not.
    """
    needed = base_bytes + staging_bytes + HEADROOM
    if budget_bytes < needed:
        raise BudgetTooSmall(
            f"a host budget of {format_bytes(budget_bytes)} is too small for {spec.name}: it takes libraries "
            f"{format_bytes(base_bytes)}, buffers of the lanes {format_bytes(staging_bytes)}",
            f"the smallest host budget that works is {-(-needed // MIB)}MiB; fewer --lanes need less",
            smallest_bytes=needed,
        )
