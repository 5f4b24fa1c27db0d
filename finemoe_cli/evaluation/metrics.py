"""What rows of requests come to: the metrics of each combination, in the field's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

COUNTS = (
    "selections",
    "resident",
    "prefetched",
    "late",
    "missed",
    "bytes_demand",
    "bytes_prefetch",
    "bytes_prefetch_wasted",
    "stall_s",
    "evictions",
)
KINDS = ("resident", "prefetched", "late", "missed")
TIMES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
SPREADS = (*TIMES, "queue_s")
"""Metrics of which there is a median, and so on."""

MAIN = {
    "ttft_s": "ttft_s.mean",
    "tpot_s": "tpot_s.mean",
    "e2e_s": "e2e_s.mean",
    "tokens_per_s": "tokens_per_s",
    "hit_rate": "decode.hit_rate",
    "covered_rate": "decode.covered_rate",
    "bytes_per_token": "decode.bytes_per_token",
    "stall_per_token_s": "decode.stall_per_token_s",
    "prefill.hit_rate": "prefill.hit_rate",
}
"""What runs are compared by: its name, and what it is of the metrics of some requests."""

Row = Mapping[str, Any]


def intervals(token_times_s: Sequence[float]) -> list[float]:
    """Inter-token latencies: from each token to the next."""
    return [round(after - before, 6) for before, after in pairwise(token_times_s)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values, in rising order, lie below; between two it is on the line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Count, mean, median and the 90th and 99th percentile of the values that there are."""
    known = [value for value in values if value is not None]
    if not known:
        return {"count": 0, "mean": None, "median": None, "p90": None, "p99": None}
    return {
        "count": len(known),
        "mean": sum(known) / len(known),
        "median": quantile(known, 0.5),
        "p90": quantile(known, 0.9),
        "p99": quantile(known, 0.99),
    }


def kind_rates(total: Mapping[str, Any], selections: int) -> dict[str, float | None]:
    """Shares of the selections that found what; None of no selections."""

    def rate(*names: str) -> float | None:
        return sum(total[name] for name in names) / selections if selections else None

    return {
        "hit_rate": rate("resident", "prefetched"),
        "covered_rate": rate("resident", "prefetched", "late"),
        "late_rate": rate("late"),
        "missed_rate": rate("missed"),
    }


def phase_metrics(counts: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """The counts of one phase added up, with rates, and bytes and stall a token.

    Args:
        counts: Of each request: `PhaseCounts.to_dict()`.
        tokens: That the phase went over.
    """
    total: dict[str, Any] = {name: sum(one[name] for one in counts) for name in COUNTS}
    read = total["bytes_demand"] + total["bytes_prefetch"]
    return total | {
        "tokens": tokens,
        **kind_rates(total, total["selections"]),
        "bytes_per_token": read / tokens if tokens else None,
        "stall_per_token_s": total["stall_s"] / tokens if tokens else None,
    }


def metrics_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What the requests of one combination come to; rows with an `error` are counted and no more."""
    done = [row for row in rows if "error" not in row]
    completion_tokens = sum(row["completion_tokens"] for row in done)
    busy_s = sum(row["service_s"] for row in done)
    makespan_s = busy_s
    arrivals = [row["arrival_s"] for row in done if row["arrival_s"] is not None]
    if arrivals:
        makespan_s = max(row["arrival_s"] + row["e2e_s"] for row in done) - min(arrivals)
    reasons = sorted({row["finish_reason"] for row in done})
    prompt_tokens = sum(row["prompt_tokens"] - row["reused_tokens"] for row in done)
    decoded = sum(max(row["completion_tokens"] - 1, 0) for row in done)
    metered = [row for row in done if row["energy_j"] is not None]
    energy_j = sum(row["energy_j"] for row in metered) if metered else None
    metered_tokens = sum(row["completion_tokens"] for row in metered)
    return {
        "requests": len(done),
        "conversations": len({row["number"] for row in done}),
        "errors": len(rows) - len(done),
        "prompt_tokens": sum(row["prompt_tokens"] for row in done),
        "completion_tokens": completion_tokens,
        "finish_reasons": {reason: sum(row["finish_reason"] == reason for row in done) for reason in reasons},
        "ttft_s": spread(row["ttft_s"] for row in done),
        "tpot_s": spread(row["tpot_s"] for row in done),
        "itl_s": spread(time for row in done for time in row["itl_s"]),
        "e2e_s": spread(row["e2e_s"] for row in done),
        "queue_s": spread(row["queue_s"] for row in done),
        "busy_s": busy_s,
        "makespan_s": makespan_s,
        "requests_per_s": len(done) / makespan_s if makespan_s else None,
        "tokens_per_s": completion_tokens / makespan_s if makespan_s else None,
        "energy_j": energy_j,
        "energy_per_token_j": energy_j / metered_tokens if energy_j is not None and metered_tokens else None,
        "prefill": phase_metrics([row["prefill"] for row in done], prompt_tokens),
        "decode": phase_metrics([row["decode"] for row in done], decoded),
        "memory": {
            "budget_bytes": max((row["budget_bytes"] for row in done), default=None),
            "peak_bytes": max((row["peak_bytes"] for row in done), default=None),
            "slots": max((row["slots"] for row in done), default=None),
        },
    }
