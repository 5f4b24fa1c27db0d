"""`auto`: one calibrated probability for every expert, for what stays and for what is fetched.

What it knows of an expert comes from up to five sources: its past; the start predictor, from the token that goes
in; the probes, from each layer's residual; the routers of later layers, applied to it; and the topic, from a
moving average of one layer's residuals over the answer. A logistic blend makes one probability of them: that the
expert is used when its layer comes next. `probe_fitting` fits all of it from traces; without traces the past and
the routers remain, with the weights below.

- **What a slot is worth**: gamma ** (layers until the next use), expected over that probability and the past. The
  expert worth least leaves. This needs no bytes, and it is where most is won.
- **What is fetched**: what a later layer will use with a probability above a threshold that rises with the ratio
  of moving to computing and with the link's load, if the slot it takes is worth less. Few at a time, as each takes
  a slot from now on. What has become unlikely is taken back, also where it is being read.
- **When nothing is to be won** - no token of late has waited - it only watches, and the kernels run through.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import LOADING
from offload.policy.base import NOTHING, REFUSE, Decision, Fetch, Surroundings
from offload.policy.options import option, whole_option
from offload.policy.past import DECAY, FADE, LATER, PAST, ROOTS, SOON, Past
from offload.policy.probes import TOPIC_KEEPS, Probes, topic_layer
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing

GAMMA_TOKENS = 4.0
"""Tokens over which a future use falls to 1/e of its worth: as `past.HORIZON`, by which uses after the next token
count. With 1.0, stall was 0.006 lower where half is resident, and 0.015 higher at an eighth."""
HORIZON = 20
"""Layers ahead that are fetched for."""
UNTRAINED = np.array(
    [
        [0.4, 0.3, 0.0, 0.0, 9.0, 0.0],
        [0.7, 0.45, 0.0, 0.0, 6.5, 0.0],
        [0.9, 0.55, 0.0, 0.0, 4.5, 0.0],
        [1.2, 0.75, 0.0, 0.0, 2.9, 0.0],
        *([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]] * 4),
    ],
    np.float32,
)
"""The blend without probes: the past, and the routers of layers that are 1, 2, 4 and 8 on. Fitted to the demo, and
a little flatter; it fits random weights in the shapes of Qwen1.5-MoE as well."""
PROBED_AHEAD = 2
"""Routers of so many layers are applied beside probes, which were fitted so."""
IDLE, UNTRAINED_IDLE = 0.1, 0.4
LOWEST, SLOPE, HIGHEST = 0.35, 0.12, 0.8
"""The probability that an expert must have to be fetched: on a busy link LOWEST + SLOPE * moving / computing, at
most HIGHEST; on an idle one, where a wrong guess is in nobody's way, IDLE, or what is safe without probes; between
them by the square of the link's load."""
LOAD_OVER = 16
"""Tokens that the average of what is waited for goes over."""
QUIET_TOKENS = 16
"""Tokens without a miss after which it stops looking."""
FEW = 8
"""Fetches proposed at once, at most."""
DEPTH = 2
"""Fetches under way for each lane. What was not foreseen waits for a part of one of them, so that one more costs
little; further ones would only take slots for longer."""


