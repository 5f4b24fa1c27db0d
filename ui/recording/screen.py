"""A recording on the screen: the conversation, the panes beside it, and a bar to go to any place."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Footer, Static

from offload.service.messages import Event
from ui.recording.format import Said
from ui.recording.player import ReplaySource
from ui.recording.recording import Recording
from ui.recording.seek_bar import SeekBar
from ui.recording.totals import Transcript, Turn
from ui.stats import status_line
from ui.text import without_controls
from ui.watch import WatchScreen
from ui.widgets.markdown import ReplyMarkdown

_TICK_S = 0.1
_FRAMES_S = 0.25
_STEP_S = 5.0
_SIDE_COLUMNS = 100
"""From this width on panes are beside the conversation, below in a strip."""


class TurnView(Static):
    """One message or answer."""

    DEFAULT_CSS = """
    TurnView { height: auto; margin-bottom: 1; }
    TurnView > .who { color: $primary; text-style: bold; }
    TurnView.-user > .who { color: $accent; }
    TurnView.-error > .who { color: $error; }
    TurnView > .cost { color: $foreground 50%; display: none; }
    TurnView.-finished > .cost { display: block; }
    TurnView > ReplyMarkdown { background: transparent; margin: 0; padding: 0; }
    TurnView > ReplyMarkdown > *:last-child { margin-bottom: 0; }
    """

    def __init__(self, turn: Turn, ascii: bool) -> None:
        super().__init__(classes=f"-{turn.role}")
        self.turn = turn
        self._ascii = ascii
        self._shown = ""
        self._finished = False
        self._markdown = ReplyMarkdown("") if turn.role == "assistant" else None
        self._plain = Static(markup=False)
        self._cost = Static("", classes="cost", markup=False)

    def compose(self) -> ComposeResult:
        who = {"user": "you", "assistant": "model"}.get(self.turn.role, self.turn.role)
        yield Static(who, classes="who", markup=False)
        yield self._markdown or self._plain
        yield self._cost

    async def refresh_turn(self) -> None:
        """Shows what has come since the last call."""
        text = without_controls(self.turn.text)
        if text != self._shown:
            if self._markdown is None:
                self._plain.update(text)
            elif text.startswith(self._shown) and self.turn.completion is None:
                await self._markdown.append(text[len(self._shown) :])
            else:
                await self._markdown.update(text)
            self._shown = text
        if self.turn.completion is not None and not self._finished:
            self._finished = True
            self.add_class("-finished")
            line = status_line(self.turn.completion)
            self._cost.update(Text(line.replace(" · ", " | ") if self._ascii else line))


class Conversation(VerticalScroll, inherit_bindings=False):
    """The turns. It leaves the arrows to the left and right to the recording."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "Up", show=False),
        Binding("down", "scroll_down", "Down", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
        Binding("home", "scroll_home", "Top", show=False),
        Binding("end", "scroll_end", "Bottom", show=False),
    ]


class ReplayScreen(WatchScreen):
    """A recording that is played: ``finemoe replay``, and ``/replay`` in the chat.

    Args:
        recording: What to play.
        speed: One of `ui.recording.player.SPEEDS`.
        at: Seconds from the beginning to start at.
    """

    DEFAULT_CSS = """
    ReplayScreen {
        & #replayed { height: 1fr; }
        & Conversation { width: 1fr; height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
        &.-full Conversation { display: none; }
        & SeekBar { padding: 0 1; background: $surface; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "Pause"),
        Binding("left", f"seek(-{_STEP_S})", "Back", key_display="←"),
        Binding("right", f"seek({_STEP_S})", "On", key_display="→"),
        Binding("plus,equals_sign", "speed(1)", "Speed", key_display="+ -"),
        Binding("minus", "speed(-1)", "Slower", show=False),
    ]

    def __init__(
        self,
        recording: Recording,
        *,
        speed: float = 1.0,
        at: float = 0.0,
        ascii: bool = False,
    ) -> None:
        super().__init__(ascii=ascii)
        self.transcript = Transcript()
        self.token_text = recording.token_text if recording.texts else None
        self.source = ReplaySource(recording, self._take, self._rewind)
        self.source.speed = speed
        if at:
            self.source.seek(at)
        self._conversation = Conversation()
        self._bar = SeekBar(self.source, ascii=self.ascii)
        self._chosen = False
        self._since_frames = 0.0
        self._clock = time.monotonic()
        # Keys and the timer come through the queues of different widgets.
        self._drawing = asyncio.Lock()

    def compose(self) -> ComposeResult:
        with Container(id="replayed"):
            yield self._conversation
            yield self.panes
        yield self._bar
        yield Footer(show_command_palette=False, compact=True)

    async def on_mount(self) -> None:
        self._fit(self.app.size.width)
        await self._draw()
        self.set_interval(_TICK_S, self._on_time)

    def on_resize(self, event: events.Resize) -> None:
        self._fit(event.size.width)

    async def tick(self, seconds: float) -> None:
        """So much time has passed."""
        self.source.advance(seconds)
        self._since_frames += seconds
        if self._since_frames >= _FRAMES_S:
            self._since_frames = 0.0
            self._take_frames()
        await self._draw_text()

    async def action_pause(self) -> None:
        """Stops, goes on, or begins again at the end."""
        if self.source.ended:
            await self._go(0.0)
            self.source.paused = False
        else:
            self.source.paused = not self.source.paused
        await self._draw()

    async def action_seek(self, seconds: float) -> None:
        await self._go(self.source.position + seconds)

    async def on_seek_bar_sought(self, message: SeekBar.Sought) -> None:
        await self._go(message.share * self.source.recording.seconds)

    async def action_speed(self, steps: int) -> None:
        self.source.faster(steps)
        await self._draw()

    def action_panes(self) -> None:
        super().action_panes()
        self._chosen = True
        self.set_class(self.panes.layout_mode == "full", "-full")

    def _fit(self, width: int) -> None:
        """Panes where there is room for them, until the user has chosen."""
        if not self._chosen:
            self.panes.layout_mode = "side" if width >= _SIDE_COLUMNS else "strip"

    async def _on_time(self) -> None:
        now = time.monotonic()
        passed, self._clock = now - self._clock, now
        await self.tick(passed)

    async def _go(self, position: float) -> None:
        self.source.seek(position)
        await self._draw()

    def _take(self, what: Event | Said) -> None:
        self.transcript.take(what)

    def _rewind(self) -> None:
        self.transcript.clear()
        self.history.clear()

    def _take_frames(self) -> None:
        frames = self.source.new_frames()
        for frame in frames:
            self.history.add(frame)
        if frames:
            self.history.add_records(self.source.records(self.history.next_record))
            self.show()

    async def _draw(self) -> None:
        self._take_frames()
        await self._draw_text()

    async def _draw_text(self) -> None:
        """Brings the turns on the screen to what the transcript says."""
        async with self._drawing:
            if self._conversation.is_attached and self.is_running:
                await self._draw_turns()

    async def _draw_turns(self) -> None:
        self._bar.redraw()
        scroll = self._conversation
        shown = list(scroll.query(TurnView))
        turns = self.transcript.turns
        at_end = scroll.max_scroll_y - scroll.scroll_y <= 1
        same = 0
        while same < min(len(shown), len(turns)) and shown[same].turn is turns[same]:
            same += 1
        for view in shown[same:]:
            await view.remove()
        for turn in turns[same:]:
            await scroll.mount(TurnView(turn, self.ascii))
        for view in list(scroll.query(TurnView))[max(0, same - 1) :]:
            await view.refresh_turn()
        if at_end:
            scroll.scroll_end(animate=False)
