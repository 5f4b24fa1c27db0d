"""Comparing runs, on folders that are written as a run writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finemoe_cli.evaluation.compare import compare_runs, comparison_rows, paired
from finemoe_cli.evaluation.folder import FORMAT, RunFolder
from finemoe_cli.evaluation.metrics import intervals
from offload.errors import ConfigError, NotFound
from offload.telemetry.counters import PhaseCounts

COLUMNS = ("resident", "prefetched", "late", "missed", "stall_s")


def request(combination: str, number: int, ttft_s: float, hits: int, token: int = 7) -> dict[str, Any]:
    times = [ttft_s, ttft_s + 0.1, ttft_s + 0.2]
    counts = PhaseCounts(selections=10, resident=hits, missed=10 - hits, bytes_demand=100 * (10 - hits)).to_dict()
    return {
        "combination": combination,
        "conversation": f"talk-{number}",
        "number": number,
        "turn": 1,
        "turns": 1,
        "sitting": 1,
        "prompt_tokens": 5,
        "reused_tokens": 0,
        "completion_tokens": 3,
        "token_ids": [1, 2, token],
        "token_times_s": times,
        "finish_reason": "length",
        "ttft_s": times[0],
        "tpot_s": 0.1,
        "itl_s": intervals(times),
        "e2e_s": times[-1],
        "service_s": times[-1],
        "arrival_s": None,
        "queue_s": None,
        "prefill": counts,
        "decode": counts,
        "budget_bytes": 100,
        "peak_bytes": 90,
        "slots": 4,
        "energy_j": None,
        "layers": {phase: {name: [counts[name]] for name in COLUMNS} for phase in ("prefill", "decode")},
        "passes": {name: [counts[name], 0] for name in COLUMNS},
    }


def written(path: Path, rows: list[dict[str, Any]], digest: str = "abc") -> str:
    names = list(dict.fromkeys(row["combination"] for row in rows))
    with RunFolder.open(path) as folder:
        config = {"combinations": [{"name": name, "digest": digest} for name in names]}
        folder.write_run({"format": FORMAT, "config": config})
        for row in rows:
            folder.append(row)
    return str(path)


def test_differences_by_conversation(tmp_path):
    a = written(tmp_path / "a", [request("x", n, 1.0 + n, 4) for n in range(6)])
    rows = [request("x", n, 1.5 + n, 4 + n % 2, token=7 + (n == 0)) for n in range(5)]
    b = written(tmp_path / "b", [*rows, {**request("x", 5, 9, 9), "turns": 2}])  # the last was broken off
    (found,) = compare_runs(a, b)
    assert (found.conversations, found.same_answers) == (5, 4 / 5)
    by_name = {one.metric: one for one in found.differences}
    ttft, hits = by_name["ttft_s"], by_name["hit_rate"]
    assert (ttft.pairs, ttft.a, ttft.b) == (5, 3.0, 3.5)
    # The conversations differ by seconds, the pairs do not differ at all.
    assert (ttft.difference, ttft.low, ttft.high) == pytest.approx((0.5, 0.5, 0.5))
    assert hits.difference == pytest.approx(0.04)
    assert hits.low is not None and hits.high is not None and 0 <= hits.low < 0.04 < hits.high <= 0.1
    assert by_name["bytes_per_token"].a == pytest.approx(300)
    (back,) = compare_runs(b, a)
    assert {one.metric: one.difference for one in back.differences} == pytest.approx(
        {one.metric: -one.difference for one in found.differences}
    )
    assert ["ttft, ms", "3000", "3500", "+500", "+500 .. +500", "1.167"] in comparison_rows(found)


def test_intervals_cover_what_they_should():
    """Of samples of a known mean, 95 % of the intervals hold it, but for what few pairs cost."""
    random = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        before = random.normal(0, 5, 40)
        _, low, high = paired(before.tolist(), (before + random.normal(1, 1, 40)).tolist(), seed)
        assert low is not None and high is not None
        held += low <= 1 <= high
    assert 86 <= held <= 100
    assert paired([1.0], [2.0], 0) == (1.0, None, None)
    assert paired([1, 2, 3], [2, 2, 5], 4) == paired([1, 2, 3], [2, 2, 5], 4)


def test_which_are_compared(tmp_path):
    a = written(tmp_path / "a", [request(name, 0, 1, 4) for name in ("x", "y", "z")])
    b = written(tmp_path / "b", [request(name, 0, 1, 4) for name in ("z", "w", "x")])
    c = written(tmp_path / "c", [request("only", 0, 1, 4)])
    names = [(one.a.combination, one.b.combination) for one in compare_runs(a, b)]
    assert names == [("x", "x"), ("z", "z")]
    (named,) = compare_runs(f"{a}:x", f"{a}:y")
    assert (named.a.combination, named.b.combination) == ("x", "y")
    (one,) = compare_runs(c, f"{b}:w")
    assert (one.a.combination, one.b.combination) == ("only", "w")
    with pytest.raises(ConfigError, match="have no combination in common"):
        compare_runs(a, c)
    with pytest.raises(NotFound, match="has no combination 'q'"):
        compare_runs(f"{a}:q", b)


def test_what_cannot_be_compared(tmp_path):
    a = written(tmp_path / "a", [request("x", 0, 1, 4)])
    b = written(tmp_path / "b", [request("x", 0, 1, 4)], digest="other")
    c = written(tmp_path / "c", [request("x", 1, 1, 4)])
    with pytest.raises(ConfigError, match="answered different conversations"):
        compare_runs(a, b)
    with pytest.raises(ConfigError, match="have held no conversation in common"):
        compare_runs(a, c)
    with pytest.raises(NotFound, match="there is no run in"):
        compare_runs(a, str(tmp_path / "nothing"))


def test_one_pair_has_no_interval(tmp_path):
    a = written(tmp_path / "a", [request("x", 0, 1, 4)])
    (found,) = compare_runs(a, a)
    assert all(one.low is None and replace(one, metric="").difference == 0 for one in found.differences)
    assert all(row[4] == "-" for row in comparison_rows(found))
