"""Predictors of what routers will choose; `probe_fitting` fits them from traces.

Four linear parts, all small:

- *probes*: from the residual behind layer l's attention, with what its shared expert adds, a projection of rank R
  and from there the margins of every layer's next routing: layers above l in this token, the others in the next;
- the *start predictor*: the same for a whole token from its input embedding and the token before's last residual,
  so that a token's first layers are not blind;
- the *topic*: from a moving average of one layer's residuals, how much of the coming tokens uses each expert. What
  an answer is about changes slowly, so this tells what stays needed beyond the next token, of experts too that the
  answer has not used yet;
- the *past*: from decayed frequencies and recencies of an expert, how likely the next token uses it, and how soon
  it is used at all.

A margin is the log-probability of an expert less the threshold of its layer's top K, clipped: it says more about
who is chosen than the log-probability itself. A *blend*, one logistic regression for each group of distances,
makes one calibrated probability of all parts; it is fitted on requests that the parts have not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

GROUPS, BEGINNING, PAST_ALONE = 8, 6, 7
"""Rows of the blend's weights, and the two for where less is known."""
TERMS = 6
"""Columns of them."""
TOPIC_KEEPS = 0.85
"""What a token leaves of the moving average that the topic is told from."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probes:
    """Fitted predictors; see the module. L layers, E experts, H hidden size.

    Attributes:
        down: [L, R, H] int8, with down_scale [L, R]; centre: [L, R], what is taken off the projection.
        up: [L, L, E, R / 2] uint8, two numbers of four bits each (`pack_nibbles`), with up_scale [L, L]; spread:
            [L, E], the standard deviation of margins, which multiplies the rows of every layer's.
        offset: [L, E], the mean margins, which an input in the centre foretells.
        start_down: [S, 2H] int8, with start_down_scale [S].
        start_up: [L*E, S] int8, with start_up_scale and start_offset [L*E].
        topic_down: [P, H] int8, with topic_down_scale [P].
        topic_up: [L*E, P] int8, with topic_up_scale and topic_offset [L*E].
        topic_mean: [H], where the moving average begins.
        weights: [8, 6], the blend: a constant, the past, start predictor, probe, gate, topic. Rows: 1, 2, 3-4, 5-8,
            9 and more layers on in the same token; the next token; before a token's first layer, when there is
            neither probe nor gate; and from past and topic alone.
        soon: [14], the past.
        later: [15], the past and the topic.
        tokens: Decoded tokens that they were fitted from.
    """

    down: NDArray[np.int8]
    down_scale: Floats
    centre: Floats
    up: NDArray[np.uint8]
    up_scale: Floats
    spread: Floats
    offset: Floats
    start_down: NDArray[np.int8]
    start_down_scale: Floats
    start_up: NDArray[np.int8]
    start_up_scale: Floats
    start_offset: Floats
    topic_down: NDArray[np.int8]
    topic_down_scale: Floats
    topic_up: NDArray[np.int8]
    topic_up_scale: Floats
    topic_offset: Floats
    topic_mean: Floats
    weights: Floats
    soon: Floats
    later: Floats
    tokens: NDArray[np.int64]

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take in memory."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, experts, hidden size."""
        return self.up.shape[0], self.up.shape[2], self.down.shape[2]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def scores(
        self, layer: int, distance: int, residual: NDArray[np.float32], shared: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Margins [E] of layer `layer + distance` of the same token. residual, shared: [H]."""
        x = unit(residual if shared is None else residual + shared)
        z = (self.down[layer].astype(np.float32) @ x) * self.down_scale[layer] - self.centre[layer]
        target = layer + distance
        said = unpack_nibbles(self.up[layer, target]) @ z
        result: NDArray[np.float32] = (
            said * self.up_scale[layer, target] * self.spread[target] + self.offset[target]
        )
        return result


def pack_nibbles(values: Floats) -> NDArray[np.uint8]:
    """[..., R] as the nearest of -7.5, -6.5 to 7.5, two in a byte [..., R / 2], the row's second half above."""
    low, high = np.split(np.clip(np.floor(values) + 8, 0, 15).astype(np.uint8), 2, axis=-1)
    result: NDArray[np.uint8] = low | high << np.uint8(4)
    return result


def unpack_nibbles(packed: NDArray[np.uint8]) -> Floats:
    """What `pack_nibbles` made of them."""
    result: Floats = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32) - np.float32(7.5)
    return result


def group_of(distance: int, wraps: bool) -> int:
    """The row of the blend's weights for a distance in layers; `wraps` if it is in the next token."""
    if wraps:
        return 5
    return next(group for group, farthest in enumerate((1, 2, 4, 8, 1 << 30)) if distance <= farthest)


def topic_layer(layers: int) -> int:
    """The layer whose residual tells the topic: late, but not the last, which is about the next token's word."""
    return 4 * layers // 5


def unit(x: Floats) -> Floats:
    """x divided by the root mean square of its last axis."""
    result: Floats = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    return result
