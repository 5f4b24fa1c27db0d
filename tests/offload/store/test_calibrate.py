"""Measuring the disk: the figures are the store's own, and the choice of lanes is modest."""

from __future__ import annotations

import json

import pytest

from offload.errors import ExpertReadError
from offload.models.spec import read_spec
from offload.store import calibrate
from offload.store.calibrate import measure_read_rate
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore


@pytest.fixture
def store(checkpoint):
    folder = checkpoint(layout="scattered")
    store = SafetensorsStore.open(read_spec(folder), CheckpointIndex.open(folder))
    yield store
    store.close()


def test_real_reads(store):
    result = measure_read_rate(store, lanes=(2, 1, 2), seconds_each=0.05)
    assert [rate.lanes for rate in result.rates] == [1, 2]
    assert all(rate.bytes_per_second > 0 for rate in result.rates)
    assert result.lanes in (1, 2)
    assert result.record_bytes == store.record_bytes
    assert result.seconds_per_expert == store.record_bytes / result.bytes_per_second
    assert json.loads(json.dumps(result.as_dict()))["rates"][0]["lanes"] == 1


def test_more_lanes_must_bring_more(store, monkeypatch):
    speeds = {1: 0.9, 2: 1.96, 4: 2.0, 8: 1.5}
    monkeypatch.setattr(calibrate, "_rate", lambda store, slots, seconds, seed: speeds[len(slots)])
    result = measure_read_rate(store, lanes=(1, 2, 4, 8))
    assert (result.lanes, result.bytes_per_second) == (2, 1.96)


def test_a_disk_that_hangs_once_is_no_slow_disk(store, monkeypatch):
    turns = {1: [0.01, 1.0, 1.1], 2: [1.3, 1.2, 0.02]}
    monkeypatch.setattr(calibrate, "_rate", lambda store, slots, seconds, seed: turns[len(slots)].pop())
    result = measure_read_rate(store, lanes=(1, 2))
    assert [rate.bytes_per_second for rate in result.rates] == [1.0, 1.2]
    assert result.lanes == 2


def test_a_read_that_fails_is_told(store):
    store.close()
    with pytest.raises(ExpertReadError):
        measure_read_rate(store, lanes=(2,), seconds_each=0.05)
