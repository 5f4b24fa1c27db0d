"""What the runtime asks of a policy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Policy(Protocol):
    """Decides which expert leaves the fast tier."""

    name: str

    def victim(self, evictable: NDArray[np.int64]) -> int:
        """The expert to give up, of those that may go. evictable: [n] expert ids, n > 0."""
        ...
