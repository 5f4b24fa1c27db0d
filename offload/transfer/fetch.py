"""Bringing experts in: what a layer needs, what is there, what must be read, and what has to leave for it.

All of it runs on the engine's thread; the lanes only read. Every transition of an expert goes through
`Residency`. The simulator drives the same class with a link and a clock of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from offload.errors import EngineBroken, ExpertReadError
from offload.memory.residency import LOADING, RESIDENT, Residency
from offload.policy.base import REFUSE, Policy, Rates
from offload.telemetry.counters import Counters, Kind, Phase
from offload.telemetry.routing import Read
from offload.transfer.lanes import Completion

RATES_OVER = 64
"""Reads that the average of a read's time goes over."""

READ_AHEAD = 4
"""Reads kept in flight per lane while a prompt goes through a layer's experts."""


class Link(Protocol):
    """What brings experts: `offload.transfer.lanes.Lanes`, or the simulator's. See there."""

    @property
    def count(self) -> int: ...

    @property
    def queued(self) -> int: ...

    @property
    def in_flight(self) -> int: ...

    def submit(self, expert: int, slot: int, *, demand: bool, priority: float = 0.0) -> None: ...

    def promote(self, expert: int) -> None: ...

    def cancel(self, expert: int) -> bool: ...

    def poll(self) -> list[Completion]: ...

    def wait(self) -> list[Completion]: ...


