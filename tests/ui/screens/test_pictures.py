"""The chat as it looks: all of its screens on two sizes, dark and light, without colours, in ASCII.

One run of the application goes through all screens, and every screen is looked at on all sizes in all themes before
the next one comes. The order of `Walk.go` matters: answers come in that order. Nothing that is drawn by the clock
is in a picture: time passes in the engine's telemetry alone, and cursors do not blink.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from textual.color import Color
from textual.command import CommandPalette
from textual.screen import Screen
from textual.strip import Strip
from textual.widgets import Input, TextArea

from offload.service.messages import Failed
from tests.support.chat_app import Chat, RunChat
from tests.support.recordings import FOLDER
from tests.support.screens import Pictures, colours, painted, pictures, shown
from tests.support.scripted_engine import Script
from ui.app import ChatApp
from ui.recording.recorder import SUFFIX
from ui.recording.screen import ReplayScreen
from ui.screens.ask import AskLine, Confirm
from ui.screens.experts import ExpertsScreen
from ui.screens.help import HelpScreen
from ui.screens.profiles import ProfilesScreen
from ui.screens.sessions import SessionsScreen
from ui.widgets.themes import DARK, LIGHT
from ui.widgets.turns import Notice

if TYPE_CHECKING:
    from textual.theme import Theme

__all__ = ["pictures"]

S = TypeVar("S", bound=Screen[Any])

SIZES = {"120x40": (120, 40), "80x24": (80, 24)}
SMALLEST = {"60x20": (60, 20)}
GIB = 1 << 30
TOKENS = 100

REPLY = """Two ways:

- add **one** number after the other
- call `sum`

```python
def total(numbers):
    return sum(numbers)
```

The second is shorter.
"""
ANSWERS: list[Sequence[str] | Failed] = [
    [REPLY],
    ["The Rhine."],
    ["The Baltic Sea."],
    ["One, two, ", "three."],
    ["Once upon ", "a time."],
]
DRAWN_OTHERWISE = {"panes", "panes-side", "panes-full", "chat-experts", "replay"}
"""Screens with panes, which have shapes where there are no colours."""


def test_with_colours(run_chat: RunChat, machine: None, pictures: Pictures) -> None:
    walk = Walk(run_chat, themes=(DARK, LIGHT))
    walk.start()
    for (name, size, dark), (text, colour) in walk.seen.items():
        if dark:
            pictures.check(f"{name}-{size}", text)
        assert text == walk.seen[name, size, not dark][0], f"{name}: a theme changes colours alone"
        if size == "80x24":
            pictures.check(f"{name}-{'dark' if dark else 'light'}", colour)


def test_without_colours(
    run_chat: RunChat, machine: None, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    walk = Walk(run_chat, grey=True)
    walk.start()
    for (name, size, _), (text, _) in walk.seen.items():
        pictures.check(f"{name}-{size}-no-colour" if name in DRAWN_OTHERWISE else f"{name}-{size}", text)


def test_in_ascii(run_chat: RunChat, machine: None, pictures: Pictures) -> None:
    walk = Walk(run_chat, ascii_only=True)
    walk.start()
    for (name, size, _), (text, _) in walk.seen.items():
        assert text.isascii()
        pictures.check(f"{name}-{size}-ascii", text)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that always has as much memory."""
    monkeypatch.setattr(ChatApp, "machine_bytes", staticmethod(lambda: 24 * GIB))


