"""What ``finemoe simulate`` runs: slots, conversations in orders, runs, and what reads take."""

from __future__ import annotations

from pathlib import Path

import pytest

from finemoe_cli import simulation_timing
from finemoe_cli.simulation import plan_runs, shape_of, slots_for, split_requests
from finemoe_cli.simulation_timing import calibrated
from offload.errors import TraceError
from offload.policy.knowledge import Knowledge, policy_bytes_of
from offload.trace.file import Trace, TraceEntry, TraceHeader
from tests.support.routing import synthetic_model
from tests.support.traces import random_model, random_request

MODEL = synthetic_model(layers=4, experts=12, top_k=2)
TOTAL = MODEL.layers * MODEL.experts


def test_what_is_known_is_charged() -> None:
    known = Knowledge()
    assert slots_for("demand", [0.25, 9], MODEL, known, {}, charge=True) == ([12, 9], 0)
    slots, taken = slots_for("finemoe", [1.0], MODEL, known, {"capacity": 10}, charge=True)
    assert taken == policy_bytes_of(shape_of(MODEL), "finemoe", known, {"capacity": 10}) > 0
    assert slots == [TOTAL - -(-taken // MODEL.slot_bytes)]
    assert slots_for("finemoe", [1.0], MODEL, known, {}, charge=False) == ([TOTAL], 0)
    assert slots_for("finemoe", [0.05, 1000], MODEL, known, {"capacity": 1000}, charge=True)[0][0] == 4
    assert slots_for("belady", [0.01, 1000], MODEL, known, {}, charge=True)[0] == [4, TOTAL]


def entries(*names: str, decoded: int = 3) -> list[TraceEntry]:
    return [TraceEntry(name, 0, 0, 1, decoded) for name in names]


def test_conversations_are_split_whole() -> None:
    of_traces = [entries("a/1", "a/2", "b/1", "c/1", "c/2", "c/3"), entries("a/1", "d/1")]
    history, orders = split_requests(of_traces, 0.6, 4, seed=3)
    assert sorted([*history, *orders[0]]) == [(0, number) for number in range(6)] + [(1, 0), (1, 1)]
    assert list(orders[0]) == sorted(orders[0])
    groups = [{(0, 0), (0, 1)}, {(0, 2)}, {(0, 3), (0, 4), (0, 5)}, {(1, 0)}, {(1, 1)}]
    assert sum(group <= set(history) for group in groups) == 3
    assert all(group <= set(history) or not group & set(history) for group in groups)
    for order in orders:
        assert sorted(order) == sorted(orders[0])
        for group in groups:
            turns = [place for place, one in enumerate(order) if one in group]
            assert turns == list(range(turns[0], turns[0] + len(turns))) if turns else True
            assert [one for one in order if one in group] == sorted(group & set(order))
    assert split_requests(of_traces, 0.6, 4, seed=3) == (history, orders)
    assert {split_requests(of_traces, 0.6, 1, seed)[0] for seed in range(8)} != {history}


def test_every_order_can_replay_some_of_the_conversations() -> None:
    of_traces = [entries(*(f"{name}/{turn}" for name in "abcdefghij" for turn in (1, 2)))]
    history, (everything, *_) = split_requests(of_traces, 0.3, 1, seed=1)
    assert len(everything) == 14
    again, orders = split_requests(of_traces, 0.3, 4, seed=1, replay=2)
    assert again == history
    assert [len(order) for order in orders] == [4] * 4
    conversations = [{number // 2 for _, number in order} for order in orders]
    assert [len(of_order) for of_order in conversations] == [2] * 4
    assert set.union(*conversations) == {number // 2 for _, number in everything}  # 8 places for 7 conversations
    assert list(orders[0]) == sorted(orders[0])
    assert split_requests(of_traces, 0.3, 3, seed=1, replay=9)[1] == split_requests(of_traces, 0.3, 3, seed=1)[1]


def test_one_conversation_is_always_left_to_replay() -> None:
    assert split_requests([entries("a/1")], 0.7, 1, 0) == ((), (((0, 0),),))
    assert len(split_requests([entries("a/1", "b/1")], 1.0, 1, 0)[1][0]) == 1
    with pytest.raises(TraceError):
        split_requests([entries("a/1", decoded=0), []], 0.7, 1, 0)


def test_nothing_is_run_twice_and_references_run_in_any_case() -> None:
    slots = {name: [4, 8] for name in ("auto", "lfu", "demand", "belady")}
    runs = plan_runs(["auto", "lfu"], slots, 3, 2, demand_only=False)
    assert len(runs) == len(set(runs))
    counts = {name: sum(run.policy == name for run in runs) for name in slots}
    assert counts == {"auto": 2 * 2 * 3 + 2 * 2, "lfu": 12, "demand": 12, "belady": 4}
    alone = plan_runs(["auto", "lfu"], slots, 3, 2, demand_only=True)
    assert {run.demand_only for run in alone if run.policy in ("auto", "lfu")} == {True}
    assert {run.demand_only for run in alone if run.policy in ("demand", "belady")} == {False}


def test_reads_come_from_tokens_then_prompts_then_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiles.calibration import Calibration

    model = random_model()
    requests = [random_request(model, seed, name=f"{seed}/1", decoded=5) for seed in range(3)]
    path = tmp_path / "a.trace"
    Trace.write(path, model, TraceHeader(), requests)
    decoded = [one for request in requests for one in request.passes[1:]]
    with Trace.open(path) as trace:
        monkeypatch.setattr(simulation_timing, "ENOUGH", 15)
        timing, words = calibrated([trace], lambda stage, done, total: None)
        assert words == "15 recorded reads of decoded tokens"
        assert timing.reads_s == tuple(read.seconds for one in decoded for read in one.reads)
        monkeypatch.setattr(simulation_timing, "ENOUGH", 18)
        assert len(calibrated([trace], lambda stage, done, total: None)[0].reads_s) == 18
        monkeypatch.setattr(simulation_timing, "ENOUGH", 19)
        disk = Calibration("", 1.0, 1.0, 1.0, 1.0, 4096, 8192.0, 2, ((2, 8192.0),), True)
        monkeypatch.setattr(simulation_timing, "kept_calibration", lambda size: disk)
        timing, words = calibrated([trace], lambda stage, done, total: None)
        assert (timing.read_s, timing.lanes, timing.reads_s) == (1.0, 2, ())
        assert "disk" in words
