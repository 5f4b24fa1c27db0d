"""The chat as it looks: its screens on two sizes, dark and light, without colours, in ASCII.

One run of the application goes through all screens, so the order of `walk` matters: answers come in that order.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime

import pytest

from tests.support.chat_app import Chat, RunChat
from tests.support.screens import Pictures, colours, painted, pictures, shown
from tests.support.scripted_engine import Script
from ui.app import ChatApp
from ui.screens.help import HelpScreen
from ui.screens.profiles import ProfilesScreen
from ui.screens.sessions import SessionsScreen
from ui.widgets.themes import DARK, LIGHT
from ui.widgets.turns import Notice

__all__ = ["pictures"]

SIZES = {"120x40": (120, 40), "80x24": (80, 24)}
GIB = 1 << 30

REPLY = """Two ways:

- add **one** number after the other
- call `sum`

```python
def total(numbers):
    return sum(numbers)
```

The second is shorter.
"""
ANSWERS = [[REPLY], ["The Rhine."], ["The Baltic Sea."], ["One, two, ", "three."], ["Once upon ", "a time."]]

pytestmark = pytest.mark.slow  # until it has been shown to be stable on busy machines

Walk = dict[str, tuple[str, str]]


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that always has as much memory."""
    monkeypatch.setattr(ChatApp, "machine_bytes", staticmethod(lambda: 24 * GIB))


def test_with_colours(run_chat: RunChat, machine: None, pictures: Pictures, size: str) -> None:
    dark = walk(run_chat, size, theme=DARK.name)
    run_chat.database.unlink()
    light = walk(run_chat, size, theme=LIGHT.name, brief=True)
    for name, (text, _) in dark.items():
        pictures.check(f"{name}-{size}", text)
    for name, (text, _) in light.items():
        assert text == dark[name][0]
    pictures.check(f"conversation-{size}-dark", dark["conversation"][1])
    pictures.check(f"conversation-{size}-light", light["conversation"][1])


def test_without_colours(
    run_chat: RunChat, machine: None, pictures: Pictures, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for name, (text, _) in walk(run_chat, size, grey=True).items():
        pictures.check(f"{name}-{size}-no-colour", text)


def test_in_ascii(run_chat: RunChat, machine: None, pictures: Pictures, size: str) -> None:
    for name, (text, _) in walk(run_chat, size, ascii_only=True).items():
        assert text.isascii()
        pictures.check(f"{name}-{size}-ascii", text)


def walk(
    run_chat: RunChat,
    size: str,
    *,
    theme: str = DARK.name,
    brief: bool = False,
    grey: bool = False,
    ascii_only: bool = False,
) -> Walk:
    """Goes through the chat's screens: the text of each by its name, and the colours of the conversation.

    Args:
        brief: Ends after the conversation.
        grey: Checks that it has no colours.
    """
    seen: Walk = {}

    async def look(chat: Chat, name: str) -> None:
        await at_rest(chat)
        seen[name] = (text_of(chat), painted(chat.app) if name == "conversation" else "")
        if grey and name == "conversation":
            used = {colour for line in colours(chat.app) for pair in line for colour in pair if colour}
            assert all(colour[1:3] == colour[3:5] == colour[5:7] for colour in used)

    async def flow(chat: Chat) -> None:
        telemetry = chat.screen.telemetry
        chat.screen.prompt.cursor_blink = False
        await chat.until(lambda: telemetry.frame is not None, "telemetry")
        await chat.sees("Enter sends")
        await look(chat, "empty")

        chat.telemetry.ask()
        for token in range(20):
            chat.telemetry.token(token)
            telemetry.poll()
        chat.telemetry.rest(0.25)
        telemetry.poll()
        await chat.ask("How do I add numbers?")
        await chat.sees("The second is shorter.", "10.2 tok/s")
        await look(chat, "conversation")
        if brief:
            return

        await new(chat)
        await chat.ask("Name a river.")
        chat.turn(0).focus()
        await chat.pilot.press("e")
        await chat.sees("editing")
        await chat.ask("Name a sea.")
        await chat.sees("The Baltic Sea.", "2/2")
        await look(chat, "edited")

        await new(chat)
        await begin(chat, "Count to three.")
        await chat.pilot.press("escape")
        await chat.idle()
        await chat.sees("One, two,", "stopped")
        await look(chat, "stopped")

        await chat.pilot.press("f1")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen), "help")
        await look(chat, "help")
        await chat.pilot.press("escape")

        await chat.pilot.press("f4")
        await chat.until(lambda: isinstance(chat.app.screen, ProfilesScreen), "profiles")
        await chat.sees("balanced", "fits")
        await look(chat, "profiles")
        await chat.pilot.press("escape")

        date_sessions(run_chat)
        await chat.pilot.press("ctrl+o")
        await chat.until(lambda: isinstance(chat.app.screen, SessionsScreen), "sessions")
        await chat.sees("2025-03-04", "2025-03-03", "2025-03-02")
        await look(chat, "sessions")
        await chat.pilot.press("escape")

        await chat.write("/re")
        await chat.until(lambda: chat.screen.prompt.completing, "completions")
        await chat.sees("/regen", "/rename")
        await look(chat, "completions")
        await chat.write("")

        await new(chat)
        await begin(chat, "Tell me a story.")
        chat.script.engine.die("it was killed by signal 9")
        await chat.idle()
        await chat.until(lambda: isinstance(chat.app.focused, Notice), "the notice")
        await chat.sees("the engine ended", "ended by an error")
        await look(chat, "engine-died")

    # Panes draw by the clock, so a picture with them is another one on a busy machine; tests/ui/panes has theirs.
    flags: dict[str, object] = {"theme": theme, "layout": "off"}
    run_chat(flow, Script(ANSWERS), size=SIZES[size], flags=flags, ascii_only=ascii_only)
    return seen


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


async def at_rest(chat: Chat) -> None:
    """Waits until what is on the terminal has been the same for a few looks, with nothing left to lay out."""
    looks: list[str] = []

    def rests() -> bool:
        looks.append(shown(chat.app))
        return len(looks) >= 4 and len(set(looks[-4:])) == 1

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
