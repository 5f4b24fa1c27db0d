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
    """One picture: lines over `places`, from 0 on.

    Attributes:
        highest: Where it ends at the latest: what rises above leaves the picture, and says so by that.
    """

    title: str
    places: Sequence[str]
    series: Sequence[Series]
    highest: float | None = None


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
                xs, ys = [x for x, _ in points], [y for _, y in points]
                ax.plot(xs, ys, clip_on=picture.highest is not None, **looks[series.name].line)
            ax.set_xticks(places, picture.places)
            ax.set_xlim(-0.5, len(picture.places) - 0.5)
            top = ax.get_ylim()[1]
            ax.set_ylim(0, top if picture.highest is None else min(top, picture.highest))
        legend(figure, names, looks)
    return figure
