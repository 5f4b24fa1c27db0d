"""How latencies are distributed: time to first token, and from token to token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from finemoe_cli.evaluation.folder import Row
from finemoe_cli.figures.canvas import Cell, Drawing, legend, looks_of, panels, titled
from finemoe_cli.figures.sources import Source
from offload.config import POLICIES

FACTOR = 4
"""Times that differ by less are shown on a linear axis."""
POINTS = 400
"""Of one line at most: more are replaced by so many quantiles."""

_METRICS: tuple[tuple[str, str, Callable[[Row], Iterable[float]]], ...] = (
    ("ttft_s", "Time to first token", lambda row: [row["ttft_s"]]),
    ("itl_s", "Token to token", lambda row: row["itl_s"]),
)


def draw_latency(sources: Sequence[Source]) -> Drawing | str:
    """A row of panels for each metric, one for each budget. Returns why not if it cannot be drawn."""
    cells = [(run, place) for run in sources for place in run.places]
    if not cells:
        return "no run with an answered request was given"
    several = len({run.label for run, _ in cells}) > 1
    policies = list(dict.fromkeys(name for run, _ in cells for name in run.policies))
    looks = looks_of(policies, POLICIES)
    figure, axes = panels("Latencies: share of the values that are no longer", 2 * len(cells), len(cells))
    rows: list[list[Cell]] = []
    for number, ((metric, title, values_of), (run, place)) in enumerate(
        (metric, cell) for metric in _METRICS for cell in cells
    ):
        ax = axes[number]
        ax.set_title(titled(run.label, f"{title}: {place}") if several else f"{title}: {place}")
        for policy in run.policies:
            values = [v for one in run.of(policy, place) for row in one.rows for v in values_of(row)]
            if not values:
                continue
            times, shares = distribution(values)
            look = looks[policy].line | {"markevery": max(1, len(times) // 6), "markersize": 4}
            ax.plot(1e3 * times, shares, drawstyle="steps-post", **look)
            rows += [
                [run.label, policy, place, metric, float(time), float(share)]
                for time, share in zip(times, shares, strict=True)
            ]
        ax.set_xlabel("ms")
        ax.set_ylim(0, 1)
        if number % len(cells) == 0:
            ax.set_ylabel("share")
    # Side by side the same metric is read against the same times.
    for begin in (0, len(cells)):
        own = [ax for ax in axes[begin : begin + len(cells)] if ax.lines]
        if own:
            times = np.concatenate([np.asarray(line.get_xdata(), float) for ax in own for line in ax.lines])
            for ax in own:
                _times_from(ax, float(times.min()), float(times.max()))
    legend(figure, policies, looks)
    return Drawing(
        "latency",
        "Latencies",
        "For each time, the share of requests whose first token came no later, and of tokens that came no later "
        "after the one before. A line farther to the left is faster; where one turns to the right is its tail.",
        figure,
        ("data", "policy", "budget", "metric", "seconds", "share"),
        rows,
    )


def distribution(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Values in rising order, and the share of all that are no larger; many are thinned to `POINTS` quantiles."""
    ordered = np.sort(np.asarray(values, float))
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    if len(ordered) > POINTS:
        kept = np.unique(np.linspace(0, len(ordered) - 1, POINTS).round().astype(int))
        ordered, shares = ordered[kept], shares[kept]
    return ordered, shares


def _times_from(ax: Axes, low: float, high: float) -> None:
    """Have an axis for times from `low` to `high`: by factors, where there are any to speak of."""
    if high < FACTOR * low:
        room = 0.05 * (high - low) or 0.05 * high
        ax.set_xlim(low - room, high + room)
        return
    ax.set_xscale("log")
    ax.set_xlim(low / 1.1, 1.1 * high)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
