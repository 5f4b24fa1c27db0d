"""From forward passes to iterations, the entries of an expert map store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from offload.policy.maps.store import Floats
from offload.telemetry.counters import Phase
from offload.trace.records import TraceRequest


class Iteration(NamedTuple):
    """One iteration. embedding: [H] float32; expert_map: [L, E] float32, means over the prompt's tokens."""

    embedding: Floats
    expert_map: Floats


class Prompt:
    """The pieces that a prompt is computed in, put together to one iteration."""

    def __init__(self) -> None:
        self._tokens = 0
        self._embedding: Floats | None = None
        self._map: Floats | None = None

    def add(self, tokens: int, embedding: Floats, expert_map: Floats) -> None:
        """Another piece: how many tokens, and the means over them. embedding: [H], expert_map: [L, E]."""
        if self._embedding is None or self._map is None:
            self._embedding, self._map = tokens * embedding, tokens * expert_map
        else:
            self._embedding += tokens * embedding
            self._map += tokens * expert_map
        self._tokens += tokens

    def take(self) -> Iteration | None:
        """The iteration, if there were any pieces; afterwards there are none."""
        if self._embedding is None or self._map is None:
            return None
        count = np.float32(self._tokens)
        whole = Iteration(self._embedding / count, self._map / count)
        self._tokens, self._embedding, self._map = 0, None, None
        return whole


def iterations(request: TraceRequest) -> Iterator[Iteration]:
    """The iterations of a recorded request: its prompt, then each decoded token."""
    prompt = Prompt()
    for one in request.passes:
        embedding = one.embedding.astype(np.float32)
        expert_map = one.probabilities.mean(axis=1, dtype=np.float32)
        if one.phase == Phase.PREFILL:
            prompt.add(len(one.token_ids), embedding, expert_map)
            continue
        if whole := prompt.take():
            yield whole
        yield Iteration(embedding, expert_map)
    if whole := prompt.take():
        yield whole
