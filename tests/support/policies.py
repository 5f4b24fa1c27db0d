"""A policy's surroundings laid out by hand: which expert is where, and who was used when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import Residency
from offload.policy import Policy, Rates, RouterWeights, Surroundings
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing


class IdleLink:
    """A link on which nothing happens but what the test says."""

    count = 1
    queued = 0
    in_flight = 0


class Table:
    """Surroundings of `layers` layers with `experts` experts, and the tick that it is."""

    def __init__(
        self,
        *,
        layers: int = 3,
        experts: int = 4,
        top_k: int = 2,
        slots: int = 6,
        hidden: int = 4,
        routers: RouterWeights | None = None,
        knowledge: object = None,
        **options: float,
    ) -> None:
        total = layers * experts
        self.residency = Residency(total, total, slots)
        self.link = IdleLink()
        self.clock = 0
        self.around = Surroundings(
            layers=layers,
            experts=experts,
            top_k=top_k,
            hidden=hidden,
            slot_bytes=4096,
            residency=self.residency,
            last_used=np.zeros(total, np.int64),
            fresh=np.zeros(total, np.uint8),
            misses=np.zeros(total, np.int64),
            link=self.link,
            rates=Rates(1e-3, 1e-3),
            routers=routers,
            knowledge=knowledge,
            options=options,
        )

    def put(self, *experts: int) -> None:
        """These are resident from now on."""
        for expert in experts:
            self.residency.start_load(expert)
            self.residency.finish_load(expert)

    def begin(self, policy: Policy, tokens: int = 1, request: int = 1) -> None:
        """A forward pass begins."""
        self.clock += self.around.layers
        phase = Phase.DECODE if tokens == 1 else Phase.PREFILL
        embedding = np.zeros(self.around.hidden, np.float32)
        policy.begin_pass(ForwardPass(phase, request, range(tokens), 0, embedding))

    def route(
        self, policy: Policy, layer: int, chosen: Sequence[Sequence[int]], residual: Sequence[float] | None = None
    ) -> None:
        """`layer` chose; chosen: [T][K], numbers within the layer. As in decoding, its uses are counted before."""
        picked = np.array(chosen, np.int32)
        self.around.last_used[layer * self.around.experts + picked.ravel()] = self.clock + layer
        x = None if residual is None else np.tile(np.array(residual, np.float32), (len(picked), 1))
        probabilities = np.full((len(picked), self.around.experts), 1 / self.around.experts, np.float32)
        policy.routed(Routing(layer, probabilities, picked, x, None))

    def token(self, policy: Policy, chosen: Sequence[Sequence[int]], request: int = 1) -> None:
        """One decoded token from begin to end; chosen: [L][K]."""
        self.begin(policy, request=request)
        for layer, picked in enumerate(chosen):
            self.route(policy, layer, [picked])
        policy.end_pass()

    @property
    def evictable(self) -> NDArray[np.int64]:
        """Who may leave."""
        return self.residency.evictable()


def one_hot_routers(layers: int, experts: int, shift: int = 0) -> RouterWeights:
    """Routers over a residual of E numbers: expert e of layer l has the score of the number e + l * shift mod E."""
    one = np.float32(1).view(np.uint32) >> 16
    gates = [
        np.roll(np.eye(experts, dtype=np.uint16) * np.uint16(one), layer * shift, axis=1) for layer in range(layers)
    ]
    return RouterWeights(gates, [np.full(experts, one, np.uint16) for _ in range(layers)], 1e-6)
