"""The chat in a test: the real application on a terminal in memory, with a scripted engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from profiles.settings import resolve
from tests.support.scripted_engine import Script
from tests.support.synthetic import SyntheticEngine
from ui.app import ChatApp
from ui.chat.setup import ChatSetup
from ui.engine_link import FindModel, Progress
from ui.screens.chat import ChatScreen
from ui.sessions import Message, SessionStore
from ui.widgets.turns import Notice, Turn

PATIENCE_S = 20.0


@dataclass
class Chat:
    """A running chat.

    Attributes:
        script: What its engine says, and was told.
        database: Where its sessions are.
        screens: What was on the screen when `look` was called, for tests that keep pictures.
    """

    app: ChatApp
    pilot: Pilot[None]
    script: Script
    database: Path
    telemetry: SyntheticEngine
    notices: list[str] = field(default_factory=list)

    @property
    def screen(self) -> ChatScreen:
        """The chat's screen, whatever is above it."""
        return self.app.chat

    @property
    def shown(self) -> str:
        """All that is on the terminal, as text."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    @property
    def turns(self) -> list[tuple[str, str]]:
        """The messages on the screen: whose they are, and what they say."""
        return [
            (type(turn).__name__.removesuffix("Turn").lower(), turn.text) for turn in self.screen.transcript.turns
        ]

    @property
    def notes(self) -> list[str]:
        """What the chat itself said."""
        return [notice.text for notice in self.screen.transcript.query(Notice)]

    @property
    def branch(self) -> list[tuple[str, str, str | None]]:
        """What the database has of the branch that is shown, read anew."""
        session = self.screen.conversation.session
        if session is None:
            return []
        with SessionStore.open(self.database) as store:
            path: list[Message] = store.path(store.get(session.id).leaf)
        return [(message.role, message.content, message.finish_reason) for message in path]

    async def until(self, happened: Callable[[], Any], what: str = "") -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"it never happened: {what or happened}\n{self.shown}")
            await self.pilot.pause(0.02)

    async def sees(self, *texts: str) -> None:
        """Waits until every one of ``texts`` is on the terminal."""
        await self.until(lambda: all(text in self.shown for text in texts), f"{texts} on the screen")

    async def ready(self) -> None:
        """Waits until the model is open."""
        await self.until(lambda: self.screen.room.driver.ready is not None, "ready")

    async def idle(self) -> None:
        """Waits until no reply is coming."""
        await self.until(lambda: not self.screen.answering.busy, "idle")
        await self.pilot.pause()

    async def write(self, text: str) -> None:
        """Puts ``text`` into the prompt, as a paste would."""
        self.screen.prompt.focus()
        self.screen.prompt.set_text(text)
        await self.pilot.pause()

    async def send(self, text: str) -> None:
        """Writes and sends."""
        await self.write(text)
        self.screen.prompt.leave_completions()
        await self.pilot.press("enter")
        await self.pilot.pause()

    async def ask(self, text: str) -> None:
        """Sends a message and waits for the whole reply."""
        asked = len(self.script.told_of("chat"))
        await self.send(text)
        await self.until(lambda: len(self.script.told_of("chat")) > asked, "asked")
        await self.idle()

    def turn(self, place: int) -> Turn:
        """Message number ``place`` on the screen."""
        return self.screen.transcript.turns[place]


Flow = Callable[[Chat], Awaitable[None]]


class RunChat:
    """Runs a chat with the folders in ``folder``; see `__call__`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "data" / "sessions.db"

    def __call__(
        self,
        flow: Flow,
        script: Script | None = None,
        *,
        size: tuple[int, int] = (100, 30),
        flags: dict[str, object] | None = None,
        find_model: FindModel | None = None,
        ready: bool = True,
        **setup: Any,
    ) -> Script:
        """Runs ``flow`` in a chat and ends it; what the chat still does then is done.

        Args:
            ready: Whether to wait for the model first.
        """
        script = script or Script()
        telemetry = SyntheticEngine()

        def have_model(name: str, progress: Progress) -> Path:
            return self.folder

        made = ChatSetup(
            resolved=resolve(flags or {}),
            make_link=script.make_link,
            find_model=find_model or have_model,
            open_board=lambda path: telemetry,
            database=self.database,
            **setup,
        )

        async def run() -> None:
            app = ChatApp(made)
            app.animation_level = "none"
            async with app.run_test(size=size, notifications=True) as pilot:
                chat = Chat(app, pilot, script, self.database, telemetry)
                await chat.until(lambda: any(isinstance(one, ChatScreen) for one in app.screen_stack) or not ready)
                if ready:
                    await chat.ready()
                await flow(chat)

        asyncio.run(run())
        return script
