"""What the panes are told: sums that survive resets, rates on fixed steps, heat, marks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.telemetry.counters import Kind, Phase
from offload.telemetry.frame import IDLE, Frame, Mark
from tests.support.synthetic import SyntheticEngine
from ui.panes.history import FrameHistory


def small_engine(**options: object) -> SyntheticEngine:
    return SyntheticEngine(3, 6, 2, slots=8, **options)  # type: ignore[arg-type]


def run(history: FrameHistory, engine: SyntheticEngine, tokens: int) -> None:
    for frame in engine.run(tokens):
        history.add(frame)
    history.add_records(engine.records(history.next_record))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("tokens"), st.integers(1, 4)),
        st.tuples(st.just("ask"), st.just(0)),
        st.tuples(st.just("rest"), st.integers(0, 40)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("budget"), st.integers(4, 12)),
    ),
    max_size=30,
)


@given(steps=steps, capacity=st.integers(2, 40))
@settings(deadline=None, max_examples=30)
def test_sums_are_those_of_all_that_happened(steps: list[tuple[str, int]], capacity: int) -> None:
    engine, history = small_engine(), FrameHistory(seconds=capacity, rate=1)
    history.add(engine.frame())
    tokens, tally, stall = 0, np.zeros((2, 4, 3), np.int64), np.zeros((2, 3), np.int64)
    for step, count in steps:
        before = (engine.tokens, engine.tally.copy(), engine.stall.copy())
        if step == "tokens":
            for _ in range(count):
                engine.token(1)
        elif step == "ask":
            engine.ask(3)
        elif step == "rest":
            engine.rest(count / 10)
        elif step == "budget":
            engine.set_slots(count, "other")
        else:
            engine.rest(0.1)
            engine.reset()
            before = (0, np.zeros_like(before[1]), np.zeros_like(before[2]))
        tokens += engine.tokens - before[0]
        tally += engine.tally - before[1]
        stall += engine.stall - before[2]
        history.add(engine.frame())
    total = history.total()
    assert total.tokens == tokens
    assert np.array_equal(total.tally, tally)
    assert np.array_equal(total.stall_ns, stall)
    assert 0 <= history.window(1e9).tokens <= tokens
    assert len(history._times()) <= capacity


def test_a_reset_shows_as_growth_and_never_as_a_fall() -> None:
    engine, history = small_engine(), FrameHistory()
    run(history, engine, 40)
    engine.rest(1)
    engine.reset()
    history.add(engine.frame())
    run(history, engine, 10)
    assert history.total().tokens == 50
    for name in ("tokens", "demand", "prefetch", "stall_ns", "selections"):
        rate = history.per_second(name, 30, 0.5)
        assert np.nanmin(rate) >= 0
    assert np.nansum(history.per_second("tokens", 60, 0.5)) * 0.5 == pytest.approx(50, rel=0.1)


def test_another_engine_begins_anew() -> None:
    history = FrameHistory()
    run(history, small_engine(), 10)
    generation = history.generation
    other = small_engine(pid=99)
    run(history, other, 4)
    assert history.generation > generation
    assert (history.total().tokens, len(history.records), history.next_record) == (4, 4, 4)
    wider = SyntheticEngine(5, 7, 2, slots=20)
    run(history, wider, 3)
    assert history.heat.shape == (35,)
    assert history.total().tally.shape == (2, 4, 5)


def test_a_frame_from_before_begins_anew() -> None:
    engine, history = small_engine(), FrameHistory()
    frames = list(engine.run(20))
    for frame in frames:
        history.add(frame)
    history.add(frames[2])
    assert history.latest is frames[2]
    assert history.window(1e9).seconds == 0


def test_follow_takes_each_frame_and_record_once() -> None:
    engine, history = small_engine(), FrameHistory()
    engine.ask(3)
    engine.token(1)
    assert history.follow(engine)
    assert not history.follow(engine)
    engine.token(2)
    assert history.follow(engine)
    assert [record.number for record in history.records] == [0, 1]


def test_nothing_is_said_before_the_first_frame() -> None:
    history = FrameHistory()
    assert (history.now, history.tokens_per_s(), history.pass_ms((0.5,))) == (0.0, None, None)
    assert history.window(1).hit_rate is None
    assert history.total().tokens == 0
    assert np.isnan(history.per_second("tokens", 4, 1.0)).all()
    assert history.marks == ()


def test_columns_keep_their_values_while_they_move() -> None:
    engine, history = small_engine(), FrameHistory()
    frames = list(engine.run(120))
    for frame in frames[:-4]:
        history.add(frame)
    first, start = history.per_second("tokens", 8, 0.5), history.edges(8, 0.5)[0]
    for frame in frames[-4:]:
        history.add(frame)
    later = history.per_second("tokens", 8, 0.5)
    moved = round((history.edges(8, 0.5)[0] - start) / 0.5)
    assert moved > 0
    assert np.allclose(first[moved:], later[: 8 - moved], equal_nan=True)


def test_rates_add_up_to_the_counts() -> None:
    engine, history = small_engine(), FrameHistory()
    run(history, engine, 60)
    engine.rest(2)
    history.add(engine.frame())
    demand = np.nansum(history.per_second("demand", 200, 0.5)) * 0.5
    assert demand == pytest.approx(history.total().demand, rel=1e-6)


def test_hit_rate_and_stall_of_a_window() -> None:
    engine, history = small_engine(), FrameHistory()
    run(history, engine, 50)
    window = history.window(1e9)
    counts = engine.tally[Phase.DECODE].sum(axis=1)
    assert window.hit_rate == pytest.approx((counts[Kind.RESIDENT] + counts[Kind.PREFETCHED]) / counts.sum())
    assert window.stall_ms_per_token == pytest.approx(engine.stall[Phase.DECODE].sum() / 1e6 / 50)
    assert history.window(0.5).tokens < window.tokens


def test_a_prompt_counts_while_nothing_was_decoded() -> None:
    engine, history = small_engine(), FrameHistory()
    history.add(engine.frame())
    engine.ask(3)
    history.add(engine.frame())
    assert history.window(10).hit_rate == 0.0
    assert history.window(10).stall_ms_per_token is None


def test_speed_now_and_percentiles() -> None:
    engine, history = small_engine(), FrameHistory()
    run(history, engine, 80)
    assert history.latest is not None
    assert history.latest.phase == IDLE
    assert history.tokens_per_s() is None
    engine.token(1)
    history.add(engine.frame())
    engine.token(1)
    history.add(engine.frame())
    assert history.tokens_per_s() is not None
    passes = sorted(record.pass_ns / 1e6 for record in engine.records(0)[:80])
    p50, p95 = history.pass_ms((0.5, 0.95)) or (0, 0)
    assert (p50, p95) == (pytest.approx(np.quantile(passes, 0.5)), pytest.approx(np.quantile(passes, 0.95)))
    assert history.pass_ms((1.0,), last=1) == [pytest.approx(engine.records(79)[0].pass_ns / 1e6)]


def test_heat_follows_the_uses_and_stays_when_nothing_happens() -> None:
    engine, history = small_engine(), FrameHistory()
    run(history, engine, 60)
    heat, recent = history.heat.copy(), history.recent.copy()
    hottest = int(np.argmax(engine.uses))
    assert heat[hottest] >= np.quantile(heat, 0.8)
    assert recent.max() <= 1.0
    for _ in range(20):
        engine.rest(1)
        history.add(engine.frame())
    assert np.array_equal(heat, history.heat)
    assert np.array_equal(recent, history.recent)
    assert history.just_missed().size == 0


def test_what_the_last_token_missed() -> None:
    engine, history = small_engine(predicted=0.0), FrameHistory()
    run(history, engine, 10)
    record = engine.token(1)
    history.add(engine.frame())
    history.add_records([record])
    layers, ranks = np.nonzero(record.kinds >= Kind.LATE)
    expected = sorted(
        int(layer * 6 + record.chosen[layer, rank]) for layer, rank in zip(layers, ranks, strict=True)
    )
    assert sorted(history.just_missed().tolist()) == expected


def test_marks_are_kept_once_and_go_with_their_time() -> None:
    engine, history = small_engine(), FrameHistory(seconds=5, rate=4)
    engine.set_slots(6, "low")
    for _ in range(10):
        engine.rest(0.25)
        history.add(engine.frame())
    assert history.marks == ()  # it was before the first frame
    engine.set_slots(8, "balanced")
    for _ in range(10):
        engine.rest(0.25)
        history.add(engine.frame())
    assert [mark.text for mark in history.marks] == ["balanced: 8 experts"]
    for _ in range(30):
        engine.rest(0.25)
        history.add(engine.frame())
    assert history.marks == ()


def test_marks_survive_in_the_history_when_the_frame_has_no_room_for_them() -> None:
    engine, history = small_engine(), FrameHistory()
    frame = engine.frame()
    history.add(frame)

    def later(seconds: int, *marks: Mark) -> Frame:
        return replace(frame, time_s=frame.time_s + seconds, marks=marks)

    first, second = Mark(frame.time_s + 1, "budget", "a"), Mark(frame.time_s + 2, "budget", "b")
    history.add(later(1, first))
    history.add(later(2, second))
    assert [mark.text for mark in history.marks] == ["a", "b"]


def test_a_frozen_copy_does_not_go_on() -> None:
    engine, history = small_engine(), FrameHistory()
    run(history, engine, 10)
    frozen = history.frozen()
    run(history, engine, 10)
    assert (frozen.total().tokens, history.total().tokens) == (10, 20)
    assert (len(frozen.records), len(history.records)) == (10, 20)
    assert frozen.heat.sum() != history.heat.sum()