class Walk:
    """Goes through the chat's screens.

    Args:
        themes: What each is looked at in.
        grey: Checks that nothing has colours.
        ascii_only: Asks the chat for ASCII, and ends after the panes.

    Attributes:
        seen: Text, and colours in short, by name, size and whether the theme is dark.
    """

    def __init__(
        self,
        run_chat: RunChat,
        *,
        themes: tuple[Theme, ...] = (DARK,),
        grey: bool = False,
        ascii_only: bool = False,
    ) -> None:
        self.seen: dict[tuple[str, str, bool], tuple[str, str]] = {}
        self._run_chat = run_chat
        self._themes = themes
        self._grey = grey
        self._ascii_only = ascii_only

    def start(self) -> None:
        """From the first screen to the last."""
        flags: dict[str, object] = {"theme": DARK.name, "layout": "off"}
        size = SIZES["120x40"]
        self._run_chat(self.go, Script(ANSWERS), size=size, flags=flags, ascii_only=self._ascii_only)

    async def go(self, chat: Chat) -> None:
        press = chat.pilot.press
        await chat.until(lambda: chat.screen.telemetry.frame is not None, "telemetry")
        await chat.sees("Enter sends")
        await self.look(chat, "empty")

        decode(chat)
        await chat.ask("How do I add numbers?")
        await chat.sees("The second is shorter.", "10.2 tok/s")
        await self.look(chat, "conversation")
        await self.beside_panes(chat)
        if self._ascii_only:
            return  # What is left has no panes, and nothing of its own for ASCII.

        await new(chat)
        await chat.ask("Name a river.")
        chat.turn(0).focus()
        await press("e")
        await chat.sees("editing")
        await self.look(chat, "editing")
        await chat.ask("Name a sea.")
        await chat.sees("The Baltic Sea.", "2/2")
        chat.turn(1).focus()
        await self.look(chat, "message")

        await new(chat)
        await begin(chat, "Count to three.")
        await self.look(chat, "answering")
        await press("escape")
        await chat.idle()
        await chat.sees("One, two,", "stopped")
        await self.look(chat, "stopped")

        await press("f1")
        await on(chat, HelpScreen)
        await self.look(chat, "help")
        await press("escape")

        await press("f4")
        await on(chat, ProfilesScreen)
        await chat.sees("balanced", "fits")
        await self.look(chat, "profiles")
        await press("escape")

        date_sessions(self._run_chat)
        await press("ctrl+o")
        await on(chat, SessionsScreen)
        await chat.sees("2025-03-04", "2025-03-03", "2025-03-02")
        await self.look(chat, "sessions")
        await press("ctrl+r")
        await on(chat, AskLine)
        await self.look(chat, "rename")
        await press("escape", "ctrl+d")
        await on(chat, Confirm)
        await self.look(chat, "delete")
        await press("escape", "escape")

        await press("ctrl+p")
        await on(chat, CommandPalette)
        await chat.sees("/help", "/new", "/search")
        await self.look(chat, "palette")
        await press("escape")

        await chat.write("/re")
        await chat.until(lambda: chat.screen.prompt.completing, "completions")
        await chat.sees("/regen", "/rename")
        await self.look(chat, "completions")
        await chat.write("")

        await new(chat)
        await begin(chat, "Tell me a story.")
        chat.script.engine.die("it was killed by signal 9")
        await chat.idle()
        await chat.until(lambda: isinstance(chat.app.focused, Notice), "the notice")
        await chat.sees("the engine ended", "ended by an error")
        await self.look(chat, "engine-died")

    async def beside_panes(self, chat: Chat) -> None:
        """A conversation with panes in every layout, and the screens that are nothing but telemetry."""
        telemetry = chat.screen.telemetry
        telemetry.set_layout("auto")
        await chat.until(lambda: telemetry._history and telemetry._history.oracle, "the oracle")
        telemetry.show()
        await self.look(chat, "panes", SIZES | SMALLEST)
        telemetry.set_layout("side")
        await self.look(chat, "panes-side", {"80x24": SIZES["80x24"]})
        telemetry.set_layout("full")
        await self.look(chat, "panes-full")
        telemetry.set_layout("off")

        await chat.pilot.press("f3")
        await on(chat, ExpertsScreen)
        await chat.until(
            lambda: f"token {TOKENS} of {TOKENS}" in chat.shown and "..." not in chat.shown, "the oracle"
        )
        await self.look(chat, "chat-experts")
        await chat.pilot.press("escape")

        await chat.send(f"/replay {FOLDER / f'cpu{SUFFIX}'}")
        replay = await on(chat, ReplayScreen)
        replay.source.paused = True
        await replay._go(4.0)
        await chat.sees("Air scatters", "paused")
        await self.look(chat, "replay")
        await chat.pilot.press("escape")

    async def look(self, chat: Chat, name: str, sizes: dict[str, tuple[int, int]] = SIZES) -> None:
        """What the screen is like on all sizes in all themes, beginning with those that it has."""
        now = tuple(chat.app.size)
        for size, (columns, rows) in sorted(sizes.items(), key=lambda item: item[1] != now):
            await chat.pilot.resize_terminal(columns, rows)
            for theme in sorted(self._themes, key=lambda theme: theme.name != chat.app.theme):
                chat.app.theme = theme.name
                await at_rest(chat, (columns, rows), theme)
                self.seen[name, size, theme.dark] = (
                    text_of(chat),
                    painted(chat.app) if len(self._themes) > 1 else "",
                )
                if self._grey:
                    used = {colour for line in colours(chat.app) for pair in line for colour in pair if colour}
                    assert all(colour[1:3] == colour[3:5] == colour[5:7] for colour in used)


