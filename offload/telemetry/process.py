"""The process's own memory, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_field("VmRSS") or int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most resident memory that this process ever had."""
    return _status_field("VmHWM") or resident_bytes()


def settled_resident_bytes() -> int:
    """Resident memory now, after garbage, Python's and the allocator's, has been given back."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc
    return resident_bytes()


def _status_field(name: str) -> int | None:
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return None
