"""Going through budgets: what a token takes at each, what it could take at best, and what was forecast.

The **bound** of a budget is max(compute, bytes / disk rate). Compute is the least that a token took without
waiting at any budget. The bytes are those that Belady's MIN (`offload.trace.oracle`) would have read for the very
tokens that were measured, with as many slots, beginning with what was resident when decoding began; the rate is
the raw one. No policy can be faster, whatever it foresees. The **bound of its own reads** has the bytes that the
policy did read instead: what is above it was lost between reading and computing, and not by the policy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from finemoe_cli.bench.plan import Configuration, Workload
from finemoe_cli.bench.rows import Row, rows_of
from finemoe_cli.bench.samples import Measured
from offload.forecast import Forecast
from offload.trace.oracle import belady_hits
from offload.units import MIB, format_bytes


@dataclass(frozen=True, slots=True)
class Point:
    """One budget. Times are seconds a generated token, but for the times to a first token.

    Attributes:
        budget: As it was given.
        budget_bytes / peak_bytes: The promise, and the most that was taken.
        share: Experts that fit into the slots / experts.
        measured_s / measured_sd_s: Mean and standard deviation over the repeats.
        bound_s / own_bound_s: See the module.
        belady_mib: Read a token at best.
        forecast_s: What `finemoe plan` says beforehand; None where it says that the budget does not fit.
        error: Forecast tokens a second / measured ones - 1.
        ttft_s / forecast_ttft_s: A prompt of `offload.forecast.PROMPT_TOKENS` tokens with full slots.
    """

    budget: str
    budget_bytes: int
    peak_bytes: int
    share: float
    hit_rate: float | None
    forecast_hit_rate: float | None
    mib_per_token: float
    belady_mib: float
    measured_s: float
    measured_sd_s: float
    compute_s: float
    stall_s: float
    bound_s: float
    own_bound_s: float
    forecast_s: float | None
    error: float | None
    tokens_per_s: float
    forecast_tokens_per_s: float | None
    ttft_s: float
    forecast_ttft_s: float | None
    disk_bytes_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(Point))


def points_of(
    workload: Workload,
    measured: Sequence[tuple[Configuration, Measured]],
    forecasts: Sequence[Forecast],
    routing: Sequence[Sequence[Sequence[Sequence[int]]]],
    experts: int,
) -> list[Point]:
    """The points of a sweep, by how many experts fitted; what the rest takes differs a little from start to start.

    Args:
        measured: Each budget, with the tests of `workload`, a prompt and a generation.
        forecasts: Of each.
        routing: Of each answer, [T, L, K]; they are the same at each budget.
        experts: Experts a layer.
    """
    rows = [rows_of(one, workload, result) for one, result in measured]
    compute = min(answer.compute_s for _, answer in rows)
    points = [
        _point(prompt, answer, result, forecast, compute, belady_bytes(result, routing, experts))
        for (prompt, answer), (_, result), forecast in zip(rows, measured, forecasts, strict=True)
    ]
    return sorted(points, key=lambda point: (point.share, point.budget_bytes))


def belady_bytes(measured: Measured, routing: Sequence[Sequence[Sequence[Sequence[int]]]], experts: int) -> float:
    """Bytes a token that MIN reads for the answers, each from what was resident when it began."""
    missed = tokens = 0
    for sample, answer in zip(measured.answers, routing, strict=True):
        steps = [
            [layer * experts + expert for expert in chosen]
            for token in answer
            for layer, chosen in enumerate(token)
        ]
        hits = belady_hits(steps, measured.opened.slots, sample.resident)
        missed += sum(len(step) for step in steps) - int(hits.sum())
        tokens += len(answer)
    return missed * measured.opened.record_bytes / tokens


def _point(
    prompt: Row, answer: Row, measured: Measured, forecast: Forecast, compute: float, belady: float
) -> Point:
    times = [sample.seconds / sample.tokens for sample in measured.answers]
    mean = sum(times) / len(times)
    spread = (sum((time - mean) ** 2 for time in times) / (len(times) - 1)) ** 0.5 if len(times) > 1 else 0.0
    fits = forecast.plan is not None
    prompts = [sample.seconds for sample in measured.prompts]
    return Point(
        budget=answer.budget,
        budget_bytes=answer.budget_bytes,
        peak_bytes=answer.peak_bytes,
        share=answer.share,
        hit_rate=answer.hit_rate,
        forecast_hit_rate=forecast.hit_rate if fits else None,
        mib_per_token=answer.mib_per_token,
        belady_mib=belady / MIB,
        measured_s=mean,
        measured_sd_s=spread,
        compute_s=answer.compute_s,
        stall_s=answer.stall_s,
        bound_s=max(compute, belady / answer.disk_bytes_per_s),
        own_bound_s=max(compute, answer.mib_per_token * MIB / answer.disk_bytes_per_s),
        forecast_s=1 / forecast.tokens_per_s if fits else None,
        error=forecast.tokens_per_s * mean - 1 if fits else None,
        tokens_per_s=1 / mean,
        forecast_tokens_per_s=forecast.tokens_per_s if fits else None,
        ttft_s=sum(prompts) / len(prompts),
        forecast_ttft_s=forecast.ttft_warm_s if fits else None,
        disk_bytes_per_s=answer.disk_bytes_per_s,
    )


HEADERS = (
    "BUDGET", "BYTES", "EXPERTS", "HITS", "FORECAST", "TOKENS/S", "FORECAST", "ERROR", "BOUND", "FIRST TOKEN",
    "FORECAST",
)  # fmt: skip


def cells_of(point: Point) -> tuple[str, ...]:
    """A row of the table that people read; the bound as tokens a second."""
    return (
        point.budget,
        format_bytes(point.budget_bytes),
        f"{point.share:.0%}",
        _percent(point.hit_rate),
        _percent(point.forecast_hit_rate),
        _rate(point.tokens_per_s),
        _rate(point.forecast_tokens_per_s),
        "-" if point.error is None else f"{point.error:+.0%}",
        _rate(1 / point.bound_s),
        f"{point.ttft_s:.2f} s",
        "-" if point.forecast_ttft_s is None else f"{point.forecast_ttft_s:.2f} s",
    )


def as_csv(points: Sequence[Point]) -> str:
    """All columns, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(asdict(point).values() for point in points)
    return text.getvalue()


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"
