"""Panels of lines over a few places, such as budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from finemoe_cli.figures.canvas import legend, looks_of, panels, styled


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `values` has one for each place of the panel; None leaves a hole."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: lines over `places`, from 0 on."""

    title: str
    places: Sequence[str]
    series: Sequence[Series]


def draw_lines(title: str, pictures: Sequence[Panel], known: Sequence[str] = (), *, columns: int = 3) -> Figure:
    """A figure of panels side by side, with one legend for all below them.

    Args:
        known: All names of series that there may be; each then looks the same in every figure.
        columns: Panels in a row, at most.
    """
    names = list(dict.fromkeys(series.name for picture in pictures for series in picture.series))
    looks = looks_of(names, known)
    with styled():
        figure, axes = panels(title, len(pictures), columns)
        for ax, picture in zip(axes, pictures, strict=True):
            ax.set_title(picture.title)
            places = range(len(picture.places))
            for series in picture.series:
                points = [(x, y) for x, y in zip(places, series.values, strict=True) if y is not None]
                ax.plot([x for x, _ in points], [y for _, y in points], clip_on=False, **looks[series.name].line)
            ax.set_xticks(places, picture.places)
            ax.set_xlim(-0.5, len(picture.places) - 0.5)
            ax.set_ylim(bottom=0)
        legend(figure, names, looks)
    return figure
