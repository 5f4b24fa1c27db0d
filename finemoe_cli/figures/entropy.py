"""How evenly experts are used: entropies of single tokens, of whole requests, and of ever more tokens together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finemoe_cli.evaluation.routing import RoutingRecord
from finemoe_cli.figures.canvas import DOTTED, Cell, Drawing, legend, looks_of, panels, titled, whole_numbers
from finemoe_cli.figures.latency import distribution
from finemoe_cli.figures.sources import Source

FINE, COARSE, CHOSEN = "fine: one token", "coarse: probabilities", "coarse: choices"
_KINDS = (FINE, COARSE, CHOSEN)
_NO_ROUTING = "no source has recorded what the routers chose"
_EVEN = "all experts alike"


def draw_entropy(sources: Sequence[Source]) -> Drawing | str:
    """Two panels for each source: the distribution, and means by layer. Returns why not if it cannot be drawn."""
    known = _known(sources)
    if not known:
        return _NO_ROUTING
    looks = looks_of(_KINDS)
    figure, axes = panels("Entropy of the use of experts", 2 * len(known), 2, width=4.0)
    rows: list[list[Cell]] = []
    for number, (source, routing) in enumerate(known):
        spread, by_layer = axes[2 * number : 2 * number + 2]
        even = float(np.log(routing.experts))
        for kind, values in _values(routing).items():
            look = looks[kind].line
            entropies, shares = distribution(values.ravel().tolist())
            often = look | {"markevery": max(1, len(entropies) // 6), "markersize": 4}
            spread.plot(entropies, shares, drawstyle="steps-post", **often)
            means = values.mean(axis=0)
            by_layer.plot(np.arange(len(means)), means, **look | {"markersize": 4})
            rows += [
                [source.label, kind, "share", float(entropy), float(share)]
                for entropy, share in zip(entropies, shares, strict=True)
            ]
            rows += [[source.label, kind, "layer", layer, float(mean)] for layer, mean in enumerate(means)]
        spread.axvline(even, **DOTTED)
        by_layer.axhline(even, **DOTTED)
        spread.set_xlim(0, 1.05 * even)
        spread.set_ylim(0, 1)
        by_layer.set_ylim(0, 1.05 * even)
        spread.set_title(_title(source, known, "cumulative share"))
        by_layer.set_title(_title(source, known, "mean by layer"))
        spread.set_xlabel("entropy, nats")
        by_layer.set_xlabel("layer with experts")
        by_layer.set_ylabel("entropy, nats")
        whole_numbers(by_layer.xaxis)
    legend(figure, _KINDS, looks, dotted=_EVEN)
    return Drawing(
        "entropy",
        "Entropy of the use of experts",
        "The lower, the fewer experts a layer needs. A single token's routing is far from even; added up over a "
        "request, as coarse trackers do, it comes near to the dotted line, where all experts are used alike. "
        "Left: the share of tokens and layers, or of requests and layers, that have no more.",
        figure,
        ("data", "kind", "of", "x", "y"),
        rows,
    )


def draw_entropy_steps(sources: Sequence[Source]) -> Drawing | str:
    """A panel for each source: entropy over the tokens that are added up. Returns why not if it cannot be drawn."""
    known = _known(sources)
    if not known:
        return _NO_ROUTING
    looks = looks_of(_KINDS)
    figure, axes = panels(
        "Entropy of the first tokens together", len(known), 2, width=6.4 if len(known) == 1 else 4.0
    )
    rows: list[list[Cell]] = []
    for ax, (source, routing) in zip(axes, known, strict=True):
        even = float(np.log(routing.experts))
        by_step = {
            FINE: routing.by_step(routing.fine.mean(axis=1)),
            COARSE: routing.by_step(routing.coarse_by_step),
            CHOSEN: routing.by_step(routing.chosen_by_step),
        }
        for kind, values in by_step.items():
            steps = np.arange(1, len(values) + 1)
            look = looks[kind].line | {"markevery": max(1, len(values) // 8), "markersize": 4}
            ax.plot(steps, values, clip_on=False, **look)
            rows += [[source.label, kind, step, float(value)] for step, value in enumerate(values, 1)]
        ax.axhline(even, **DOTTED)
        ax.set_ylim(0, 1.05 * even)
        ax.set_xlim(1, max(2, len(by_step[FINE])))
        ax.set_title(_title(source, known, f"{len(routing.names)} requests"))
        ax.set_xlabel("decoded tokens added up")
        ax.set_ylabel("entropy, nats")
        whole_numbers(ax.xaxis)
    legend(figure, _KINDS, looks, dotted=_EVEN)
    return Drawing(
        "entropy-steps",
        "Entropy of the first tokens together",
        "What counting knows fades as tokens are added up: coarse lines rise towards the dotted one, where all "
        "experts are used alike. The fine line is the single token at each place. Means over layers and requests; "
        "a request counts as long as it goes on.",
        figure,
        ("data", "kind", "tokens", "entropy"),
        rows,
    )


def _known(sources: Sequence[Source]) -> list[tuple[Source, RoutingRecord]]:
    return [(one, one.routing) for one in sources if one.routing is not None and one.routing.steps.sum()]


def _values(routing: RoutingRecord) -> dict[str, NDArray[np.floating]]:
    """Entropies [tokens or requests, L]."""
    return {FINE: routing.fine, COARSE: routing.coarse, CHOSEN: routing.chosen}


def _title(source: Source, known: Sequence[object], words: str) -> str:
    return words if len(known) == 1 else titled(source.label, words)
