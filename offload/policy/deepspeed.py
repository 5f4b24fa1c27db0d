"""DeepSpeed-Inference: whole layers are streamed, whatever the router may choose of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import ABSENT
from offload.policy.ahead import Ahead
from offload.policy.base import REFUSE, Decision, Fetch, Surroundings
from offload.telemetry.routing import ForwardPass


class DeepSpeed(Ahead):
    """Aminabadi et al., "DeepSpeed Inference", arXiv 2207.00032, as FineMoE's authors compare with it.

    - Prefetch: behind layer l's router all experts of layer l+1, then of l+2 and so on, as many whole layers as
      there are slots for; the first layers come after the last one, for the next token. At most one layer's worth
      is asked for in each layer.
    - What no lane has begun with when its layer is over is taken back.
    - Eviction: from the layer that is computed again last, which is the one that was just left. Nothing leaves for
      a layer that comes later than its own.

    The original computes a layer only when all of it is there. Here the computation waits for the chosen ones
    alone, so this is its traffic, and less than its waiting. With slots for fewer than two layers the next one is
    streamed as far as it goes, which `note` says.
    """

    name = "deepspeed"

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._layer_of = np.arange(around.layers * around.experts) // around.experts

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        slots, experts = self.around.residency.capacity, self.around.experts
        self.note = ""
        if slots < 2 * experts:
            self.note = f"{slots} slots do not hold two layers of {experts} experts: streaming what fits"

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        layers, experts = self.around.layers, self.around.experts
        cancel, tick = self.stale(), self.tick
        state = self.around.residency.state
        ahead = min(max(1, self.around.residency.capacity // experts - 1), layers - 1)
        fetch: list[Fetch] = []
        for distance in range(1, ahead + 1):
            first = (layer + distance) % layers * experts
            absent = first + np.flatnonzero(state[first : first + experts] == ABSENT)[: experts - len(fetch)]
            if len(absent):
                fetch += self.expect(absent, distance, np.full(len(absent), -float(tick + distance)))
            if len(fetch) == experts:
                break
        return Decision(cancel, fetch)

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        experts, layers = self.around.experts, self.around.layers
        now = wanted // experts if demand and wanted >= 0 else self.layer
        # 0 for the next layer; what the running one has not pinned is not used before the next token.
        distances = (self._layer_of[evictable] - (now + 1)) % layers
        farthest = int(distances.argmax())
        if not demand and distances[farthest] <= (wanted // experts - (now + 1)) % layers:
            return REFUSE
        return int(evictable[farthest])
