"""Traces made of chance: arrays of the right shapes, for the formats and the readers of traces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from offload.policy.base import RouterWeights
from offload.telemetry.counters import Phase
from offload.telemetry.routing import Read
from offload.trace.records import TraceModel, TracePass, TraceRequest


def random_model(
    seed: int = 0, *, layers: int = 3, experts: int = 6, top_k: int = 2, hidden: int = 4, routers: bool = True
) -> TraceModel:
    """A model of which there are only router weights."""
    draw = np.random.default_rng(seed)
    gates = [draw.integers(0, 1 << 16, (experts, hidden), np.uint16) for _ in range(layers)]
    norms = [draw.integers(0, 1 << 16, hidden, np.uint16) for _ in range(layers)]
    weights = RouterWeights(gates, norms, 1e-6) if routers else None
    return TraceModel("tiny", f"{seed:064x}", layers, experts, top_k, hidden, 4096, weights)


def random_request(
    model: TraceModel, seed: int = 0, *, name: str = "a/1", text: str = "hello", prompt: int = 5, decoded: int = 3
) -> TraceRequest:
    """A request whose decoded tokens have residuals."""
    draw = np.random.default_rng(seed)
    passes = [random_pass(model, draw, Phase.PREFILL, 0, prompt)] if prompt else []
    passes += [
        random_pass(model, draw, Phase.DECODE, prompt + number, 1, residual=True, shared=True)
        for number in range(decoded)
    ]
    return TraceRequest(name, text, passes)


def random_pass(
    model: TraceModel,
    draw: np.random.Generator,
    phase: Phase,
    position: int,
    tokens: int,
    *,
    residual: bool = False,
    shared: bool = False,
    reads: int = 1,
) -> TracePass:
    """A pass whose choices are those of its probabilities."""
    raw = draw.random((model.layers, tokens, model.experts)) ** 3 + 1e-3
    probabilities = (raw / raw.sum(axis=-1, keepdims=True)).astype(np.float16)
    order = np.argsort(-probabilities.astype(np.float32), axis=-1, kind="stable")
    falling = np.take_along_axis(probabilities, order, axis=-1)
    k = model.top_k
    left_out = falling[..., k] if k < model.experts else np.float16(0)

    def wide() -> NDArray[np.float16]:
        return draw.normal(size=(model.layers, tokens, model.hidden)).astype(np.float16)

    return TracePass(
        phase=phase,
        position=position,
        token_ids=draw.integers(0, 1 << 20, tokens, np.int32),
        embedding=draw.normal(size=model.hidden).astype(np.float16),
        probabilities=probabilities,
        margins=falling[..., k - 1] - left_out,
        chosen=order[..., :k].astype(np.int16),
        residual=wide() if residual else None,
        shared=wide() if shared else None,
        seconds=float(draw.random()),
        stall_s=draw.random(model.layers).astype(np.float32),
        reads=tuple(
            Read(int(draw.integers(model.layers * model.experts)), bool(draw.integers(2)), float(draw.random()))
            for _ in range(reads)
        ),
    )


@st.composite
def models(draw: st.DrawFn) -> TraceModel:
    """Any small model."""
    experts = draw(st.integers(1, 5))
    return random_model(
        draw(st.integers(0, 999)),
        layers=draw(st.integers(1, 3)),
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        hidden=draw(st.integers(1, 4)),
        routers=draw(st.booleans()),
    )


@st.composite
def requests(draw: st.DrawFn, model: TraceModel) -> TraceRequest:
    """Any small request: no pass at all, passes without tokens, residuals here and there."""
    chance = np.random.default_rng(draw(st.integers(0, 999)))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    passes = [
        random_pass(
            model,
            chance,
            draw(st.sampled_from(Phase)),
            draw(st.integers(0, 1 << 40)),
            draw(st.integers(0, 3)),
            residual=draw(st.booleans()),
            shared=draw(st.booleans()),
            reads=draw(st.integers(0, 3)),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]
    return TraceRequest(draw(text), draw(text), passes)


def assert_same_request(one: TraceRequest, other: TraceRequest) -> None:
    """Equal in every value, and every array in type, shape and bytes."""
    assert (one.name, one.text, len(one.passes)) == (other.name, other.text, len(other.passes))
    for a, b in zip(one.passes, other.passes, strict=True):
        for name, left, right in _fields(a, b):
            if isinstance(left, np.ndarray):
                assert isinstance(right, np.ndarray), name
                assert (left.dtype, left.shape) == (right.dtype, right.shape), name
                assert left.tobytes() == right.tobytes(), name
            else:
                assert left == right and type(left) is type(right), name


def _fields(a: TracePass, b: TracePass) -> Iterator[tuple[str, object, object]]:
    for name in TracePass.__slots__:
        yield name, getattr(a, name), getattr(b, name)
