"""Deciding what stays in the fast tier and what is fetched ahead."""

from offload.policy.base import Policy
from offload.policy.demand import DemandLRU

__all__ = ["DemandLRU", "Policy"]
