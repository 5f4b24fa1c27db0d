"""Demand reads only, and the least recently used expert leaves: the bar that every prediction has to clear."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import Blind


class DemandLRU(Blind):
    """Evicts the expert whose last use lies farthest back."""

    name = "demand"

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return int(evictable[self.around.last_used[evictable].argmin()])
