"""Lanes reading real files: what goes first, what can be taken back, and what happens when a read fails."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from offload.errors import EngineBroken, ExpertReadError
from offload.memory.arena import HostArena
from offload.memory.residency import ABSENT, LOADING, RESIDENT, Residency
from offload.store.base import BLOCK
from offload.store.safetensors_store import SafetensorsStore
from offload.transfer.lanes import Completion, Lanes
from offload.transfer.stage import HostStage


class GatedStage(HostStage):
    """A host stage whose transfers stand still until the gate is opened, and which notes their order."""

    def __init__(self, arena: HostArena) -> None:
        super().__init__(arena)
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.order: list[int] = []

    def target(self, slot: int) -> memoryview:
        self.order.append(slot)
        self.entered.release()
        assert self.gate.wait(30)
        return super().target(slot)


@contextmanager
def running(store, stage, count: int) -> Iterator[Lanes]:
    lanes = Lanes(store, stage, count)
    try:
        yield lanes
    finally:
        lanes.close()


@contextmanager
def one_busy_lane(store, arena) -> Iterator[tuple[Lanes, GatedStage]]:
    """A single lane that stands in the middle of reading expert 0 into slot 0."""
    stage = GatedStage(arena)
    with running(store, stage, 1) as lanes:
        try:
            lanes.submit(0, 0, demand=False)
            assert stage.entered.acquire(timeout=30)
            yield lanes, stage
        finally:
            stage.gate.set()


def collect(lanes: Lanes) -> list[Completion]:
    completions = []
    while lanes.in_flight:
        completions += lanes.wait()
    return completions


def slot_holds(store: SafetensorsStore, arena: HostArena, expert: int, slot: int) -> bool:
    fresh = HostArena(store.slot_bytes, 1)
    store.read(expert, fresh.slot(0))
    size = store.spec.hidden_size * store.spec.expert_size * 2
    return all(
        arena.slot(slot)[begin : begin + nbytes] == fresh.slot(0)[begin : begin + nbytes]
        for begin, nbytes in (
            (store.gate_up_offset[expert], 2 * size),
            (store.down_offset[expert], size),
        )
    )


def test_a_read_lands_in_its_slot(store, arena):
    with running(store, HostStage(arena), 2) as lanes:
        lanes.submit(5, 3, demand=True)
        assert lanes.in_flight == 1
        (done,) = lanes.wait()
        assert (done.expert, done.slot, done.demand, done.error) == (5, 3, True, None)
        assert done.nbytes >= store.record_bytes
        assert done.seconds > 0
        assert slot_holds(store, arena, 5, 3)
        assert (lanes.in_flight, lanes.queued, lanes.poll()) == (0, 0, [])


def test_demand_first_then_prefetches_by_priority(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        lanes.submit(1, 1, demand=False, priority=0.2)
        lanes.submit(2, 2, demand=False, priority=0.9)
        lanes.submit(3, 3, demand=True)
        lanes.submit(4, 4, demand=False, priority=0.9)
        lanes.submit(5, 5, demand=True)
        assert (lanes.queued, lanes.in_flight) == (5, 6)
        stage.gate.set()
        assert [done.expert for done in collect(lanes)] == [0, 3, 5, 2, 4, 1]
        assert stage.order == [0, 3, 5, 2, 4, 1]


def test_promote_goes_behind_the_demands_that_are_there(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        lanes.submit(1, 1, demand=False, priority=0.9)
        lanes.submit(2, 2, demand=False, priority=0.1)
        lanes.submit(3, 3, demand=True)
        lanes.promote(2)
        lanes.promote(3)
        stage.gate.set()
        assert [(done.expert, done.demand) for done in collect(lanes)] == [
            (0, False),
            (3, True),
            (2, True),
            (1, False),
        ]


def test_promote_reaches_a_read_under_way_and_leaves_others_alone(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        lanes.promote(0)
        lanes.promote(9)
        stage.gate.set()
        assert [(done.expert, done.demand) for done in collect(lanes)] == [(0, True)]


def test_cancel_only_while_queued(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        lanes.submit(1, 1, demand=False)
        lanes.submit(2, 2, demand=True)
        lanes.submit(3, 3, demand=False)
        assert lanes.cancel(1)
        assert lanes.cancel(2)
        assert not lanes.cancel(1)
        assert not lanes.cancel(0)
        assert not lanes.cancel(9)
        assert (lanes.queued, lanes.in_flight) == (1, 2)
        stage.gate.set()
        assert [done.expert for done in collect(lanes)] == [0, 3]
        assert not lanes.cancel(3)


def test_a_cancelled_expert_can_be_asked_for_again(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        lanes.submit(1, 1, demand=False)
        assert lanes.cancel(1)
        lanes.submit(1, 2, demand=True)
        stage.gate.set()
        assert [(done.expert, done.slot) for done in collect(lanes)] == [(0, 0), (1, 2)]


def test_asking_twice_is_a_bug(store, arena):
    with one_busy_lane(store, arena) as (lanes, _):
        lanes.submit(1, 1, demand=False)
        for expert in (0, 1):
            with pytest.raises(ValueError, match="on its way"):
                lanes.submit(expert, 2, demand=True)
        assert lanes.in_flight == 2


def test_waiting_for_nothing_is_a_bug(store, arena):
    with running(store, HostStage(arena), 1) as lanes, pytest.raises(RuntimeError):
        lanes.wait()


def test_poll_does_not_wait(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        assert lanes.poll() == []
        stage.gate.set()
        lanes.submit(1, 1, demand=True)
        deadline = time.monotonic() + 30
        done = []
        while len(done) < 2 and time.monotonic() < deadline:
            done += lanes.poll()
        assert [completion.expert for completion in done] == [0, 1]


def test_a_file_cut_short_fails_one_read_and_not_the_lane(own_folder, open_store, arena):
    store = open_store(own_folder)
    path = own_folder / "model.safetensors"
    content = path.read_bytes()
    last = store.spec.total_experts - 1
    with running(store, HostStage(arena), 1) as lanes:
        os.truncate(path, len(content) // 2)
        lanes.submit(last, 1, demand=True)
        lanes.submit(0, 2, demand=True)
        failed, good = collect(lanes)
        assert isinstance(failed.error, ExpertReadError)
        assert isinstance(failed.error.__cause__, EOFError)
        assert (failed.expert, failed.slot, failed.nbytes) == (last, 1, 0)
        assert (good.expert, good.error) == (0, None)
        path.write_bytes(content)
        lanes.submit(last, 1, demand=True)
        (again,) = collect(lanes)
        assert again.error is None
        assert slot_holds(store, arena, last, 1)


def test_any_other_failure_is_a_read_error_too(store, arena):
    with running(store, HostStage(arena), 1) as lanes:
        lanes.submit(1, 99, demand=True)  # there is no such slot
        lanes.submit(10_000, 1, demand=True)  # nor such an expert
        lanes.submit(2, 2, demand=True)
        first, second, third = collect(lanes)
        for done in (first, second):
            assert isinstance(done.error, ExpertReadError)
            assert isinstance(done.error.__cause__, IndexError)
        assert third.error is None


def test_close_drops_what_is_queued_and_lets_the_read_end(store, arena):
    with one_busy_lane(store, arena) as (lanes, stage):
        for number in range(1, 8):
            lanes.submit(number, number, demand=number % 2 == 0)
        timer = threading.Timer(0.05, stage.gate.set)
        timer.start()
        lanes.close()
        lanes.close()
        timer.join()
        assert stage.order == [0]
        assert [done.expert for done in collect(lanes)] == [0]
        with pytest.raises(EngineBroken):
            lanes.submit(1, 1, demand=True)
    assert not [t for t in threading.enumerate() if t.name.startswith("finemoe-lane")]


def test_lanes_read_at_the_same_time(store, arena):
    stage = GatedStage(arena)
    with running(store, stage, 3) as lanes:
        for number in range(3):
            lanes.submit(number, number, demand=True)
        assert all(stage.entered.acquire(timeout=30) for _ in range(3))
        assert lanes.queued == 0
        stage.gate.set()
        assert {done.expert for done in collect(lanes)} == {0, 1, 2}


class Stepped:
    """A store whose reads in parts stand still behind each part until they are told to go on."""

    def __init__(self, store: SafetensorsStore) -> None:
        self.record_bytes, self.slot_bytes = store.record_bytes, store.slot_bytes
        self.passed, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self._store = store

    def read_parts(self, expert: int, slot: memoryview, part_bytes: int) -> Iterator[int]:
        for nbytes in self._store.read_parts(expert, slot, BLOCK):
            self.passed.release()
            assert part_bytes >= self.slot_bytes or self.go_on.acquire(timeout=30)
            yield nbytes


@contextmanager
def one_lane_between_parts(store: SafetensorsStore, stage: HostStage) -> Iterator[tuple[Lanes, Stepped]]:
    """A single lane that has read the first part of expert 0 ahead into slot 0."""
    stepped = Stepped(store)
    with running(stepped, stage, 1) as lanes:
        lanes._part_bytes = BLOCK
        try:
            lanes.submit(0, 0, demand=False)
            assert stepped.passed.acquire(timeout=30)
            yield lanes, stepped
        finally:
            stepped.go_on.release(1000)


def test_a_prefetch_gives_way_between_its_parts_and_goes_on(store, arena):
    with one_lane_between_parts(store, HostStage(arena)) as (lanes, stepped):
        lanes.submit(1, 1, demand=True)
        stepped.go_on.release(1000)
        demanded, ahead = collect(lanes)
        assert (demanded.expert, demanded.demand, ahead.expert, ahead.demand) == (1, True, 0, False)
        assert ahead.nbytes >= store.record_bytes and ahead.seconds > 0
        assert slot_holds(store, arena, 0, 0) and slot_holds(store, arena, 1, 1)


def test_a_prefetch_that_does_not_go_straight_into_its_slot_gives_no_way(store, arena):
    stage = HostStage(arena)
    stage.in_place = False
    with one_lane_between_parts(store, stage) as (lanes, stepped):
        lanes.submit(1, 1, demand=True)
        stepped.go_on.release(1000)
        assert [done.expert for done in collect(lanes)] == [0, 1]


@pytest.mark.parametrize("gave_way", [False, True])
def test_a_prefetch_that_has_begun_is_broken_off(store, arena, gave_way):
    with one_lane_between_parts(store, HostStage(arena)) as (lanes, stepped):
        if gave_way:
            lanes.submit(1, 1, demand=True)
            stepped.go_on.release(1)
            assert [done.expert for done in lanes.wait()] == [1]
        assert not lanes.cancel(0)
        stepped.go_on.release(1000)
        (done,) = collect(lanes)
        assert (done.expert, done.broken_off, done.error, done.demand) == (0, True, None, False)
        assert BLOCK <= done.nbytes < store.record_bytes
        lanes.submit(0, 2, demand=True)
        assert [done.expert for done in collect(lanes)] == [0]
        assert slot_holds(store, arena, 0, 2)


def test_what_is_needed_after_all_is_not_broken_off(store, arena):
    with one_lane_between_parts(store, HostStage(arena)) as (lanes, stepped):
        assert not lanes.cancel(0)
        lanes.promote(0)
        stepped.go_on.release(1000)
        (done,) = collect(lanes)
        assert done.demand and not done.broken_off
        assert slot_holds(store, arena, 0, 0)


@pytest.mark.parametrize("count", [1, 4])
def test_an_engine_under_stress(store, arena, count):
    """Residency and lanes as the engine uses them: at any time, a resident expert's slot has its bytes."""
    chance = random.Random(count)
    total = store.spec.total_experts
    residency = Residency(total, arena.max_slots, arena.max_slots)
    landed = broken_off = 0

    def book(completions: list[Completion]) -> None:
        nonlocal landed, broken_off
        for done in completions:
            assert done.error is None
            assert residency.slot_of[done.expert] == done.slot
            if done.broken_off:
                residency.abort_load(done.expert)
                broken_off += 1
                continue
            residency.finish_load(done.expert)
            landed += 1
            if chance.random() < 0.05:
                assert slot_holds(store, arena, done.expert, done.slot)

    with running(store, HostStage(arena), count) as lanes:
        lanes._part_bytes = BLOCK
        for _ in range(3000):
            expert = chance.randrange(total)
            action = chance.random()
            if residency.state[expert] == ABSENT and action < 0.8:
                if not residency.free_slots:
                    evictable = residency.evictable()
                    if len(evictable) == 0:
                        book(lanes.wait())
                        continue
                    residency.evict(int(chance.choice(evictable)))
                slot = residency.start_load(expert)
                lanes.submit(expert, slot, demand=action < 0.3, priority=action)
            elif residency.state[expert] == LOADING and action < 0.5:
                if lanes.cancel(expert):
                    residency.abort_load(expert)
            elif residency.state[expert] == LOADING:
                lanes.promote(expert)
                while residency.state[expert] == LOADING:
                    book(lanes.wait())
            book(lanes.poll())
            assert lanes.in_flight == int((residency.state == LOADING).sum())
        book(collect(lanes))
        residency.check()
        assert landed > 500 and broken_off
        for expert in range(total):
            if residency.state[expert] == RESIDENT:
                assert slot_holds(store, arena, expert, int(residency.slot_of[expert]))
