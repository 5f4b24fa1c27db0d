"""The simulated link against the clock, by hand and with the real lanes' rules."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from offload.trace.simulated_link import SimulatedLink


def link(seconds: float = 1.0, count: int = 1, parts: int = 1) -> SimulatedLink:
    return SimulatedLink(lambda expert: seconds, 10, count, parts)


def test_reads_go_one_after_the_other() -> None:
    one = link()
    one.submit(1, 0, demand=True)
    one.submit(2, 1, demand=True)
    assert (one.queued, one.in_flight) == (1, 2)
    one.advance(0.9)
    assert one.poll() == []
    one.advance(0.1)
    (done,) = one.poll()
    assert (done.expert, done.slot, done.demand, done.nbytes, done.seconds) == (1, 0, True, 10, 1.0)
    assert [each.expert for each in one.wait()] == [2]
    assert one.now == pytest.approx(2.0) and one.busy_s == pytest.approx(2.0)
    assert one.in_flight == 0


def test_lanes_read_side_by_side() -> None:
    one = link(count=2)
    for expert in range(3):
        one.submit(expert, expert, demand=True)
    assert sorted(each.expert for each in one.wait()) == [0, 1]
    assert one.now == pytest.approx(1.0)
    assert [each.expert for each in one.wait()] == [2]
    assert one.now == pytest.approx(2.0)


def test_demands_go_first_then_the_higher_priority_then_the_earlier() -> None:
    one = link()
    one.submit(0, 0, demand=False, priority=0.0)  # begins at once, and is not broken off
    for expert, priority in ((1, 0.1), (2, 0.9), (3, 0.9)):
        one.submit(expert, expert, demand=False, priority=priority)
    one.submit(4, 4, demand=True)
    assert [one.wait()[0].expert for _ in range(5)] == [0, 4, 2, 3, 1]


def test_a_promoted_read_is_a_demand_whether_it_has_begun_or_not() -> None:
    one = link()
    for expert in range(3):
        one.submit(expert, expert, demand=False, priority=-expert)
    one.promote(0)
    one.promote(2)
    one.promote(7)  # nothing
    done = [one.wait()[0] for _ in range(3)]
    assert [(each.expert, each.demand) for each in done] == [(0, True), (2, True), (1, False)]


def test_only_what_no_lane_has_begun_with_can_be_taken_back() -> None:
    one = link()
    one.submit(0, 0, demand=False)
    one.submit(1, 1, demand=False)
    assert one.cancel(1) and not one.cancel(1) and not one.cancel(0)
    assert [each.expert for each in one.wait()] == [0]
    with pytest.raises(RuntimeError):
        one.wait()


def test_a_read_ahead_gives_way_and_goes_on() -> None:
    one = link(parts=4)
    one.submit(0, 0, demand=False)
    one.advance(0.3)
    one.submit(1, 1, demand=True)
    assert [each.expert for each in one.wait()] == [1] and one.now == pytest.approx(1.5)
    (done,) = one.wait()
    assert (done.expert, done.seconds, done.nbytes) == (0, pytest.approx(1.0), 10)
    assert one.now == pytest.approx(2.0) and one.busy_s == pytest.approx(2.0)


def test_a_demand_is_not_cut_nor_what_was_promoted() -> None:
    one = link(parts=2)
    one.submit(0, 0, demand=False)
    one.promote(0)
    one.submit(1, 1, demand=True)
    assert [one.wait()[0].expert for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("gives_way", [False, True])
def test_what_has_begun_is_broken_off(gives_way: bool) -> None:
    one = link(parts=2)
    one.submit(0, 0, demand=False)
    one.advance(0.1)
    if gives_way:
        one.submit(1, 1, demand=True)
        one.advance(0.5)
    assert not one.cancel(0)
    done = one.wait()[0]
    assert (done.expert, done.broken_off, done.nbytes) == (0, True, 5)
    assert one.now == pytest.approx(0.6 if gives_way else 0.5)


def test_what_is_needed_after_all_is_not_broken_off() -> None:
    one = link(parts=2)
    one.submit(0, 0, demand=False)
    one.cancel(0)
    one.promote(0)
    (done,) = one.wait()
    assert not done.broken_off and done.demand


class Traffic(RuleBasedStateMachine):
    """Any sequence of requests: every one comes to one end, and the link is never idle while something waits."""

    def __init__(self) -> None:
        super().__init__()
        self.link = link(count=2, parts=3)
        self.open: set[int] = set()
        self.next = 0

    @rule(demand=st.booleans(), priority=st.floats(-1, 1))
    def submit(self, demand: bool, priority: float) -> None:
        self.link.submit(self.next, self.next, demand=demand, priority=priority)
        self.open.add(self.next)
        self.next += 1

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 2.5]))
    def advance(self, seconds: float) -> None:
        before = self.link.now
        self.link.advance(seconds)
        assert self.link.now == before + seconds
        self.collect(self.link.poll())

    @precondition(lambda self: self.open)
    @rule()
    def wait(self) -> None:
        done = self.link.wait()
        assert done
        self.collect(done)

    @precondition(lambda self: self.next)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        expert = data.draw(st.integers(0, self.next - 1))
        if self.link.cancel(expert):
            self.open.remove(expert)

    def collect(self, done: list) -> None:
        for each in done:
            self.open.remove(each.expert)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        assert self.link.in_flight == len(self.open)
        reading = self.link.in_flight - self.link.queued - len(self.link._done)
        assert reading <= self.link.count
        assert reading == self.link.count or self.link.queued == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=30, deadline=None)
