"""What a run keeps of its model's routing."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe_cli.evaluation import routing
from finemoe_cli.evaluation.folder import ROUTING, RunFolder
from finemoe_cli.evaluation.routing import (
    SHOWN,
    RoutingRecord,
    entropy,
    joined,
    read_routing,
    routing_of,
    save_part,
    write_routing,
)
from offload.errors import DamagedFile
from offload.telemetry.counters import Phase
from offload.trace.records import TraceRequest
from tests.support.traces import random_model, random_request

MODEL = random_model(layers=3, experts=6, top_k=2)


def record_of(requests: list[TraceRequest]) -> RoutingRecord | None:
    return routing_of(requests, MODEL.layers, MODEL.experts, MODEL.top_k)


def some(count: int, decoded: int = 5) -> list[TraceRequest]:
    return [random_request(MODEL, seed, name=f"talk-{seed}/1", decoded=decoded) for seed in range(count)]


def same(one: RoutingRecord | None, other: RoutingRecord | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(RoutingRecord))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 100))
def test_it_says_what_the_passes_say(lengths, seed):
    """Against sums and entropies that are worked out pass by pass."""
    requests = [
        random_request(MODEL, seed + n, name=f"{n}/1", decoded=decoded) for n, decoded in enumerate(lengths)
    ]
    record = record_of(requests)
    decoded = [request for request in requests if any(one.phase == Phase.DECODE for one in request.passes)]
    if not decoded:
        assert record is None
        return
    assert record is not None
    assert record.names.tolist() == [request.name for request in decoded]
    assert record.steps.tolist() == record.decoded.tolist() == [n for n in lengths if n]
    counts = np.zeros((2, 3, 6), int)
    fine, coarse, by_step = [], [], []
    for request in decoded:
        total = np.zeros((3, 6))
        for one in request.passes:
            for layer in range(3):
                for expert in one.chosen[layer].ravel().tolist():
                    counts[one.phase, layer, expert] += 1
            if one.phase == Phase.DECODE:
                share = one.probabilities[:, 0].astype(float)
                share /= share.sum(axis=1, keepdims=True)
                fine.append(-(share * np.log(share)).sum(axis=1))
                total += one.probabilities[:, 0]
                mixed = total / total.sum(axis=1, keepdims=True)
                by_step.append(-(mixed * np.log(mixed)).sum(axis=1).mean())
        coarse.append(-(mixed * np.log(mixed)).sum(axis=1))
    assert np.array_equal(record.counts, counts)
    assert record.fine == pytest.approx(np.array(fine), abs=2e-3)
    assert record.coarse == pytest.approx(np.array(coarse), abs=2e-3)
    assert record.coarse_by_step == pytest.approx(np.array(by_step), abs=2e-3)
    assert np.array_equal(record.shown_counts, [counts_of(request) for request in decoded[:SHOWN]])


def counts_of(request: TraceRequest) -> np.ndarray:
    counts = np.zeros((3, 6), int)
    for one in request.passes:
        if one.phase == Phase.DECODE:
            counts[np.arange(3)[:, None], one.chosen[:, 0]] += 1
    return counts


def test_entropies_have_their_bounds():
    record = record_of(some(6))
    assert record is not None
    most = np.log(MODEL.experts)
    for values in (record.fine, record.coarse, record.chosen, record.coarse_by_step, record.chosen_by_step):
        assert (values >= 0).all() and (values <= most + 1e-5).all()
    # Of one step, the sum is that step; its choices are equally frequent.
    first = np.cumsum(record.steps) - record.steps
    assert record.coarse_by_step[first] == pytest.approx(record.fine[first].mean(axis=1))
    assert record.chosen_by_step[first] == pytest.approx(np.log(MODEL.top_k))
    assert entropy(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 2.0]])) == pytest.approx([0, 0, np.log(2)])


def test_single_iterations_are_kept_of_the_first_requests():
    requests = some(SHOWN + 2, decoded=9)
    record = record_of(requests)
    assert record is not None
    assert record.shown.tolist() == list(range(SHOWN))
    assert record.shown_step.tolist() == [[place, step] for place in range(SHOWN) for step in (1, 2, 4, 8)]
    for (place, step), kept in zip(record.shown_step.tolist(), record.shown_map, strict=True):
        decoded = [one for one in requests[place].passes if one.phase == Phase.DECODE]
        assert np.array_equal(kept, decoded[step - 1].probabilities[:, 0])


def test_long_answers_are_counted_whole(monkeypatch):
    monkeypatch.setattr(routing, "STEPS", 4)
    record = record_of(some(2, decoded=7))
    assert record is not None
    assert (record.decoded.tolist(), record.steps.tolist()) == ([7, 7], [4, 4])
    assert record.counts[Phase.DECODE].sum() == 2 * 7 * MODEL.layers * MODEL.top_k
    assert record.by_step(record.coarse_by_step).shape == (4,)


def test_means_go_over_the_requests_that_are_still_going():
    record = joined([record_of([random_request(MODEL, n, decoded=n)]) for n in (1, 3)])  # type: ignore[list-item]
    means = record.by_step(np.array([1.0, 2.0, 3.0, 4.0]))
    assert means.tolist() == [1.5, 3.0, 4.0]


def test_parts_become_one_file(tmp_path: Path):
    """In the order of the conversations, whichever was answered first; and the folder of the parts goes."""
    requests = some(3)
    for number in (2, 0, 1):
        record = record_of([requests[number]])
        assert record is not None
        save_part(RunFolder(tmp_path).routing_part(number, 1), record)
    wanted = record_of(requests)
    assert same(read_routing(tmp_path), wanted)  # of a run that was killed
    write_routing(tmp_path, complete=False)
    write_routing(tmp_path, complete=True)
    assert [path.name for path in tmp_path.iterdir()] == [ROUTING]
    assert same(read_routing(tmp_path), wanted)
    write_routing(tmp_path, complete=True)
    assert same(read_routing(tmp_path), wanted)


def test_a_run_that_decoded_nothing_has_none(tmp_path: Path):
    write_routing(tmp_path, complete=True)
    assert read_routing(tmp_path) is None and not (tmp_path / ROUTING).exists()


def test_a_damaged_file_is_told(tmp_path: Path):
    """Cut anywhere, or with arrays that do not go together; pickles are never read."""
    record = record_of(some(2))
    assert record is not None
    path = tmp_path / ROUTING
    whole = record.to_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedFile, match="is damaged"):
            read_routing(tmp_path)
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    for change in ({"fine": record.fine[1:]}, {"names": np.array([{}, {}], dtype=object)}, {"counts": np.zeros(3)}):
        np.savez(path, format=np.array(1), **arrays | change)  # type: ignore[arg-type]
        with pytest.raises(DamagedFile, match="is damaged"):
            read_routing(tmp_path)
    np.savez(path, format=np.array(9), **arrays)
    with pytest.raises(DamagedFile, match="another version"):
        read_routing(tmp_path)
    shutil.rmtree(tmp_path)
