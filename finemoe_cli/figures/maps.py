"""Coarse against fine: what a request uses of the experts, and what single tokens do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from finemoe_cli.evaluation.routing import RoutingRecord
from finemoe_cli.figures.canvas import SHADES, Cell, Drawing, panels, titled, whole_numbers
from finemoe_cli.figures.sources import Source
from offload.telemetry.counters import Phase

ITERATIONS = 2
"""Single tokens that are shown of a request."""
_PIXELS = 8
"""A cell's, in each direction: viewers of SVG and PDF would blur the edges of single ones."""


def draw_maps(sources: Sequence[Source]) -> Drawing | str:
    """A row of heatmaps for each source. Returns why not if it cannot be drawn."""
    known = [(one, one.routing) for one in sources if one.routing is not None and len(one.routing.shown_map)]
    if not known:
        return "no source has recorded what the routers chose"
    across = 2 + ITERATIONS
    figure, axes = panels("Expert maps: coarse and fine", across * len(known), across, width=2.7, height=2.5)
    rows: list[list[Cell]] = []
    for number, (source, routing) in enumerate(known):
        pictures = _pictures(routing)
        most = max(float(np.quantile(values, 0.995)) for _, values in pictures)
        own: list[Axes] = axes[number * across : (number + 1) * across]
        for place, (title, values) in enumerate(pictures):
            ax = own[place]
            layers, experts = values.shape
            picture = ax.imshow(
                np.kron(values, np.ones((_PIXELS, _PIXELS))),
                extent=(-0.5, experts - 0.5, layers - 0.5, -0.5),
                cmap=SHADES, vmin=0, vmax=most, aspect="auto", interpolation="none",
            )  # fmt: skip
            ax.set_title(title if len(known) == 1 or place else titled(source.label, title))
            ax.grid(visible=False)
            ax.set_xlabel("expert")
            whole_numbers(ax.xaxis)
            whole_numbers(ax.yaxis)
            rows += [
                [source.label, title, layer, expert, float(value)]
                for layer, of_layer in enumerate(values)
                for expert, value in enumerate(of_layer)
            ]
        own[0].set_ylabel("layer with experts")
        for unused in own[len(pictures) :]:
            unused.remove()
        figure.colorbar(picture, ax=own[: len(pictures)], label="share of its layer", extend="max", pad=0.01)
    return Drawing(
        "maps",
        "Expert maps: coarse and fine",
        "How much of each layer (down) goes to each expert (across). Coarse are counts of the experts that were "
        "chosen, of all requests and of one; fine are the routers' probabilities in single iterations of that "
        "request: one for each decoded token.",
        figure,
        ("data", "map", "layer", "expert", "share"),
        rows,
    )


def _pictures(routing: RoutingRecord) -> list[tuple[str, NDArray[np.float64]]]:
    """Titles and shares [L, E], of the request among those kept that is longest."""
    request = int(routing.decoded[routing.shown].argmax())
    steps = [
        (int(step), kept)
        for (place, step), kept in zip(routing.shown_step, routing.shown_map, strict=True)
        if place == request
    ]
    # The last one, and one in the middle; the first token still follows the prompt.
    chosen = [steps[at] for at in sorted({(len(steps) - 1) // 2, len(steps) - 1})][-ITERATIONS:]
    name = str(routing.names[routing.shown[request]])
    decoded = int(routing.decoded[routing.shown[request]])
    return [
        (f"{len(routing.names)} requests", _shares(routing.counts[Phase.DECODE])),
        (f"{name}: {decoded} tokens", _shares(routing.shown_counts[request])),
        *((f"its iteration {step}", _shares(kept)) for step, kept in chosen),
    ]


def _shares(weights: NDArray[np.floating | np.integer]) -> NDArray[np.float64]:
    """Each layer's weights as shares of their sum."""
    wide = weights.astype(np.float64)
    return np.asarray(wide / np.maximum(wide.sum(axis=1, keepdims=True), 1e-30))
