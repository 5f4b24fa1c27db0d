"""What the runtime and the simulator ask of a policy, and what they show it.

A policy decides; it owns nothing. It names experts by ``layer * num_experts + expert``, reads the arrays of its
`Surroundings`, and leaves every transition to `offload.transfer.fetch`. The simulator runs the same objects over a
recorded trace with the same fetcher, so what is measured there is what runs live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import Residency
from offload.telemetry.routing import ForwardPass, Routing


class Fetch(NamedTuple):
    """An expert to read ahead. Among the reads ahead, the higher priority goes first."""

    expert: int
    priority: float


class Decision(NamedTuple):
    """What to do while a layer computes: take back what has not begun, then read ahead, in this order."""

    cancel: list[int]
    fetch: list[Fetch]


NOTHING = Decision([], [])
"""Leave everything as it is."""

REFUSE = -1
"""What `Policy.victim` gives where nothing should leave for a read ahead."""


class LinkState(Protocol):
    """What a policy may know of the reads under way."""

    @property
    def queued(self) -> int:
        """Requests that no lane has begun with."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests whose completion has not been collected."""
        ...

    @property
    def count(self) -> int:
        """Reads that go on at once."""
        ...


@dataclass(slots=True)
class Rates:
    """How fast things go here, as moving averages that whoever drives the model keeps. Seconds.

    Attributes:
        read_s: From one expert's arrival to the next while reads queue: the time the link needs for one.
        layer_s: Computing one layer of a decoded token, without waiting.
    """

    read_s: float
    layer_s: float


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """The model's own routers, for looking ahead with them.

    Attributes:
        gate: For each layer [E, H] uint16, the router's matrix as bfloat16 bits.
        norm: For each layer [H] uint16, weights of the RMS norm in front of it.
        eps: Of the norm.
    """

    gate: Sequence[NDArray[np.uint16]]
    norm: Sequence[NDArray[np.uint16]]
    eps: float


@dataclass(slots=True)
class Surroundings:
    """What a policy is made with. The arrays change under its eyes and are only to be read.

    Attributes:
        layers / experts / top_k / hidden: Of the model; experts are those of one layer.
        slot_bytes: Bytes of one expert.
        residency: Which experts are where.
        last_used: [L*E] int64, tick of each expert's last use, 0 before the first; a decoded token takes L ticks.
        fresh: [L*E] uint8, 1 for an expert that was read ahead and not used yet.
        misses: [L*E] int64, how often each expert was waited for.
        link: The reads under way.
        rates: How fast things go here.
        routers: For looking ahead; None where they cannot be had.
        knowledge: What was learnt before: `offload.policy.knowledge`; None for nothing.
        options: The user's parameters of the policy, by name.
    """

    layers: int
    experts: int
    top_k: int
    hidden: int
    slot_bytes: int
    residency: Residency
    last_used: NDArray[np.int64]
    fresh: NDArray[np.uint8]
    misses: NDArray[np.int64]
    link: LinkState
    rates: Rates
    routers: RouterWeights | None = None
    knowledge: Any = None
    options: Mapping[str, float] = field(default_factory=dict)


class Policy(Protocol):
    """Decides which experts stay and which are read ahead.

    Calls come in this order: `begin_pass`; for each layer `routed`, then `decide` if `looks_ahead`; `end_pass`.
    `victim` may come at any moment, also for the reads that `decide` asked for. While `looks_ahead` is false, the
    layers of a decoded token are told all together at its end.

    Attributes:
        name: As the user gives it.
        note: What there is to say about its state, in one line; empty for nothing.
        decides_early: Whether `decide` is also asked with layer -1, before a decoded token's first layer.
    """

    name: str
    note: str
    decides_early: bool

    @property
    def looks_ahead(self) -> bool:
        """Whether it wants to decide behind every router. Asked before each forward pass."""
        ...

    @property
    def wants_residual(self) -> bool:
        """Whether it reads `Routing.residual`."""
        ...

    def begin_pass(self, forward: ForwardPass) -> None:
        """A forward pass begins."""
        ...

    def routed(self, routing: Routing) -> None:
        """A layer's router has chosen."""
        ...

    def decide(self, layer: int) -> Decision:
        """What to read ahead, after `layer`'s own demand reads have been asked for."""
        ...

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """The expert to give up for `wanted`.

        Args:
            evictable: [n] expert ids in ascending order, n > 0: resident, and not needed by the running layer.
            wanted: The expert that needs the slot; -1 where the arena shrinks.
            demand: Whether the computation waits for it. If not, `REFUSE` leaves `wanted` where it is.
        """
        ...

    def end_pass(self) -> None:
        """The forward pass is over; not called for one that failed."""
        ...


class Blind:
    """What policies share that read nothing ahead: they see, and choose victims."""

    name = "blind"
    note = ""
    decides_early = False
    looks_ahead = False
    wants_residual = False

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        return NOTHING

    def end_pass(self) -> None:
        """See `Policy`."""


Maker = Callable[[Surroundings], Policy]
"""Makes a policy."""
