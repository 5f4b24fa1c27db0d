"""What a trace holds: forward passes as they were, in memory.

`offload.trace.recorder` makes them, `offload.trace.file` keeps them, `offload.trace.simulator` replays them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import RouterWeights
from offload.telemetry.counters import Phase
from offload.telemetry.routing import Read


@dataclass(frozen=True, slots=True)
class TracePass:
    """One forward pass of T tokens.

    Attributes:
        phase: A piece of a prompt, or one decoded token.
        position: Of the first token.
        token_ids: [T] int32, what went in.
        embedding: [H] float16, mean of the input embeddings.
        probabilities: [L, T, E] float16, every router's softmax.
        margins: [L, T] float16, probability of the last expert chosen less that of the first one left out.
        chosen: [L, T, K] int16, likeliest first.
        residual: [L, T, H] float16, before the norm in front of each router; None if it was not recorded.
        shared: [L, T, H] float16, what each shared expert added; None if there is none, or it was not recorded.
        seconds: Of the pass, waiting included.
        stall_s: [L] float32, what of it was waiting for reads.
        reads: Reads that ended during the pass.
    """

    phase: Phase
    position: int
    token_ids: NDArray[np.int32]
    embedding: NDArray[np.float16]
    probabilities: NDArray[np.float16]
    margins: NDArray[np.float16]
    chosen: NDArray[np.int16]
    residual: NDArray[np.float16] | None
    shared: NDArray[np.float16] | None
    seconds: float
    stall_s: NDArray[np.float32]
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: its prompt's passes, then one pass for each decoded token but the last.

    Attributes:
        name: Where it comes from, such as ``sample-017/2`` for the second turn of a conversation.
        text: The prompt's last user message; empty if it was not to be kept.
    """

    name: str
    text: str
    passes: Sequence[TracePass]


@dataclass(frozen=True, slots=True)
class TraceModel:
    """What a trace knows of its model.

    Attributes:
        fingerprint: Of the model's weights and shape: `offload.store.fingerprint`.
        routers: For looking ahead with them; None if they were not kept.
    """

    name: str
    fingerprint: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    slot_bytes: int
    routers: RouterWeights | None
