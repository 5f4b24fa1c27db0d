"""Telemetry beside the chat: which panes are shown, and where their numbers come from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offload.errors import BoardError
from ui.chat.setup import ChatSetup

if TYPE_CHECKING:
    from textual.timer import Timer
    from textual.widget import Widget

    from offload.telemetry.frame import Frame
    from ui.panes.column import LayoutMode, PaneColumn
    from ui.panes.history import FrameHistory
    from ui.panes.status_line import StatusLine
    from ui.screens.chat import ChatScreen
    from ui.source import TelemetrySource

REFRESH_S = 0.25
SIDE_COLUMNS, STRIP_COLUMNS = 120, 80
"""Widths from which the panes are beside the chat, or in three lines under it; below there is one line."""


class Telemetry:
    """Polls a source and shows it.

    What draws needs numpy, so it is imported after the chat's first picture.

    Attributes:
        layout: ``auto``, or one of the panes' layouts.
    """

    def __init__(self, screen: ChatScreen, setup: ChatSetup) -> None:
        self.layout = setup.resolved.settings.layout
        self._screen = screen
        self._setup = setup
        self._panes: PaneColumn | None = None
        self._line: StatusLine | None = None
        self._history: FrameHistory | None = None
        self._live: TelemetrySource | None = None
        self._timer: Timer | None = None
        self._texts: TokenTexts | None = None

    @property
    def frame(self) -> Frame | None:
        """The engine's latest frame; None while there is none."""
        return self._history.latest if self._history is not None else None

    async def start(self, body: Widget) -> None:
        """Puts the panes into ``body`` and begins to poll."""
        from ui.panes.column import PaneColumn
        from ui.panes.history import FrameHistory
        from ui.panes.status_line import StatusLine

        self._history = FrameHistory()
        self._panes = PaneColumn("off", ascii=self._setup.ascii_only, id="panes")
        self._line = StatusLine(ascii=self._setup.ascii_only, id="status-line")
        await body.mount(self._panes, self._line)
        self._timer = self._screen.set_interval(REFRESH_S, self.poll)
        self.fit()

    def watch(self, board: str) -> None:
        """Follows an engine that was opened."""
        self._live = self._setup.open_board(board)
        self.poll()

    def poll(self) -> None:
        """Takes what is new, and shows it if anybody can see it."""
        if self._live is None or self._history is None:
            return
        try:
            new = self._history.follow(self._live)
        except BoardError:
            return  # The engine has ended; that is told elsewhere.
        if new:
            self.show()

    def show(self) -> None:
        """Shows the history in what is on the screen."""
        if self._history is None or self._panes is None or self._line is None:
            return
        if self._panes.layout_mode != "off":
            self._panes.show(self._history)
        if self._line.display:
            self._line.history = self._history
            self._line.show(self._history)

    def fit(self) -> None:
        """Chooses what there is room for, unless the user has chosen."""
        if self._panes is None or self._line is None:
            return
        width = self._screen.size.width
        wanted = self.layout
        if wanted == "auto":
            wanted = "side" if width >= SIDE_COLUMNS else "strip" if width >= STRIP_COLUMNS else "line"
        self._line.display = wanted == "line"
        self._panes.layout_mode = cast("LayoutMode", "off" if wanted == "line" else wanted)
        self._screen.set_class(wanted == "full", "-full-panes")
        self.show()

    def cycle(self) -> None:
        """The next layout."""
        if self._panes is not None:
            modes = self._panes.MODES
            self.set_layout(modes[(modes.index(self._panes.layout_mode) + 1) % len(modes)])

    def set_layout(self, layout: str) -> None:
        """``auto``, ``off``, ``strip``, ``side`` or ``full``."""
        self.layout = layout
        self.fit()

    def show_experts(self, folder: Path | None) -> None:
        """F3: every expert, and the routing of each token; ``folder`` is the model's, for the text of tokens."""
        if self._history is None:
            return
        from ui.screens.experts import ExpertsScreen

        self._texts = self._texts if self._texts and self._texts.folder == folder else TokenTexts(folder)
        self._screen.run_worker(self._texts.load(), group="tokens", exclusive=True)
        screen = ExpertsScreen(self._history, self._texts, ascii=self._setup.ascii_only)
        self._screen.app.push_screen(screen)

    def freeze(self) -> None:
        """Holds the pictures still, or lets them go on."""
        if self._panes is not None:
            self._panes.freeze = not self._panes.freeze
            self._screen.notify("the panes are held; F5 lets them go" if self._panes.freeze else "the panes go on")

    def close(self) -> None:
        """No more polling."""
        if self._timer is not None:
            self._timer.stop()


class TokenTexts:
    """The text of a model's tokens, from its tokenizer, which is loaded beside everything else.

    Attributes:
        folder: The model's; None for one that is not known.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._tokenizer: Any = None

    async def load(self) -> None:
        """Loads the tokenizer, once; without one there is no text."""
        path = self.folder / "tokenizer.json" if self.folder is not None else None
        if self._tokenizer is None and path is not None and path.is_file():
            self._tokenizer = await asyncio.to_thread(_tokenizer, path)

    def __call__(self, token_id: int) -> str | None:
        """The text of a token; None where that is not known."""
        return str(self._tokenizer.decode([token_id])) if self._tokenizer is not None else None


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # The library raises nothing more exact; numbers do in the place of text.
        return None
