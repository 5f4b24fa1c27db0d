"""Replaying a trace under a policy, a number of slots and a link, in simulated time.

Everything that decides and everything that counts is the live engine's: the policy objects, the fetcher, the
residency, the counters. Only the link and the computation are made of numbers. A decoded token goes through a
layer as in `offload.runtime.decode`: attention and router, demand reads, shared expert, the policy's decision, the
experts that are there, then those that are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import Residency
from offload.policy.base import Policy, Rates, Surroundings
from offload.telemetry.counters import Counters, Phase, PhaseCounts
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.records import TraceModel, TracePass, TraceRequest
from offload.trace.simulated_link import SimulatedLink
from offload.transfer.fetch import ExpertFetcher
from offload.transfer.parts import parts_of


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take in a simulation, in seconds.

    Attributes:
        layer_s: Computing one layer of a decoded token.
        read_s: Moving one expert.
        lanes: Reads that go on at once.
        router_share: Share of a layer's time until its router has chosen; this and the next as measured with the
            demo model on a CPU.
        shared_share: Share of it that its shared expert takes; the routed experts take the rest.
        decide_s: Time a layer that a policy which looks ahead takes.
        reads_s: Recorded times of reads, replayed in turn instead of `read_s`.
        recorded_passes: Whether every pass computes as long as it did when it was recorded, waiting left out.
            Otherwise a layer takes `layer_s`, and one of T > 16 tokens of a prompt T / 16 of it.
    """

    layer_s: float = 1.0
    read_s: float = 1.0
    lanes: int = 1
    router_share: float = 0.2
    shared_share: float = 0.45
    decide_s: float = 0.0
    reads_s: tuple[float, ...] = ()
    recorded_passes: bool = False


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One simulated request, in seconds. `tpot_s` is None for fewer than two tokens."""

    name: str
    ttft_s: float
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation came to.

    Attributes:
        slots: Experts that could be resident.
        prefill / decode: The live engine's counts.
        tokens: Decode passes.
        stall_s: What decoding waited for reads, all tokens together.
        decode_s: Simulated time of all decode passes.
        link_busy: Share of the time that the link was reading.
        requests: One by one.
    """

    policy: str
    note: str
    slots: int
    prefill: PhaseCounts
    decode: PhaseCounts
    tokens: int
    stall_s: float
    decode_s: float
    link_busy: float
    requests: tuple[RequestTimes, ...] = field(repr=False)


Maker = Callable[[Surroundings], Policy]


