"""Whether a prompt's text says which experts to begin with: a warm set chosen before the first token.

    python -m benchmarks.topic_warm_set TRACE [--embedder FOLDER] [--share 0.125 0.25 0.5]

The first 70 % of the conversations are known: the embedding of each prompt's text, by a sentence-transformers
model, and the share of the request's passes that used each expert. Every other request begins with slots that hold
nothing, what all known requests used most, or what the eight most similar ones did; then its prompt and 32 tokens
are replayed under `auto`, untrained, an expert taking 1.5 layers to move. Embedding costs nothing here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finemoe_cli.simulation import split_requests
from offload.policy.registry import make_policy
from offload.telemetry.counters import Phase
from offload.trace.file import Trace
from offload.trace.records import TraceModel, TraceRequest
from offload.trace.simulator import Outcome, Simulation, Timing
from profiles.embedder import find_embedder

TOKENS = 32
NEIGHBOURS, SHARPNESS = 8, 10.0
"""Similar requests that are asked, weighted by softmax(SHARPNESS * cosine)."""

Floats = NDArray[np.float32]


def uses(model: TraceModel, request: TraceRequest) -> Floats:
    """[L*E], the share of the request's passes that used each expert."""
    used = np.zeros(model.layers * model.experts, np.float32)
    for one in request.passes:
        used[np.unique(one.chosen.astype(np.int64) + np.arange(model.layers)[:, None, None] * model.experts)] += 1
    return used / len(request.passes)


def replay(model: TraceModel, request: TraceRequest, warm: Sequence[int], slots: int) -> Outcome:
    """The prompt and `TOKENS` tokens, with the experts `warm` in the slots before."""
    decoded = [number for number, one in enumerate(request.passes) if one.phase == Phase.DECODE]
    passes = list(request.passes)[: decoded[0] + TOKENS] if decoded else list(request.passes)
    simulation = Simulation(model, slots, Timing(1.0, 1.5), partial(make_policy, "auto"))
    simulation.warm(warm)
    simulation.run([replace(request, passes=passes)])
    return simulation.outcome()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--embedder", type=Path, help="folder of the sentence-transformers model")
    parser.add_argument("--share", type=float, nargs="+", default=[0.125, 0.25, 0.5], help="of experts resident")
    options = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    folder = options.embedder or find_embedder()
    if folder is None:
        parser.error("there is no embedder: --embedder FOLDER")
    embedder: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    with Trace.open(options.trace) as trace:
        model = trace.model
        learnt, (asked,) = split_requests([trace.entries], 0.7, 1, 0)
        known = [trace[number] for _, number in learnt]
        requests = [trace[number] for _, number in asked]
    texts: Floats = embedder.encode([one.text for one in known], normalize_embeddings=True, show_progress_bar=False)
    used = np.stack([uses(model, one) for one in known])

    def similar(request: TraceRequest) -> Floats:
        vector = embedder.encode([request.text], normalize_embeddings=True, show_progress_bar=False)[0]
        cosines = texts @ vector
        near = np.argsort(-cosines)[:NEIGHBOURS]
        weights = np.exp(SHARPNESS * (cosines[near] - cosines[near[0]]))
        result: Floats = weights @ used[near] / weights.sum()
        return result

    ways: dict[str, Callable[[TraceRequest], Floats | None]] = {
        "nothing": lambda request: None,
        "all requests": lambda request: used.sum(axis=0),
        "similar ones": similar,
    }
    print(f"{len(known)} requests known, {len(requests)} asked: hit rate of the prompt, of {TOKENS} tokens; stall")
    for share in options.share:
        slots = round(share * model.layers * model.experts)
        for name, expect in ways.items():
            found = []
            for request in requests:
                expected = expect(request)
                warm = [] if expected is None else np.argsort(-expected, kind="stable")[:slots].tolist()
                found.append(replay(model, request, warm, slots))
            prompt = np.mean([one.prefill.hit_rate or 0 for one in found])
            decode = np.mean([one.decode.hit_rate or 0 for one in found])
            stall = np.mean([one.prefill.stall_s + one.decode.stall_s for one in found])
            print(f"{share:6.1%} {name:14} {prompt:.3f} {decode:.4f} {stall:8.1f}", flush=True)


if __name__ == "__main__":
    main()
