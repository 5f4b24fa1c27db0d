"""Plans of memory: what they promise adds up, whatever is lent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import BudgetTooSmall
from offload.memory.budget import (
    PREFILL_CHUNK,
    FixedCosts,
    MemoryPlan,
    lendable_bytes,
    make_plan,
    pass_bytes,
    smallest_slots,
    workspace_bytes,
)
from offload.models.spec import spec_from_config
from offload.precision import PRECISIONS
from offload.units import GIB, MIB
from tests.offload.test_forecast import PUBLISHED

MEMORY = 1024 * GIB
SPECS = [spec_from_config(Path(name), entry["config"]) for name, entry in PUBLISHED.items()]


@given(
    spec=st.sampled_from(SPECS),
    context=st.integers(1, 4096),
    precision=st.sampled_from(PRECISIONS),
    kernels=st.booleans(),
    tokens=st.integers(1, PREFILL_CHUNK),
    more=st.integers(0, 40 * GIB),
)
def test_no_pass_takes_more_than_the_budget(spec, context, precision, kernels, tokens, more):
    tokens = min(tokens, context)
    workspace = workspace_bytes(spec, context, precision)
    lendable = lendable_bytes(spec, 1, context, precision, kernels=kernels)
    fixed = FixedCosts(300 * MIB, 2 * GIB, context, workspace, 0, 5, lendable)
    assert fixed.total == 300 * MIB + 2 * GIB + context + workspace + 5
    slot, smallest = spec.expert_bytes, smallest_slots(spec)
    budget = fixed.total + smallest * slot + more
    plan = make_plan(spec, fixed, slot, budget, None, MEMORY)
    longest = pass_bytes(spec, min(context, PREFILL_CHUNK), context, precision)
    # The decode kernels need no torch; at every other length the pass has what it needs.
    free = lendable_bytes(spec, tokens, context, precision, kernels=kernels)
    needed = 0 if kernels and tokens == 1 < context else pass_bytes(spec, tokens, context, precision)
    slots = plan.slots_with(free)
    assert fixed.total - longest + min(longest, needed + 4 * context * spec.head_dim) + slots * slot <= budget
    assert smallest <= plan.slots_with(0) <= slots <= plan.slots <= spec.total_experts
    assert plan.slots == spec.total_experts or budget - (fixed.total - lendable) - plan.arena_bytes < slot
    assert plan.slots_with(lendable) == plan.slots
    assert 0 <= plan.lent_bytes <= lendable
    with pytest.raises(BudgetTooSmall):
        make_plan(spec, fixed, slot, fixed.total + smallest * slot - 1, None, MEMORY)


@given(spec=st.sampled_from(SPECS), fraction=st.floats(0, 1), lendable=st.integers(0, GIB))
def test_a_share_borrows_nothing(spec, fraction, lendable):
    fixed = FixedCosts(0, 0, 0, GIB, 0, 0, lendable)
    plan = make_plan(spec, fixed, spec.expert_bytes, None, fraction, MEMORY)
    assert plan.slots == plan.slots_with(0) == max(smallest_slots(spec), round(fraction * spec.total_experts))
    assert plan.lent_bytes == 0
    assert plan.budget_bytes == GIB + plan.arena_bytes


def test_a_plan_by_hand():
    plan = MemoryPlan(100, FixedCosts(10, 10, 10, 30, 0, 0, 20), slots=12, slot_bytes=5)
    assert (plan.arena_bytes, plan.lent_bytes) == (60, 20)
    assert [plan.slots_with(lent) for lent in (0, 4, 5, 20)] == [8, 8, 9, 12]
    assert {"lent_bytes": 20, "lendable_bytes": 20, "arena_bytes": 60}.items() <= plan.to_dict().items()
