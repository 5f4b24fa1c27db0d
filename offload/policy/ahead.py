"""What policies share that read experts ahead of the layers that will need them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import ABSENT, LOADING
from offload.policy.base import REFUSE, Blind, Fetch, Surroundings
from offload.telemetry.routing import Routing


class Ahead(Blind):
    """Keeps account of what it expects when.

    Time is counted in ticks, one a layer, as in `Surroundings.last_used`: an expert expected in the layer that is
    d layers on is due d ticks from now. For choosing victims an expected use counts as a use at its tick, so
    that an expert is not given up between its prediction and its layer; afterwards it ages as any other.

    Attributes:
        layer: The layer whose router chose last.
    """

    looks_ahead = True

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self.layer = 0
        self._witness = int(around.last_used.argmax())  # an expert that the layer has chosen
        self._due: NDArray[np.int64] = np.zeros(len(around.last_used), np.int64)
        self._asked: dict[int, int] = {}  # reads ahead that were asked for -> the tick they are due

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        self.layer = routing.layer
        self._witness = routing.layer * self.around.experts + int(routing.chosen[-1, 0])

    @property
    def tick(self) -> int:
        """Now. Holds once the layer's experts have been counted, as they have when `decide` is called."""
        return int(self.around.last_used[self._witness])

    def stale(self) -> list[int]:
        """Reads ahead for layers that are over, as far as they are still under way. Tells of each once."""
        tick = self.tick
        over = [expert for expert, due in self._asked.items() if due <= tick]
        for expert in over:
            del self._asked[expert]
        state = self.around.residency.state
        return [expert for expert in over if state[expert] == LOADING]

    def expect(
        self, experts: NDArray[np.int64], distance: int | NDArray[np.int64], priorities: NDArray[np.floating[Any]]
    ) -> list[Fetch]:
        """Count on `experts` [n] being used in `distance` layers, which may differ among them.

        Returns the reads ahead for those that are absent, in their order. priorities: [n].
        """
        self._due[experts] = self.tick + distance
        absent = np.flatnonzero(self.around.residency.state[experts] == ABSENT)
        if not len(absent):
            return []
        missing = experts[absent]
        self._asked.update(zip(missing.tolist(), self._due[missing].tolist(), strict=True))
        return list(map(Fetch, missing.tolist(), priorities[absent].tolist()))

    def expected(self, experts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `experts` [n] are expected later than now: [n] bool."""
        later: NDArray[np.bool_] = self._due[experts] > self.tick
        return later

    def least_recent(self, candidates: NDArray[np.int64], demand: bool) -> int:
        """Of `candidates` the one whose last use, or expected use, lies farthest back.

        `REFUSE` if all are expected later than now and no computation waits.
        """
        used = np.maximum(self.around.last_used[candidates], self._due[candidates])
        victim = int(used.argmin())
        if not demand and used[victim] > self.tick:
            return REFUSE
        return int(candidates[victim])
