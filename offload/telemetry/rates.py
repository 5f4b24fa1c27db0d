"""How fast this machine reads memory and multiplies matrices, measured in well under a second."""

from __future__ import annotations

from time import perf_counter

import numpy as np

_BUFFER_BYTES = 256 << 20
_MATRIX = 768
_ROUNDS = 5


def measure_memory_rate() -> float:
    """Bytes a second that one thread reads from memory: the best of a few passes over 256 MiB.

    The pass is numpy's maximum of 64-bit words, which does little more than read.
    """
    words = np.ones(_BUFFER_BYTES // 8, np.int64)
    return _BUFFER_BYTES / min(_timed(lambda: words.max()) for _ in range(_ROUNDS))


def measure_flops() -> float:
    """Operations a second of numpy's float32 matrix product, on the threads that it takes: the best of a few."""
    left = np.ones((_MATRIX, _MATRIX), np.float32)
    return float(2 * _MATRIX**3 / min(_timed(lambda: left @ left) for _ in range(_ROUNDS)))


def _timed(work: object) -> float:
    assert callable(work)
    begin = perf_counter()
    work()
    return perf_counter() - begin
