"""How many threads may compute at once."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def computing_threads(wanted: int | None = None) -> int:
    """So many as are wanted, or as many as there are cores that this process may use: at least 1.

    Cores, and not the two threads of some: products of matrices are bound by what cores share. What a control group
    or an affinity leaves of them counts.
    """
    if wanted:
        return wanted
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(min(cores, _quota(cores)), 1)


def _quota(otherwise: int) -> int:
    """Whole processors that a container's control group allows."""
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        return int(quota) // int(period)
    except (OSError, ValueError):
        return otherwise
