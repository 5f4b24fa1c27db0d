"""Every expert at once: x is the layer, y the rank of an expert's heat within its layer, hottest on top.

The hue says where the expert is, the shade how much it was used lately; what the last token missed is painted over
both. Where there are more experts than places, neighbours in rank share one: it is painted as missed, on its way or
fetched ahead if one of them is, as resident if at least half of them are, and as brightly as the brightest.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.color import Color as TextualColor

from offload.memory.residency import LOADING, RESIDENT
from ui.panes.axis import GUTTER, LayerAxis
from ui.panes.history import FrameHistory
from ui.panes.pane import WAITING, Line, Look, Pane

ABSENT_TIER, RESIDENT_TIER, FRESH_TIER, LOADING_TIER, MISSED_TIER = range(5)
"""What a place can be; of several in one place the highest shows."""

_HUES = ("absent", "resident", "prefetched", "late", "missed")
_NAMES = ("absent", "resident", "ahead", "coming", "missed")
_LEVELS = 4
_THRESHOLDS = (0.004, 0.06, 0.3)
"""Of `FrameHistory.recent`: from here on brighter. Used within about 30 tokens, 6, and nearly always."""
_STRENGTH = {
    ABSENT_TIER: (0.10, 0.20, 0.28, 0.34),
    RESIDENT_TIER: (0.38, 0.58, 0.80, 1.0),
    FRESH_TIER: (0.75, 0.85, 0.95, 1.0),
    LOADING_TIER: (1.0,) * 4,
    MISSED_TIER: (1.0,) * 4,
}
"""How much of its hue a place takes on, by level of use; the rest is background."""
_SHAPES = {
    Look.SHAPES: ("··∙∙", "▒▒▓█", "◆◆◆◆", "↓↓↓↓", "××××"),
    Look.ASCII: ("....", "oo0#", "++++", "~~~~", "xxxx"),
}
_TALLEST = 4
"""Half rows that a place may take."""


class ExpertMap(Pane):
    """The map. It takes all the height that it is given."""

    DEFAULT_CSS = """
    ExpertMap { height: 1fr; min-height: 6; }
    """

    _pairs: dict[int, Style]

    def lines_wanted(self, width: int) -> int:
        return 2 + (30 if self.history is None or self.history.facts is None else self.history.facts.experts)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._pairs = {}

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.latest is None or history.facts is None:
            return [self.title(width, "experts"), [self.piece(WAITING, "dim")]]
        facts = history.facts
        resident = int(np.count_nonzero(history.latest.state == RESIDENT))
        right = f"{resident:,} of {facts.layers * facts.experts:,} resident"
        axis = LayerAxis.fit(facts.layers, max(1, width - GUTTER))
        legend = height >= 8
        rows = max(1, height - 2 - legend)
        body = self._body(history, axis, rows)
        lines = [self.title(width, "experts", right)]
        for number, line in enumerate(body):
            label = "hot" if number == 0 else "cold" if number == len(body) - 1 else ""
            lines.append([self.piece(label.ljust(GUTTER), "dim"), *line])
        lines.append([self.piece(f"{'layer' if axis.width > 8 else '':<{GUTTER}}{axis.ruler()}", "dim")])
        if legend:
            lines.append(self._legend(width))
        return lines

    def places(
        self, history: FrameHistory, axis: LayerAxis, rows: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Tier and level of each place: two arrays [rows or fewer, groups], hottest first."""
        frame, facts = history.latest, history.facts
        assert frame is not None and facts is not None
        shape = (facts.layers, facts.experts)
        tier = np.where(frame.state == RESIDENT, RESIDENT_TIER, ABSENT_TIER)
        tier[(frame.fresh != 0) & (frame.state == RESIDENT)] = FRESH_TIER
        tier[frame.state == LOADING] = LOADING_TIER
        tier[history.just_missed()] = MISSED_TIER
        level = np.digitize(history.recent, _THRESHOLDS)
        order = np.argsort(-history.heat.reshape(shape), axis=1, kind="stable")
        tiers = np.take_along_axis(tier.reshape(shape), order, axis=1).T
        levels = np.take_along_axis(level.reshape(shape), order, axis=1).T
        if facts.experts <= rows and axis.group == 1:
            return tiers, levels
        count = min(rows, facts.experts)
        starts = np.arange(count) * facts.experts // count
        held = _places(np.add, (tiers >= RESIDENT_TIER).astype(np.intp), starts, axis)
        there = _places(np.add, np.ones_like(tiers), starts, axis)
        highest = _places(np.maximum, tiers, starts, axis)
        plain = np.where(held * 2 >= there, RESIDENT_TIER, ABSENT_TIER)
        return np.where(highest > RESIDENT_TIER, highest, plain), _places(np.maximum, levels, starts, axis)

    def _body(self, history: FrameHistory, axis: LayerAxis, rows: int) -> list[Line]:
        if self.look is not Look.COLOUR:
            tiers, levels = self.places(history, axis, rows)
            tall = max(1, min(_TALLEST // 2, rows // len(tiers)))
            tiers, levels = np.repeat(tiers, tall, axis=0), np.repeat(levels, tall, axis=0)
            return [self._shapes(row, axis.cell) for row in zip(tiers.tolist(), levels.tolist(), strict=True)]
        tiers, levels = self.places(history, axis, rows * 2)
        codes = tiers * _LEVELS + levels + 1  # 0 is nothing
        codes = np.repeat(codes, max(1, min(_TALLEST, rows * 2 // len(codes))), axis=0)
        if len(codes) % 2:
            codes = np.vstack([codes, np.zeros_like(codes[:1])])
        pairs = codes[0::2] * 32 + codes[1::2]
        return [self._runs(row, axis.cell) for row in pairs]

    def _shapes(self, row: tuple[list[int], list[int]], cell: int) -> Line:
        """One line of characters, neighbours of one tier in one segment."""
        shapes = _SHAPES[self.look]
        line: Line = []
        for tier, places in groupby(zip(*row, strict=True), key=lambda place: place[0]):
            text = "".join(shapes[tier][level] * cell for _, level in places)
            line.append(self.piece(text, _HUES[tier]))
        return line

    def _runs(self, pairs: NDArray[np.intp], cell: int) -> Line:
        """One line of half blocks, equal neighbours in one segment."""
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        lengths = np.diff(starts, append=len(pairs))
        line: Line = []
        for pair, length in zip(pairs[starts].tolist(), lengths.tolist(), strict=True):
            style = self._pairs.get(pair)
            if style is None:
                style = self._pairs[pair] = Style(color=self._colour(pair // 32), bgcolor=self._colour(pair % 32))
            line.append(Segment("▀" * (length * cell), style))
        return line

    def _colour(self, code: int) -> Color:
        background = self.background_colors[1]
        if code == 0:
            return background.rich_color
        tier, level = divmod(code - 1, _LEVELS)
        hue = self.get_component_styles(f"pane--{_HUES[tier]}").color
        return background.blend(TextualColor(*hue.rgb), _STRENGTH[tier][level]).rich_color

    def _legend(self, width: int) -> Line:
        line: Line = []
        used = 0
        for tier in (RESIDENT_TIER, FRESH_TIER, LOADING_TIER, MISSED_TIER, ABSENT_TIER):
            mark = "■" if self.look is Look.COLOUR else _SHAPES[self.look][tier][3]
            words = f" {_NAMES[tier]} "
            used += 1 + len(words)
            if used > width + 1:
                break
            line += [self.piece(mark, _HUES[tier]), self.piece(words, "dim")]
        return line


def _places(how: np.ufunc, values: NDArray[np.intp], starts: NDArray[np.intp], axis: LayerAxis) -> NDArray[np.intp]:
    """[E, L] ranked values as [places, groups], those that share a place put together by ``how``."""
    grouped: NDArray[np.intp] = how.reduce(axis.grouped(how.reduceat(values, starts, axis=0)), axis=-1)
    return grouped
