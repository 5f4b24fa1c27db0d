"""Measuring the disk without a model on it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from offload.errors import StorageError
from offload.models.spec import spec_from_config
from offload.store import scratch
from offload.store.scratch import measure_disk
from offload.units import MIB
from tests.offload.test_forecast import PUBLISHED


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "SCRATCH_BYTES", 8 * MIB)
    spec = spec_from_config(tmp_path, PUBLISHED["Qwen1.5-MoE-A2.7B"]["config"])
    return replace(spec, expert_size=100)


def test_records_of_the_models_size_are_read_and_the_file_is_removed(spec, tmp_path):
    stages = []
    measured = measure_disk(tmp_path, spec, lambda stage, done, total: stages.append(stage))
    assert measured.record_bytes == spec.expert_bytes
    assert measured.bytes_per_second > 0
    assert measured.lanes in (1, 2, 4)
    assert set(stages) == {"calibrate"}
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_said_with_numbers(spec, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=MIB)
    monkeypatch.setattr("offload.store.scratch.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match=r"needs 1\d\.\d MiB of space, and .* has 1\.00 MiB"):
        measure_disk(tmp_path, spec)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_file(spec, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "measure_read_rate", fail)
    with pytest.raises(KeyboardInterrupt):
        measure_disk(tmp_path, spec)
    assert list(tmp_path.iterdir()) == []
