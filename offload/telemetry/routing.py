"""What can be seen of a forward pass while it runs, and who may look.

Policies, trace recorders and boards all look through the same protocol. The arrays that they are given are the
engine's own: they hold until the next call, and whoever keeps something copies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from offload.telemetry.counters import Phase


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward pass that begins: one iteration in the FineMoE paper's words.

    Attributes:
        phase: A piece of a prompt, or one decoded token.
        request: Number of the request since the engine was opened, from 1.
        token_ids: [T], the tokens that go in.
        position: Of the first of them.
        embedding: [H] float32, the mean of their input embeddings.
    """

    phase: Phase
    request: int
    token_ids: Sequence[int]
    position: int
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Routing:
    """What one layer's router said.

    Attributes:
        layer: Counting layers with routed experts.
        probabilities: [T, E] float32, softmax over all experts.
        chosen: [T, K] int32, likeliest first.
        residual: [T, H] float32, the residual stream before the norm in front of the router; None in a trace
            recorded without it.
        shared: [T, H] float32, what the layer's shared expert adds to the residual, where that is known by now.
    """

    layer: int
    probabilities: NDArray[np.float32]
    chosen: NDArray[np.int32]
    residual: NDArray[np.float32] | None
    shared: NDArray[np.float32] | None


class Read(NamedTuple):
    """One read of an expert that ended during the pass. `seconds`: without its time in the queue."""

    expert: int
    demand: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class PassOutcome:
    """How a forward pass went.

    Attributes:
        began_ns / ended_ns: Of the monotonic clock.
        stall_ns: [L] int64, time each layer's computation waited for reads.
        kinds: [L, K] uint8, `Kind` of each selection; None for a piece of a prompt.
        reads: Reads that ended during the pass.
    """

    began_ns: int
    ended_ns: int
    stall_ns: NDArray[np.int64]
    kinds: NDArray[np.uint8] | None
    reads: Sequence[Read]


class Observer(Protocol):
    """Told of every forward pass, on the engine's thread, in this order: begin, each layer, end.

    For decode passes through the kernels the layers may be told all together at the pass's end. An observer must
    not raise, and what it takes in time the token pays.

    Attributes:
        wants_residual: Whether `Routing.residual` and `Routing.shared` should be there.
    """

    wants_residual: bool

    def begin_pass(self, forward: ForwardPass) -> None:
        """A forward pass begins."""
        ...

    def routed(self, routing: Routing) -> None:
        """A layer's router has chosen."""
        ...

    def end_pass(self, outcome: PassOutcome) -> None:
        """The pass is over; not called for a pass that failed."""
        ...
