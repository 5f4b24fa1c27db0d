"""Bringing experts in: what a layer needs, what is there, what must be read, and what has to leave for it.

All of it runs on the engine's thread; the lanes only read. Every transition of an expert goes through
`Residency`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from offload.errors import EngineBroken, ExpertReadError
from offload.memory.residency import LOADING, RESIDENT, Residency
from offload.policy import Policy
from offload.runtime.tier import Tier
from offload.telemetry.counters import Counters, Kind, Phase
from offload.transfer.lanes import Completion, Lanes

READ_AHEAD = 4
"""Reads kept in flight per lane while a prompt goes through a layer's experts."""


class ExpertFetcher:
    """Brings experts into their slots.

    Experts are named by ``layer * num_experts + expert``.

    Attributes:
        policy: Decides which expert leaves; set right after construction, as policies read ``last_used``.
        phase: Which kind of forward pass is running; whoever drives the model sets it.
        clock: Tick of the running forward pass's first layer; a layer's tick is ``clock + layer``.
        last_used: [L*E] int64, tick of each expert's last use.
        fresh: [L*E] uint8, 1 for an expert brought by prediction and not used since.
    """

    def __init__(self, residency: Residency, lanes: Lanes, tier: Tier, counters: Counters, layers: int) -> None:
        experts = len(residency.state)
        self._layers = layers
        self._per_layer = experts // layers
        self._residency = residency
        self._lanes = lanes
        self._tier = tier
        self._counters = counters
        self.policy: Policy
        self.phase = Phase.PREFILL
        self.clock = 0
        self.last_used: NDArray[np.int64] = np.zeros(experts, np.int64)
        self.fresh: NDArray[np.uint8] = np.zeros(experts, np.uint8)

    def begin_forward(self) -> None:
        """A forward pass starts: the clock goes on, reads that came in meanwhile are booked."""
        self.clock += self._layers
        for completion in self._lanes.poll():
            self._book(completion)

    def request(self, layer: int, experts: Sequence[int]) -> None:
        """Count and pin the distinct `experts` that one token needs of `layer`, and read those that are absent.

        Raises:
            ExpertReadError: Room had to be made by waiting for a read, and a needed read failed.
        """
        absent = []
        for expert in experts:
            self._count(layer, expert)
            if self._residency.state[expert]:
                self._residency.pin(expert)
            else:
                absent.append(expert)
        for expert in absent:
            self._read(expert)

    def wait(self, layer: int) -> None:
        """Wait until at least one read is there.

        Raises:
            ExpertReadError: An expert that the computation waits for could not be read.
        """
        started = time.perf_counter_ns()
        completions = self._lanes.wait()
        self._counters.stall_ns[self.phase, layer] += time.perf_counter_ns() - started
        failure = None
        for completion in completions:
            failure = self._book(completion) or failure
        if failure is not None:
            raise failure

    def release(self, experts: Sequence[int]) -> None:
        """The computation is done with `experts`: from now on they may leave."""
        for expert in experts:
            self._residency.unpin(expert)

    def each(self, layer: int, experts: Sequence[int]) -> Iterator[int]:
        """Yield each of the distinct `experts` of `layer` when it is resident, reading ahead of the computation.

        Residents come first, so that none of them has to leave for the others; an expert may leave as soon as
        the next one is asked for. Needs far fewer slots than experts.

        Raises:
            ExpertReadError: One of them could not be read.
        """
        state = self._residency.state
        ready: deque[int] = deque()
        absent: deque[int] = deque()
        loading: set[int] = set()
        for expert in experts:
            self._count(layer, expert)
            if not state[expert]:
                absent.append(expert)
                continue
            self._residency.pin(expert)
            if state[expert] == RESIDENT:
                ready.append(expert)
            else:
                loading.add(expert)
        try:
            while ready or loading or absent:
                while absent and len(loading) < READ_AHEAD * self._lanes.count and self._has_room():
                    expert = absent.popleft()
                    self._read(expert)
                    loading.add(expert)
                if not ready:
                    self.wait(layer)
                    ready.extend(expert for expert in experts if expert in loading and state[expert] == RESIDENT)
                    loading.difference_update(ready)
                    continue
                expert = ready.popleft()
                yield expert
                self._residency.unpin(expert)
        except BaseException:
            self.abandon(experts)
            raise

    def abandon(self, experts: Sequence[int]) -> None:
        """After a failure: let go of those `experts` that are still pinned."""
        for expert in experts:
            if self._residency.pins[expert]:
                self._residency.unpin(expert)

    def settle(self) -> None:
        """Wait for everything in flight: afterwards nothing is loading."""
        while self._lanes.in_flight:
            for completion in self._lanes.wait():
                self._book(completion)

    def evict_down_to(self, capacity: int) -> None:
        """Make experts leave until at most `capacity` slots are in use. Nothing may be loading or pinned."""
        while self._residency.resident_count > capacity:
            self._evict_one()

    def _count(self, layer: int, expert: int) -> None:
        state = self._residency.state[expert]
        if state == RESIDENT:
            kind = Kind.PREFETCHED if self.fresh[expert] else Kind.RESIDENT
        else:
            kind = Kind.LATE if state == LOADING else Kind.MISSED
            self._counters.misses[expert] += 1
            if state == LOADING:
                self._lanes.promote(expert)
        self.fresh[expert] = 0
        self._counters.tally[self.phase, kind, layer] += 1
        self._counters.uses[expert] += 1
        self.last_used[expert] = self.clock + layer

    def _has_room(self) -> bool:
        return self._residency.free_slots > 0 or len(self._residency.evictable()) > 0

    def _read(self, expert: int) -> None:
        """Start the demand read of an absent expert, pinned; waits where every slot is being read into."""
        while not self._residency.free_slots:
            if len(self._residency.evictable()):
                self._evict_one()
            elif self._lanes.in_flight:
                self.wait(expert // self._per_layer)
            else:
                raise EngineBroken("every slot is pinned", "give the model a larger budget")
        slot = self._residency.start_load(expert)
        try:
            self._tier.prepare(slot)
        except BaseException:
            self._residency.abort_load(expert)
            raise
        self._residency.pin(expert)
        self._lanes.submit(expert, slot, demand=True)

    def _evict_one(self) -> None:
        victim = self.policy.victim(self._residency.evictable())
        self._residency.evict(victim)
        self._counters.evictions[self.phase] += 1

    def _book(self, completion: Completion) -> ExpertReadError | None:
        """Take a finished read into account; the error if the computation needs an expert that failed."""
        if completion.error is not None:
            needed = bool(self._residency.pins[completion.expert])
            if needed:
                self._residency.unpin(completion.expert)
            self._residency.abort_load(completion.expert)
            if not needed:
                return None
            if isinstance(completion.error, ExpertReadError):
                return completion.error
            return ExpertReadError(str(completion.error))
        self._residency.finish_load(completion.expert)
        counted = self._counters.bytes_demand if completion.demand else self._counters.bytes_prefetch
        counted[self.phase] += completion.nbytes
        return None
