"""What simulations came to: numbers of each run, medians over orders, and how they are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from finemoe_cli.simulation import Grid, Run
from offload.trace.simulator import Outcome
from offload.units import MIB

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS = (
    "hit_rate",
    "covered_rate",
    "late_per_token",
    "missed_per_token",
    "bytes_per_token",
    "wasted_rate",
    "stall_per_token",
    "stall_vs_demand",
    "gap_closed",
    "tpot",
    "ttft",
    "link_busy",
)
"""Of each run; ``docs/simulator.md`` defines them."""

Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most over the orders; None where there is nothing to measure."""

    median: float | None
    least: float | None
    most: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Of the values that there are."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(None, None, None)
        return cls(median(known), min(known), max(known))

    def to_dict(self) -> dict[str, float | None]:
        """For ``--json``."""
        return {"median": self.median, "min": self.least, "max": self.most}


@dataclass(frozen=True, slots=True)
class Row:
    """A policy at a budget on a link, over all orders.

    Attributes:
        note: What the policy had to say of itself at the end.
    """

    policy: str
    budget: int
    link: int
    slots: int
    note: str
    metrics: Mapping[str, Spread]


def measure(grid: Grid, outcomes: Sequence[Outcome]) -> list[tuple[Run, Metrics]]:
    """The numbers of every run, in the order of the runs."""
    by_run = dict(zip(grid.runs, outcomes, strict=True))
    hits = {run: outcome.decode.hit_rate for run, outcome in by_run.items()}
    bounds: dict[tuple[str, int, int], float | None] = {}
    alone: dict[tuple[str, int, int], float | None] = {}
    for run in grid.runs:
        if run.policy in ("demand", "belady"):
            bounds.setdefault((run.policy, run.budget, run.order), hits[run])
        if run.demand_only or not by_run[run].decode.bytes_prefetch + by_run[run].decode.prefetched:
            alone.setdefault((run.policy, run.budget, run.order), hits[run])
    demand = {(run.budget, run.link, run.order): by_run[run] for run in grid.runs if run.policy == "demand"}
    measured = []
    for run, outcome in by_run.items():
        lru, best = (bounds[policy, run.budget, run.order] for policy in ("demand", "belady"))
        own = alone.get((run.policy, run.budget, run.order))
        gap = None
        if own is not None and lru is not None and best is not None and best > lru:
            gap = (own - lru) / (best - lru)
        baseline = demand[run.budget, run.link, run.order]
        measured.append((run, _metrics(outcome, baseline, gap, prefill=grid.prefill)))
    return measured


def _metrics(outcome: Outcome, demand: Outcome, gap: float | None, *, prefill: bool) -> Metrics:
    decode, tokens = outcome.decode, outcome.tokens
    brought = decode.bytes_prefetch + outcome.prefill.bytes_prefetch
    wasted = decode.bytes_prefetch_wasted + outcome.prefill.bytes_prefetch_wasted
    return {
        "hit_rate": decode.hit_rate,
        "covered_rate": decode.covered_rate,
        "late_per_token": decode.late / tokens,
        "missed_per_token": decode.missed / tokens,
        "bytes_per_token": (decode.bytes_demand + decode.bytes_prefetch) / tokens,
        "wasted_rate": wasted / brought if brought else None,
        "stall_per_token": outcome.stall_s / tokens,
        "stall_vs_demand": outcome.stall_s / demand.stall_s if demand.stall_s else None,
        "gap_closed": gap,
        "tpot": outcome.decode_s / tokens,
        "ttft": median(one.ttft_s for one in outcome.requests) if prefill else None,
        "link_busy": outcome.link_busy,
    }


