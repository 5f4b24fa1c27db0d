"""The fetcher over a simulated link: whatever a policy proposes and however reads end, nothing is lost or twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from offload.errors import ExpertReadError
from offload.memory.residency import ABSENT, LOADING, RESIDENT, Residency
from offload.policy import REFUSE, Decision, Fetch, Rates
from offload.telemetry.counters import Counters, Kind, Phase
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
        self.fetcher.settle()
        self.fetcher.evict_down_to(slots)
        self.bench.residency.resize(slots)
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


@pytest.fixture
def bench() -> Bench:
    return Bench(8)


def test_a_demand_read_passes_what_is_queued_but_not_what_has_begun(bench: Bench) -> None:
    bench.seconds[:] = [1.0] * TOTAL
    bench.policy.decision = Decision([], [Fetch(6, 2.0), Fetch(7, 1.0)])
    bench.bring(0, 0)
    bench.fetcher.look_ahead(0)
    assert bench.link.queued == 1
    before = bench.link.now
    bench.bring(0, 1)
    assert bench.link.now - before == 2.0  # expert 6, which had begun, and 1
    assert bench.state[7] == LOADING


def test_a_read_ahead_gives_way_between_its_parts() -> None:
    bench = Bench(8, parts=4)
    bench.seconds[:] = [4.0] * TOTAL
    bench.fetcher.fill([7])
    bench.link.advance(0.5)
    bench.bring(0, 0, 1)
    assert bench.counters.stall_ns.sum() == pytest.approx(8.5e9)  # the rest of one part, and two reads
    assert bench.state[7] == LOADING
    bench.link.advance(2.9)
    bench.fetcher.collect()
    assert bench.state[7] == LOADING
    bench.link.advance(0.2)
    bench.fetcher.collect()
    assert bench.state[7] == RESIDENT
    assert bench.link.busy_s == pytest.approx(12)


def test_what_is_taken_back_on_its_way_is_broken_off() -> None:
    bench = Bench(8, parts=4)
    bench.seconds[:] = [4.0] * TOTAL
    bench.policy.decision = Decision([7], [])
    bench.fetcher.fill([7])
    bench.link.advance(0.5)
    bench.fetcher.look_ahead(0)
    bench.link.advance(0.6)
    bench.fetcher.collect()
    assert bench.state[7] == ABSENT and bench.residency.free_slots == 8
    assert bench.counters.bytes_prefetch[Phase.DECODE] == BYTES // 4
    assert bench.counters.bytes_prefetch_wasted[Phase.DECODE] == BYTES // 4
    assert bench.link.busy_s == pytest.approx(1)


def test_what_was_broken_off_when_a_layer_chose_it_is_read_again() -> None:
    bench = Bench(8, parts=4)
    bench.seconds[:] = [4.0] * TOTAL
    bench.policy.decision = Decision([0], [])
    bench.fetcher._read_ahead(0, 0.0)
    bench.link.advance(0.5)
    bench.fetcher.look_ahead(2)
    bench.fetcher.collect = lambda: None  # type: ignore[method-assign]  # the lane is faster than the engine
    bench.link.advance(0.6)
    bench.bring(0, 0)
    assert bench.state[0] == RESIDENT
    assert bench.counters.tally[Phase.DECODE, Kind.LATE].sum() == 1
    assert bench.counters.bytes_demand[Phase.DECODE] == BYTES


def test_what_came_in_time_is_prefetched_and_what_did_not_is_late(bench: Bench) -> None:
    bench.seconds[:] = [1.0] * TOTAL
    bench.policy.decision = Decision([], [Fetch(6, 2.0), Fetch(7, 1.0)])
    bench.fetcher.look_ahead(0)
    bench.link.advance(1.5)
    bench.bring(1, 6, 7)
    bench.bring(1, 6, 7)
    bench.bring(1, 8)
    counts = bench.counters.phase(Phase.DECODE)
    assert (counts.prefetched, counts.late, counts.resident, counts.missed) == (1, 1, 2, 1)
    assert counts.stall_s == 1.5
    assert (counts.bytes_prefetch, counts.bytes_demand) == (BYTES, 2 * BYTES)
    assert counts.bytes_prefetch_wasted == 0


def test_what_leaves_unused_was_wasted(bench: Bench) -> None:
    bench.fetcher.fill([6, 7, 8])
    bench.fetcher.settle()
    bench.bring(1, 6)
    read = bench.counters.bytes_prefetch[Phase.DECODE]
    bench.fetcher.evict_down_to(0)
    assert bench.counters.bytes_prefetch_wasted[Phase.DECODE] == read - BYTES


def test_a_prediction_that_cannot_be_read_is_nobodys_concern(bench: Bench) -> None:
    bench.link.broken = {6}
    bench.policy.decision = Decision([], [Fetch(6, 1.0)])
    bench.fetcher.look_ahead(0)
    bench.fetcher.settle()
    assert bench.state[6] == ABSENT
    with pytest.raises(ExpertReadError):
        bench.bring(1, 6)
    bench.fetcher.abandon([6])
    bench.link.broken.clear()
    bench.bring(1, 6)
    assert bench.residency.pins[6] == 0


def test_a_needed_read_that_fails_while_the_policy_decides_is_told(bench: Bench) -> None:
    """Nobody would wait for it any more, and the computation would go on without it."""
    bench.link.broken = {0}
    bench.policy.decision = Decision([], [])
    bench.fetcher.request(0, [0, 1])
    bench.link.advance(10)
    with pytest.raises(ExpertReadError):
        bench.fetcher.look_ahead(0)
    assert bench.state[1] == RESIDENT  # what arrived with it is booked
    bench.fetcher.abandon([0, 1])
    bench.link.broken.clear()
    bench.bring(0, 0, 1)


def test_what_runs_does_not_leave_for_a_look_ahead() -> None:
    """Nothing is pinned while the kernels run through, and there is no free slot: another one has to go."""
    bench = Bench(2 * TOP_K + 1)
    bench.bring(0, 0, 1)
    bench.bring(1, 6, 7)
    bench.bring(2, 12)
    asked: list[np.ndarray] = []

    def victim(evictable: np.ndarray, wanted: int, demand: bool) -> int:
        asked.append(evictable)
        return int(evictable[0])

    bench.policy.victim = victim  # type: ignore[method-assign]
    bench.policy.decision = Decision([], [Fetch(13, 1.0)])
    bench.fetcher.look_ahead(0, np.array([1, 0], np.int32))
    assert [given.tolist() for given in asked] == [[6, 7, 12]]
    assert bench.state[[0, 1, 6, 13]].tolist() == [RESIDENT, RESIDENT, ABSENT, LOADING]
    assert not bench.residency.pins.any()


def test_a_look_that_fails_leaves_nothing_pinned(bench: Bench) -> None:
    def victim(evictable: np.ndarray, wanted: int, demand: bool) -> int:
        raise RuntimeError("no idea")

    bench.bring(0, 0, 1)
    bench.fetcher.fill(range(2, TOTAL))
    bench.fetcher.settle()
    while bench.residency.free_slots:
        bench.bring(2, next(expert for expert in range(12, TOTAL) if bench.state[expert] == ABSENT))
    bench.policy.victim = victim  # type: ignore[method-assign]
    bench.policy.decision = Decision([], [Fetch(int(np.flatnonzero(bench.state == ABSENT)[0]), 1.0)])
    with pytest.raises(RuntimeError):
        bench.fetcher.look_ahead(0, np.array([0, 1], np.int32))
    assert not bench.residency.pins.any()


def test_a_cancelled_read_gives_its_slot_back(bench: Bench) -> None:
    bench.policy.decision = Decision([], [Fetch(6, 2.0), Fetch(7, 1.0)])
    bench.fetcher.look_ahead(0)
    free = bench.residency.free_slots
    bench.policy.decision = Decision([6, 7], [])  # 6 has begun
    bench.fetcher.look_ahead(0)
    assert (bench.state[6], bench.state[7]) == (LOADING, ABSENT)
    assert bench.residency.free_slots == free + 1


def test_reads_ahead_leave_room_for_a_layer_and_its_reads() -> None:
    bench = Bench(3 * TOP_K)
    bench.policy.decision = Decision([], [Fetch(expert, 1.0) for expert in range(TOTAL)])
    bench.fetcher.look_ahead(0)
    assert bench.link.in_flight == TOP_K


class Worth:
    """A policy for which some experts are always worth more than others, however late they were used."""

    name, note, decides_early, looks_ahead, wants_residual = "worth", "", False, False, False

    def victim(self, evictable: np.ndarray, wanted: int, demand: bool) -> int:
        return int(min(evictable, key=lambda expert: (7 * expert % TOTAL, expert)))


@pytest.mark.parametrize("seed", range(4))
def test_a_prompt_leaves_the_same_behind_in_whatever_order_its_reads_come(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.transfer.fetch.READ_AHEAD", 1)  # fewer reads under way than a layer has experts
    left = []
    for order in (seed, seed + 100):
        bench = Bench(slots=9, lanes=3, seed=order)
        bench.fetcher.policy = Worth()  # type: ignore[assignment]
        bench.fetcher.phase = Phase.PREFILL
        for _ in range(2):
            for layer in range(LAYERS):
                for _ in bench.fetcher.each(layer, range(layer * EXPERTS, (layer + 1) * EXPERTS)):
                    bench.link.advance(0.2)
            bench.fetcher.begin_forward()
        left.append((bench.state.tolist(), bench.counters.tally.tolist(), bench.counters.misses.tolist()))
    assert left[0] == left[1]
