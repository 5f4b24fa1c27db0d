"""Telemetry beside the chat: which panes are shown, where their numbers come from, and what records them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from offload.errors import BoardError, FinemoeError, NotFound
from profiles.paths import ensure_folder, recordings_dir
from ui.chat.setup import ChatSetup
from ui.chat.token_texts import TokenTexts

if TYPE_CHECKING:
    from textual.widget import Widget

    from offload.service.messages import Event
    from offload.telemetry.frame import Frame
    from ui.panes.column import LayoutMode, PaneColumn
    from ui.panes.history import FrameHistory
    from ui.panes.status_line import StatusLine
    from ui.recording.recorder import Recorder
    from ui.screens.chat import ChatScreen
    from ui.source import TelemetrySource

SIDE_COLUMNS, STRIP_COLUMNS = 120, 80
"""Widths from which the panes are beside the chat, or in three lines under it; below there is one line."""


class Telemetry:
    """Polls a source, shows it, and writes it down.

    What draws needs numpy, so it is imported after the chat's first picture.

    Attributes:
        layout: ``auto``, or one of the panes' layouts.
        recorder: What is being recorded; None if nothing is.
    """

    def __init__(self, screen: ChatScreen, setup: ChatSetup) -> None:
        self.layout = setup.resolved.settings.layout
        self.recorder: Recorder | None = None
        self._screen = screen
        self._setup = setup
        self._panes: PaneColumn | None = None
        self._line: StatusLine | None = None
        self._history: FrameHistory | None = None
        self._live: TelemetrySource | None = None
        self._texts: TokenTexts | None = None

    @property
    def frame(self) -> Frame | None:
        """The engine's latest frame; None while there is none."""
        return self._history.latest if self._history is not None else None

    async def start(self, body: Widget) -> None:
        """Puts the panes into ``body``; from now on `poll` finds where to show what is new."""
        from ui.panes.column import PaneColumn
        from ui.panes.history import FrameHistory
        from ui.panes.status_line import StatusLine

        self._history = FrameHistory()
        wanted = self._wanted()
        self._panes = PaneColumn("off" if wanted == "line" else wanted, ascii=self._setup.ascii_only, id="panes")
        self._line = StatusLine(ascii=self._setup.ascii_only, id="status-line")
        await body.mount(self._panes, self._line)
        self.fit()

    def watch(self, board: str) -> None:
        """Follows an engine that was opened."""
        self._live = self._setup.open_board(board)
        self.poll()

    def poll(self) -> None:
        """Takes what is new, writes it down, and shows it if anybody can see it."""
        if self._live is None or self._history is None:
            return
        try:
            new = self._history.follow(self._live)
            if new and self.recorder is not None and self._history.latest is not None:
                self.recorder.frame(self._history.latest)
                self.recorder.records(self._history.records)
        except BoardError:
            return  # The engine has ended; that is told elsewhere.
        except FinemoeError as error:
            self._recording_failed(error)
        if new:
            self.show()

    def show(self) -> None:
        """Shows the history in what is on the screen."""
        history = self._history
        if history is None or self._panes is None or self._line is None:
            return
        if self._panes.layout_mode != "off":
            self._panes.show(history)
        if self._line.display:
            self._line.history = history
            self._line.show(history)

    def fit(self) -> None:
        """Chooses what there is room for, unless the user has chosen."""
        if self._panes is None or self._line is None:
            return
        wanted = self._wanted()
        self._line.display = wanted == "line"
        self._panes.layout_mode = "off" if wanted == "line" else wanted
        self._screen.set_class(wanted == "full", "-full-panes")
        self.show()

    def _wanted(self) -> LayoutMode | Literal["line"]:
        """The layout that there is to be now, or the one line of small terminals."""
        if self.layout != "auto":
            return cast("LayoutMode", self.layout)
        width = self._screen.size.width
        return "side" if width >= SIDE_COLUMNS else "strip" if width >= STRIP_COLUMNS else "line"

    def cycle(self) -> None:
        """The next layout."""
        if self._panes is not None:
            modes = self._panes.MODES
            self.set_layout(modes[(modes.index(self._panes.layout_mode) + 1) % len(modes)])

    def set_layout(self, layout: str) -> None:
        """``auto``, ``off``, ``strip``, ``side`` or ``full``."""
        self.layout = layout
        self.fit()

    def show_experts(self) -> None:
        """F3: every expert, and the routing of each token."""
        if self._history is None:
            return
        from ui.screens.experts import ExpertsScreen

        self._screen.app.push_screen(
            ExpertsScreen(self._history, self._token_texts(), ascii=self._setup.ascii_only)
        )

    def freeze(self) -> None:
        """Holds the pictures still, or lets them go on."""
        if self._panes is not None:
            self._panes.freeze = not self._panes.freeze
            self._screen.notify("the panes are held; F5 lets them go" if self._panes.freeze else "the panes go on")

    # Recordings.

    def record(self, path: Path | None) -> str:
        """Begins a recording, or ends the one that goes on; a line that says so.

        Raises:
            StorageError: It cannot be written.
        """
        if self.recorder is not None and path is None:
            return self._end_recording()
        if self.recorder is not None:
            self._end_recording()
        from ui.recording.recorder import SUFFIX, Recorder

        if path is None:
            name = datetime.now().strftime("chat-%Y%m%d-%H%M%S")
            path = ensure_folder(recordings_dir()) / f"{name}{SUFFIX}"
        conversation = self._screen.conversation
        self.recorder = Recorder(path, conversation.title)
        self._token_texts()
        for message in conversation.branch:
            self.recorder.said(message.role, message.content)
        if self.frame is not None:
            self.recorder.frame(self.frame)
        return f"recording into {path}"

    def said(self, role: str, text: str) -> None:
        """A message of the conversation, for the recording."""
        self._enter(lambda recorder: recorder.said(role, text))

    def event(self, event: Event) -> None:
        """Something that the engine said, for the recording."""
        self._enter(lambda recorder: recorder.event(event))

    def replay(self, path: Path | None) -> None:
        """Plays a recording over the chat, which goes on underneath; without a path, the latest of one's own.

        Raises:
            FinemoeError: There is none, or it cannot be read.
        """
        from ui.recording.recording import Recording
        from ui.recording.screen import ReplayScreen

        if path is None:
            kept = recordings()
            if not kept:
                raise NotFound("there is no recording yet", "F6 records this chat")
            path = kept[0]
        screen = ReplayScreen(Recording.open(path), ascii=self._setup.ascii_only)
        self._screen.app.push_screen(screen)

    def close(self) -> None:
        """A recording is ended."""
        if self.recorder is not None:
            try:
                self.poll()
                self._end_recording()
            except FinemoeError:
                pass  # There is nobody to tell any more.

    def _enter(self, write: Callable[[Recorder], None]) -> None:
        if self.recorder is not None:
            try:
                write(self.recorder)
            except FinemoeError as error:
                self._recording_failed(error)

    def _end_recording(self) -> str:
        recorder, self.recorder = self.recorder, None
        assert recorder is not None
        if self._texts is not None and self._history is not None:
            recorder.token_texts(self._texts.of(record.token_id for record in self._history.records))
        recorder.close()
        return f"recorded {recorder.seconds:.0f} s into {recorder.path}"

    def _recording_failed(self, error: FinemoeError) -> None:
        if self.recorder is not None:
            self.recorder = None
            self._screen.tell(error)
            self._screen.refresh_state()

    def _token_texts(self) -> TokenTexts:
        folder = self._screen.room.folder
        if self._texts is None or self._texts.folder != folder:
            self._texts = TokenTexts(folder)
            self._screen.run_worker(asyncio.to_thread(self._texts.load), group="tokens")
        return self._texts


def recordings() -> list[Path]:
    """Recordings in the data folder, the latest first."""
    from ui.recording.recorder import SUFFIX

    return sorted(recordings_dir().glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
