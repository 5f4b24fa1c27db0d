"""Every expert at once: x is the layer, y the rank of an expert's heat within its layer, hottest on top.

The hue says where the expert is, the shade how much it was used lately, and a miss of the last moment is painted
over both. Where there are more experts than places, neighbours in rank share one: it is painted as missed, on its way
or fetched ahead if one of them is, as resident if at least half of them are, and as brightly as the brightest.
"""

from __future__ import annotations

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
_MOMENT = 1.0
"""Seconds for which a miss shows."""


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
        right = f"{resident:,} of {facts.layers * facts.experts:,} resident".replace(",", " ")
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
        """Tier and level of each place: two arrays [rows or fewer, groups]."""
        frame, facts = history.latest, history.facts
        assert frame is not None and facts is not None
        shape = (facts.layers, facts.experts)
        order = np.argsort(-history.heat.reshape(shape), axis=1, kind="stable")

        def ranked(values: NDArray[np.generic]) -> NDArray[np.generic]:
            """[L*E] as [groups, group * per, ranks]: everything that shares a place side by side."""
            sorted_values = np.take_along_axis(values.reshape(shape), order, axis=1)
            layers = axis.grouped(sorted_values.T)  # [E, groups, group]
            missing = -len(layers) % per
            layers = np.pad(layers, [(0, missing), (0, 0), (0, 0)])
            return (
                layers.reshape(-1, per, axis.groups, axis.group)
                .transpose(0, 2, 1, 3)
                .reshape(-1, axis.groups, per * axis.group)
            )

        per = -(-facts.experts // rows)
        state = frame.state
        tier = np.where(state == RESIDENT, RESIDENT_TIER, ABSENT_TIER)
        tier = np.where((frame.fresh != 0) & (state == RESIDENT), FRESH_TIER, tier)
        tier = np.where(state == LOADING, LOADING_TIER, tier)
        tier = np.where(history.missed_at > history.now - _MOMENT, MISSED_TIER, tier)
        level = np.digitize(history.recent, _THRESHOLDS)
        if per * axis.group == 1:
            return ranked(tier)[:, :, 0].astype(np.intp), ranked(level)[:, :, 0].astype(np.intp)
        tiers, levels = ranked(tier).astype(np.intp), ranked(level).astype(np.intp)
        there = ranked(np.ones(len(state), np.uint8)).astype(np.intp)
        highest = tiers.max(axis=2)
        held = (tiers >= RESIDENT_TIER).sum(axis=2) * 2 >= there.sum(axis=2)
        plain = np.where(held, RESIDENT_TIER, ABSENT_TIER)
        return np.where(highest > RESIDENT_TIER, highest, plain), levels.max(axis=2)

    def _body(self, history: FrameHistory, axis: LayerAxis, rows: int) -> list[Line]:
        if self.look is not Look.COLOUR:
            tiers, levels = self.places(history, axis, rows)
            shapes = _SHAPES[self.look]
            style = self.style("text")
            return [
                [Segment("".join(shapes[t][lv] * axis.cell for t, lv in zip(*row, strict=True)), style)]
                for row in zip(tiers.tolist(), levels.tolist(), strict=True)
            ]
        tiers, levels = self.places(history, axis, rows * 2)
        codes = tiers * _LEVELS + levels + 1  # 0 is nothing
        if len(codes) % 2:
            codes = np.vstack([codes, np.zeros_like(codes[:1])])
        pairs = codes[0::2] * 32 + codes[1::2]
        return [self._runs(row, axis.cell) for row in pairs]

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
        line: Line = [Segment(" " * GUTTER)]
        for tier in (RESIDENT_TIER, FRESH_TIER, LOADING_TIER, MISSED_TIER, ABSENT_TIER):
            if self.look is Look.COLOUR:
                mark = Segment("■", self.style(_HUES[tier]))
            else:
                mark = self.piece(_SHAPES[self.look][tier][2])
            name = _NAMES[tier]
            if sum(len(piece.text) for piece in line) + len(name) + 2 > width:
                break
            line += [mark, self.piece(f" {name} ", "dim")]
        return line
