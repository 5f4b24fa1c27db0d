"""What an engine's process sees of one request beside its answer: counts by layer and by pass, energy, logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offload.telemetry.counters import Kind, Phase

if TYPE_CHECKING:
    import torch

    from offload.runtime.engine import Engine

DIGEST_BYTES = 8
"""Of each forward pass's logits; two that differ have the same digest once in 2**64."""

_KINDS = tuple(kind.name.lower() for kind in Kind)


class RequestWatch:
    """Watches one request at a time: `begin`, then `passed` after each forward pass, then `finish`.

    Args:
        engine: Whose counters are read.
        energy_j: Reads the device's meter, in joules; None where it has none.
    """

    def __init__(self, engine: Engine, energy_j: Callable[[], float | None]) -> None:
        self._counters = engine.view().counters
        self._energy_j = energy_j
        self._digests: list[str] | None = None
        self._passes: list[NDArray[np.int64]] = []
        self._begin_energy: float | None = None
        self._begin_tally = self._begin_stall = self._last = np.zeros(0, np.int64)

    def begin(self, *, digests: bool) -> None:
        """A request begins. digests: keep one of each forward pass's logits."""
        self._digests = [] if digests else None
        self._passes = []
        self._begin_tally = self._counters.tally.copy()
        self._begin_stall = self._counters.stall_ns.copy()
        self._last = self._decoded()
        self._begin_energy = self._energy_j()

    def passed(self, logits: torch.Tensor) -> None:
        """A forward pass is over. logits: [V], of its last position."""
        now = self._decoded()
        if now[:-1].sum() > self._last[:-1].sum():
            self._passes.append(now - self._last)
        self._last = now
        if self._digests is not None:
            self._digests.append(digest(logits))

    def finish(self) -> dict[str, Any]:
        """What was seen, for JSON: ``layers``, ``passes``, ``energy_j``, and ``logits`` if digests were wanted."""
        now = self._energy_j()
        tally = self._counters.tally - self._begin_tally
        stall = self._counters.stall_ns - self._begin_stall
        seen: dict[str, Any] = {
            "layers": {phase.name.lower(): _columns(tally[phase], stall[phase]) for phase in Phase},
            "passes": _columns(
                np.array([one[:-1] for one in self._passes], np.int64).reshape(-1, len(Kind)).T,
                np.array([one[-1] for one in self._passes], np.int64),
            ),
            "energy_j": None if now is None or self._begin_energy is None else round(now - self._begin_energy, 3),
        }
        if self._digests is not None:
            seen["logits"] = self._digests
        return seen

    def _decoded(self) -> NDArray[np.int64]:
        """[5]: selections of decoded tokens by kind, then the time they waited, in nanoseconds."""
        kinds = self._counters.tally[Phase.DECODE].sum(axis=1)
        return np.append(kinds, self._counters.stall_ns[Phase.DECODE].sum())


def digest(logits: torch.Tensor) -> str:
    """A digest of the very bytes of some logits, in hexadecimal."""
    import torch

    content = logits.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[: 2 * DIGEST_BYTES]


def _columns(kinds: NDArray[np.int64], stall_ns: NDArray[np.int64]) -> dict[str, list[Any]]:
    """kinds: [4, N]; stall_ns: [N]. Of each of N layers, or passes."""
    counts: dict[str, list[Any]] = {name: row.tolist() for name, row in zip(_KINDS, kinds, strict=True)}
    return counts | {"stall_s": [round(ns / 1e9, 6) for ns in stall_ns.tolist()]}
