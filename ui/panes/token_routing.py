"""One decoded token: which experts each layer chose, how they were found, and what it waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.segment import Segment
from rich.style import Style

from offload.telemetry.counters import Kind
from offload.telemetry.frame import TokenRecord
from ui.panes.history import Oracle
from ui.panes.oracle import real_hit_rate
from ui.panes.pane import KINDS, Line, Look, Pane, milliseconds, percent
from ui.panes.sparkline import bars
from ui.text import without_controls

TokenText = Callable[[int], str | None]
"""A token's text, where it is known."""

MARKS = {
    Look.COLOUR: (" ", "+", "~", "×"),
    Look.SHAPES: (" ", "+", "~", "×"),
    Look.ASCII: (" ", "+", "~", "x"),
}
"""Behind an expert's number: resident, prefetched, late, missed."""

_CONTEXT = 12
_HEAD = 8
_STALL = 8


class TokenRouting(Pane):
    """The token, its neighbours, its reply beside the oracle's, then layer by layer.

    Args:
        token_text: Gives the text of a token; without it the number shows.
    """

    DEFAULT_CSS = """
    TokenRouting { height: 1fr; }
    """

    def __init__(self, token_text: TokenText | None = None, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(ascii=ascii, id=id)
        self._token_text = token_text
        self._reply: Sequence[TokenRecord] = ()
        self._index = 0
        self._oracle: Oracle | None = None

    def lines_wanted(self, width: int) -> int:
        return _HEAD + 30

    def show_token(self, reply: Sequence[TokenRecord], index: int, oracle: Oracle | None) -> None:
        """Draws record ``index`` of a reply's; an empty reply draws that there is none yet."""
        self._reply, self._index, self._oracle = reply, index, oracle
        self.redraw()

    def draw(self, width: int, height: int) -> list[Line]:
        if not self._reply:
            return [self.title(width, "token"), [self.piece("no token yet", "dim")]]
        record = self._reply[self._index]
        lines = [
            self.title(width, f"token {self._index + 1} of {len(self._reply)}", f"request {record.request}"),
            self._neighbours(width),
            self.fields(
                width,
                ("pass", milliseconds(record.pass_ns / 1e6)),
                ("stall", milliseconds(float(record.stall_ns.sum()) / 1e6)),
                ("resident experts", str(record.resident)),
            ),
            self._counts(record),
            self._times(width),
            self._rates(width),
            [],
        ]
        return [*lines[:height], *self._layers(record, width, max(0, height - len(lines)))]

    def _words(self, token: int) -> str:
        text = self._token_text(token) if self._token_text is not None else None
        return f"#{token} " if text is None else without_controls(text.replace("\n", "\\n").replace("\t", "\\t"))

    def _neighbours(self, width: int) -> Line:
        """The token among its neighbours, as far as there is room."""
        here = self._words(self._reply[self._index].token_id) or " "
        before = "".join(
            self._words(record.token_id) for record in self._reply[max(0, self._index - _CONTEXT) : self._index]
        )
        after = "".join(
            self._words(record.token_id) for record in self._reply[self._index + 1 : self._index + 1 + _CONTEXT]
        )
        left = max(0, (width - len(here)) // 2)
        before = before[-left:] if left else ""
        here_style = self.style("value") + Style(reverse=True)
        return [
            self.piece(before.rjust(left) if left else "", "dim"),
            Segment(here, here_style),
            self.piece(after, "dim"),
        ]

    def _counts(self, record: TokenRecord) -> Line:
        """How many selections were of each kind: ``112 resident  5 prefetched + ...``."""
        line: Line = []
        for kind, name in zip(Kind, KINDS, strict=True):
            count = int(np.count_nonzero(record.kinds == kind))
            mark = MARKS[self.look][kind].strip()
            line.append(self.piece(f"{count}{mark}", name))
            line.append(self.piece(f" {name}  ", "dim"))
        return line

    def _times(self, width: int) -> Line:
        """The time of each pass of the reply around the token, on the reply's scale."""
        label = "pass times "
        columns = max(1, width - len(label))
        first = max(0, min(self._index - columns // 2, len(self._reply) - columns))
        shown = self._reply[first : first + columns]
        top = max(record.pass_ns for record in self._reply)
        (text,) = bars(np.array([float(record.pass_ns) for record in shown]), 1, float(top), self.look)
        at = self._index - first
        here = text[at] if self.look is not Look.ASCII else "|"
        return [
            self.piece(label, "dim"),
            self.piece(text[:at], "text"),
            self.piece(here, "mark"),
            self.piece(text[at + 1 :], "text"),
        ]

    def _rates(self, width: int) -> Line:
        oracle = self._oracle.hit_rate if self._oracle is not None else None
        return self.fields(
            width,
            ("reply's hits", percent(real_hit_rate(self._reply), 1)),
            ("oracle's, on demand", "..." if oracle is None else percent(oracle, 1)),
        )

    def _layers(self, record: TokenRecord, width: int, height: int) -> list[Line]:
        """A line for each layer, side by side where there is room; else those that were waited for longest."""
        layers, top_k = record.chosen.shape
        digits = max(2, len(str(int(record.chosen.max()))))
        each = 4 + top_k * (digits + 2) + _STALL
        columns = max(1, min(3, (width + 2) // (each + 2)))
        room = columns * height
        shown = np.arange(layers)
        if layers > room:
            shown = np.sort(np.argsort(-record.stall_ns, kind="stable")[: max(0, room - 1)])
        per = -(-len(shown) // columns) if len(shown) else 0
        lines: list[Line] = []
        for row in range(per):
            line: Line = []
            for number in shown[row::per].tolist():
                line += [Segment("  ")] if line else []
                line += self._layer(record, number, digits)
            lines.append(line)
        if layers > len(shown) and height > 0:
            lines = lines[: height - 1]
            lines.append([self.piece(f"{layers - len(shown)} more layers that waited less", "dim")])
        return lines

    def _layer(self, record: TokenRecord, layer: int, digits: int) -> Line:
        line = [self.piece(f"{layer:>3} ", "dim")]
        for expert, kind in zip(record.chosen[layer].tolist(), record.kinds[layer].tolist(), strict=True):
            line.append(self.piece(f"{expert:>{digits}}{MARKS[self.look][kind]} ", KINDS[kind]))
        stall = float(record.stall_ns[layer]) / 1e6
        words = f"{stall:.1f} ms" if stall >= 0.05 else ""
        return [*line, self.piece(words.rjust(_STALL), "text")]
