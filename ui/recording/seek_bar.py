"""Where in a recording one is."""

from __future__ import annotations

from textual import events
from textual.message import Message

from ui.panes.pane import Line, Look, Pane
from ui.recording.format import Said
from ui.recording.player import ReplaySource
from ui.text import clock


class SeekBar(Pane):
    """``playing 1x  0:12 ━━━━━━●────────── 1:45``; a click goes there."""

    DEFAULT_CSS = """
    SeekBar { height: 1; }
    """

    class Sought(Message):
        """A place was clicked on; ``share`` is between 0 and 1."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

    def __init__(self, source: ReplaySource, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(ascii=ascii, id=id)
        self._source = source
        self._bar = (0, 1)

    def lines_wanted(self, width: int) -> int:
        return 1

    def draw(self, width: int, height: int) -> list[Line]:
        source = self._source
        plain = self.look is Look.ASCII
        full, rest, knob = ("=", "-", "O") if plain else ("━", "─", "●")
        state = "ended" if source.ended else "paused" if source.paused else "playing"
        head = f"{state:<7} {source.speed:g}x  {clock(source.position)} "
        tail = f" {clock(source.recording.seconds)}"
        columns = max(1, width - len(head) - len(tail))
        self._bar = (len(head), columns)
        share = source.position / source.recording.seconds if source.recording.seconds else 1.0
        at = min(columns - 1, round(share * (columns - 1)))
        bar = [full] * at + [knob] + [rest] * (columns - at - 1)
        marks = self._marks(columns)
        line: Line = [self.piece(head, "value")]
        for column, character in enumerate(bar):
            if column == at:
                line.append(self.piece(character, "value"))
            elif column in marks:
                line.append(self.piece("|" if plain else "┃", "mark"))
            else:
                line.append(self.piece(character, "text" if column < at else "free"))
        return [[*line, self.piece(tail, "dim")]]

    def on_click(self, event: events.Click) -> None:
        begin, columns = self._bar
        self.post_message(self.Sought(min(1.0, max(0.0, (event.x - begin) / max(1, columns - 1)))))

    def _marks(self, columns: int) -> set[int]:
        """Columns at which an answer began."""
        recording = self._source.recording
        if not recording.seconds:
            return set()
        return {
            round((entry.time_s - recording.start) / recording.seconds * (columns - 1))
            for entry in recording.entries
            if isinstance(entry.what, Said)
        }
