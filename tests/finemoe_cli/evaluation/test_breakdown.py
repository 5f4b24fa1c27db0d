"""Counts by layer, by place in the answer and by conversation, on rows that are made up."""

from __future__ import annotations

import csv
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from finemoe_cli.evaluation.breakdown import bin_of, breakdown_of, write_tables
from finemoe_cli.evaluation.metrics import KINDS
from tests.finemoe_cli.evaluation.test_compare import request


def row(number: int, kinds: list[list[int]], **more: Any) -> dict[str, Any]:
    """A request of `kinds`: [passes, 4] of one layer; its prompt missed twice there."""
    passes = {name: [one[place] for one in kinds] for place, name in enumerate(KINDS)}
    layers = {
        "prefill": {"resident": [0], "prefetched": [0], "late": [0], "missed": [2], "stall_s": [0.5]},
        "decode": {name: [sum(passes[name])] for name in KINDS} | {"stall_s": [0.25]},
    }
    return request("demand@low", number, 0.5, 4) | {
        "layers": layers,
        "passes": passes | {"stall_s": [0.25 / max(len(kinds), 1)] * len(kinds)},
    } | more  # fmt: skip


@given(st.integers(1, 100_000))
def test_bins_are_side_by_side(place):
    first, last = bin_of(place)
    assert first <= place <= last
    assert bin_of(first) == bin_of(last) == (first, last)
    assert first == 1 or bin_of(first - 1)[1] == first - 1
    assert [bin_of(place) for place in (8, 9, 32, 33, 128)] == [(1, 8), (9, 32), (9, 32), (33, 128), (33, 128)]


@given(st.lists(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), max_size=40), max_size=4))
def test_nothing_is_lost_between_bins_and_layers(requests):
    rows = [row(number, kinds) for number, kinds in enumerate(requests)]
    found = breakdown_of(rows)
    for place, name in enumerate(KINDS):
        total = sum(one[place] for kinds in requests for one in kinds)
        assert sum(one[name] for one in found["positions"]) == total
        assert sum(one[name] for one in found["layers"]["decode"]) == total
    assert sum(one["tokens"] for one in found["positions"]) == sum(map(len, requests))
    assert sum(one["missed"] for one in found["layers"]["prefill"]) == 2 * len(requests)


def test_by_place_layer_and_conversation():
    rows = [
        row(0, [[1, 0, 0, 1]] * 8 + [[0, 2, 0, 0]]),
        row(0, [[0, 0, 2, 0]], turn=2, turns=2),
        {"combination": "demand@low", "number": 1, "turn": 1, "turns": 1, "error": "too long"},
    ]
    found = breakdown_of(rows)
    first, second = found["positions"]
    assert (first["first"], first["last"], first["tokens"], first["selections"]) == (1, 8, 9, 18)
    assert (first["hit_rate"], first["covered_rate"]) == (8 / 18, 10 / 18)
    assert (second["first"], second["last"], second["tokens"], second["hit_rate"]) == (9, 32, 1, 1)
    (layer,) = found["layers"]["decode"]
    assert (layer["layer"], layer["selections"], layer["missed_rate"]) == (0, 20, 8 / 20)
    (conversation,) = found["progress"]
    assert (conversation["number"], conversation["requests"], conversation["hit_rate"]) == (0, 2, 0.4)


def test_tables(tmp_path):
    combinations = [
        {"name": "demand@low"} | breakdown_of([row(number, [[1, 0, 0, 1]] * 9) for number in range(2)]),
        {"name": "auto@low"} | breakdown_of([]),
    ]
    write_tables(tmp_path, combinations)
    tables = {path.name: list(csv.DictReader(path.open())) for path in tmp_path.iterdir()}
    assert {name: len(lines) for name, lines in tables.items()} == {
        "layers.csv": 2,
        "positions.csv": 2,
        "progress.csv": 2,
    }
    assert [line["phase"] for line in tables["layers.csv"]] == ["prefill", "decode"]
    assert [(line["first"], line["last"], line["hit_rate"]) for line in tables["positions.csv"]] == [
        ("1", "8", "0.5"),
        ("9", "32", "0.5"),
    ]
