"""Fitting the predictors of `probes` from traces.

`low_rank` has the regressions and how their weights are kept; here is what they are fitted to, and their blend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy.low_rank import LowRank, PackedProbe, rows_int8
from offload.policy.past import PAST, Past
from offload.policy.probes import (
    BEGINNING,
    GROUPS,
    PAST_ALONE,
    TERMS,
    TOPIC_KEEPS,
    Floats,
    Probes,
    group_of,
    topic_layer,
    unit,
)
from offload.telemetry.counters import Phase
from offload.trace.records import TraceModel, TraceRequest

Progress = Callable[[str, int, int], None]

RANK = 64
"""Of the probes: half of it should be whole vectors of the processor."""
START_RANK = 40
"""Of the start predictor. 64 bring the demo nothing, and take it a slot."""
TOPIC_RANK = 48
"""Of the topic's predictor."""
TOPIC_TOKENS = 24
"""Coming tokens that the topic is to foretell."""
CLIP = 2.5
"""Margins are clipped to this on both sides."""
PROBE_RIDGE = 1000.0
"""Penalty of the probes, which have most to fit; of fewer than ten times as many tokens, a tenth of them."""
HELD_BACK = 5
"""Every fifth request is kept from the parts, for the blend; of fewer requests, the last fifth of all tokens."""
SMALLEST = 256
"""Decoded tokens without which nothing is fitted."""


class TooLittle(KnowledgeError):
    """Traces hold too little to fit predictors from."""


def fit_probes(
    model: TraceModel, requests: Sequence[TraceRequest], progress: Progress = lambda stage, done, total: None
) -> Probes:
    """Fit all parts on `requests`, which must have been recorded with residuals.

    Raises:
        TooLittle: They hold too few decoded tokens, or no residuals.
    """
    data = _Data.of(model, requests)
    tokens = len(data.inputs)
    if tokens < SMALLEST:
        raise TooLittle(
            f"{tokens} decoded tokens with residuals are too few to fit predictors",
            f"record at least {SMALLEST}: finemoe trace record --residuals",
        )
    held = _held_back(data.request)
    layers, experts = model.layers, model.experts
    topic, told, mean = _fit_topic(model, data, held)
    decoded = ~data.observed
    said, unseen = np.zeros((len(data.chosen), layers * experts), np.float32), np.zeros(len(data.chosen), bool)
    said[decoded], unseen[decoded] = told, held
    soon, later, odds = Past.fit(data.chosen, data.observed, experts, said, unseen)
    weights = _Blend(model, data, odds[decoded], told, held)
    fitted: list[PackedProbe] = []
    ridge = min(PROBE_RIDGE, tokens / 10)
    deviation = data.margins.std(axis=0) + np.float32(1e-3)
    for layer in range(layers):
        progress("fit", layer, layers)
        x = data.inputs[:, layer]
        target = data.margins.copy()
        target[:, : layer + 1] = data.margins[data.following][:, : layer + 1]
        # Near layers count most: they are what is fetched.
        importance = np.full(layers, 1.0, np.float32)
        importance[: layer + 1] = 0.7
        importance[layer + 1 : layer + 5] = 2.0
        importance = np.repeat(importance, experts)
        y = target.reshape(tokens, -1) * importance
        part = LowRank.fit(x, y, RANK, data.has_next & ~held, ridge)
        weights.add_probe(layer, (part(x[held]) / importance).reshape(-1, layers, experts))
        whole = LowRank.fit(x, y, RANK, data.has_next, ridge)
        fitted.append(PackedProbe.of(whole, importance * deviation.reshape(-1), layers))
    start_in = np.concatenate([data.embedding[data.following], data.inputs[:, -1]], axis=1)
    start_y = data.margins[data.following].reshape(tokens, -1)
    weights.add_start(LowRank.fit(start_in, start_y, START_RANK, data.has_next & ~held)(start_in))
    start = LowRank.fit(start_in, start_y, START_RANK, data.has_next)
    progress("fit", layers, layers)
    start_down, start_down_scale = rows_int8(start.down)
    start_up, start_up_scale = rows_int8(start.up)
    topic_down, topic_down_scale = rows_int8(topic.down)
    topic_up, topic_up_scale = rows_int8(topic.up)
    return Probes(
        down=np.stack([one.down for one in fitted]),
        down_scale=np.stack([one.down_scale for one in fitted]),
        centre=np.stack([one.centre for one in fitted]),
        up=np.stack([one.up for one in fitted]),
        up_scale=np.stack([one.up_scale for one in fitted]),
        spread=deviation,
        offset=data.margins[data.following[data.has_next]].mean(axis=0),
        start_down=start_down,
        start_down_scale=start_down_scale,
        start_up=start_up,
        start_up_scale=start_up_scale,
        start_offset=start.offset,
        topic_down=topic_down,
        topic_down_scale=topic_down_scale,
        topic_up=topic_up,
        topic_up_scale=topic_up_scale,
        topic_offset=topic.offset,
        topic_mean=mean,
        weights=weights.fit(),
        soon=soon,
        later=later,
        tokens=np.array([tokens]),
    )


