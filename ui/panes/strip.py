"""The panes in three lines, for terminals of 80 columns."""

from __future__ import annotations

import numpy as np

from offload.units import format_bytes
from ui.panes.history import FrameHistory
from ui.panes.layer_bars import SECONDS as HITS_SECONDS
from ui.panes.memory import Memory
from ui.panes.pane import WAITING, Line, byte_rate, milliseconds, percent
from ui.panes.sparkline import Scale, graph, mark_columns
from ui.panes.speed import speed_words, ttft_words
from ui.panes.traffic import prefetch_line

_LABEL = 8
_VALUE = 10
_GRAPH = 20
_STEP = 2.0
_SPLIT = 72
"""Below so many columns there are no graphs."""


class Strip(Memory):
    """Hits, traffic and memory, one line each."""

    DEFAULT_CSS = """
    Strip { height: 3; }
    """

    def __init__(self, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(ascii=ascii, id=id)
        self.scale = Scale(10e6)

    def lines_wanted(self, width: int) -> int:
        return 3

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.latest is None:
            return [[self.piece(WAITING, "dim")]]
        return [self._hits(history, width), self._traffic(history, width), self._memory(history, width)][:height]

    def _head(self, label: str, value: str) -> Line:
        return [self.piece(label.ljust(_LABEL), "dim"), self.piece(value.rjust(_VALUE) + " ", "value")]

    def _room(self, width: int) -> int:
        """Columns behind the head and the graph."""
        return width - _LABEL - _VALUE - 1 - (_GRAPH + 2 if width >= _SPLIT else 0)

    def _graph(self, history: FrameHistory, name: str, hue: str, top: float, width: int) -> Line:
        if width < _SPLIT:
            return []
        values = history.per_second(name, _GRAPH, _STEP)
        if name == "hits":
            with np.errstate(invalid="ignore", divide="ignore"):
                values = values / history.per_second("selections", _GRAPH, _STEP)
        marks = mark_columns(history, _GRAPH, _STEP)
        (line,) = graph(values, 1, top, self.look, self.style(hue), self.style("rule"), self.style("mark"), marks)
        return [*line, self.piece("  ")]

    def _hits(self, history: FrameHistory, width: int) -> Line:
        room = self._room(width)
        window = history.window(HITS_SECONDS)
        p95 = history.pass_ms((0.95,))
        stall = window.stall_ms_per_token
        frame = history.latest
        assert frame is not None
        return [
            *self._head("hits", percent(window.hit_rate, 1)),
            *self._graph(history, "hits", "resident", 1.0, width),
            *self.fields(
                room,
                ("", speed_words(history)),
                ("TTFT", ttft_words(frame)),
                ("p95", milliseconds(p95[0]) if p95 else ""),
                ("stall", milliseconds(stall)),
            ),
        ]

    def _traffic(self, history: FrameHistory, width: int) -> Line:
        room = self._room(width)
        values = history.per_second("demand", _GRAPH, _STEP) + history.per_second("prefetch", _GRAPH, _STEP)
        top = self.scale.include(values, history.generation)
        now = history.window(2.0)
        rate = (now.demand + now.prefetch) / now.seconds if now.seconds else 0.0
        ahead = now.prefetch > now.demand
        return [
            *self._head("traffic", byte_rate(rate)),
            *self._graph(
                history, "prefetch" if ahead else "demand", "prefetched" if ahead else "missed", top, width
            ),
            *prefetch_line(self, history, room),
        ]

    def _memory(self, history: FrameHistory, width: int) -> Line:
        room = self._room(width)
        frame = history.latest
        assert frame is not None
        memory = frame.memory
        line = self._head("memory", format_bytes(memory.rss_bytes))
        if width >= _SPLIT:
            line += [*self.plan_bar(frame, _GRAPH), self.piece("  ")]
        host, gpu = frame.host, frame.gpu
        used = gpu.used_bytes if gpu is not None else None
        return [
            *line,
            *self.fields(
                room,
                ("of", format_bytes(memory.budget_bytes)),
                ("host", f"{format_bytes(host.available_bytes)} free" if host.available_bytes is not None else "?"),
                ("GPU", "" if gpu is None else format_bytes(used) if used is not None else "not readable"),
            ),
        ]
