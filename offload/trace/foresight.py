"""Policies that know the future, for the simulator only: the bounds that others are measured against.

- `belady`: demand reads only, and the expert leaves whose next use lies farthest ahead (MIN, Belady 1966; with
  experts of one size and no bypass, no demand policy has more hits).
- `oracle`: the same eviction, and experts are read ahead in the order in which they will be needed, as long as the
  one that has to leave is needed later. Greedy; it shows what perfect prediction is worth on this link.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import NOTHING, REFUSE, Blind, Decision, Fetch, Surroundings
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.records import TraceRequest

NEVER = np.iinfo(np.int64).max
"""The next use of an expert that is not needed again."""

FORESIGHT = ("belady", "oracle")
"""Their names."""


class Future:
    """When which expert will be needed, in steps: one step is one layer of one forward pass.

    Attributes:
        prefill: Whether prompts need experts too.
        needed: For each step, the experts.
        next_use: For each step, when each of its experts is needed again.
        first_use: [L*E] int64, when each expert is needed for the first time.
    """

    def __init__(self, requests: Sequence[TraceRequest], layers: int, experts: int, *, prefill: bool) -> None:
        self.prefill = prefill
        self.needed: list[NDArray[np.int64]] = []
        for request in requests:
            for one in request.passes:
                if one.phase == Phase.PREFILL and not prefill:
                    continue
                for layer in range(layers):
                    chosen = one.chosen[layer].astype(np.int64)
                    self.needed.append(layer * experts + (chosen[0] if len(chosen) == 1 else np.unique(chosen)))
        upcoming = np.full(layers * experts, NEVER, np.int64)
        self.next_use: list[NDArray[np.int64]] = [upcoming[:0]] * len(self.needed)
        for step in range(len(self.needed) - 1, -1, -1):
            self.next_use[step] = upcoming[self.needed[step]]
            upcoming[self.needed[step]] = step
        self.first_use = upcoming


class Belady(Blind):
    """Evicts the expert whose next use lies farthest ahead. See the module."""

    name = "belady"
    looks_ahead = True

    def __init__(self, around: Surroundings, future: Future) -> None:
        super().__init__(around)
        self._future = future
        self._next_use = future.first_use.copy()
        self._step = 0
        self._counts = True

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        self._counts = forward.phase == Phase.DECODE or self._future.prefill

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        if not self._counts:
            return
        needed = self._future.needed[self._step]
        self._next_use[needed] = self._future.next_use[self._step]
        self._step += 1

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return int(evictable[self._next_use[evictable].argmax()])


class Oracle(Belady):
    """Belady's eviction, and greedy perfect reading ahead. See the module."""

    name = "oracle"

    def decide(self, layer: int) -> Decision:
        """See `Policy`: what is needed next and absent, as far as the slots reach."""
        around, needed = self.around, self._future.needed
        absent = around.residency.state
        room = 2 * around.link.count + 2 - around.link.in_flight
        if room <= 0:
            return NOTHING
        fetch: list[Fetch] = []
        for step in range(self._step, min(self._step + 2 * around.layers, len(needed))):
            for expert in needed[step].tolist():
                if not absent[expert]:
                    fetch.append(Fetch(expert, float(-step)))
            if len(fetch) >= room:
                break
        return Decision([], fetch[:room])

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        victim = super().victim(evictable, wanted, demand)
        if not demand and self._next_use[victim] <= self._next_use[wanted]:
            return REFUSE
        return victim
