"""MoE-Infinity: what requests like this one have used, counted over whole requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import ABSENT
from offload.policy.ahead import Ahead
from offload.policy.base import REFUSE, Decision, Surroundings
from offload.policy.options import whole_option
from offload.telemetry.routing import ForwardPass, Routing

CAPACITY = 128
"""Requests remembered."""
MOST = np.float32(3.0)
"""No expert is worth more by its shares."""
EPSILON = 1e-6
"""What an expert that was never used counts for, so that layers still order such experts."""


class ActivationCollection:
    """Expert activation matrices of past requests, and which of them the running request is most like.

    An activation matrix [L, E] counts how many tokens of a request went to each expert. Two are alike by the mean
    over layers of the cosines of their rows. Rows are stored with length 1, and a layer's products with all of them
    are kept, so that a token's K choices cost K sums of `capacity` numbers.

    Args:
        layers / experts: Shape of a matrix.
        capacity: Matrices kept at most; of memory ``4 * layers * experts * capacity`` bytes.

    Attributes:
        counts: [L, E] float32, the running request's matrix.
        size: Matrices stored.
    """

    def __init__(self, layers: int, experts: int, capacity: int) -> None:
        self.counts: NDArray[np.float32] = np.zeros((layers, experts), np.float32)
        self.size = 0
        self._capacity = capacity
        self._added: NDArray[np.int64] = np.zeros(capacity, np.int64)  # when each was stored
        self._additions = 0
        self._rows: NDArray[np.float32] = np.zeros((layers, experts, capacity), np.float32)
        self._products: NDArray[np.float32] = np.zeros((layers, capacity), np.float32)  # rows of counts with _rows
        self._cosines: NDArray[np.float32] = np.zeros((layers, capacity), np.float32)
        self._likeness: NDArray[np.float32] = np.zeros(capacity, np.float32)  # sum of the cosines

    def count(self, layer: int, chosen: NDArray[np.int32]) -> None:
        """The running request's tokens chose these experts. chosen: [T, K]."""
        counts, rows, products = self.counts[layer], self._rows[layer], self._products[layer]
        if len(chosen) == 1:
            for expert in chosen[0].tolist():
                counts[expert] += 1
                products += rows[expert]
        else:
            more = np.bincount(chosen.ravel(), minlength=len(counts)).astype(np.float32)
            counts += more
            products += more @ rows
        cosines = self._cosines[layer]
        self._likeness -= cosines
        np.divide(products, np.sqrt(counts @ counts), out=cosines)
        self._likeness += cosines

    def most_like(self) -> int:
        """The stored matrix most like the running request's, the lowest of equals; -1 with none stored."""
        return int(self._likeness[: self.size].argmax()) if self.size else -1

    def shares(self, number: int) -> NDArray[np.float32]:
        """Of each layer's uses, those that each expert had in a stored matrix: [L, E] float32."""
        rows = self._rows[:, :, number]
        shares: NDArray[np.float32] = rows / np.maximum(rows.sum(axis=1, keepdims=True), EPSILON)
        return shares

    def finish(self) -> None:
        """The running request is over: store its matrix, and begin with an empty one.

        Where there is no room the stored matrix most like it is replaced, of equals the oldest.
        """
        if self.counts.any():
            place = self.size
            if self.size < self._capacity:
                self.size += 1
            else:
                alike = np.flatnonzero(self._likeness == self._likeness.max())
                place = int(alike[self._added[alike].argmin()])
            lengths = np.linalg.norm(self.counts, axis=1, keepdims=True)
            self._rows[:, :, place] = self.counts / np.maximum(lengths, EPSILON)
            self._additions += 1
            self._added[place] = self._additions
        self.counts[:] = 0
        self._products[:] = 0
        self._cosines[:] = 0
        self._likeness[:] = 0

    def settle(self) -> None:
        """Sum the likeness anew: adding and subtracting all day would let it drift."""
        np.sum(self._cosines, axis=0, out=self._likeness)


