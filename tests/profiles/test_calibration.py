"""Measurements are kept, one for each size of reads."""

from __future__ import annotations

import json
from functools import partial

import pytest

from offload.runtime import rates as compute_rates
from offload.store import scratch
from offload.store.calibrate import measure_read_rate
from offload.telemetry import rates
from offload.units import MIB
from profiles import calibration
from profiles.calibration import calibrate, calibration_file, kept_calibration
from tests.offload.test_forecast import QWEN3, QWEN15, sizes_of


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(scratch, "SCRATCH_BYTES", MIB)
    monkeypatch.setattr(scratch, "measure_read_rate", partial(measure_read_rate, seconds_each=0.02))
    monkeypatch.setattr(rates, "measure_memory_rate", partial(rates.measure_memory_rate, 0.0))
    for name in ("measure_kernel_rate", "measure_prompt_rates"):
        monkeypatch.setattr(compute_rates, name, partial(getattr(compute_rates, name), seconds=0.0, rows=64))


def test_each_size_is_measured_for_itself_and_found_again():
    first, second = (sizes_of(name).spec for name in (QWEN15, QWEN3))
    assert kept_calibration(first.expert_bytes) is None
    made = calibrate(first)
    assert kept_calibration(first.expert_bytes) == made
    assert kept_calibration(first.expert_bytes + 1) == made, "much the same size"
    assert kept_calibration(second.expert_bytes) is None
    other = calibrate(second)
    assert (kept_calibration(first.expert_bytes), kept_calibration(second.expert_bytes)) == (made, other)


@pytest.mark.parametrize("damage", ["", "{", '{"format": 3}', '{"format": FORMAT, "measurements": {"KEY": {}}}'])
def test_a_file_that_cannot_be_used_is_measured_anew(damage):
    spec = sizes_of(QWEN15).spec
    made = calibrate(spec)
    damage = damage.replace("FORMAT", str(calibration._FORMAT)).replace("KEY", calibration._key(spec.expert_bytes))
    calibration_file().write_text(damage)
    assert kept_calibration(spec.expert_bytes) is None
    assert calibrate(spec).record_bytes == made.record_bytes
    assert json.loads(calibration_file().read_text())["format"] == calibration._FORMAT
