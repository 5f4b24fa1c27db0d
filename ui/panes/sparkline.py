"""Graphs over time whose scale does not jump: a scale of round numbers that only grows, and bars drawn by it."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style

from ui.panes.history import FrameHistory
from ui.panes.pane import Line, Look

BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*%#"
_STEPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
_DRAWN_MARKS = ("budget", "policy", "profile", "reset")


class Scale:
    """The top of a graph: 1, 2 or 5 times a power of ten, and never smaller than it was.

    Args:
        smallest: Where it begins.
    """

    def __init__(self, smallest: float) -> None:
        self._smallest = self.top = smallest
        self._generation = -1

    def include(self, values: NDArray[np.float64], generation: int = 0) -> float:
        """The top that has room for ``values`` (NaNs aside) and all before; a new generation begins anew."""
        if generation != self._generation:
            self._generation, self.top = generation, self._smallest
        known = values[np.isfinite(values)]
        if known.size and (peak := float(known.max())) > self.top:
            self.top = round_up(peak)
        return self.top


def round_up(value: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (and of 0.1, 0.2, 0.5 ...) that is not below ``value`` > 0."""
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 2, 5, 10, 20) if step * power >= value)


def time_step(columns: int, seconds: float) -> float:
    """Seconds a column, so that ``columns`` of them show at least about ``seconds``."""
    return next((step for step in _STEPS if step * columns >= seconds), _STEPS[-1])


def bars(values: NDArray[np.float64], rows: int, top: float, look: Look) -> list[str]:
    """Bars of ``rows`` lines, top line first, one column a value; NaN leaves its column empty.

    Anything above zero shows; what is above ``top`` is cut.
    """
    blocks = _ASCII if look is Look.ASCII else BLOCKS
    levels = [
        min(rows * 8, max(1, ceil(value / top * rows * 8 - 1e-9))) if value > 0 else 0
        for value in np.nan_to_num(values).tolist()
    ]
    return ["".join(blocks[min(8, max(0, level - row * 8))] for level in levels) for row in range(rows - 1, -1, -1)]


def graph(
    values: NDArray[np.float64],
    rows: int,
    top: float,
    look: Look,
    style: Style,
    floor_style: Style,
    mark_style: Style,
    marks: Collection[int] = (),
) -> list[Line]:
    """`bars` with a base line where there is nothing, and ticks through all rows in the columns ``marks``."""
    tick, base = ("|", "_") if look is Look.ASCII else ("╎", "▁")

    def styled(column: int, character: str, last: bool) -> tuple[str, Style]:
        if column in marks:
            return (character if character != " " else tick), mark_style
        if character == " " and last:
            return base, floor_style
        return character, style

    lines: list[Line] = []
    for number, text in enumerate(bars(values, rows, top, look)):
        cells = [styled(column, character, number == rows - 1) for column, character in enumerate(text)]
        # Neighbours of one style in one segment.
        runs = groupby(cells, key=lambda cell: id(cell[1]))
        lines.append([_run(list(run)) for _, run in runs])
    return lines


def _run(cells: list[tuple[str, Style]]) -> Segment:
    return Segment("".join(character for character, _ in cells), cells[0][1])


def mark_columns(history: FrameHistory, columns: int, step: float) -> set[int]:
    """The columns of `FrameHistory.per_second` in which a budget, a policy or a reset took effect."""
    start = float(history.edges(columns, step)[0])
    found = (floor((mark.time_s - start) / step) for mark in history.marks if mark.kind in _DRAWN_MARKS)
    return {column for column in found if 0 <= column < columns}
