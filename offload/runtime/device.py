"""The device that computes, and what of its memory a budget has to count."""

from __future__ import annotations

import psutil
import torch

from offload.errors import ConfigError
from offload.runtime.libraries import RETURNING_BYTES, give_back_libraries
from offload.telemetry.probes import HostProbe
from offload.telemetry.process import peak_resident_bytes, resident_bytes, settled_resident_bytes
from offload.units import MIB

CUDA_CONTEXT_BYTES = 512 * MIB
"""Device memory of a CUDA context and torch's libraries: an estimate, not measured on hardware yet."""


def choose_device(name: str) -> torch.device:
    """The device called `name`; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"there is no device '{name}' here", "use --device cpu")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if device.index >= torch.cuda.device_count():
        raise ConfigError(f"there is no device '{name}' here", f"there are {torch.cuda.device_count()}")
    return device


def base_bytes(device: torch.device) -> int:
    """What is taken before a weight is read: by the process, or on CUDA by the context (an estimate).

    Of the process's libraries it counts what stays, and what answering will bring back.
    """
    if device.type != "cpu":
        return CUDA_CONTEXT_BYTES
    before = settled_resident_bytes()
    if not give_back_libraries():
        return before
    return min(before, resident_bytes() + RETURNING_BYTES)


def device_memory_bytes(device: torch.device) -> int:
    """All the memory that a budget could promise on this device."""
    if device.type == "cpu":
        return HostProbe().read().usable_bytes or int(psutil.virtual_memory().total)
    return int(torch.cuda.get_device_properties(device).total_memory)


def peak_bytes(device: torch.device, base: int) -> int:
    """The most memory that was taken so far: resident in the process, or on CUDA reserved on the device."""
    if device.type == "cpu":
        return peak_resident_bytes()
    return base + int(torch.cuda.max_memory_reserved(device))
