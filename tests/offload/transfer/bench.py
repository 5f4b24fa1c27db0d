"""A fetcher over a simulated link whose reads may fail, under a policy that does whatever chance says."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from offload.errors import ExpertReadError
from offload.memory.residency import RESIDENT, Residency
from offload.policy import REFUSE, Decision, Fetch, Rates
from offload.telemetry.counters import Counters, Phase
from offload.trace.simulated_link import SimulatedLink
from offload.transfer.fetch import ExpertFetcher
from offload.transfer.lanes import Completion

LAYERS, EXPERTS, TOP_K, BYTES = 3, 6, 2, 100
TOTAL = LAYERS * EXPERTS


class FailingLink(SimulatedLink):
    """A simulated link whose reads of `broken` experts fail."""

    def __init__(self, seconds: Callable[[int], float], lanes: int, parts: int) -> None:
        super().__init__(seconds, BYTES, lanes, parts)
        self.broken: set[int] = set()

    def poll(self) -> list[Completion]:
        return [
            one._replace(nbytes=0, error=ExpertReadError("it is broken")) if one.expert in self.broken else one
            for one in super().poll()
        ]

    def longest(self) -> float:
        """Seconds until the last read that has begun can give way."""
        return max((read.end - self.now for read in self._reading.values()), default=0.0)

    def demanded(self) -> set[int]:
        """Demand reads that have not begun."""
        return {read.expert for read in self._demands}

    def unasked(self) -> set[int]:
        """Reads ahead that are not collected."""
        begun = {expert for expert, read in self._reading.items() if not read.demand}
        return set(self._ahead) | begun | {one.expert for one in self._done if not one.demand}


class Chance:
    """A policy that fetches, takes back and gives up whatever chance says, on either side of what makes sense."""

    name, note, decides_early, looks_ahead, wants_residual = "chance", "", False, True, False

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.decision: Decision | None = None

    def decide(self, layer: int) -> Decision:
        if self.decision is not None:
            return self.decision
        draw = self._random
        cancel = draw.sample(range(TOTAL), draw.randint(0, 4))
        fetch = [Fetch(expert, draw.random()) for expert in draw.sample(range(TOTAL), draw.randint(0, 8))]
        return Decision(cancel, fetch)

    def victim(self, evictable: np.ndarray, wanted: int, demand: bool) -> int:
        if not demand and self._random.random() < 0.3:
            return REFUSE
        return int(self._random.choice(evictable))


class Bench:
    """A fetcher with everything around it."""

    def __init__(self, slots: int, lanes: int = 1, seed: int = 0, parts: int = 1) -> None:
        draw = random.Random(seed)
        self.seconds = [draw.choice([0.5, 1.0, 3.0]) for _ in range(TOTAL)]
        self.link = FailingLink(self.seconds.__getitem__, lanes, parts)
        self.residency = Residency(TOTAL, TOTAL, slots)
        self.counters = Counters(LAYERS, EXPERTS)
        self.fetcher = ExpertFetcher(
            self.residency, self.link, self.counters, LAYERS, TOP_K, Rates(1.0, 1.0),
            now_ns=lambda: round(self.link.now * 1e9),
        )  # fmt: skip
        self.fetcher.policy = self.policy = Chance(seed)
        self.fetcher.phase = Phase.DECODE

    @property
    def state(self) -> np.ndarray:
        return self.residency.state

    def bring(self, layer: int, *experts: int) -> None:
        """What decoding does in a layer, its experts computed at once."""
        self.fetcher.request(layer, experts)
        while any(self.state[expert] != RESIDENT for expert in experts):
            self.fetcher.wait(layer)
        self.fetcher.release(experts)
