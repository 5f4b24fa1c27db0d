"""Seeing that offloading changed no bit: conversations held again with every expert in memory, logits compared.

The engine of each combination keeps a digest of the logits of each forward pass. After the run a resident engine
with the same kernels holds the same conversations in the same turns, so that forward passes have the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finemoe_cli.evaluation.plan import Combination, Plan
from offload.config import EngineConfig
from offload.errors import BudgetTooLarge
from offload.forecast import fixed_costs
from offload.memory.budget import plan_slots
from offload.models.spec import read_spec
from offload.sizes import ModelSizes
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.probes import HostProbe, NvmlProbe
from offload.units import format_bytes

RESIDENT = "resident"
"""Name of the engine that has every expert in memory."""
KEPT = (
    "combination",
    "seed",
    "conversation",
    "number",
    "turns",
    "turn",
    "sitting",
    "prompt_tokens",
    "token_ids",
    "logits",
    "error",
)
"""What of a replayed request is kept."""


def replays(plan: Plan) -> list[Combination]:
    """For each seed, what has to be held again: all on one engine, with the name of the first."""
    first = plan.combinations[0]
    engine = replace(first.engine, budget_bytes=None, experts_fraction=1.0, policy="demand", policy_options={})
    found = []
    for draw in plan.draws:
        of_seed = next(one for one in plan.combinations if one.draw is draw)
        name = RESIDENT if len(plan.draws) == 1 else f"{RESIDENT}#{draw.seed}"
        found.append(replace(of_seed, name=name, policy="demand", profile="", lesson=RESIDENT, engine=engine))
    return found


def check_room(config: EngineConfig) -> None:
    """See that the whole model goes into memory.

    Raises:
        BudgetTooLarge: It does not.
        ModelError: It cannot be read.
    """
    spec = read_spec(config.model)
    tensor_bytes = sum(entry.nbytes for entry in CheckpointIndex.open(config.model).tensors.values())
    sizes = ModelSizes.unread(spec, tensor_bytes, 0)
    needed, there = sizes.tensor_bytes, NvmlProbe().read().free_bytes if config.device != "cpu" else None
    if there is None:
        # The least that is known of it: what libraries take is measured when the engine opens.
        fixed = replace(fixed_costs(sizes, config.context, "reference", config.lanes or 1), base_bytes=0)
        needed = plan_slots(spec, fixed, sizes.slot_bytes, 1.0).budget_bytes
        there = HostProbe().read().available_bytes
    if there is not None and needed > there:
        raise BudgetTooLarge(
            f"--check-exact needs the whole model in memory, at least {format_bytes(needed)}, and "
            f"{format_bytes(there)} are free",
            "free some, or do without it",
        )


def exactness(
    combinations: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    replayed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the comparison of all requests that were held again comes to.

    Args:
        combinations: `name` of each.
        rows: Their requests.
        replayed: Those of the resident engine.
    """
    wanted = {(row["seed"], row["number"], row["turn"]): row for row in replayed if "error" not in row}
    by_name: dict[str, bool | None] = {}
    first: dict[str, Any] | None = None
    requests = passes = different = 0
    for one in combinations:
        by_name[one["name"]] = None
        for row in rows:
            place = row["seed"], row["number"], row["turn"]
            if row["combination"] != one["name"] or "error" in row or place not in wanted:
                continue
            requests += 1
            passes += len(row["logits"])
            at = _first_difference(row["logits"], wanted[place]["logits"])
            by_name[one["name"]] = by_name[one["name"]] is not False and at is None
            if at is not None:
                different += 1
                first = first or {
                    "combination": one["name"],
                    "conversation": row["conversation"],
                    "number": row["number"],
                    "turn": row["turn"],
                    "pass": at,
                }
    return {
        "exact": different == 0 if requests else None,
        "requests": requests,
        "passes": passes,
        "different": different,
        "first_difference": first,
        "combinations": by_name,
    }


def difference_in_words(first: Mapping[str, Any]) -> str:
    """Where the first difference is, in one line."""
    return (
        f"the logits of {first['combination']} are not those of the resident model: first in turn {first['turn']} "
        f"of {first['conversation']}, forward pass {first['pass']}"
    )


def _first_difference(one: Sequence[str], other: Sequence[str]) -> int | None:
    """The first forward pass, from 1, whose digests differ; None if none does."""
    for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
        if a != b:
            return number
    return None if len(one) == len(other) else min(len(one), len(other)) + 1
