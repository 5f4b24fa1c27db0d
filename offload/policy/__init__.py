"""Deciding what stays in the fast tier and what is fetched ahead."""

from offload.policy.base import (
    NOTHING,
    REFUSE,
    Blind,
    Decision,
    Fetch,
    LinkState,
    Policy,
    Rates,
    RouterWeights,
    Surroundings,
)
from offload.policy.registry import check_policy, make_policy

__all__ = [
    "NOTHING",
    "REFUSE",
    "Blind",
    "Decision",
    "Fetch",
    "LinkState",
    "Policy",
    "Rates",
    "RouterWeights",
    "Surroundings",
    "check_policy",
    "make_policy",
]
