"""Rates of this machine are of the order that machines have."""

from offload.runtime.rates import measure_kernel_rate, measure_prompt_rates
from offload.telemetry.rates import measure_memory_rate


def test_rates_are_those_of_a_machine():
    assert 1e8 < measure_memory_rate(0.0) < 1e13
    assert 1e8 < measure_kernel_rate(1 << 18, 0.0, 512) < 1e13
    rate, operations = measure_prompt_rates(1 << 18, 0.0, 512)
    assert 1e7 < rate < 1e13
    assert 1e8 < operations < 1e14
