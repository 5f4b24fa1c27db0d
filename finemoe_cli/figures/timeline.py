"""A request as it went: when each token came, what of its time was waiting, and how many experts were hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from finemoe_cli.evaluation.folder import Row
from finemoe_cli.figures.canvas import INK, PAPER, Cell, Drawing, below, panels
from finemoe_cli.figures.sources import Combination, Source
from offload.errors import NotFound

COMBINATIONS = 6
"""Panels at most."""

WAITING = "#0f3a86"
_LEAST = 0.02
"""Height of a token without a hit, so that its time is seen."""
_PROMPT: dict[str, Any] = {"facecolor": "#b9c0cc", "edgecolor": PAPER, "hatch": "--", "linewidth": 0}
_COMPUTING: dict[str, Any] = {"facecolor": "#8fb4ea", "edgecolor": PAPER, "hatch": ""}
_WAITING: dict[str, Any] = {"facecolor": WAITING, "edgecolor": "#c8d6ee", "hatch": "////"}


def draw_timeline(sources: Sequence[Source], request: str | None = None) -> Drawing | str:
    """A panel for each combination of the first run. Returns why not if it cannot be drawn.

    Args:
        request: ``CONVERSATION/TURN``, or a conversation for its first turn; None for the one in the middle, of
            those that were answered under all combinations, by the time it took.

    Raises:
        NotFound: It was not answered.
    """
    run = next((one for one in sources if one.combinations), None)
    if run is None:
        return "no run with an answered request was given"
    answered = [{(row["conversation"], row["turn"]): row for row in one.rows} for one in run.combinations]
    every = [key for key in answered[0] if all(key in rows for rows in answered)]
    if request is not None:
        talk, _, turn = request.rpartition("/") if "/" in request else (request, "", "1")
        key = (talk, int(turn)) if turn.isdecimal() else (request, 1)
        if not any(key in rows for rows in answered):
            raise NotFound(f"{run.path} has no answered request '{request}'", "requests.csv lists them")
    elif not every:
        return f"no request of {run.path} was answered under all combinations"
    else:
        key = sorted(every, key=lambda one: (answered[0][one]["e2e_s"], one))[len(every) // 2]
    shown = [(one, rows[key]) for one, rows in zip(run.combinations, answered, strict=True) if key in rows]
    left_out = len(shown) - COMBINATIONS
    shown = shown[:COMBINATIONS]
    name = f"{key[0]}/{key[1]}"
    figure, axes = panels(f"Request {name}", len(shown), 1, width=8.6, height=1.15)
    rows: list[list[Cell]] = []
    longest = max(_spans(row)[-1][1] for _, row in shown)
    for ax, (combination, row) in zip(axes, shown, strict=True):
        rows += _draw(ax, combination, row)
        first = _spans(row)[0][1]
        ax.axvline(first, color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)))
        ax.set_title(f"{combination.name}: first token after {first:.2f} s")
        ax.set_ylabel("hit rate")
        ax.tick_params(labelbottom=ax is axes[-1])
        ax.set_xlim(0, longest)
        ax.set_ylim(0, 1)
        ax.set_yticks([0, 0.5, 1])
    axes[-1].set_xlabel("seconds since the engine began with the request")
    below(
        figure,
        [Patch(**looks) for looks in (_PROMPT, _COMPUTING, _WAITING)],
        ["the prompt, up to the first token", "a token: computing", "a token: waiting for experts"],
    )
    return Drawing(
        "timeline",
        f"Request {name}",
        "Each token is a bar as wide as its time and as high as the share of its experts that nothing was waited "
        "for; the dark part of its time was waiting."
        + (f" {left_out} more combinations are left out." if left_out > 0 else ""),
        figure,
        ("combination", "token", "begin_s", "end_s", "stall_s", "resident", "prefetched", "late", "missed"),
        rows,
    )


def _spans(row: Row) -> list[tuple[float, float]]:
    """When each token's time begins and ends, from the moment that the engine began with the request."""
    queued = row.get("queue_s") or 0.0
    ends = [time - queued for time in row["token_times_s"]]
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def _draw(ax: Axes, combination: Combination, row: Row) -> list[list[Cell]]:
    """Draws a request; returns what is drawn."""
    spans, passes, prompt = _spans(row), row["passes"], row["prefill"]
    ax.broken_barh([(0, spans[0][1])], (0, max(prompt["hit_rate"] or 0, _LEAST)), **_PROMPT)
    kinds = ("resident", "prefetched", "late", "missed")
    lines: list[list[Cell]] = [
        [combination.name, 1, 0.0, spans[0][1], prompt["stall_s"], *(prompt[kind] for kind in kinds)]
    ]
    # The first token comes with the prompt; each later one with a pass of its own.
    for token, (begin, end) in enumerate(spans[1:], 2):
        if token - 2 >= len(passes["stall_s"]):
            break
        counts = [passes[kind][token - 2] for kind in kinds]
        stall = min(passes["stall_s"][token - 2], end - begin)
        height = max((counts[0] + counts[1]) / max(sum(counts), 1), _LEAST)
        ax.broken_barh([(begin, stall)], (0, height), linewidth=0, **_WAITING)
        ax.broken_barh([(begin + stall, end - begin - stall)], (0, height), linewidth=0.3, **_COMPUTING)
        lines.append([combination.name, token, begin, end, passes["stall_s"][token - 2], *counts])
    return lines
