"""Hit rate by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finemoe_cli.figures.canvas import Cell, Drawing, legend, looks_of, panels, titled, whole_numbers
from finemoe_cli.figures.sources import Combination, Source
from offload.config import POLICIES

_PHASES = (("decode", "Decoding"), ("prefill", "Prompts"))


def draw_layers(sources: Sequence[Source]) -> Drawing | str:
    """A row of panels for decoding and one for prompts, one for each budget. Returns why not if it cannot be
    drawn."""
    cells = [(run, place) for run in sources for place in run.places]
    if not cells:
        return "no run with an answered request was given"
    several = len({run.label for run, _ in cells}) > 1
    policies = list(dict.fromkeys(name for run, _ in cells for name in run.policies))
    looks = looks_of(policies, POLICIES)
    figure, axes = panels("Hit rate by layer", 2 * len(cells), len(cells))
    rows: list[list[Cell]] = []
    for number, ((phase, title), (run, place)) in enumerate((phase, cell) for phase in _PHASES for cell in cells):
        ax = axes[number]
        ax.set_title(titled(run.label, f"{title}: {place}") if several else f"{title}: {place}")
        for policy in run.policies:
            rates = hit_rates(run.of(policy, place), phase)
            look = looks[policy].line | {"markevery": max(1, len(rates) // 8), "markersize": 4}
            ax.plot(np.arange(len(rates)), rates, clip_on=False, **look)
            rows += [
                [run.label, policy, place, phase, layer, None if np.isnan(rate) else float(rate)]
                for layer, rate in enumerate(rates)
            ]
        ax.set_xlabel("layer with experts")
        whole_numbers(ax.xaxis)
        ax.set_ylim(0, 1)
        if number % len(cells) == 0:
            ax.set_ylabel("hit rate")
    legend(figure, policies, looks)
    return Drawing(
        "layers",
        "Hit rate by layer",
        "Share of each layer's experts that nothing was waited for. What is read ahead can help a layer only if "
        "something was known before it: first layers show what a policy knows of a token before it begins.",
        figure,
        ("data", "policy", "budget", "phase", "layer", "hit_rate"),
        rows,
    )


def hit_rates(combinations: Sequence[Combination], phase: str) -> NDArray[np.float64]:
    """[L]: of the selections of all requests together; not a number where a layer has none."""
    found = [row["layers"][phase] for one in combinations for row in one.rows]
    if not found:
        return np.zeros(0)
    kinds = {
        name: np.sum([one[name] for one in found], axis=0) for name in ("resident", "prefetched", "late", "missed")
    }
    total = np.sum(list(kinds.values()), axis=0)
    hits = kinds["resident"] + kinds["prefetched"]
    return np.asarray(np.divide(hits, total, out=np.full(len(total), np.nan), where=total > 0))