def rows_of(
    grid: Grid, outcomes: Sequence[Outcome], measured: Sequence[tuple[Run, Metrics]], policies: Sequence[str]
) -> list[Row]:
    """One row for each budget, link and policy that was asked for, in this order."""
    groups: dict[tuple[int, int, str], list[tuple[Run, Metrics, str]]] = {}
    full = {(run.policy, run.budget, run.link) for run in grid.runs if not run.demand_only}
    for (run, metrics), outcome in zip(measured, outcomes, strict=True):
        place = (run.policy, run.budget, run.link)
        if run.demand_only and place in full:
            continue  # It ran beside the whole policy, for its gap.
        groups.setdefault((run.budget, run.link, run.policy), []).append((run, metrics, outcome.note))
    rows = []
    for budget, link, policy in sorted(groups, key=lambda key: (key[0], key[1])):
        group = groups[budget, link, policy]
        if policy not in policies:
            continue
        spreads = {name: Spread.of([metrics[name] for _, metrics, _ in group]) for name in METRICS}
        rows.append(Row(policy, budget, link, group[0][0].slots, group[0][2], spreads))
    order = {policy: place for place, policy in enumerate(policies)}
    return sorted(rows, key=lambda row: (row.budget, row.link, order[row.policy]))


def table_of(rows: Sequence[Row], *, orders: int, in_ms: bool, ttft: bool) -> RenderableType:
    """The rows of one budget and link, narrower than 100 columns.

    Args:
        in_ms: Times are seconds, to be shown as milliseconds; otherwise layers.
        ttft: Show the time to first token, in the place of covered.
    """
    from rich.table import Table
    from rich.text import Text

    scale = 1e3 if in_ms else 1.0
    columns: list[tuple[str, str]] = [("POLICY", ""), ("SLOTS", "")]
    columns += [("HIT%", "hit_rate")]
    columns += [("MIN-MAX", "hit_rate spread")] * (orders > 1)
    columns += [] if ttft else [("COV%", "covered_rate")]
    columns += [("LATE", "late_per_token"), ("MISS", "missed_per_token"), ("MIB", "bytes_per_token")]
    columns += [("WASTE%", "wasted_rate"), ("STALL", "stall_per_token"), ("REL", "stall_vs_demand")]
    columns += [("MIN-MAX", "stall_vs_demand spread")] * (orders > 1)
    columns += [("GAP%", "gap_closed"), ("TPOT", "tpot")]
    columns += [("TTFT", "ttft")] * ttft
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for number, (header, _) in enumerate(columns):
        table.add_column(
            header, justify="right" if number else "left", style="" if number else "name", no_wrap=True
        )
    factors = {"bytes_per_token": 1 / MIB, "stall_per_token": scale, "tpot": scale, "ttft": scale}
    factors |= dict.fromkeys(("hit_rate", "covered_rate", "wasted_rate", "gap_closed"), 100.0)
    digits = {"stall_vs_demand": 2, "wasted_rate": 0, "gap_closed": 0}
    for row in rows:
        cells = [row.policy, str(row.slots)]
        for _, name in columns[2:]:
            metric, _, spread = name.partition(" ")
            value = row.metrics[metric]
            factor, places = factors.get(metric, 1.0), digits.get(metric, 1)
            if spread:
                ends = [end for end in (value.least, value.most) if end is not None]
                cells.append("-".join(f"{end * factor:.{places}f}" for end in ends))
            else:
                cells.append("-" if value.median is None else _short(value.median * factor, places))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def rows_json(rows: Sequence[Row], budgets: Sequence[str], links: Sequence[str]) -> list[dict[str, object]]:
    """For ``--json``."""
    return [
        {
            "policy": row.policy,
            "budget": budgets[row.budget],
            "link": links[row.link],
            "slots": row.slots,
            "note": row.note,
            **{name: spread.to_dict() for name, spread in row.metrics.items()},
        }
        for row in rows
    ]


def runs_csv(measured: Sequence[tuple[Run, Metrics]], budgets: Sequence[str], links: Sequence[str]) -> str:
    """Every run on a line of its own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["policy", "budget", "link", "order", "demand_only", "slots", *METRICS])
    for run, metrics in measured:
        values = [metrics[name] for name in METRICS]
        facts = [run.policy, budgets[run.budget], links[run.link], run.order, int(run.demand_only), run.slots]
        writer.writerow([*facts, *("" if value is None else f"{value:.8g}" for value in values)])
    return text.getvalue()


def _short(value: float, places: int) -> str:
    """With fewer digits where there are many before the point: columns are narrow."""
    return f"{value:.{places if abs(value) < 1000 else 0}f}"
