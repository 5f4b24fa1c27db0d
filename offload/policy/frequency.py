"""How often experts have been used of late."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import Surroundings
from offload.telemetry.routing import ForwardPass, Routing


class DecayedFrequency:
    """Uses of each expert, each worth `decay` times as much with every token that came after it.

    A policy that is told of a token's layers only at its end would not know the experts which that very token has
    just brought. They are recognised by `Surroundings.last_used`, so that it makes no difference when it is told.

    Args:
        around: What the policy was made with.
        decay: Share of a use's worth that is left after one more token, in (0, 1].
    """

    def __init__(self, around: Surroundings, decay: float) -> None:
        self._experts = around.experts
        self._last_used = around.last_used
        self._decay = decay
        self._counts = np.zeros(around.layers * around.experts, np.float64)
        self._seen = int(around.last_used.max())  # tick that uses are counted up to
        self._tokens = 1

    def begin_pass(self, forward: ForwardPass) -> None:
        """A pass begins: what is known grows older by as many tokens as it has."""
        self._tokens = len(forward.token_ids)
        self._counts *= self._decay**self._tokens

    def routed(self, routing: Routing) -> None:
        """Counts a layer of several tokens, each at its age."""
        if self._tokens == 1:
            return  # `of` and `end_pass` see its uses in `last_used`
        tokens, top_k = routing.chosen.shape
        worth = self._decay ** np.arange(tokens - 1, -1, -1.0)
        first = routing.layer * self._experts
        self._counts[first : first + self._experts] += np.bincount(
            routing.chosen.ravel(), np.repeat(worth, top_k), self._experts
        )

    def end_pass(self) -> None:
        """The pass is over: a single token's uses are counted now."""
        if self._tokens == 1:
            self._counts[self._last_used > self._seen] += 1.0
        self._seen = int(self._last_used.max())

    def of(self, experts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The worth of the uses of `experts` [n]: [n] float64, a single token's use now being 1."""
        counts: NDArray[np.float64] = self._counts[experts]
        if self._tokens == 1:
            counts += self._last_used[experts] > self._seen
        return counts
