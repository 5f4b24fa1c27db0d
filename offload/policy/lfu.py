"""The least frequently used expert leaves, old uses counting less and less."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import Blind, Surroundings
from offload.policy.frequency import DecayedFrequency
from offload.policy.options import option
from offload.telemetry.routing import ForwardPass, Routing

DECAY = 0.97
"""Worth that a use keeps with each token; half of it is gone after 23."""


class DecayedLFU(Blind):
    """Evicts the expert with the least decayed count of uses; of equals, the one used longest ago.

    Option ``decay``: worth that a use keeps with each token (0.5 to 1).
    """

    name = "lfu"

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._frequency = DecayedFrequency(around, option(around, "decay", DECAY, 0.5, 1.0))

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        self._frequency.begin_pass(forward)

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        self._frequency.routed(routing)

    def end_pass(self) -> None:
        """See `Policy`."""
        self._frequency.end_pass()

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        counts = self._frequency.of(evictable)
        least = evictable[counts == counts.min()]
        return int(least[self.around.last_used[least].argmin()])
