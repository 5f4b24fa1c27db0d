"""The oracle's hit rate of one reply, from its token records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offload.telemetry.counters import Kind
from offload.telemetry.frame import TokenRecord
from offload.trace.oracle import belady_hits
from ui.panes.history import Oracle


def reply_oracle(records: Sequence[TokenRecord], experts: int, slots: int) -> Oracle:
    """What Belady's MIN would have hit in ``records``, consecutive ones of one request, at least one.

    What was resident in the beginning is not recorded, but it shows as far as it matters: who was resident at its
    first use, and had not been fetched ahead, had been there all the time.

    Args:
        experts: In each layer.
        slots: Experts that could be resident. Where the records show more, as after a change of budget, it is more.
    """
    chosen = np.stack([record.chosen for record in records])  # [T, L, K]
    tokens, layers, top_k = chosen.shape
    numbers = (chosen + (np.arange(layers) * experts)[:, None]).reshape(tokens * layers, top_k)
    kinds = np.stack([record.kinds for record in records]).reshape(-1)
    seen, first = np.unique(numbers.reshape(-1), return_index=True)
    resident = seen[kinds[first] == Kind.RESIDENT].tolist()
    most = max(record.resident for record in records)
    hits = belady_hits(numbers.tolist(), max(slots, most, len(resident), top_k), resident)
    return Oracle(
        records[-1].request,
        hits.reshape(tokens, layers).sum(axis=0),
        np.full(layers, tokens * top_k, np.int64),
    )


def real_hit_rate(records: Sequence[TokenRecord]) -> float:
    """The share of all selections in ``records``, at least one, that nothing was waited for."""
    kinds = np.stack([record.kinds for record in records])
    return float(np.mean(kinds <= Kind.PREFETCHED))
