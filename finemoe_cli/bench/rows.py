"""From samples to rows: means, deviations and percentiles, as a table, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from finemoe_cli.bench.plan import Configuration, Workload
from finemoe_cli.bench.samples import Measured, Sample
from offload.units import MIB, format_bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A test with a configuration. Times are in seconds, a token of the test each; see ``docs/bench.md``.

    Attributes:
        test: ``pp`` and the tokens of a prompt, or ``tg`` and those generated.
        tokens_per_s / tokens_per_s_sd: Mean over the repeats, and standard deviation; 0 of a single one.
        share: Experts that fit into the slots / experts.
        hit_rate: Selections that nothing was waited for; None without selections.
        compute_s: What is left of the time without waiting for reads.
        token_p50_s / token_p99_s: Of the times between tokens, all repeats together; None for prompts.
        major_faults / minor_faults: Page faults a token.
        disk_bytes_per_s: The mean of before and after, as what a byte takes.
        peak_bytes: The most memory of the process; both tests of a configuration share it.
    """

    test: str
    policy: str
    budget: str
    precision: str
    device: str
    kernels: str
    threads: int
    lanes: int
    direct: bool
    store: str
    budget_bytes: int
    slots: int
    share: float
    repeats: int
    tokens_per_s: float
    tokens_per_s_sd: float
    hit_rate: float | None
    mib_per_token: float
    stall_s: float
    compute_s: float
    token_p50_s: float | None
    token_p99_s: float | None
    major_faults: float
    minor_faults: float
    disk_bytes_per_s: float
    peak_bytes: int
    load_s: float

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(Row))


def rows_of(one: Configuration, workload: Workload, measured: Measured) -> list[Row]:
    """A row for each test."""
    samples = {f"pp{workload.prompt}": measured.prompts, f"tg{workload.generate}": measured.answers}
    return [_row(test, one, measured, samples[test]) for test in workload.tests]


def _row(test: str, one: Configuration, measured: Measured, samples: Sequence[Sample]) -> Row:
    opened = measured.opened
    rates = [sample.tokens / sample.seconds for sample in samples]
    tokens = sum(sample.tokens for sample in samples)
    selections = sum(sample.selections for sample in samples)
    seconds = sum(sample.seconds for sample in samples)
    stall = sum(sample.stall_s for sample in samples)
    intervals = sorted(interval for sample in samples for interval in sample.intervals)
    return Row(
        test=test,
        policy=opened.policy,
        budget=one.budget,
        precision=one.precision,
        device=opened.device,
        kernels=opened.kernels,
        threads=opened.threads,
        lanes=opened.lanes,
        direct=opened.direct,
        store=opened.store,
        budget_bytes=opened.budget_bytes,
        slots=opened.slots,
        share=opened.slots / opened.experts,
        repeats=len(samples),
        tokens_per_s=statistics.fmean(rates),
        tokens_per_s_sd=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        hit_rate=sum(sample.hits for sample in samples) / selections if selections else None,
        mib_per_token=sum(sample.nbytes for sample in samples) / tokens / MIB,
        stall_s=stall / tokens,
        compute_s=(seconds - stall) / tokens,
        token_p50_s=percentile(intervals, 0.50),
        token_p99_s=percentile(intervals, 0.99),
        major_faults=sum(sample.major_faults for sample in samples) / tokens,
        minor_faults=sum(sample.minor_faults for sample in samples) / tokens,
        disk_bytes_per_s=statistics.harmonic_mean(measured.disk_rates),
        peak_bytes=measured.peak_bytes,
        load_s=opened.load_s,
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of `ordered` that at least `share` of them do not exceed; None of none."""
    if not ordered:
        return None
    rank = -(-share * len(ordered) // 1)
    return ordered[min(max(int(rank), 1), len(ordered)) - 1]


HEADERS = (
    "TEST", "POLICY", "BUDGET", "EXPERTS", "TOKENS/S", "HITS", "MiB", "STALL", "COMPUTE", "P50", "P99",
    "FAULTS", "DISK", "PEAK",
)  # fmt: skip
"""Of the table that people read; times in ms, bytes and faults a token."""


def cells_of(row: Row) -> tuple[str, ...]:
    """A row of that table."""
    return (
        row.test,
        row.policy,
        row.budget if row.precision == "bf16" else f"{row.budget} {row.precision}",
        f"{row.share:.0%}",
        f"{_digits(row.tokens_per_s)} ± {_digits(row.tokens_per_s_sd)}",
        "-" if row.hit_rate is None else f"{row.hit_rate:.1%}",
        f"{row.mib_per_token:.1f}",
        _ms(row.stall_s),
        _ms(row.compute_s),
        _ms(row.token_p50_s),
        _ms(row.token_p99_s),
        f"{row.major_faults:.0f}/{row.minor_faults:.0f}",
        f"{row.disk_bytes_per_s / 1e9:.2f} GB/s",
        format_bytes(row.peak_bytes),
    )


def as_markdown(facts: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """The table with what it was measured with above it."""
    lines = [f"{name}: {text}  " for name, text in facts]
    lines += ["", f"| {' | '.join(HEADERS)} |", "|" + "---|" * len(HEADERS)]
    lines += [f"| {' | '.join(cells_of(row))} |" for row in rows]
    return "\n".join(lines)


def as_csv(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """All columns, numbers in full; `facts` are the first ones of each line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*facts, *COLUMNS])
    for row in rows:
        writer.writerow([*facts.values(), *asdict(row).values()])
    return text.getvalue().rstrip("\n")


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