@dataclass(slots=True)
class _Data:
    """Decoded tokens side by side, T in all.

    Attributes:
        inputs: [T, L, H] float32, residual and shared expert, normalised.
        embedding: [T, H] float32, normalised.
        margins: [T, L, E] float32.
        gates: For distance 1 and 2, [T, L, E]: the margins of each layer's router on an earlier layer's input.
        following: [T], the next token of the same request; `has_next` says whether there is one.
        request: [T], which request.
        hot: [T, L, E], which experts a decoded token used.
        chosen: [O, L, K], what was chosen, prompt tokens included; `observed` [O] marks those.
    """

    inputs: Floats
    embedding: Floats
    margins: Floats
    gates: Floats
    following: NDArray[np.int64]
    has_next: NDArray[np.bool_]
    request: NDArray[np.int64]
    chosen: NDArray[np.int64]
    observed: NDArray[np.bool_]
    hot: NDArray[np.bool_]

    @classmethod
    def of(cls, model: TraceModel, requests: Sequence[TraceRequest]) -> _Data:
        inputs, embedding, log_p, number, chosen, observed = [], [], [], [], [], []
        for index, request in enumerate(requests):
            for one in request.passes:
                prompt = one.phase == Phase.PREFILL
                # Every routing is of the past; what a probe learns from needs the residual.
                for row in one.chosen.transpose(1, 0, 2)[-PAST.prompt_tokens :]:
                    chosen.append(row)
                    observed.append(prompt or one.residual is None)
                if prompt or one.residual is None:
                    continue
                x = one.residual[:, 0].astype(np.float32)
                if one.shared is not None:
                    x = x + one.shared[:, 0].astype(np.float32)
                inputs.append(unit(x))
                embedding.append(unit(one.embedding.astype(np.float32)))
                log_p.append(np.log(np.maximum(one.probabilities[:, 0].astype(np.float32), 1e-7)))
                number.append(index)
        if not inputs:
            raise TooLittle(
                "the trace holds no residuals to fit predictors from",
                "record it with finemoe trace record --residuals",
            )
        request_of = np.array(number)
        following = np.minimum(np.arange(len(number)) + 1, len(number) - 1)
        has_next = request_of[following] == request_of
        has_next[-1] = False
        x, margins = np.stack(inputs), _margins(np.stack(log_p), model.top_k)
        picked = np.stack(chosen).astype(np.int64)
        seen = np.array(observed)
        hot = np.zeros(margins.shape, bool)
        np.put_along_axis(hot, picked[~seen], True, axis=2)
        return cls(
            x, np.stack(embedding), margins, _gates(model, x), following, has_next, request_of, picked, seen, hot
        )


