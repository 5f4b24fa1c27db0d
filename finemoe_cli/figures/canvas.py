"""What all figures have in common: looks that are legible in grey, and files that are the same every time.

No figure goes through ``pyplot``, which would keep it, nor through the user's own settings of matplotlib.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finemoe_cli.figures import FORMATS as FORMATS

INK, RULE, PAPER = "#20242c", "#d9dde5", "#ffffff"
DOTTED: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (1, 1.5))}
"""Of what lines are to be read against."""
SHADES = "Blues"
"""Of heatmaps: its lightness falls evenly, so it says the same in grey."""

HUES = (
    "#0f4fae", "#8a93a6", "#d99f1a", "#14a882", "#9b2fa0", "#c02a08",
    "#5d6b82", "#4aa3df", "#7a4a12", "#111418", "#6b8e23",
)  # fmt: skip
"""Of series, on paper."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2.5)), (0, (1.6, 1.6)), (0, (7, 2.5, 1.6, 2.5)), (0, (1, 2.6)))
_MARKERS = ("o", "s", "D", "^", "X", "P")
_HATCHES = ("", "////", "....", "xx", "\\\\\\\\", "++", "--")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "savefig.dpi": 144,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_DATES: dict[str, dict[str, None]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}

_WIDEST = 28
"""Characters of a panel's title."""

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, and exactly what it shows.

    Attributes:
        name: Of its files.
        title: What it is of.
        says: What can be read from it, for those who do not know or cannot see it.
        columns: Of the table of what it shows.
        rows: A line for each point, bar or cell.
    """

    name: str
    title: str
    says: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def table(self) -> str:
        """What it shows, as CSV; numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


@dataclass(frozen=True, slots=True)
class Look:
    """How one series looks in every panel: a hue of its own, and a dash, a marker and a hatch for where hues are
    not seen."""

    hue: str
    dash: Any
    marker: str
    hatch: str

    @property
    def line(self) -> dict[str, Any]:
        """For ``Axes.plot``."""
        return {"color": self.hue, "linestyle": self.dash, "marker": self.marker}

    @property
    def bar(self) -> dict[str, Any]:
        """For ``Axes.bar`` and its like."""
        return {"facecolor": self.hue, "edgecolor": PAPER, "hatch": self.hatch, "linewidth": 0.6}


def looks_of(names: Iterable[str], known: Iterable[str] = ()) -> dict[str, Look]:
    """A look for each name.

    Args:
        known: All names that there may be; each then looks the same in every figure.
    """
    return {
        name: Look(
            HUES[place % len(HUES)],
            _DASHES[place % len(_DASHES)],
            _MARKERS[place % len(_MARKERS)],
            _HATCHES[place % len(_HATCHES)],
        )
        for place, name in enumerate(dict.fromkeys([*known, *names]))
    }


def panels(
    title: str, count: int, columns: int, *, width: float = 3.3, height: float = 2.5
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` empty panels, at most `columns` in a row, each `width` x `height` inches.

    To be called, as all that draws, within `styled`.
    """
    across = min(columns, count)
    down = -(-count // across)
    figure = Figure(figsize=(max(across * width, 5.2), down * height + 0.7), layout="constrained")
    figure.suptitle(title, x=0.012, horizontalalignment="left")
    grid = figure.subplots(down, across, squeeze=False)
    axes: list[Axes] = list(grid.flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def legend(
    figure: Figure, names: Sequence[str], looks: dict[str, Look], *, bars: bool = False, dotted: str = ""
) -> None:
    """One for all panels, below them. dotted: what a `DOTTED` line is, where there is one."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(**looks[name].bar) if bars else Line2D([], [], **looks[name].line) for name in names
    ]
    if dotted:
        handles.append(Line2D([], [], **DOTTED))
    below(figure, handles, [*names, dotted] if dotted else names)


def below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend of `handles` below all panels."""
    widest = max([*map(len, labels), 8])
    columns = max(1, min(len(labels), int(figure.get_figwidth() / (0.55 + 0.075 * widest))))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.6)


def titled(label: str, words: str) -> str:
    """The title of a panel where several sources have one; a long label is shortened to the panel's width."""
    return f"{label if len(label) <= _WIDEST else label[: _WIDEST - 1] + '…'}\n{words}"


def whole_numbers(axis: Axis) -> None:
    """No ticks between the numbers of layers, experts or tokens."""
    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))


@contextmanager
def styled() -> Iterator[None]:
    """Within the block, what is drawn has finemoe's style whatever the user's settings of matplotlib are."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # It tells of fonts that it looks for.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def render(figure: Figure, kind: str, name: str) -> bytes:
    """The file of a figure; the same bytes for the same figure.

    Args:
        kind: One of `FORMATS`.
        name: Makes the ids in an SVG file differ from those of other figures.
    """
    file = io.BytesIO()
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format=kind, metadata=_DATES[kind])
    return file.getvalue()
