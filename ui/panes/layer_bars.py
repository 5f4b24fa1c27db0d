"""What the selections of each layer found, in shares of all, on the x axis of the map; the worst layers by name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style

from offload.telemetry.counters import Kind, Phase
from ui.panes.axis import GUTTER, LayerAxis
from ui.panes.history import Window
from ui.panes.pane import GLYPHS, KINDS, WAITING, Line, Look, Pane, percent
from ui.panes.sparkline import BLOCKS

SECONDS = 30.0
"""The window that is drawn."""

_NAMED = 3


class LayerBars(Pane):
    """Stacked bars from 0 to 100 %: resident, prefetched, late, missed, from the bottom to the top."""

    DEFAULT_CSS = """
    LayerBars { height: 6; }
    """

    _mixed: dict[tuple[int, int], Style]

    def lines_wanted(self, width: int) -> int:
        return 6

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._mixed = {}

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.facts is None:
            return [self.title(width, "layers"), [self.piece(WAITING, "dim")]]
        window = history.window(SECONDS)
        oracle = history.oracle.hit_rate if history.oracle else None
        right = f"hit {percent(window.hit_rate)}" if window.hit_rate is not None else ""
        if oracle is not None:
            right += f"{self.dot if right else ''}oracle {percent(oracle)}"
        axis = LayerAxis.fit(history.facts.layers, max(1, width - GUTTER))
        name = f"layers, {SECONDS:.0f} s"
        lines = [self.title(width, name if len(name) + len(right) + 3 <= width else "layers", right)]
        rows = max(1, height - 2)
        for number, line in enumerate(self._stacks(axis.grouped(window.by_layer).sum(axis=-1), rows, axis.cell)):
            label = "100 %" if number == 0 and rows > 1 else "0" if number == rows - 1 else ""
            lines.append([self.piece(label.rjust(GUTTER - 1) + " ", "dim"), *line])
        if height > 2:
            lines.append(self._worst(window, width))
        return lines

    def _stacks(self, kinds: NDArray[np.int64], rows: int, cell: int) -> list[Line]:
        """[4, groups] selections as bars."""
        total = kinds.sum(axis=0)
        tops = np.cumsum(kinds, axis=0) / np.maximum(1, total) * rows
        bottom = np.arange(rows - 1, -1, -1)[:, None, None]
        # [rows, 4, groups]: what of each place every kind takes.
        parts = np.diff(np.clip(tops - bottom, 0.0, 1.0), axis=1, prepend=0.0)
        nothing = self.piece(("." if self.look is Look.ASCII else "·") * cell, "rule")
        place = self._place if self.look is Look.COLOUR else self._largest
        return [
            [place(shares, cell) if some else nothing for shares, some in zip(row, total.tolist(), strict=True)]
            for row in parts.transpose(0, 2, 1).tolist()
        ]

    def _largest(self, shares: list[float], cell: int) -> Segment:
        """One place of a stack, as the kind that takes most of it."""
        kind = shares.index(max(shares))
        return self.piece(GLYPHS[self.look][kind] * cell, KINDS[kind])

    def _place(self, shares: list[float], cell: int) -> Segment:
        """One place of a stack. It has two colours: the lowest kind's, and that of the largest above it."""
        low, *above = [kind for kind, share in enumerate(shares) if share > 1 / 32]
        if not above:
            return Segment("█" * cell, self.style(KINDS[low]))
        high = max(above, key=shares.__getitem__)
        eighths = min(7, max(1, round(shares[low] * 8)))
        style = self._mixed.get((low, high))
        if style is None:
            style = Style(color=self.style(KINDS[low]).color, bgcolor=self.style(KINDS[high]).color)
            self._mixed[low, high] = style
        return Segment(BLOCKS[eighths] * cell, style)

    def _worst(self, window: Window, width: int) -> Line:
        """The layers with the lowest hit rates: ``worst  3 71 % 12 ms  17 74 % 9 ms``."""
        kinds = window.by_layer
        total = kinds.sum(axis=0)
        hits = kinds[Kind.RESIDENT] + kinds[Kind.PREFETCHED]
        rates = np.where(total > 0, hits / np.maximum(1, total), 2.0)
        line: Line = []
        for layer in np.argsort(rates, kind="stable")[:_NAMED].tolist():
            if rates[layer] >= 1.0:
                break
            words = f"{layer}: {percent(float(rates[layer]))}"
            stall = float(window.stall_ns[Phase.DECODE][layer]) / 1e6 / window.tokens if window.tokens else 0.0
            cost = f" {stall:.1f} ms" if stall >= 0.05 else ""
            if sum(len(piece.text) for piece in line) + len(words) + len(cost) + (2 if line else 6) > width:
                break
            line += [self.piece("worst " if not line else "  ", "dim"), self.piece(words), self.piece(cost, "dim")]
        if not line and total.any():
            line = [self.piece("nothing was waited for", "dim")]
        return line
