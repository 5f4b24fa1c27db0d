"""Hit rate and latency by policy and budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from finemoe_cli.figures.canvas import Cell, Drawing, legend, looks_of, panels, titled
from finemoe_cli.figures.sources import Source
from offload.config import POLICIES

_METRICS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("hit_rate", "Hit rate of decoding", lambda one: one["decode"]["hit_rate"]),
    ("tpot_s", "TPOT, ms: median", lambda one: one["tpot_s"]["median"]),
    ("ttft_s", "TTFT, ms: median", lambda one: one["ttft_s"]["median"]),
)


def draw_policies(sources: Sequence[Source]) -> Drawing | str:
    """A row of panels for each run; over seeds, the mean and the range. Returns why not if it cannot be drawn."""
    runs = [one for one in sources if one.combinations]
    if not runs:
        return "no run with an answered request was given"
    policies = list(dict.fromkeys(name for run in runs for name in run.policies))
    looks = looks_of(policies, POLICIES)
    figure, axes = panels("Policies by budget", len(_METRICS) * len(runs), len(_METRICS))
    rows: list[list[Cell]] = []
    alone = all(len(run.places) == 1 for run in runs)
    for number, run in enumerate(runs):
        places = run.places
        for (metric, title, value_of), ax in zip(_METRICS, axes[number * len(_METRICS) :], strict=False):
            ax.set_title(title if len(runs) == 1 else titled(run.label, title))
            scale = 1 if metric == "hit_rate" else 1e3
            for at, policy in enumerate(run.policies):
                points = []
                for x, place in enumerate(places):
                    values = [v for one in run.of(policy, place) if (v := value_of(one.metrics)) is not None]
                    if values:
                        low, mean, high = min(values), fmean(values), max(values)
                        points.append((x, scale * mean, scale * (mean - low), scale * (high - mean)))
                        rows.append([run.label, policy, place, metric, len(values), mean, low, high])
                look = looks[policy]
                if alone:
                    for _, mean, below, above in points:
                        ax.bar(at, mean, width=0.75, **look.bar)
                        if below or above:
                            ax.errorbar(at, mean, [[below], [above]], color="#20242c", capsize=3, linestyle="none")
                else:
                    xs, means, *spread = ([point[part] for point in points] for part in range(4))
                    ax.errorbar(xs, means, spread, capsize=3, clip_on=False, **look.line)
            if alone:
                ax.set_xticks([])
                ax.set_xlabel(f"budget: {places[0]}")
            else:
                ax.set_xlabel("budget")
                ax.set_xticks(range(len(places)), places)
                ax.set_xlim(-0.4, len(places) - 0.6)
            ax.set_ylim(bottom=0)
            if metric == "hit_rate":
                ax.set_ylim(top=1)
    legend(figure, policies, looks, bars=alone)
    return Drawing(
        "policies",
        "Policies by budget",
        "Share of a decoded token's experts that nothing was waited for, time per output token and time to first "
        "token, for each policy at each budget.",
        figure,
        ("data", "policy", "budget", "metric", "seeds", "mean", "min", "max"),
        rows,
    )
