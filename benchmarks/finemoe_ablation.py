"""Taking FineMoE apart on a recorded trace, as the paper's ablation does: which part wins what.

    python -m benchmarks.finemoe_ablation TRACE [--requests 60] [--share 0.125 0.25 0.5] [--read 0.5 1.5]
                                          [--distance 3]

The first 70 % of the trace's requests, or of its first ``--requests``, are learnt from; the others are replayed
through the live engine's fetcher and counters over a simulated link, from an empty cache. A layer takes 1 to
compute and an expert ``--read`` to bring in, in the same unit. Searching costs no time here; what it costs live
`benchmarks/map_cost.py` measures.

- Predictions, each with the paper's eviction: hit counts of whole requests; speculation with the model's own
  routers (needs ``--residuals`` in the trace); expert maps by trajectory alone, with the semantic search, and with
  the threshold delta.
- Evictions, each with the full predictions: LRU, LFU, the paper's.
- ``demand``: nothing read ahead, LRU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offload.policy.base import Policy, Surroundings
from offload.policy.demand import DemandLRU
from offload.policy.finemoe import BY_FREQUENCY, BY_HIT_COUNTS, BY_RECENCY, BY_SPECULATION, FineMoE
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.file import Trace
from offload.trace.records import TraceRequest
from offload.trace.simulator import Timing, simulate

VARIANTS: dict[str, dict[str, float] | None] = {
    "demand": None,
    "hit counts": {"predictor": BY_HIT_COUNTS, "delta": 0},
    "speculation": {"predictor": BY_SPECULATION, "delta": 0},
    "trajectory": {"semantic": 0, "delta": 0},
    "+ semantic": {"delta": 0},
    "+ delta: FineMoE": {},
    "evicting by LRU": {"eviction": BY_RECENCY},
    "evicting by LFU": {"eviction": BY_FREQUENCY},
    "8 neighbours": {"neighbours": 8},
}
HISTORY = 0.7
REQUESTS_BEFORE = 1_000_000
"""Numbers of the requests that are learnt from, so that none is taken for one that is replayed."""


def learn(policy: Policy, history: Sequence[TraceRequest]) -> Policy:
    """Show `policy` the passes of `history`."""
    for number, request in enumerate(history):
        for one in request.passes:
            embedding = one.embedding.astype(np.float32)
            tokens = one.token_ids.tolist()
            policy.begin_pass(ForwardPass(one.phase, REQUESTS_BEFORE + number, tokens, one.position, embedding))
            probabilities, chosen = one.probabilities.astype(np.float32), one.chosen.astype(np.int32)
            for layer in range(len(chosen)):
                policy.routed(Routing(layer, probabilities[layer], chosen[layer], None, None))
            policy.end_pass()
    return policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, help="only so many of the trace, the first ones")
    parser.add_argument("--share", type=float, nargs="+", default=[0.125, 0.25, 0.5], help="of experts resident")
    parser.add_argument("--read", type=float, nargs="+", default=[0.5, 1.5], help="time to bring in one expert")
    parser.add_argument("--distance", type=int, default=3)
    options = parser.parse_args()
    trace = Trace.open(options.trace)
    requests = [trace[number] for number in range(len(trace))[: options.requests]]
    cut = round(HISTORY * len(requests))
    history, test = requests[:cut], requests[cut:]
    model = trace.model
    decoded = [one for request in test for one in request.passes if len(one.token_ids) == 1]
    has_residuals = all(one.residual is not None for one in decoded)
    print(f"{model.name}: {len(history)} requests learnt from, {len(test)} replayed, distance {options.distance}")
    print(f"{'experts resident':18}" + "".join(f"{share:>27.1%}" for share in options.share for _ in options.read))
    print(f"{'time of a read':18}" + "".join(f"{read:>27g}" for _ in options.share for read in options.read))
    print(f"{'':18}" + "        hit  stall  bytes used" * len(options.share) * len(options.read))
    for name, given in VARIANTS.items():
        if name == "speculation" and not has_residuals:
            continue
        cells = []

        def make(around: Surroundings, given: dict[str, float] | None = given) -> Policy:
            return DemandLRU(around) if given is None else learn(FineMoE(around), history)

        for share in options.share:
            slots = round(share * model.layers * model.experts)
            for read in options.read:
                known = None if given is None else {"distance": options.distance, **given}
                outcome = simulate(model, test, slots, Timing(1.0, read), make, options=known)
                counts = outcome.decode
                fetched = counts.bytes_prefetch
                used = f"{1 - counts.bytes_prefetch_wasted / fetched:.0%}" if fetched else "-"
                cells.append(f"{counts.hit_rate:>11.3f}{outcome.stall_s / outcome.tokens:>7.1f}{used:>9}")
        print(f"{name:18}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
