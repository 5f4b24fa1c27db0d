"""Whatever a policy proposes and however reads end, nothing is lost or twice."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from offload.errors import ExpertReadError
from offload.memory.residency import ABSENT, LOADING, RESIDENT
from offload.telemetry.counters import Kind, Phase
from tests.offload.transfer.bench import EXPERTS, LAYERS, TOP_K, TOTAL, Bench


class Interleavings(RuleBasedStateMachine):
    """The engine's thread, in every order that it may go in."""

    @initialize(
        slots=st.integers(2 * TOP_K, TOTAL),
        lanes=st.integers(1, 3),
        seed=st.integers(0, 1 << 20),
        parts=st.sampled_from([1, 2, 5]),
    )
    def begin(self, slots: int, lanes: int, seed: int, parts: int) -> None:
        self.bench = Bench(slots, lanes, seed, parts)
        self.fetcher, self.link, self.counters = self.bench.fetcher, self.bench.link, self.bench.counters
        self.ahead: set[int] = set()  # read ahead, under way or there, and not asked for since
        self.tally = np.zeros((2, 4, LAYERS), np.int64)

    def expect(self, layer: int, experts: list[int]) -> None:
        """Count what the fetcher is about to count."""
        self.fetcher.collect()
        self.forget()
        for expert in experts:
            match self.bench.state[expert]:
                case 0:
                    kind = Kind.MISSED
                case 1:
                    kind = Kind.LATE
                case _:
                    kind = Kind.PREFETCHED if expert in self.ahead else Kind.RESIDENT
            self.tally[self.fetcher.phase, kind, layer] += 1
            self.ahead.discard(expert)

    def forget(self) -> None:
        self.ahead = {expert for expert in self.ahead if self.bench.state[expert] != ABSENT}

    def look(self, layer: int, running: np.ndarray | None = None) -> None:
        before = self.bench.state.copy()
        self.fetcher.look_ahead(layer, running)
        # Experts cannot turn from resident to loading within one decision but by leaving and being fetched.
        self.ahead |= set(np.flatnonzero((self.bench.state == LOADING) & (before != LOADING)).tolist())
        self.forget()

    @rule(
        layer=st.integers(0, LAYERS - 1),
        picked=st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K, unique=True),
        steps=st.lists(st.sampled_from(["look", "pass", "wait"]), max_size=5),
    )
    def a_layer_of_a_token(self, layer: int, picked: list[int], steps: list[str]) -> None:
        needed = [layer * EXPERTS + expert for expert in picked]
        state, link = self.bench.state, self.link
        self.fetcher.phase = Phase.DECODE
        self.expect(layer, needed)
        bound = link.longest() + sum(self.bench.seconds[e] for e in needed if state[e] != RESIDENT)
        bound += sum(self.bench.seconds[e] for e in link.demanded() - set(needed))  # left behind by a failure
        stalled = self.counters.stall_ns.sum()
        try:
            self.fetcher.request(layer, needed)
            for step in [*steps, "wait", "wait", "wait"]:
                self.bench.residency.check()
                if step == "look":
                    self.look(layer)
                elif step == "pass":
                    link.advance(0.7)
                elif any(state[expert] != RESIDENT for expert in needed):
                    self.fetcher.wait(layer)
            while any(state[expert] != RESIDENT for expert in needed):
                self.fetcher.wait(layer)
            assert all(self.bench.residency.pins[expert] == 1 for expert in needed)
            self.fetcher.release(needed)
        except ExpertReadError:
            assert link.broken & set(needed)
            self.fetcher.abandon(needed)
        # Nobody waits behind what was only guessed, but for what the lanes had begun with.
        assert (self.counters.stall_ns.sum() - stalled) / 1e9 <= bound + 1e-6
        self.forget()

    @rule(layer=st.integers(0, LAYERS - 1), start=st.integers(0, EXPERTS - 1), looks=st.integers(1, 3))
    def a_layer_that_has_all_it_needs(self, layer: int, start: int, looks: int) -> None:
        """The kernels count it; its experts are pinned by nobody but the look itself."""
        first = layer * EXPERTS
        there = np.flatnonzero(np.roll(self.bench.state[first : first + EXPERTS], -start) == RESIDENT)[:TOP_K]
        running = ((there + start) % EXPERTS).astype(np.int32)
        for _ in range(looks):
            self.look(layer, running)
            self.bench.residency.check()
            assert (self.bench.state[first + running] == RESIDENT).all()
            assert not self.bench.residency.pins.any()

    @rule(layer=st.integers(0, LAYERS - 1), picked=st.sets(st.integers(0, EXPERTS - 1), min_size=1))
    def a_layer_of_a_prompt(self, layer: int, picked: set[int]) -> None:
        experts = [layer * EXPERTS + expert for expert in sorted(picked)]
        self.fetcher.phase = Phase.PREFILL
        self.expect(layer, experts)
        came = []
        try:
            for expert in self.fetcher.each(layer, experts):
                assert self.bench.state[expert] == RESIDENT and self.bench.residency.pins[expert] == 1
                self.bench.residency.check()
                came.append(expert)
                self.link.advance(0.2)
            assert sorted(came) == experts
        except ExpertReadError:
            assert self.link.broken & set(experts)
        # In a long layer an expert may leave and be read ahead again: only the fetcher has seen it.
        self.ahead = set(np.flatnonzero(self.fetcher.fresh).tolist()) | self.link.unasked()

    @rule(experts=st.lists(st.integers(0, TOTAL - 1), max_size=10))
    def fill(self, experts: list[int]) -> None:
        before, free = self.bench.state.copy(), self.bench.residency.free_slots
        self.fetcher.fill(experts)
        after = self.bench.state
        assert (after[before != ABSENT] == before[before != ABSENT]).all()  # nobody left
        started = set(np.flatnonzero((after == LOADING) & (before == ABSENT)).tolist())
        assert len(started) <= max(0, free - 2 * TOP_K)
        self.ahead |= started

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.link.advance(seconds)

    @rule()
    def a_pass_begins(self) -> None:
        self.fetcher.begin_forward()
        self.forget()

    @rule()
    def settle(self) -> None:
        self.fetcher.settle()
        assert self.link.in_flight == 0
        assert not (self.bench.state == LOADING).any()
        self.forget()

    @rule(slots=st.integers(2 * TOP_K, TOTAL))
    def resize(self, slots: int) -> None:
        self.fetcher.make_way(slots)
        self.bench.residency.resize(slots, lambda source, target: None)
        assert self.bench.residency.capacity == slots
        self.forget()

    @rule(expert=st.integers(0, TOTAL - 1))
    def something_breaks(self, expert: int) -> None:
        self.link.broken.add(expert)

    @rule()
    def all_is_mended(self) -> None:
        self.link.broken.clear()

    @invariant()
    def everything_adds_up(self) -> None:
        residency, state = self.bench.residency, self.bench.state
        residency.check()
        assert not residency.pins.any()
        assert self.link.in_flight == (state == LOADING).sum()
        assert residency.free_slots + (state != ABSENT).sum() == residency.capacity
        counters = self.counters
        assert np.array_equal(counters.tally, self.tally)
        assert counters.uses.sum() == self.tally.sum()
        assert counters.misses.sum() == self.tally[:, [Kind.LATE, Kind.MISSED]].sum()
        assert sum(counters.bytes_prefetch_wasted) <= sum(counters.bytes_prefetch)
        assert not self.fetcher.fresh[state != RESIDENT].any()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)
