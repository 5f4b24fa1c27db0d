"""What is read from the slow tier: on demand and ahead of it, and what became of what was read ahead."""

from __future__ import annotations

import numpy as np

from offload.telemetry.counters import Kind
from ui.panes.history import FrameHistory
from ui.panes.pane import WAITING, Line, Pane, byte_rate, percent
from ui.panes.sparkline import Scale, graph, mark_columns, time_step

SECONDS = 50.0
"""What the graphs show at least."""

_LABEL = 10
_NOW = 2.0


class Traffic(Pane):
    """Two graphs on one scale, and a line on prefetching."""

    DEFAULT_CSS = """
    Traffic { height: 6; }
    """

    def __init__(self, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(ascii=ascii, id=id)
        self.scale = Scale(10e6)

    def lines_wanted(self, width: int) -> int:
        return 6

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.latest is None:
            return [self.title(width, "traffic"), [self.piece(WAITING, "dim")]]
        columns = max(1, width - _LABEL)
        step = time_step(columns, SECONDS)
        rates = {name: history.per_second(name, columns, step) for name in ("demand", "prefetch")}
        top = self.scale.include(np.concatenate(list(rates.values())), history.generation)
        marks = mark_columns(history, columns, step)
        now = history.window(_NOW)
        lines = [self.title(width, "traffic", f"{columns * step:.0f} s, to {byte_rate(top)}")]
        rows = max(1, (height - 2) // 2)
        for name, hue, count in (("demand", "missed", now.demand), ("prefetch", "prefetched", now.prefetch)):
            drawn = graph(
                rates[name], rows, top, self.look, self.style(hue), self.style("rule"), self.style("mark"), marks
            )
            value = byte_rate(count / now.seconds if now.seconds else 0.0)
            for number, line in enumerate(drawn):
                if number == rows - 1 and rows > 1:
                    label = self.piece(value.rjust(_LABEL - 1) + " ", "value" if count else "dim")
                else:
                    label = self.piece((name if number == 0 else "").ljust(_LABEL), "text")
                lines.append([label, *line])
        lines.append(prefetch_line(self, history, width))
        return lines


def prefetch_line(pane: Pane, history: FrameHistory, width: int) -> Line:
    """``used 91 %  late 3 %  wasted 6 %  queue 2``: what became of what was fetched ahead, in that time."""
    frame = history.latest
    assert frame is not None
    window = history.window(SECONDS)
    kinds = window.tally.sum(axis=(0, 2))
    used, late = int(kinds[Kind.PREFETCHED]), int(kinds[Kind.LATE])
    wasted = round(window.wasted / max(1, frame.memory.slot_bytes or frame.facts.slot_bytes))
    total = used + late + wasted
    if total:
        return pane.fields(
            width,
            ("used", percent(used / total)),
            ("late", percent(late / total)),
            ("wasted", percent(wasted / total)),
            ("queue", str(frame.queued)),
        )
    why = "fetching ahead" if frame.prefetching else "nothing is fetched ahead"
    return [pane.piece(frame.note or why, "dim")]
