"""How fast this machine reads memory, measured in half a second."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from offload.memory.pages import huge_pages

_BUFFER_BYTES = 256 << 20
_SECONDS = 0.5


def measure_memory_rate(seconds: float = _SECONDS) -> float:
    """Bytes a second that one thread reads from memory: the best of the passes over 256 MiB in ``seconds``.

    A pass is numpy's maximum of 64-bit words, which does little more than read.
    """
    words = huge_pages(_BUFFER_BYTES).view(np.int64)
    words[:] = 1
    return _BUFFER_BYTES / _best(words.max, seconds)


def _best(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of many runs: what else the machine does only ever adds to one."""
    best, end = float("inf"), perf_counter() + seconds
    while True:
        begin = perf_counter()
        work()
        now = perf_counter()
        best = min(best, now - begin)
        if now >= end:
            return best