async def on(chat: Chat, kind: type[S]) -> S:
    """Waits until a screen of a kind is there."""
    await chat.until(lambda: isinstance(chat.app.screen, kind), kind.__name__)
    screen = chat.app.screen
    assert isinstance(screen, kind)
    return screen


def decode(chat: Chat) -> None:
    """The engine's counters of an answer."""
    chat.telemetry.ask()
    for token in range(TOKENS):
        chat.telemetry.token(token)
        chat.screen.telemetry.poll()
    chat.telemetry.rest(0.25)
    chat.screen.telemetry.poll()


async def new(chat: Chat) -> None:
    """A new session."""
    await chat.pilot.press("ctrl+n")
    await chat.until(lambda: not chat.turns, "a new session")


async def begin(chat: Chat, text: str) -> None:
    """Asks, and has the first piece of the reply."""
    asked = len(chat.script.told_of("chat"))
    chat.script.held = True
    await chat.send(text)
    await chat.until(lambda: len(chat.script.told_of("chat")) > asked, "asked")
    chat.script.engine.say(1)
    await chat.until(lambda: chat.branch[-1][0] == "assistant", "the first piece is kept")


async def at_rest(chat: Chat, size: tuple[int, int], theme: Theme) -> None:
    """Waits until the terminal has this size and theme, and has been the same for a few looks."""
    looks: list[list[Strip]] = []
    wanted = Color.parse(theme.background or "")

    def rests() -> bool:
        if not (tuple(chat.app.screen.size) == tuple(chat.screen.size) == size):
            return False
        if chat.screen.styles.background != wanted:
            return False
        for one in chat.app.screen.query("Input, TextArea"):
            assert isinstance(one, Input | TextArea)
            one.cursor_blink = False
        if len(looks) < 2:  # A dialog shows what is behind it as that was when the dialog was drawn.
            for screen in chat.app.screen_stack:
                screen.refresh()
        looks.append(chat.app.screen._compositor.render_strips())
        return len(looks) >= 4 and looks[-1] == looks[-2] == looks[-3]

    await chat.until(rests, "a screen at rest")


def text_of(chat: Chat) -> str:
    """What is on the terminal; in ASCII if the chat was asked to be."""
    if not chat.app.setup.ascii_only:
        return shown(chat.app)
    ascii_filter = chat.app._filters[-1]
    background = chat.app.screen.background_colors[1]
    strips = chat.app.screen._compositor.render_strips()
    return "".join(f"{strip.apply_filter(ascii_filter, background).text.rstrip()}\n" for strip in strips)


def date_sessions(run_chat: RunChat) -> None:
    """Gives every session a day of its own, so that the list does not say today's hour."""
    with closing(sqlite3.connect(run_chat.database)) as connection, connection:
        for session, day in ((1, 2), (2, 3), (3, 4)):
            when = datetime(2025, 3, day, 12).timestamp()
            connection.execute("UPDATE sessions SET updated = ? WHERE id = ?", (when, session))
