"""Demand reads only, and the least recently used expert leaves: the bar that every prediction has to clear."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class DemandLRU:
    """Evicts the expert whose last use lies farthest back.

    Args:
        last_used: [L*E] int64, the tick of each expert's last use; the engine writes it, decode kernels
            included, and the policy only reads.
    """

    name = "demand"

    def __init__(self, last_used: NDArray[np.int64]) -> None:
        self._last_used = last_used

    def victim(self, evictable: NDArray[np.int64]) -> int:
        """The expert to give up, of those that may go. evictable: [n] expert ids, n > 0."""
        return int(evictable[self._last_used[evictable].argmin()])
