"""Watching an engine that runs in another process: the panes, and nothing that reaches it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container
from textual.widgets import Footer, Static

from offload.errors import BoardError
from offload.service.board import BoardReader
from ui.panes.status_line import StatusLine
from ui.source import TelemetrySource
from ui.text import without_controls
from ui.watch import WatchApp, WatchScreen, look_of_settings

REFRESH_S = 0.25
_SMALL_ROWS = 12
"""Below, there is one line."""


class LiveSource(TelemetrySource, Protocol):
    """A source of telemetry that can end."""

    def alive(self) -> bool:
        """Whether what is watched still lives."""
        ...


class MonitorScreen(WatchScreen):
    """The panes over the whole terminal. It only looks; when the engine has ended, its last frame stays.

    Args:
        source: The engine's board.
    """

    DEFAULT_CSS = """
    MonitorScreen {
        & #head { height: 1; padding: 0 1; background: $surface; color: $foreground; }
        & #head.-ended { background: $error; color: $background; }
        & #watched { height: 1fr; }
        & #line { display: none; padding: 0 1; }
        &.-small PaneColumn { display: none; }
        &.-small #line { display: block; }
    }
    """

    LAYOUTS = ("full", "strip")

    def __init__(self, source: LiveSource, *, ascii: bool = False) -> None:
        super().__init__(ascii=ascii)
        self._source = source
        self._head = Static(id="head", markup=False)
        self._line = StatusLine(ascii=ascii, id="line")
        self.ended = False

    def compose(self) -> ComposeResult:
        yield self._head
        with Container(id="watched"):
            yield self.panes
            yield self._line
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.look()
        self.set_interval(REFRESH_S, self.look)

    def on_resize(self) -> None:
        self.set_class(self.size.height < _SMALL_ROWS, "-small")

    def look(self) -> None:
        """Draws what is new."""
        if self.ended:
            return
        try:
            # Asked first: what was published before the end is still to be seen.
            alive = self._source.alive()
            new = self.history.follow(self._source)
        except BoardError:
            alive, new = False, False
        self.ended = not alive
        if new:
            self.show()
            self._line.show(self.history)
        self._say()

    def _say(self) -> None:
        facts = self.history.facts
        dot = " | " if self.ascii else " · "
        words = (
            ["waiting for the engine"]
            if facts is None
            else [f"finemoe {facts.command}", facts.model, facts.device, f"process {facts.pid}"]
        )
        if self.ended:
            words.append("has ended; this is its last picture")
        self._head.set_class(self.ended, "-ended")
        self._head.update(Text(without_controls(dot.join(words)), no_wrap=True, overflow="ellipsis"))


def run_monitor(board_path: Path) -> int:
    """Watches the engine of a board until the user has seen enough. Returns an exit code.

    Raises:
        BoardError: There is no board at ``board_path``, or it cannot be read.
    """
    ascii_only, theme = look_of_settings()
    with BoardReader(board_path) as board:
        app = WatchApp(MonitorScreen(board, ascii=ascii_only), theme=theme)
        app.run()
        return app.return_code or 0