class Auto:
    """See the module.

    Options: ``threshold`` and ``depth``, instead of what is measured; ``horizon``, in layers; ``gamma_tokens``.
    """

    name = "auto"
    decides_early = True

    def __init__(self, around: Surroundings) -> None:
        from offload.policy.kernels import auto as kernels

        self._kernels = kernels
        self.around = around
        self.note = ""
        probes: Probes | None = getattr(around.knowledge, "probes", None)
        self._probes = probes
        layers, experts, hidden = around.layers, around.experts, around.hidden
        total = layers * experts
        self._roots = np.array(ROOTS, np.int64)
        beginning = Past(total, around.top_k / experts)
        self._frequency, self._recency = beginning.frequency, beginning.recency
        past = getattr(around.knowledge, "past", None)
        if past is not None:
            self._frequency[:] = past[: len(self._frequency)]
            self._recency[:] = past[len(self._frequency) :]
        self._soon, self._later = (SOON, LATER) if probes is None else (probes.soon, probes.later)
        self._weights = UNTRAINED if probes is None else probes.weights
        self._odds = np.zeros(total, np.float32)
        self._far = np.zeros(total, np.float32)
        self._start = np.zeros(total, np.float32)
        self._has_start = False
        self._topic = np.zeros(total, np.float32)
        self._topic_layer = -1 if probes is None else topic_layer(layers)
        self._average = np.zeros(hidden, np.float32)
        self._request = 0
        self._gates = np.zeros((layers, experts), np.float32)
        self._seen_from = np.zeros(layers, np.int64)
        self._told = np.zeros(layers, np.uint8)
        self._chosen = np.full((layers, around.top_k), -1, np.int32)
        self._chance = np.full(total, around.top_k / experts, np.float32)
        self._worth = np.zeros(total, np.float32)
        self._x = np.zeros(hidden, np.float32)
        self._start_in = np.zeros(2 * hidden, np.float32)
        self._z = np.zeros(0 if probes is None else probes.down.shape[1], np.float32)
        self._start_z = np.zeros(0 if probes is None else probes.start_down.shape[0], np.float32)
        self._topic_z = np.zeros(0 if probes is None else probes.topic_down.shape[0], np.float32)
        self._found = np.zeros(FEW, np.int64)
        self._score = np.zeros(FEW, np.float32)
        self._asked: dict[int, None] = {}
        self._horizon = whole_option(around, "horizon", min(HORIZON, layers), 0, layers)
        self._fixed_depth = whole_option(around, "depth", 0, 0, FEW)
        self._depth = self._fixed_depth or DEPTH
        tokens = option(around, "gamma_tokens", GAMMA_TOKENS, 0.1, 1000)
        self._gamma = np.float32(np.exp(-1 / (tokens * layers)))
        self._fixed_threshold = option(around, "threshold", -1.0, -1.0, 1.0)
        self._threshold = np.float32(1.0)
        self._decoding = False
        self._looking = True
        self._missed = -1
        self._quiet = 0
        self._waits = float(layers)
        self._last: NDArray[np.float32] | None = None
        self._known, self._look = self._bind()
        self._behind(-1, has_probe=False)
        self._forget_topic()
        self._recall()
        self._appraise()

    @property
    def past(self) -> NDArray[np.float32]:
        """[10, L*E]: what the next process should know of this one."""
        self._see_token()
        return np.concatenate([self._frequency, self._recency])

    def likeliest(self) -> list[int]:
        """All experts, those that are worth most first, if anything is known of them."""
        if self.around.knowledge is None or self.around.knowledge.past is None:
            return []
        return [int(expert) for expert in np.argsort(-self._worth, kind="stable")]

    @property
    def looks_ahead(self) -> bool:
        """While tokens wait for reads."""
        return self._looking

    @property
    def wants_residual(self) -> bool:
        """It looks ahead with it."""
        return True

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        kernels, probes = self._kernels, self._probes
        self._see_token()  # as far as a pass came that failed
        self._decoding = forward.phase == Phase.DECODE
        self._adapt()
        if forward.request != self._request:
            self._request = forward.request
            self._forget_topic()
            self._recall()
        self._has_start = False
        if not self._decoding:
            self._last = None
        elif probes is not None and self._last is not None:
            hidden = self.around.hidden
            kernels.normalise(np.ascontiguousarray(forward.embedding), self._start_in[:hidden])
            self._start_in[hidden:] = self._last
            kernels.tell(
                probes.start_down,
                probes.start_down_scale,
                probes.start_up,
                probes.start_up_scale,
                probes.start_offset,
                self._start_in,
                self._start_z,
                self._start,
            )
            self._has_start = True
        self._seen_from[:] = 0
        self._behind(-1, has_probe=False)
        self._appraise()

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        around, layer, residual = self.around, routing.layer, routing.residual
        if not self._decoding:
            chosen = routing.chosen[-PAST.prompt_tokens :]
            first = layer * around.experts
            self._kernels.see(self._frequency, self._recency, DECAY, FADE, chosen, first, around.experts)
            return
        if self._looking:
            # At once, not behind the token: until its layer comes again, an expert that has just been used, or has
            # just been passed over, competes for its slot with those of all other layers.
            self._kernels.see_and_recall(
                self._frequency, self._recency, DECAY, FADE, routing.chosen[-1:], layer * around.experts,
                around.experts, self._roots, self._soon, self._later, self._topic, self._odds, self._far,
            )  # fmt: skip
        else:
            self._chosen[layer] = routing.chosen[-1]
        if residual is None:
            self._behind(layer, has_probe=False)
            return
        if self._looking:
            shared = residual if routing.shared is None else routing.shared
            self._kernels.look(
                layer,
                np.ascontiguousarray(residual),
                np.ascontiguousarray(shared),
                routing.shared is not None,
                *self._look[layer],
            )
            self._layer, self._has_probe = layer, self._probes is not None
            self._appraised = False
        if layer in (self._topic_layer, around.layers - 1):
            self._keep(routing)

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        around = self.around
        if not self._decoding or not self._horizon:
            return NOTHING
        state = around.residency.state
        count = self._kernels.candidates(
            layer,
            around.experts,
            self._known,
            self._has_start,
            self._has_probe,
            self._horizon,
            state,
            self._threshold,
            self._told,
            self._chance,
            self._found,
            self._score,
        )
        if not count and not self._asked:
            return NOTHING
        cancel = []
        for expert in list(self._asked):
            if state[expert] != LOADING:
                del self._asked[expert]
                continue
            own = expert // around.experts
            if not self._told[own]:
                self._appraise()
            if self._chance[expert] < 0.5 * self._threshold or own == layer:
                del self._asked[expert]
                cancel.append(expert)
        room = min(FEW, self._depth * around.link.count - len(self._asked))
        fetch = [Fetch(int(self._found[i]), float(self._score[i])) for i in range(min(count, room))]
        for one in fetch:
            self._asked[one.expert] = None
        return Decision(cancel, fetch) if cancel or fetch else NOTHING

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`: the expert worth least."""
        self._appraise()
        least = int(self._kernels.least(evictable, self._worth))
        if not demand and self._worth[least] >= self._worth[wanted]:
            return REFUSE
        return least

    def end_pass(self) -> None:
        """See `Policy`."""
        self._appraise()  # before anything that it rests upon changes
        self._recall()
        if not self._decoding:
            return
        missed = int(self.around.misses.sum())
        if self._missed >= 0:
            self._waits += (max(0, missed - self._missed) - self._waits) / LOAD_OVER
        self._quiet = self._quiet + 1 if missed == self._missed else 0
        self._missed = missed
        self._looking = self._quiet < QUIET_TOKENS
        self.note = "" if self._looking else "nothing is missed: not looking ahead"

    def _keep(self, routing: Routing) -> None:
        """Keep the router's input, normalised, for the topic and for the next token's start."""
        assert routing.residual is not None
        if not self._looking:
            x = routing.residual[0]
            if routing.shared is not None:
                x = x + routing.shared[0]
            self._kernels.normalise(np.ascontiguousarray(x), self._x)
        if routing.layer == self.around.layers - 1:
            self._last = self._x.copy()
        if routing.layer == self._topic_layer:
            self._average *= TOPIC_KEEPS
            self._average += (1 - TOPIC_KEEPS) * self._x

    def _forget_topic(self) -> None:
        """Another request: what it is about, nobody knows yet."""
        if self._probes is not None:
            self._average[:] = self._probes.topic_mean

    def _recall(self) -> None:
        """What past and topic say; once a token."""
        self._see_token()
        probes = self._probes
        if probes is not None:
            self._kernels.tell(
                probes.topic_down,
                probes.topic_down_scale,
                probes.topic_up,
                probes.topic_up_scale,
                probes.topic_offset,
                self._average,
                self._topic_z,
                self._topic,
            )
        self._kernels.recall(
            self._frequency, self._recency, self._roots, self._soon, self._later, self._topic, self._odds, self._far
        )

    def _bind(self) -> tuple[tuple[NDArray[Any], ...], list[tuple[Any, ...]]]:
        """The kernels' arguments that never change: what is known, and for each layer how it looks ahead."""
        around, probes, layers = self.around, self._probes, self.around.layers
        if probes is None:
            up, down = np.zeros((0, 0, 0, 0), np.uint8), np.zeros((0, 0, 0), np.int8)
            up_scale = spread = offset = down_scale = centre = np.zeros((0, 0), np.float32)
        else:
            up, up_scale, spread, offset = probes.up, probes.up_scale, probes.spread, probes.offset
            down, down_scale, centre = probes.down, probes.down_scale, probes.centre
        known = (
            self._weights, self._odds, self._start, self._topic, self._z, up, up_scale, spread, offset,
            self._gates, self._seen_from,
        )  # fmt: skip
        normed = np.zeros(around.hidden, np.float32)
        routers = around.routers
        most = len(self._kernels.AHEAD) if probes is None else PROBED_AHEAD
        look = []
        for layer in range(layers):
            ahead = [layer + distance for distance in self._kernels.AHEAD if layer + distance < layers][:most]
            gate, norm = [np.zeros((0, 0), np.uint16)], [np.zeros(0, np.uint16)]
            if routers is not None and ahead:
                gate, norm = [routers.gate[m] for m in ahead], [routers.norm[m] for m in ahead]
            missing = len(self._kernels.AHEAD) - len(gate)  # There are always as many arguments.
            look.append(
                (
                    (*gate, *gate[:1] * missing), (*norm, *norm[:1] * missing),
                    0 if routers is None else len(ahead), around.top_k, down, down_scale, centre,
                    probes is not None, self._x, normed, self._z, self._gates, self._seen_from, self._told,
                )
            )  # fmt: skip
        return known, look

    def _see_token(self) -> None:
        """Bring the past up to date with what layers have chosen while nothing was looked for."""
        self._kernels.see_token(self._frequency, self._recency, DECAY, FADE, self._chosen, self.around.experts)

    def _behind(self, layer: int, *, has_probe: bool) -> None:
        """It is behind the router of `layer` now, with these parts to tell from; nothing is worked out yet."""
        self._layer, self._has_probe = layer, has_probe
        self._told[:] = 0
        self._appraised = False

    def _appraise(self) -> None:
        """Work out what every slot is worth, where `decide` did not need it. Victims do."""
        if self._appraised:
            return
        self._kernels.appraise(
            self._layer,
            self.around.experts,
            self._known,
            self._has_start,
            self._has_probe,
            self._far,
            self._gamma,
            self._told,
            self._chance,
            self._worth,
        )
        self._appraised = True

    def _adapt(self) -> None:
        """Set the threshold of fetching by the ratio of moving to computing.

        A fetch that turns out wrong costs what others wait for it: the more, the slower the link, and the busier it
        is with what layers wait for.
        """
        rates = self.around.rates
        ratio = rates.read_s / max(rates.layer_s, 1e-9)
        load = min(1.0, self._waits / self.around.layers * ratio)
        busy = min(HIGHEST, LOWEST + SLOPE * ratio)
        idle = min(UNTRAINED_IDLE if self._probes is None else IDLE, busy)
        measured = idle + (busy - idle) * load**2
        self._threshold = np.float32(self._fixed_threshold if self._fixed_threshold >= 0 else measured)