class ExpertFetcher:
    """Brings experts into their slots.

    Experts are named by ``layer * num_experts + expert``.

    Args:
        residency: Which experts are where.
        link: What reads them.
        counters: Where everything is counted.
        layers: Layers with routed experts.
        top_k: Experts a token uses in each; so many slots are kept from reads ahead, twice.
        rates: Kept up to date with how long reads take.
        prepare: Sees that a slot has memory before anything is read into it.
        now_ns: The clock.

    Attributes:
        policy: Decides which expert leaves; set right after construction, as policies read ``last_used``.
        phase: Which kind of forward pass is running; whoever drives the model sets it.
        clock: Tick of the running forward pass's first layer; a layer's tick is ``clock + layer``.
        last_used: [L*E] int64, tick of each expert's last use.
        fresh: [L*E] uint8, 1 for an expert brought by prediction and not used since.
        kind_of: [L*E] uint8, `Kind` of each expert's last selection.
        reads: Reads that ended since the forward pass began.
    """

    def __init__(
        self,
        residency: Residency,
        link: Link,
        counters: Counters,
        layers: int,
        top_k: int,
        rates: Rates,
        prepare: Callable[[int], None] = lambda slot: None,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        experts = len(residency.state)
        self._layers = layers
        self._per_layer = experts // layers
        self._reserved = 2 * top_k
        self._residency = residency
        self._link = link
        self._counters = counters
        self._rates = rates
        self._prepare = prepare
        self._now_ns = now_ns
        self._ahead: dict[int, float] = {}  # reads ahead that were not taken back, and their priorities
        self._landed = np.zeros(experts, np.int64)  # bytes that a read ahead brought and nothing has used yet
        self.policy: Policy
        self.phase = Phase.PREFILL
        self.clock = 0
        self.last_used: NDArray[np.int64] = np.zeros(experts, np.int64)
        self.fresh: NDArray[np.uint8] = np.zeros(experts, np.uint8)
        self.kind_of: NDArray[np.uint8] = np.zeros(experts, np.uint8)
        self.reads: list[Read] = []

    def begin_forward(self) -> None:
        """A forward pass starts: the clock goes on, reads that came in meanwhile are booked."""
        self.clock += self._layers
        self.reads.clear()
        self.collect()

    def collect(self) -> None:
        """Book the reads that came in meanwhile.

        Raises:
            ExpertReadError: An expert that the computation waits for could not be read.
        """
        if self._link.in_flight:
            self._book_all(self._link.poll())

    def request(self, layer: int, experts: Sequence[int]) -> None:
        """Count and pin the distinct `experts` that one token needs of `layer`, and read those that are absent.

        Raises:
            ExpertReadError: Room had to be made by waiting for a read, and a needed read failed.
        """
        self.collect()
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
        started = self._now_ns()
        completions = self._link.wait()
        self._counters.stall_ns[self.phase, layer] += self._now_ns() - started
        self._book_all(completions)

    def look_ahead(self, layer: int, running: NDArray[np.int32] | None = None) -> None:
        """Do what the policy decides while `layer` computes, for which none of its experts leaves.

        Args:
            running: [K], numbers within the layer of its experts, all resident; None if they are pinned.

        Raises:
            ExpertReadError: One of them could not be read.
        """
        self.collect()
        decision = self.policy.decide(layer)
        for expert in decision.cancel:
            self._cancel(expert)
        if not decision.fetch:
            return
        # Only a read makes anything leave, so only here do they have to be kept.
        first = layer * self._per_layer
        keep = [] if running is None else [first + expert for expert in running.tolist()]
        for expert in keep:
            self._residency.pin(expert)
        try:
            for expert, priority in decision.fetch:
                self._read_ahead(expert, priority)
        finally:
            self.release(keep)

    def fill(self, experts: Sequence[int]) -> None:
        """Start reading `experts` ahead, in this order, as far as there are free slots."""
        for rank, expert in enumerate(experts):
            if self._residency.free_slots <= self._reserved:
                return
            self._read_ahead(expert, float(-rank))

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
        self.collect()
        state = self._residency.state
        ready: deque[int] = deque()
        absent: deque[int] = deque()
        loading: set[int] = set()
        looking = self.policy.looks_ahead
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
                while absent and len(loading) < READ_AHEAD * self._link.count and self._has_room():
                    expert = absent.popleft()
                    self._read(expert)
                    loading.add(expert)
                if looking and not absent:
                    # Only now: an expert that this layer waits for must not find its slot taken.
                    looking = False
                    self.look_ahead(layer)
                    ready.extend(expert for expert in experts if expert in loading and state[expert] == RESIDENT)
                    loading.difference_update(ready)
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
        for expert in list(self._ahead):
            self._cancel(expert)
        while self._link.in_flight:
            for completion in self._link.wait():
                self._book(completion)

    def make_way(self, capacity: int) -> None:
        """Get ready for `capacity` slots: nothing is loading into those behind, and what is resident fits.

        Between forward passes, where nothing is pinned. Reads ahead into slots that stay go on.
        """
        residency = self._residency
        behind = residency.expert_in[capacity : residency.capacity]
        for expert in behind[behind >= 0].tolist():
            self._cancel(expert)
        while (residency.state[behind[behind >= 0]] == LOADING).any():
            for completion in self._link.wait():
                self._book(completion)
        while residency.capacity - residency.free_slots > capacity:
            self._evict(self.policy.victim(residency.evictable(), -1, True))

    def _count(self, layer: int, expert: int) -> None:
        state = self._residency.state[expert]
        if state == RESIDENT:
            kind = Kind.PREFETCHED if self.fresh[expert] else Kind.RESIDENT
        else:
            kind = Kind.LATE if state == LOADING else Kind.MISSED
            self._counters.misses[expert] += 1
            if state == LOADING:
                self._ahead.pop(expert, None)
                self._link.promote(expert)
        self.fresh[expert] = 0
        self.kind_of[expert] = kind
        self._counters.tally[self.phase, kind, layer] += 1
        self._counters.uses[expert] += 1
        self.last_used[expert] = self.clock + layer

    def _has_room(self) -> bool:
        return self._residency.free_slots > 0 or bool(self._ahead) or len(self._residency.evictable()) > 0

    def _read(self, expert: int) -> None:
        """Start the demand read of an absent expert, pinned; waits where every slot is being read into."""
        while not self._residency.free_slots:
            evictable = self._evictable_for(expert)
            if len(evictable):
                self._evict(self.policy.victim(evictable, expert, True))
            elif self._ahead:
                self._cancel(min(self._ahead, key=self._ahead.__getitem__))
            elif self._link.in_flight:
                self.wait(expert // self._per_layer)
            else:
                raise EngineBroken("every slot is pinned", "give the model a larger budget")
        self._start(expert, demand=True, priority=0.0)
        self._residency.pin(expert)

    def _evictable_for(self, expert: int) -> NDArray[np.intp]:
        """The experts that may leave for a demand read.

        In a prompt those that its layer has used already are among them only if there are no others: which of them
        are done with is up to the order in which reads came back, and would make counts differ from run to run.
        """
        evictable = self._residency.evictable()
        if self.phase == Phase.PREFILL:
            now = self.clock + expert // self._per_layer
            others: NDArray[np.intp] = evictable[self.last_used[evictable] != now]
            if len(others):
                return others
        return evictable

    def _read_ahead(self, expert: int, priority: float) -> None:
        """Start reading an expert that may be needed, if it is absent and something may leave for it."""
        residency = self._residency
        if residency.state[expert] or self._link.in_flight >= residency.capacity - self._reserved:
            return
        if not residency.free_slots:
            evictable = residency.evictable()
            victim = self.policy.victim(evictable, expert, False) if len(evictable) else REFUSE
            if victim == REFUSE:
                return
            self._evict(victim)
        self._start(expert, demand=False, priority=priority)
        self._ahead[expert] = priority

    def _start(self, expert: int, *, demand: bool, priority: float) -> None:
        slot = self._residency.start_load(expert)
        try:
            self._prepare(slot)
            self._link.submit(expert, slot, demand=demand, priority=priority)
        except BaseException:
            self._residency.abort_load(expert)
            raise

    def _cancel(self, expert: int) -> None:
        """Take a read ahead back. One that a lane has begun with is broken off, or arrives after all."""
        if self._ahead.pop(expert, None) is not None and self._link.cancel(expert):
            self._residency.abort_load(expert)

    def _evict(self, victim: int) -> None:
        self._residency.evict(victim)
        self._counters.evictions[self.phase] += 1
        if self.fresh[victim]:
            self.fresh[victim] = 0
            self._counters.bytes_prefetch_wasted[self.phase] += int(self._landed[victim])

    def _book_all(self, completions: Sequence[Completion]) -> None:
        """Take all of them into account, and only then raise."""
        failure = None
        for completion in completions:
            failure = self._book(completion) or failure
        if failure is not None:
            raise failure

    def _book(self, completion: Completion) -> ExpertReadError | None:
        """Take a finished read into account; the error if the computation needs an expert that failed."""
        expert = completion.expert
        self._ahead.pop(expert, None)
        needed = bool(self._residency.pins[expert])
        if completion.broken_off:
            self._counters.bytes_prefetch[self.phase] += completion.nbytes
            self._counters.bytes_prefetch_wasted[self.phase] += completion.nbytes
            if needed:
                self._residency.unpin(expert)
            self._residency.abort_load(expert)
            if needed:  # In the same moment a layer has chosen it.
                self._read(expert)
            return None
        if completion.error is not None:
            if needed:
                self._residency.unpin(expert)
            self._residency.abort_load(expert)
            if not needed:
                return None
            if isinstance(completion.error, ExpertReadError):
                return completion.error
            return ExpertReadError(str(completion.error))
        self._residency.finish_load(expert)
        counted = self._counters.bytes_demand if completion.demand else self._counters.bytes_prefetch
        counted[self.phase] += completion.nbytes
        if not completion.demand and not needed:
            self.fresh[expert] = 1
            self._landed[expert] = completion.nbytes
        self.reads.append(Read(expert, completion.demand, completion.seconds))
        self._rates.read_s += (completion.seconds / self._link.count - self._rates.read_s) / RATES_OVER
        return None
