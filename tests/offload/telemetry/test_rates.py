from __future__ import annotations

from offload.telemetry.rates import measure_flops, measure_memory_rate


def test_rates_are_those_of_a_computer():
    assert 5e8 < measure_memory_rate(0.0) < 1e12
    assert 1e8 < measure_flops(0.0) < 1e14
