"""What a trace says of a model's routing, in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.telemetry.counters import Phase
from offload.trace.records import TraceModel, TraceRequest


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """An expert and its share of its layer's selections."""

    layer: int
    expert: int
    share: float


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """Means over the decoded tokens of one layer; see `RoutingStatistics`."""

    entropy: float
    persistence: float | None
    margin: float
    chosen_mass: float
    used: int


@dataclass(frozen=True, slots=True)
class RoutingStatistics:
    """Means over decoded tokens and layers. None without a token that it could be taken of.

    Attributes:
        tokens: Decoded tokens that were looked at.
        entropy: Of a router's probabilities, nats.
        entropy_max: Of equal probabilities.
        persistence: Share of a token's experts that the token before it chose in the same layer.
        margin: Probability of the last expert chosen less that of the first one left out.
        chosen_mass: Probability of the chosen experts together.
        used: Different experts that were chosen at all, of all layers.
        half_of_uses: The least share of all experts that half of the selections went to.
        token_s: Time of a decoded token, seconds.
        stall_s: Of that, waiting for reads.
        reads: Experts read a decoded token.
        top: The experts with the largest shares of their layers' selections, largest first.
        layers: The same by layer.
    """

    tokens: int
    entropy: float | None
    entropy_max: float
    persistence: float | None
    margin: float | None
    chosen_mass: float | None
    used: int
    half_of_uses: float | None
    token_s: float | None
    stall_s: float | None
    reads: float | None
    top: tuple[ExpertShare, ...]
    layers: tuple[LayerRouting, ...]


def routing_statistics(model: TraceModel, requests: Iterable[TraceRequest], top: int = 10) -> RoutingStatistics:
    """Look at every decoded token of `requests`, one request in memory at a time.

    Args:
        top: How many experts to name.
    """
    layers = model.layers
    entropy, margin, mass, persisted = (np.zeros(layers) for _ in range(4))
    uses = np.zeros((layers, model.experts), np.int64)
    tokens = pairs = reads = 0
    seconds = stall = 0.0
    for request in requests:
        passes = [each for each in request.passes if each.phase == Phase.DECODE]
        if not passes:
            continue
        probabilities = np.concatenate([each.probabilities for each in passes], axis=1).astype(np.float32)
        chosen = np.concatenate([each.chosen for each in passes], axis=1).astype(np.intp)
        picked = np.zeros((layers, len(passes), model.experts), bool)
        np.put_along_axis(picked, chosen, True, axis=2)
        entropy += _entropy(probabilities).sum(axis=1)
        mass += np.take_along_axis(probabilities, chosen, axis=2).sum(axis=(1, 2))
        margin += np.concatenate([each.margins for each in passes], axis=1).sum(axis=1, dtype=np.float64)
        persisted += (picked[:, 1:] & picked[:, :-1]).sum(axis=(1, 2)) / model.top_k
        uses += picked.sum(axis=1)
        tokens += len(passes)
        pairs += len(passes) - 1
        seconds += sum(each.seconds for each in passes)
        stall += sum(float(each.stall_s.sum()) for each in passes)
        reads += sum(len(each.reads) for each in passes)
    by_layer = tuple(
        LayerRouting(
            entropy=float(entropy[layer] / tokens),
            persistence=float(persisted[layer] / pairs) if pairs else None,
            margin=float(margin[layer] / tokens),
            chosen_mass=float(mass[layer] / tokens),
            used=int((uses[layer] > 0).sum()),
        )
        for layer in range(layers if tokens else 0)
    )
    return RoutingStatistics(
        tokens=tokens,
        entropy=float(entropy.mean() / tokens) if tokens else None,
        entropy_max=float(np.log(model.experts)),
        persistence=float(persisted.mean() / pairs) if pairs else None,
        margin=float(margin.mean() / tokens) if tokens else None,
        chosen_mass=float(mass.mean() / tokens) if tokens else None,
        used=int((uses > 0).sum()),
        half_of_uses=_half_of_uses(uses) if tokens else None,
        token_s=seconds / tokens if tokens else None,
        stall_s=stall / tokens if tokens else None,
        reads=reads / tokens if tokens else None,
        top=_top(uses, top) if tokens else (),
        layers=by_layer,
    )


def _entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the last axis, in nats; 0 log 0 is 0."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.asarray(-(probabilities * logs).sum(axis=-1, dtype=np.float64))


def _half_of_uses(uses: NDArray[np.int64]) -> float:
    falling = np.cumsum(np.sort(uses, axis=None)[::-1])
    return float((np.searchsorted(falling, falling[-1] / 2) + 1) / uses.size)


def _top(uses: NDArray[np.int64], count: int) -> tuple[ExpertShare, ...]:
    shares = uses / np.maximum(uses.sum(axis=1, keepdims=True), 1)
    # By share, and where shares are equal by layer and expert.
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    places = zip(*np.unravel_index(order, shares.shape), strict=True)
    return tuple(ExpertShare(int(layer), int(expert), float(shares[layer, expert])) for layer, expert in places)
