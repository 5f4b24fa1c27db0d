"""Everything in one line, for the smallest terminals."""

from __future__ import annotations

from offload.units import format_bytes
from ui.panes.pane import WAITING, Line, Pane, byte_rate, percent
from ui.panes.speed import PHASES, speed_words


class StatusLine(Pane):
    """``answering · 10.2 t/s · hit 92 % · 861 MiB of 900 MiB · 12 MB/s · low · lru``; no room, no field."""

    DEFAULT_CSS = """
    StatusLine { height: 1; }
    """

    def lines_wanted(self, width: int) -> int:
        return 1

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.latest is None:
            return [[self.piece(WAITING, "dim")]]
        frame, now = history.latest, history.window(2.0)
        hits = history.window(30.0).hit_rate
        memory = frame.memory
        parts = [
            (PHASES.get(frame.phase, ""), "text"),
            (speed_words(history), "value"),
            (f"hit {percent(hits)}" if hits is not None else "", "value"),
            (f"{format_bytes(memory.rss_bytes)} of {format_bytes(memory.budget_bytes)}", "text"),
            (byte_rate((now.demand + now.prefetch) / now.seconds if now.seconds else 0.0), "text"),
            (frame.profile, "dim"),
            (frame.policy, "dim"),
        ]
        line: Line = []
        used = 0
        for text, style in parts:
            if not text or used + len(text) + (3 if line else 0) > width:
                continue
            line += [self.piece(self.dot, "rule")] if line else []
            used += len(text) + (3 if used else 0)
            line.append(self.piece(text, style))
        return [line]
