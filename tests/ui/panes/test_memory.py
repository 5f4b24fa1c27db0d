"""What the workspace lends to the experts is shown once, and offered with a profile."""

from __future__ import annotations

from dataclasses import replace

from offload.memory.budget import FixedCosts, MemoryPlan
from profiles.budget import Budget
from tests.support.synthetic import SyntheticEngine
from ui.panes.memory import _parts
from ui.screens.profiles import _plan


def test_lent_memory_is_the_experts_and_not_the_workspace():
    frame = SyntheticEngine(12, 16, 2).frame()
    memory = frame.memory
    slot, lendable = memory.slot_bytes, 5 * memory.slot_bytes + 1
    fixed = FixedCosts(
        memory.base_bytes, memory.dense_bytes, memory.kv_bytes, lendable + 7, memory.staging_bytes, 3, lendable
    )
    plan = MemoryPlan(fixed.total + 20 * slot, fixed, 25, slot)
    lending = replace(
        frame,
        memory=replace(
            memory,
            budget_bytes=plan.budget_bytes,
            workspace_bytes=fixed.workspace_bytes,
            policy_bytes=fixed.policy_bytes,
            arena_bytes=plan.arena_bytes,
            slots=plan.slots,
            lendable_bytes=lendable,
            lent_bytes=plan.lent_bytes,
        ),
    )
    parts = _parts(lending)
    assert sum(parts.values()) == plan.budget_bytes
    assert (parts["resident"], parts["work"]) == (25 * slot, memory.staging_bytes + 3 + lendable + 7 - 5 * slot)
    # A budget in bytes is offered with what it has while decoding, a share with what it is.
    assert _plan(Budget(total_bytes=plan.budget_bytes), lending) == (plan.budget_bytes, 25)
    assert _plan(Budget(experts_fraction=20 / 192), lending) == (plan.budget_bytes, 20)