class Simulation:
    """One policy on one link with so many slots; requests run one after the other, the cache carried across.

    Args:
        model: What the trace knows of its model.
        slots: Experts that can be resident at once.
        timing: How long things take.
        make: Makes the policy.
        surroundings: More fields of `Surroundings`: ``knowledge``, ``options``.
    """

    def __init__(
        self,
        model: TraceModel,
        slots: int,
        timing: Timing,
        make: Maker,
        knowledge: object = None,
        options: dict[str, float] | None = None,
    ) -> None:
        self._model = model
        self._timing = timing
        reads = cycle(timing.reads_s) if timing.reads_s else None
        read_s = timing.read_s
        self._link = link = SimulatedLink(
            (lambda expert: read_s) if reads is None else (lambda expert: next(reads)),
            model.slot_bytes,
            timing.lanes,
            parts_of(model.slot_bytes),
        )
        total = model.layers * model.experts
        self._slots = min(slots, total)
        residency = Residency(total, total, self._slots)
        self._residency = residency
        self._counters = Counters(model.layers, model.experts)
        rates = Rates(timing.read_s / timing.lanes, timing.layer_s)
        self._fetcher = ExpertFetcher(
            residency,
            link,
            self._counters,
            model.layers,
            model.top_k,
            rates,
            now_ns=lambda: round(link.now * 1e9),
        )
        around = Surroundings(
            layers=model.layers,
            experts=model.experts,
            top_k=model.top_k,
            hidden=model.hidden,
            slot_bytes=model.slot_bytes,
            residency=residency,
            last_used=self._fetcher.last_used,
            fresh=self._fetcher.fresh,
            misses=self._counters.misses,
            link=link,
            rates=rates,
            routers=model.routers,
            knowledge=knowledge,
            options=options or {},
        )
        self.policy = make(around)
        self._fetcher.policy = self.policy
        self._requests: list[RequestTimes] = []
        self._number = 0
        self._tokens = 0
        self._decode_s = 0.0
        self._bases = np.arange(model.layers)[:, None] * model.experts

    def run(self, requests: Iterable[TraceRequest], *, prefill: bool = True) -> None:
        """Replay `requests`; without `prefill` policies see the prompts, but only decoding moves and waits."""
        for request in requests:
            self._number += 1
            began = first = last = self._link.now
            passes = 0
            for one in request.passes:
                if one.phase == Phase.PREFILL:
                    if prefill:
                        self._prefill(one)
                    else:
                        self._show(one)
                    first = last = self._link.now
                    continue
                start = self._link.now
                self._decode(one)
                self._decode_s += self._link.now - start
                self._tokens += 1
                passes += 1
                last = self._link.now
            self._fetcher.settle()
            tpot = (last - first) / passes if passes else None
            self._requests.append(RequestTimes(request.name, first - began, tpot))

    def warm(self, experts: Sequence[int]) -> None:
        """Bring `experts`, in this order, into slots that are free, and wait for them."""
        self._fetcher.fill(experts)
        while self._link.in_flight:
            self._link.advance(self._timing.read_s)
            self._fetcher.collect()

    def outcome(self) -> Outcome:
        """What it has come to so far."""
        decode = self._counters.phase(Phase.DECODE)
        return Outcome(
            policy=self.policy.name,
            note=self.policy.note,
            slots=self._slots,
            prefill=self._counters.phase(Phase.PREFILL),
            decode=decode,
            tokens=self._tokens,
            stall_s=decode.stall_s,
            decode_s=self._decode_s,
            link_busy=self._link.busy_s / (self._link.now * self._timing.lanes) if self._link.now else 0.0,
            requests=tuple(self._requests),
        )

    @property
    def counters(self) -> Counters:
        """The counters, by layer and expert."""
        return self._counters

    def _decode(self, one: TracePass) -> None:
        timing, link, fetcher, policy = self._timing, self._link, self._fetcher, self.policy
        model = self._model
        fetcher.phase = Phase.DECODE
        fetcher.begin_forward()
        policy.begin_pass(self._forward(one))
        looks = policy.looks_ahead
        if looks and policy.decides_early:
            fetcher.look_ahead(-1)
        needed_all = (one.chosen[:, 0] + self._bases).tolist()
        layer_s = self._layer_s(one)
        router_s, shared_s = layer_s * timing.router_share, layer_s * timing.shared_share
        expert_s = (layer_s - router_s - shared_s) / model.top_k
        state = self._residency.state
        routings = _routings(one) if looks else None
        for layer in range(model.layers):
            needed = needed_all[layer]
            link.advance(router_s)
            fetcher.request(layer, needed)
            link.advance(shared_s)
            if routings is not None:
                policy.routed(next(routings))
                link.advance(timing.decide_s)
                fetcher.look_ahead(layer)
            missing = needed
            while True:
                still = [expert for expert in missing if state[expert] != 2]
                link.advance(expert_s * (len(missing) - len(still)))
                if not still:
                    break
                missing = still
                fetcher.wait(layer)
            fetcher.release(needed)
        if not looks:
            for routing in _routings(one):
                policy.routed(routing)
        policy.end_pass()

    def _prefill(self, one: TracePass) -> None:
        link, fetcher, policy = self._link, self._fetcher, self.policy
        fetcher.phase = Phase.PREFILL
        fetcher.begin_forward()
        policy.begin_pass(self._forward(one))
        layer_s = self._layer_s(one)
        for layer, routing in enumerate(_routings(one)):
            policy.routed(routing)
            experts = (np.unique(one.chosen[layer]) + layer * self._model.experts).tolist()
            link.advance(layer_s / 2)
            for _ in fetcher.each(layer, experts):
                link.advance(layer_s / 2 / len(experts))
        policy.end_pass()

    def _layer_s(self, one: TracePass) -> float:
        """What a layer of this pass takes to compute."""
        if self._timing.recorded_passes:
            return max(0.0, one.seconds - float(one.stall_s.sum())) / self._model.layers
        # A prompt's time grows with its tokens, but a few of them cost hardly more than one.
        return self._timing.layer_s * max(1.0, len(one.token_ids) / 16)

    def _show(self, one: TracePass) -> None:
        """A prompt that costs nothing and brings nothing, but that the policy sees as it would."""
        self._fetcher.phase = Phase.PREFILL
        self.policy.begin_pass(self._forward(one))
        for routing in _routings(one):
            self.policy.routed(routing)
        self.policy.end_pass()

    def _forward(self, one: TracePass) -> ForwardPass:
        return ForwardPass(
            one.phase, self._number, one.token_ids.tolist(), one.position, one.embedding.astype(np.float32)
        )


def _routings(one: TracePass) -> Iterator[Routing]:
    """The pass's layers as a policy sees them."""
    probabilities = one.probabilities.astype(np.float32)
    chosen = one.chosen.astype(np.int32)
    residual: NDArray[np.float32] | None = None if one.residual is None else one.residual.astype(np.float32)
    shared: NDArray[np.float32] | None = None if one.shared is None else one.shared.astype(np.float32)
    for layer in range(len(chosen)):
        yield Routing(
            layer=layer,
            probabilities=probabilities[layer],
            chosen=chosen[layer],
            residual=None if residual is None else residual[layer],
            shared=None if shared is None else shared[layer],
        )


def simulate(
    model: TraceModel,
    requests: Sequence[TraceRequest],
    slots: int,
    timing: Timing,
    make: Maker,
    *,
    prefill: bool = False,
    knowledge: object = None,
    options: dict[str, float] | None = None,
) -> Outcome:
    """Run `requests` through a new `Simulation`; see there."""
    simulation = Simulation(model, slots, timing, make, knowledge, options)
    simulation.run(requests, prefill=prefill)
    return simulation.outcome()
