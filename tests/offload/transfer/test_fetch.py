"""The fetcher over a simulated link: what goes first, what gives way, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest

from offload.errors import ExpertReadError
from offload.memory.residency import ABSENT, LOADING, RESIDENT
from offload.policy import Decision, Fetch
from offload.telemetry.counters import Kind, Phase
from tests.offload.transfer.bench import BYTES, EXPERTS, LAYERS, TOP_K, TOTAL, Bench


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
    bench.fetcher.make_way(0)
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
