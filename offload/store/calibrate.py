"""How fast a store really reads on this machine, and how many lanes that takes."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from offload.store.base import ExpertStore
from offload.store.blocks import aligned_buffer

_GOOD_ENOUGH = 0.9
"""More lanes must bring more than this. They take memory, and what a layer waits for gets only its share of the
disk while other lanes read ahead: 24 layers of Qwen1.5-MoE's shapes with a tenth of their experts resident were 3
to 5 % faster with one lane, where two read 3 % faster."""


_ROUNDS = 3
"""Turns that all numbers of lanes are tried in; the median of each counts. A disk that hangs for half a second once
behind a large write would otherwise be taken for a slow one, in every forecast from then on."""

LANES = (1, 2, 4)
"""Numbers of lanes that are tried."""


@dataclass(frozen=True, slots=True)
class LaneRate:
    """What ``lanes`` threads together read, in bytes a second."""

    lanes: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A disk's speed at the size of a model's experts.

    Attributes:
        rates: What was measured, for each number of lanes.
        lanes: The smallest number of lanes within 10 % of the best.
        bytes_per_second: What they read.
        record_bytes: Bytes of one expert.
        direct: Whether the reads went past the page cache; if not, memory may have answered for the disk.
    """

    rates: tuple[LaneRate, ...]
    lanes: int
    bytes_per_second: float
    record_bytes: int
    direct: bool

    @property
    def seconds_per_expert(self) -> float:
        """Time that one expert takes of the disk when all lanes are busy."""
        return self.record_bytes / self.bytes_per_second

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


def measure_read_rate(
    store: ExpertStore, lanes: Sequence[int] = LANES, seconds_each: float = 0.4, seed: int = 0
) -> Calibration:
    """Reads random experts with each number of threads in ``lanes`` for about ``seconds_each`` seconds, in turns.

    Takes ``max(lanes) * (slot_bytes + staging_bytes)`` bytes of memory while it runs.

    Args:
        store: The store to measure.
        lanes: Numbers of threads to try.
        seconds_each: Seconds for each; a read that has begun is finished.
        seed: Of the order of experts, which is another one for each thread.

    Raises:
        ExpertReadError: A read failed.
    """
    counts = sorted(set(lanes))
    with ExitStack() as held:
        # Once for all, as memory that nobody has touched yet can be slower than the disk.
        buffers = [held.enter_context(aligned_buffer(store.slot_bytes)) for _ in range(counts[-1])]
        slots = [held.enter_context(memoryview(buffer)) for buffer in buffers]
        rounds = [
            [_rate(store, slots[:count], seconds_each / _ROUNDS, (seed, count, number)) for count in counts]
            for number in range(_ROUNDS)
        ]
    rates = tuple(map(LaneRate, counts, map(statistics.median, zip(*rounds, strict=True))))
    best = max(rate.bytes_per_second for rate in rates)
    chosen = next(rate for rate in rates if rate.bytes_per_second >= _GOOD_ENOUGH * best)
    return Calibration(rates, chosen.lanes, chosen.bytes_per_second, store.record_bytes, store.direct)


def _rate(store: ExpertStore, slots: Sequence[memoryview], seconds: float, seed: tuple[int, ...]) -> float:
    readers = [_Reader(store, slot, seconds, (*seed, number)) for number, slot in enumerate(slots)]
    begin = perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    elapsed = perf_counter() - begin
    for reader in readers:
        if reader.error is not None:
            raise reader.error
    return sum(reader.nbytes for reader in readers) / elapsed


class _Reader(threading.Thread):
    def __init__(self, store: ExpertStore, slot: memoryview, seconds: float, seed: tuple[int, ...]) -> None:
        super().__init__(name="finemoe-calibrate", daemon=True)
        self.nbytes = 0
        self.error: Exception | None = None
        self._store = store
        self._slot = slot
        self._seconds = seconds
        self._order = np.random.default_rng(seed)

    def run(self) -> None:
        try:
            end = perf_counter() + self._seconds
            while perf_counter() < end:
                expert = int(self._order.integers(self._store.spec.total_experts))
                self.nbytes += self._store.read(expert, self._slot)
        except Exception as error:
            self.error = error
