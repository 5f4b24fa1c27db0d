"""Runs that are made up, for figures of what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from finemoe_cli.evaluation.metrics import intervals, metrics_of
from finemoe_cli.evaluation.routing import routing_of
from finemoe_cli.figures.sources import Combination, Source
from offload.telemetry.counters import PhaseCounts
from tests.support.traces import random_model, random_request

MODEL = random_model(layers=4, experts=12, top_k=2)
KINDS = ("resident", "prefetched", "late", "missed")


def row(policy: str, place: str, number: int, tokens: int = 6, queue_s: float = 0.0) -> dict[str, Any]:
    """A request with counts and times by chance, which go together as a real one's do."""
    draw = np.random.default_rng([number, crc32(policy.encode()), crc32(place.encode())])
    times = (queue_s + np.cumsum(draw.uniform(0.05, 0.2, tokens))).round(6).tolist()
    layers = {phase: {kind: draw.integers(0, 9, 4).tolist() for kind in KINDS} for phase in ("prefill", "decode")}
    for counts in layers.values():
        counts["stall_s"] = draw.random(4).tolist()
    phases = {}
    for phase, counts in layers.items():
        totals = {kind: sum(counts[kind]) for kind in KINDS}
        phases[phase] = PhaseCounts(selections=sum(totals.values()), **totals).to_dict()
    passes: dict[str, Any] = {kind: draw.integers(0, 3, tokens - 1).tolist() for kind in KINDS}
    return {
        "combination": f"{policy}@{place}",
        "conversation": f"talk-{number}",
        "number": number,
        "turn": 1,
        "turns": 1,
        "seed": 0,
        "prompt_tokens": 9,
        "reused_tokens": 0,
        "completion_tokens": tokens,
        "token_ids": list(range(tokens)),
        "token_times_s": times,
        "finish_reason": "length",
        "ttft_s": times[0],
        "tpot_s": (times[-1] - times[0]) / (tokens - 1),
        "itl_s": intervals(times),
        "e2e_s": times[-1],
        "arrival_s": None,
        "queue_s": queue_s,
        "service_s": times[-1] - queue_s,
        "energy_j": None,
        "layers": layers,
        "passes": passes | {"stall_s": draw.uniform(0, 0.05, tokens - 1).tolist()},
        **phases,
        "budget_bytes": 100,
        "peak_bytes": 90,
        "slots": {"small": 4, "large": 9}.get(place, 6),
    }


def combination(policy: str, place: str, requests: int = 3, first: int = 0) -> Combination:
    """A policy and a budget, with their requests."""
    rows = [row(policy, place, number) for number in range(first, first + requests)]
    return Combination(f"{policy}@{place}", policy, place, metrics_of(rows), rows)


def source(label: str = "sample", policies: tuple[str, ...] = ("demand", "finemoe"), **more: Any) -> Source:
    """A run of some policies with two budgets, the larger one first."""
    combinations = [combination(policy, place) for policy in policies for place in ("large", "small")]
    requests = [random_request(MODEL, seed, name=f"talk-{seed}/1", decoded=9) for seed in range(3)]
    routing = routing_of(requests, MODEL.layers, MODEL.experts, MODEL.top_k)
    return Source(label, Path(label), **({"combinations": combinations, "routing": routing, "recall": None} | more))
