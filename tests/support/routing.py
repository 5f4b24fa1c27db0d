"""Made-up requests whose routers can be looked ahead with: no model, but the arithmetic of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import RouterWeights
from offload.policy.lookahead import softmax, widen
from offload.telemetry.counters import Phase
from offload.trace.records import TraceModel, TracePass, TraceRequest

EPS = 1e-6


def narrow(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The bits of bfloat16 numbers near `values`."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def synthetic_model(
    *, layers: int = 6, experts: int = 16, top_k: int = 2, hidden: int = 32, seed: int = 0
) -> TraceModel:
    """Random routers, sharp enough to prefer some experts."""
    random = np.random.default_rng(seed)
    gates = [narrow(random.normal(size=(experts, hidden)) * 2 / hidden**0.5) for _ in range(layers)]
    norms = [narrow(random.normal(1, 0.1, hidden)) for _ in range(layers)]
    return TraceModel("synthetic", "", layers, experts, top_k, hidden, 4096, RouterWeights(gates, norms, EPS))


def synthetic_requests(
    model: TraceModel, *, requests: int = 3, prompt: int = 12, tokens: int = 20, seed: int = 0
) -> Iterator[TraceRequest]:
    """Requests of one piece of prompt and `tokens` decoded ones. Residuals drift from layer to layer and from token
    to token, so that both later layers and later tokens can be guessed from them, and not for certain."""
    random = np.random.default_rng(seed)
    for number in range(requests):
        topic = random.normal(size=model.hidden)
        passes = [_one(model, Phase.PREFILL, 0, topic + random.normal(size=(prompt, model.hidden)), random)]
        state = topic
        for token in range(tokens):
            state = 0.5 * topic + 0.5 * state + 0.7 * random.normal(size=model.hidden)
            passes.append(_one(model, Phase.DECODE, prompt + token, state[None], random))
        yield TraceRequest(f"synthetic-{number}", "", passes)


def _one(
    model: TraceModel, phase: Phase, position: int, x: NDArray[np.float64], random: np.random.Generator
) -> TracePass:
    assert model.routers is not None
    tokens = len(x)
    residuals, probabilities = [], []
    for layer in range(model.layers):
        residual = x.astype(np.float16)
        wide = residual.astype(np.float32)
        normed = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * widen(model.routers.norm[layer])
        logits = normed @ widen(model.routers.gate[layer]).T
        probabilities.append(np.stack([softmax(row) for row in logits]))
        residuals.append(residual)
        x = x + 0.3 * random.normal(size=x.shape)
    of_each = np.stack(probabilities).astype(np.float16)  # [L, T, E]
    order = np.argsort(-of_each, axis=-1, kind="stable")
    return TracePass(
        phase=phase,
        position=position,
        token_ids=random.integers(0, 1000, tokens).astype(np.int32),
        embedding=residuals[0].mean(axis=0, dtype=np.float32).astype(np.float16),
        probabilities=of_each,
        margins=np.zeros((model.layers, tokens), np.float16),
        chosen=order[:, :, : model.top_k].astype(np.int16),
        residual=np.stack(residuals),
        shared=None,
        seconds=0.0,
        stall_s=np.zeros(model.layers, np.float32),
        reads=(),
    )
