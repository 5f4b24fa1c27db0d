"""What a device has to offer."""

from __future__ import annotations

import torch

from offload.runtime import device
from offload.telemetry.probes import HostProbe, HostReading
from offload.units import GIB


def test_the_host_has_as_much_memory_as_this_process_may_take(monkeypatch):
    cpu = torch.device("cpu")
    assert 0 < device.device_memory_bytes(cpu) <= HostProbe().read().total_bytes
    limited = HostReading(total_bytes=32 * GIB, available_bytes=30 * GIB, limit_bytes=4 * GIB)
    monkeypatch.setattr(HostProbe, "read", lambda self: limited)
    assert device.device_memory_bytes(cpu) == 4 * GIB
    monkeypatch.setattr(HostProbe, "read", lambda self: HostReading(reason="it does not say"))
    assert device.device_memory_bytes(cpu) > GIB, "the machine's, where groups say nothing"