def _held_back(request: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens the parts must not see, [T]. request: [T], ascending."""
    names, number = np.unique(request, return_inverse=True)
    if len(names) < HELD_BACK:
        number = np.arange(len(request)) * HELD_BACK // len(request)
    result: NDArray[np.bool_] = number % HELD_BACK == HELD_BACK - 1
    return result


def _fit_topic(model: TraceModel, data: _Data, held: NDArray[np.bool_]) -> tuple[LowRank, Floats, Floats]:
    """The topic's predictor, what one that has not seen `held` tokens says before each [T, N], the mean input [H].

    Fitted to the root of the share of the coming tokens that use an expert: what is used rarely counts more so.
    """
    values = data.inputs[:, topic_layer(model.layers)]
    hot = data.hot.reshape(len(values), -1)
    mean = values.mean(axis=0)
    x = np.empty_like(values)
    average, request = mean, -1
    for number, value in enumerate(values):
        if data.request[number] != request:
            average, request = mean, data.request[number]
        x[number] = average  # before the token
        average = TOPIC_KEEPS * average + (1 - TOPIC_KEEPS) * value
    used = np.concatenate([np.zeros((1, hot.shape[1]), np.int32), np.cumsum(hot, axis=0, dtype=np.int32)])
    token = np.arange(len(values))
    end = np.minimum(token + TOPIC_TOKENS, np.searchsorted(data.request, data.request, side="right"))
    share = np.sqrt((used[end] - used[token]) / (end - token)[:, None]).astype(np.float32)
    unseen = LowRank.fit(x, share, TOPIC_RANK, ~held)
    return LowRank.fit(x, share, TOPIC_RANK, np.ones(len(x), bool)), unseen(x), mean


class _Blend:
    """Collects, for tokens that the parts have not seen, what each says, and fits their weights."""

    PER_LAYER = 20_000

    def __init__(
        self, model: TraceModel, data: _Data, odds: Floats, topic: Floats, held: NDArray[np.bool_]
    ) -> None:
        self._model, self._data, self._odds, self._topic, self._held = model, data, odds, topic, held
        self._random = np.random.default_rng(0)
        self._rows: list[list[tuple[Floats, NDArray[np.bool_]]]] = [[] for _ in range(GROUPS)]
        self._probes: list[Floats] = []
        self._start: Floats | None = None

    def add_probe(self, layer: int, margins: Floats) -> None:
        self._probes.append(margins.astype(np.float16))

    def add_start(self, margins: Floats) -> None:
        """margins: [T, N], each about the following token."""
        layers, experts = self._model.layers, self._model.experts
        about = np.zeros((len(margins), layers, experts), np.float32)
        known = self._data.has_next
        about[self._data.following[known]] = margins.reshape(about.shape)[known]
        self._start = about

    def fit(self) -> Floats:
        """`Probes.weights`."""
        assert self._start is not None
        data, layers, experts = self._data, self._model.layers, self._model.experts
        rows = np.flatnonzero(self._held)
        first = ~np.isin(rows, data.following[data.has_next])
        for layer in range(layers):
            for ahead in range(1, layers + 1):
                m = (layer + ahead) % layers
                wraps = layer + ahead >= layers
                group = group_of(ahead, wraps)
                use = data.has_next[rows] if wraps else ~first
                at = rows[use]
                if not len(at):
                    continue
                about = data.following[at] if wraps else at
                columns = slice(m * experts, (m + 1) * experts)
                none = np.zeros((len(at), experts), np.float32)
                terms = np.stack(
                    [
                        np.ones_like(none),
                        self._odds[about][:, columns],  # of a layer behind, this token's choice is seen already
                        none if wraps else self._start[at, m],
                        self._probes[layer][use, m].astype(np.float32),
                        data.gates[ahead - 1][at, m] if ahead <= 2 and not wraps else none,
                        self._topic[at][:, columns],
                    ],
                    axis=-1,
                )
                self._take(group, terms, data.hot[about, m], ahead if not wraps else 10)
        # Before a token's first layer, with the start predictor and without.
        at = rows[~first]
        for m in range(layers if len(at) else 0):
            columns = slice(m * experts, (m + 1) * experts)
            odds, start, topic = self._odds[at][:, columns], self._start[at, m], self._topic[at][:, columns]
            none = np.zeros_like(odds)
            for group, known in ((BEGINNING, start), (PAST_ALONE, none)):
                terms = np.stack([np.ones_like(odds), odds, known, none, none, topic], axis=-1)
                self._take(group, terms, data.hot[at, m], 10)
        weights = np.zeros((GROUPS, TERMS), np.float32)
        weights[:, 1] = 1  # the past as it is, where there is nothing to fit from
        for group, collected in enumerate(self._rows):
            if collected:
                weights[group] = logistic(
                    np.concatenate([terms for terms, _ in collected]),
                    np.concatenate([target for _, target in collected]),
                )
        return weights

    def _take(self, group: int, terms: Floats, target: NDArray[np.bool_], share: int) -> None:
        """A `share`-th of what can be taken, by chance. terms: [A, E, 6], target: [A, E]."""
        rows, hot = terms.astype(np.float32).reshape(-1, TERMS), target.reshape(-1)
        some = self._random.permutation(len(hot))[: self.PER_LAYER // share]
        self._rows[group].append((rows[some], hot[some]))


def logistic(terms: Floats, target: NDArray[np.bool_], ridge: float = 1.0) -> Floats:
    """Weights of a logistic regression, by Newton's method. terms: [N, P]; columns of zeros get weight 0."""
    x, y = terms.astype(np.float64), target.astype(np.float64)
    w = np.zeros(x.shape[1])
    w[0] = np.log((y.mean() + 1e-6) / (1 - y.mean() + 1e-6))
    for _ in range(20):
        p = 1 / (1 + np.exp(-(x @ w)))
        curve = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        step = np.linalg.solve(curve, x.T @ (p - y) + ridge * w * (np.arange(len(w)) > 0))
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    return w.astype(np.float32)


def _margins(values: Floats, top_k: int) -> Floats:
    """Values of [..., E] less the threshold of the top K, clipped."""
    ranked = -np.sort(-values, axis=-1)
    behind = min(top_k, values.shape[-1] - 1)
    threshold = (ranked[..., top_k - 1] + ranked[..., behind]) / 2
    result: Floats = np.clip(values - threshold[..., None], -CLIP, CLIP).astype(np.float32)
    return result


def _gates(model: TraceModel, inputs: Floats) -> Floats:
    """[2, T, L, E]: what each layer's router makes of the input one and two layers before."""
    tokens = len(inputs)
    gates = np.zeros((2, tokens, model.layers, model.experts), np.float32)
    if model.routers is None:
        return gates
    for ahead in (1, 2):
        for m in range(ahead, model.layers):
            normed = inputs[:, m - ahead] * _widen(model.routers.norm[m])
            logits = normed @ _widen(model.routers.gate[m]).T
            spread = logits.std(axis=1, keepdims=True) + 1e-6
            ranked = -np.sort(-logits, axis=1)
            behind = min(model.top_k, model.experts - 1)
            threshold = (ranked[:, model.top_k - 1] + ranked[:, behind]) / 2
            gates[ahead - 1, :, m] = np.clip((logits - threshold[:, None]) / spread, -CLIP, CLIP)
    return gates


def _widen(bits: NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
