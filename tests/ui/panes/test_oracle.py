"""The oracle's hit rate of a reply."""

from __future__ import annotations

import pytest

from offload.telemetry.counters import Kind
from tests.support.synthetic import SyntheticEngine
from ui.panes.oracle import real_hit_rate, reply_oracle


def test_reading_on_demand_does_not_beat_it() -> None:
    for seed in range(5):
        engine = SyntheticEngine(4, 12, 2, slots=14, predicted=0.0, seed=seed)
        records = [engine.token(1) for _ in range(60)]
        oracle = reply_oracle(records[20:], 12, 14)
        assert oracle.hit_rate is not None
        assert real_hit_rate(records[20:]) < oracle.hit_rate <= 1
        assert oracle.selections.tolist() == [80] * 4
        assert oracle.hits.shape == (4,)


def test_with_room_for_everything_it_hits_what_was_there() -> None:
    engine = SyntheticEngine(4, 12, 2, slots=48, predicted=0.0)
    first = [engine.token(1) for _ in range(200)]
    records = [engine.token(1) for _ in range(50)]
    missed = sum(int((record.kinds == Kind.MISSED).sum()) for record in records)
    assert first
    oracle = reply_oracle(records, 12, 48)
    assert oracle.hit_rate == pytest.approx(real_hit_rate(records))
    assert int((oracle.selections - oracle.hits).sum()) == missed


def test_a_budget_that_shrank_meanwhile_is_no_error() -> None:
    engine = SyntheticEngine(4, 12, 2, slots=40, predicted=0.0)
    records = [engine.token(1) for _ in range(30)]
    engine.set_slots(6, "low")
    records += [engine.token(1) for _ in range(30)]
    assert reply_oracle(records[25:], 12, 6).hit_rate is not None
