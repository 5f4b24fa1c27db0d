"""How well a layer's experts are foreseen from some layers before it."""

from __future__ import annotations

from collections.abc import Sequence

from finemoe_cli.figures.canvas import DOTTED, Cell, Drawing, legend, looks_of, panels, titled, whole_numbers
from finemoe_cli.figures.sources import Source
from offload.trace.recall import PREDICTORS


def draw_distance(sources: Sequence[Source]) -> Drawing | str:
    """A panel for each trace. Returns why not if it cannot be drawn."""
    known = [(one, one.recall) for one in sources if one.recall is not None]
    if not known:
        return "no trace was given: finemoe trace record --residuals makes one"
    names = list(dict.fromkeys(name for _, recall in known for name in recall.by_predictor))
    looks = looks_of(names, PREDICTORS)
    figure, axes = panels("Experts foreseen, by distance", len(known), 2, width=4.6, height=2.9)
    rows: list[list[Cell]] = []
    for ax, (source, recall) in zip(axes, known, strict=True):
        for name, values in recall.by_predictor.items():
            points = [(distance, value) for distance, value in enumerate(values, 1) if value is not None]
            ax.plot([x for x, _ in points], [y for _, y in points], clip_on=False, **looks[name].line)
            rows += [[source.label, name, distance, value] for distance, value in points]
        ax.axhline(recall.by_chance, **DOTTED)
        rows.append([source.label, "chance", None, recall.by_chance])
        ax.set_ylim(0, 1)
        ax.set_xlim(0.8, recall.distances + 0.2)
        ax.set_title(titled(source.label, f"{recall.tokens:,} tokens"))
        ax.set_xlabel("layers ahead")
        ax.set_ylabel("share of the experts foreseen")
        whole_numbers(ax.xaxis)
    legend(figure, names, looks, dotted="by chance")
    return Drawing(
        "distance",
        "Experts foreseen, by distance",
        "Of the experts that a layer chooses for a decoded token, the share that are among as many foreseen "
        "some layers before. Learnt from some of the trace's conversations, asked of the others. Dotted: chance.",
        figure,
        ("data", "predictor", "layers_ahead", "recall"),
        rows,
    )
