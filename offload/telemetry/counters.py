"""What the engine counts while it runs, and the immutable snapshots that others read.

The unit of counting is a *selection*: a distinct (layer, expert) that one forward pass needs. Each selection is
exactly one of

- **resident**: there from before,
- **prefetched**: brought by prediction, in time,
- **late**: predicted and still in flight, so it was waited for,
- **missed**: read on demand.

``hit_rate`` = (resident + prefetched) / selections, the FineMoE paper's meaning: nothing was waited for;
``covered_rate`` adds the late ones. Prefill and decode are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Phase(IntEnum):
    """The two kinds of forward pass."""

    PREFILL = 0
    DECODE = 1


class Kind(IntEnum):
    """What a selection found; the order is that of the decode kernels' tally."""

    RESIDENT = 0
    PREFETCHED = 1
    LATE = 2
    MISSED = 3


@dataclass(frozen=True, slots=True)
class PhaseCounts:
    """The counts of one phase. Bytes are bytes read from the slow tier, seconds are wall clock."""

    selections: int = 0
    resident: int = 0
    prefetched: int = 0
    late: int = 0
    missed: int = 0
    bytes_demand: int = 0
    bytes_prefetch: int = 0
    bytes_prefetch_wasted: int = 0
    stall_s: float = 0.0
    evictions: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of selections that nothing was waited for; None without selections."""
        return (self.resident + self.prefetched) / self.selections if self.selections else None

    @property
    def covered_rate(self) -> float | None:
        """Share of selections that were there or at least on their way; None without selections."""
        if not self.selections:
            return None
        return (self.resident + self.prefetched + self.late) / self.selections

    def __sub__(self, earlier: PhaseCounts) -> PhaseCounts:
        return PhaseCounts(**{name: value - getattr(earlier, name) for name, value in asdict(self).items()})

    def to_dict(self) -> dict[str, Any]:
        """All counts and both rates, under the names that every output uses."""
        return {**asdict(self), "hit_rate": self.hit_rate, "covered_rate": self.covered_rate}


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Selections by kind and stall of each layer with experts, of one phase."""

    resident: tuple[int, ...]
    prefetched: tuple[int, ...]
    late: tuple[int, ...]
    missed: tuple[int, ...]
    stall_s: tuple[float, ...]


class Counters:
    """The engine's own counts: arrays that only the engine's thread writes.

    Attributes:
        tally: [2 phases, 4 kinds, L] int64, selections.
        uses: [L*E] int64, selections of each expert.
        misses: [L*E] int64, selections of each expert that were waited for.
        stall_ns: [2 phases, L] int64, time the computation waited for reads.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.tally: NDArray[np.int64] = np.zeros((2, 4, layers), np.int64)
        self.uses: NDArray[np.int64] = np.zeros(layers * experts, np.int64)
        self.misses: NDArray[np.int64] = np.zeros(layers * experts, np.int64)
        self.stall_ns: NDArray[np.int64] = np.zeros((2, layers), np.int64)
        self.bytes_demand = [0, 0]
        self.bytes_prefetch = [0, 0]
        self.bytes_prefetch_wasted = [0, 0]
        self.evictions = [0, 0]

    def reset(self) -> None:
        """Put everything to zero."""
        for array in (self.tally, self.uses, self.misses, self.stall_ns):
            array[:] = 0
        for phase in Phase:
            self.bytes_demand[phase] = self.bytes_prefetch[phase] = self.bytes_prefetch_wasted[phase] = 0
            self.evictions[phase] = 0

    def phase(self, phase: Phase) -> PhaseCounts:
        """An immutable copy of one phase's counts."""
        return phase_counts(self, phase)

    def by_layer(self, phase: Phase) -> LayerCounts:
        """An immutable copy of one phase's counts by layer."""
        resident, prefetched, late, missed = (tuple(row.tolist()) for row in self.tally[phase])
        stall = tuple((self.stall_ns[phase] / 1e9).tolist())
        return LayerCounts(resident, prefetched, late, missed, stall)


class Counted(Protocol):
    """What has counts of both phases: the engine's `Counters`, or a frame of them. Shapes as in `Counters`."""

    @property
    def tally(self) -> NDArray[np.int64]: ...

    @property
    def stall_ns(self) -> NDArray[np.int64]: ...

    @property
    def bytes_demand(self) -> Sequence[int]: ...

    @property
    def bytes_prefetch(self) -> Sequence[int]: ...

    @property
    def bytes_prefetch_wasted(self) -> Sequence[int]: ...

    @property
    def evictions(self) -> Sequence[int]: ...


def phase_counts(counted: Counted, phase: Phase) -> PhaseCounts:
    """One phase's counts, layers together."""
    kinds = counted.tally[phase].sum(axis=1)
    return PhaseCounts(
        selections=int(kinds.sum()),
        resident=int(kinds[Kind.RESIDENT]),
        prefetched=int(kinds[Kind.PREFETCHED]),
        late=int(kinds[Kind.LATE]),
        missed=int(kinds[Kind.MISSED]),
        bytes_demand=counted.bytes_demand[phase],
        bytes_prefetch=counted.bytes_prefetch[phase],
        bytes_prefetch_wasted=counted.bytes_prefetch_wasted[phase],
        stall_s=float(counted.stall_ns[phase].sum()) / 1e9,
        evictions=counted.evictions[phase],
    )
