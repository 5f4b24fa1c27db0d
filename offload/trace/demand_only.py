"""A policy whose reads ahead are left out: what is left is its eviction, to be compared with LRU and with MIN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import NOTHING, Decision, Policy
from offload.telemetry.routing import ForwardPass, Routing


class DemandOnly:
    """Runs `policy`, which predicts as ever and evicts by what it predicts, and reads nothing of it ahead."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name = policy.name
        self.note = policy.note
        self.decides_early = policy.decides_early

    @property
    def looks_ahead(self) -> bool:
        """See `Policy`."""
        return self._policy.looks_ahead

    @property
    def wants_residual(self) -> bool:
        """See `Policy`."""
        return self._policy.wants_residual

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        self._policy.begin_pass(forward)

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        self._policy.routed(routing)

    def decide(self, layer: int) -> Decision:
        """See `Policy`. The policy is asked all the same: some work out there what they evict by."""
        self._policy.decide(layer)
        return NOTHING

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return self._policy.victim(evictable, wanted, demand)

    def end_pass(self) -> None:
        """See `Policy`."""
        self._policy.end_pass()
        self.note = self._policy.note
