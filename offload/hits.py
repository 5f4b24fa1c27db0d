"""How often an expert cache hits, by the share of the experts that fit into it: known curves, and measured ones.

A curve is of LRU, reading on demand, once the cache is warm: what `demand` does. It is published for some models,
came out of measuring the demo, or was measured here: what routers chose for tokens that were generated says how a
cache of any size would have done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from offload.models.spec import ModelSpec

SHARES = (0.0625, 0.08, 0.1, 0.125, 0.155, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Where a curve is measured: closer where it is steep, around what one token needs."""

PUBLISHED = ((0.0, 0.0), (0.06, 0.40), (0.12, 0.60), (0.22, 0.78), (0.355, 0.87), (0.64, 0.96), (1.0, 1.0))
"""Share of the experts that is resident, and LRU's hit rate at that share, as published for decoding with models of
128 and more experts a layer; middles where a range was given."""

DEMO = ((0.0, 0.0), (0.067, 0.0), (0.125, 0.21), (0.25, 0.48), (0.5, 0.79), (0.75, 0.95), (1.0, 1.0))
"""Measured with answers of the demo model, whose routers are flatter than trained ones."""

_DEMO_SHAPE = (30, 60, 4, 576, 192)
"""Layers, experts, top-k, hidden size and expert size of the demo model."""


@dataclass(frozen=True, slots=True)
class HitCurve:
    """Hit rate by share.

    Attributes:
        points: Shares, rising, from 0 to 1, and the hit rate at each.
        source: Where it is from, in a few words.
        working_set: Share that one token needs. Up to it a published curve counts for nothing, as each expert is
            evicted before its layer comes again, and it holds from twice that share on; 0 for curves that were
            measured with this very model.
    """

    points: tuple[tuple[float, float], ...]
    source: str
    working_set: float = 0.0

    def at(self, share: float) -> float:
        """The hit rate where ``share`` of the experts is resident, by straight lines between the points."""
        if share >= 1.0:
            return 1.0
        place = min(max(bisect_right([x for x, _ in self.points], share), 1), len(self.points) - 1)
        (x0, y0), (x1, y1) = list(pairwise(self.points))[place - 1]
        hits = y0 + (y1 - y0) * (share - x0) / (x1 - x0)
        ramp = min(max(share / self.working_set - 1.0, 0.0), 1.0) if self.working_set else 1.0
        return ramp * hits


def known_curve(spec: ModelSpec) -> HitCurve:
    """The curve for a model of which nothing was measured here."""
    shape = (spec.num_layers, spec.num_experts, spec.top_k, spec.hidden_size, spec.expert_size)
    if shape == _DEMO_SHAPE:
        return HitCurve(DEMO, "measured with the demo")
    return HitCurve(PUBLISHED, "published for other models", spec.top_k / spec.num_experts)


def measured_curve(
    answers: Sequence[Sequence[Sequence[Sequence[int]]]], experts: int, total: int
) -> tuple[tuple[float, float], ...]:
    """The points of the curve that the tokens of some answers give, one answer after the other.

    Args:
        answers: For each, what the routers chose, [T, L, K].
        experts: Experts a layer.
        total: All experts.
    """
    steps = [
        [layer * experts + expert for expert in chosen]
        for answer in answers
        for token in answer
        for layer, chosen in enumerate(token)
    ]
    points = [(share, lru_hits(steps, max(round(share * total), 1))) for share in SHARES]
    return ((0.0, 0.0), *points, (1.0, 1.0))


def lru_hits(steps: Iterable[Sequence[int]], capacity: int) -> float:
    """The hit rate of an LRU cache of ``capacity``, over the steps after it was full for the first time.

    Where it never gets full, over the second half: nothing is evicted, and what is missing was never needed before.
    """
    cache: OrderedDict[int, None] = OrderedDict()
    counts: list[tuple[int, int]] = []
    full = -1
    for step in steps:
        hits = 0
        for expert in step:
            if expert in cache:
                cache.move_to_end(expert)
                hits += 1
            else:
                cache[expert] = None
        while len(cache) > capacity:
            cache.popitem(last=False)
            if full < 0:
                full = len(counts)
        counts.append((hits, len(step)))
    counted = counts[full if 0 <= full < len(counts) // 2 else len(counts) // 2 :]
    needed = sum(count for _, count in counted)
    return sum(hits for hits, _ in counted) / needed if needed else 0.0