class MoEInfinity(Ahead):
    """Xue et al., "MoE-Infinity: Efficient MoE Inference on Personal Machines", arXiv 2401.14361.

    - History: each finished request leaves its activation matrix, at most ``capacity`` of them
      (`ActivationCollection`). The original fills its collection from a data set beforehand; here it starts empty.
    - Prediction: the stored matrix most like the running request's so far, by the cosines of their layers. Until
      the first request is over, the running one predicts itself.
    - Prefetch: behind layer l's router, every later layer's absent experts get the priority r (1 - d/L): r their
      share of the layer's uses in the prediction, d the layers until there. The best of those with r > 0 are read,
      with at most ``ahead`` reads under way.
    - Eviction: the lowest (r + own + epsilon)(1 - l/L), where own is the expert's share of its layer's uses in the
      running request. As in the original the first layers are kept, for whose prefetch there is the least time.
      What was read ahead stays until its layer, as long as there is anything else. Nothing leaves for a read ahead
      of an expert that is worth no more.

    What no lane has begun with when its layer is over is taken back.

    Options: ``capacity``, requests remembered (1 to 4096); ``ahead``, reads ahead under way (1 to 64; by default
    twice the experts of a token's layer).
    """

    name = "moe-infinity"

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        layers, experts = around.layers, around.experts
        self._collection = ActivationCollection(
            layers, experts, whole_option(around, "capacity", CAPACITY, 1, 4096)
        )
        self._limit = whole_option(around, "ahead", min(2 * around.top_k, 64), 1, 64)
        self._request = 0
        self._match = -1
        self._fade = (1 - np.arange(layers, dtype=np.float32) / layers)[:, None]  # [L, 1]: by layer, or by distance
        self._predicted: NDArray[np.float32] = np.zeros((layers, experts), np.float32)
        self._own: NDArray[np.float32] = np.zeros((layers, experts), np.float32)
        self._worth: NDArray[np.float32] = np.zeros((layers, experts), np.float32)
        self._forget()

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        if forward.request != self._request:
            self._request = forward.request
            self._collection.finish()
            self._forget()
        self._collection.settle()
        stored = self._collection.size
        self.note = f"{stored} past requests" if stored else "no past requests yet: predicting from this one alone"

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        super().routed(routing)
        layer, collection = routing.layer, self._collection
        collection.count(layer, routing.chosen)
        counts = collection.counts[layer]
        np.divide(counts, counts.sum(), out=self._own[layer])
        match = collection.most_like()
        if match < 0:
            self._predicted[layer] = self._own[layer]
        elif match != self._match:
            self._match = match
            self._predicted[:] = collection.shares(match)
            self._worth[:] = (self._predicted + self._own + EPSILON) * self._fade
            return
        self._worth[layer] = (self._predicted[layer] + self._own[layer] + EPSILON) * self._fade[layer]

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        cancel = self.stale()
        room = self._limit - self.around.link.in_flight + len(cancel)
        later = self.around.layers - layer - 1
        if room <= 0 or not later:
            return Decision(cancel, [])
        first = (layer + 1) * self.around.experts
        priorities = (self._predicted[layer + 1 :] * self._fade[1 : later + 1]).ravel()
        priorities *= self.around.residency.state[first:] == ABSENT
        if len(priorities) > room:
            best = np.argpartition(priorities, -room)[-room:]
            best = best[np.lexsort((best, -priorities[best]))]
        else:
            best = np.argsort(-priorities, kind="stable")
        best = best[priorities[best] > 0]
        return Decision(cancel, self.expect(first + best, best // self.around.experts + 1, priorities[best]))

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        worth = self._worth.reshape(-1)
        of_each = worth[evictable] + self.expected(evictable) * MOST
        least = int(of_each.argmin())
        if not demand and of_each[least] >= worth[wanted]:
            return REFUSE
        return int(evictable[least])

    def _forget(self) -> None:
        """A new request begins: nothing is known of it."""
        self._match = -1
        for array in (self._predicted, self._own):
            array[:] = 0
        self._worth[:] = EPSILON * self._fade
