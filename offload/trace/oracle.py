"""The hits of an oracle: what a cache that knows the future would have kept.

Belady's MIN: where something has to leave, it is what is used again last, or never. (L. A. Belady, *A study of
replacement algorithms for a virtual-storage computer*, IBM Systems Journal 5(2), 1966.) Here several things are
needed at once: the experts that one layer of one forward pass chose. All of them have to be resident while it
computes, and none may be brought before it is asked for; so this bounds every policy that reads on demand.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_NEVER = 1 << 62


def belady_hits(
    steps: Sequence[Collection[int]], capacity: int, initially_resident: Iterable[int] = ()
) -> NDArray[np.int64]:
    """Counts in each step what is resident when it is asked for.

    Args:
        steps: What each step needs, without repetitions.
        capacity: How much can be resident at once; at least as much as the largest step.
        initially_resident: What is resident before the first step, at most ``capacity``.

    Returns:
        [steps] int64.

    Raises:
        ValueError: The capacity is too small for a step, or for what is resident in the beginning.
    """
    uses = _following_uses(steps)
    first = {item: step for step in range(len(steps) - 1, -1, -1) for item in steps[step]}
    next_use = {item: first.get(item, _NEVER) for item in initially_resident}
    if len(next_use) > capacity:
        raise ValueError(f"{len(next_use)} resident in the beginning, of {capacity}")
    # Entries whose next use is no longer the item's are passed over when they come up.
    queue = [(-use, item) for item, use in next_use.items()]
    heapq.heapify(queue)
    hits = np.zeros(len(steps), np.int64)
    for number, (step, following) in enumerate(zip(steps, uses, strict=True)):
        if len(step) > capacity:
            raise ValueError(f"step {number} needs {len(step)}, of {capacity}")
        missing = 0
        for item, use in zip(step, following, strict=True):
            if item in next_use:
                hits[number] += 1
            else:
                missing += 1
            next_use[item] = use
            heapq.heappush(queue, (-use, item))
        set_aside = []
        needed = frozenset(step) if missing else frozenset()
        while len(next_use) > capacity:
            entry = heapq.heappop(queue)
            item = entry[1]
            if next_use.get(item) != -entry[0]:
                continue
            if item in needed:
                set_aside.append(entry)
            else:
                del next_use[item]
        for entry in set_aside:
            heapq.heappush(queue, entry)
    return hits


def _following_uses(steps: Sequence[Collection[int]]) -> list[list[int]]:
    """For each step, and each that it needs, the next step that needs it too."""
    upcoming: dict[int, int] = {}
    following: list[list[int]] = [[]] * len(steps)
    for number in range(len(steps) - 1, -1, -1):
        following[number] = [upcoming.get(item, _NEVER) for item in steps[number]]
        upcoming.update(dict.fromkeys(steps[number], number))
    return following
