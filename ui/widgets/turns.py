"""What was said: your messages, the model's replies, and the chat's own notices."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message as Event
from textual.widgets import Static

from ui.chat.keymap import MESSAGE_KEYS
from ui.sessions import Message
from ui.stats import status_line
from ui.text import without_controls

if TYPE_CHECKING:
    from ui.widgets.markdown import MarkdownWriter

SHOWN_LINES = 30
SHOWN_CHARACTERS = 6_000
"""How much of a message of yours is shown; the model gets all of it."""

_ENDINGS = {
    "length": "cut at the limit",
    "stopped": "stopped",
    "interrupted": "interrupted",
    "error": "ended by an error",
}


class Turn(Vertical, can_focus=True):
    """One message. It can be gone to, and then has keys of its own.

    Attributes:
        message: What the store has of it; None for a reply of which nothing is there yet.
        versions: Which of how many versions this is.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key.keys, key.action, key.label, id=key.id, show=key.shown) for key in MESSAGE_KEYS
    ]

    class Asked(Event):
        """Something is to be done with a message.

        Attributes:
            what: ``edit``, ``again``, ``copy``, ``copy_code``, ``version``, ``other``.
            step: For the last two, how far.
        """

        def __init__(self, turn: Turn, what: str, step: int = 0) -> None:
            super().__init__()
            self.turn = turn
            self.what = what
            self.step = step

    def __init__(self, message: Message | None, versions: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.message = message
        self.versions = versions

    @property
    def text(self) -> str:
        """All of it."""
        return self.message.content if self.message else ""

    def action_edit(self) -> None:
        self.post_message(self.Asked(self, "edit"))

    def action_again(self) -> None:
        self.post_message(self.Asked(self, "again"))

    def action_copy(self) -> None:
        self.post_message(self.Asked(self, "copy"))

    def action_copy_code(self) -> None:
        self.post_message(self.Asked(self, "copy_code"))

    def action_version(self, step: int) -> None:
        self.post_message(self.Asked(self, "version", step))

    def action_other(self, step: int) -> None:
        self.post_message(self.Asked(self, "other", step))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The keys of what cannot be done here are not shown."""
        if action == "version":
            return self.versions[1] > 1
        if action == "edit":
            return isinstance(self, UserTurn)
        if action == "copy_code":
            return "```" in self.text or "~~~" in self.text
        return True

    @property
    def _versions(self) -> str:
        place, count = self.versions
        return f"‹ {place}/{count} ›" if count > 1 else ""


class UserTurn(Turn):
    """A message of yours, as you wrote it; a long one is cut on the screen."""

    def compose(self) -> ComposeResult:
        yield Static(Content(_shortened(without_controls(self.text))), classes="said")
        if self._versions:
            yield Static(self._versions, classes="status", markup=False)


class ReplyTurn(Turn):
    """A reply of the model's, whole or just coming."""

    def __init__(self, message: Message | None, versions: tuple[int, int] = (1, 1), waiting: str = "") -> None:
        super().__init__(message, versions)
        self._waiting = waiting
        self._pieces: list[str] = []
        self._new: list[str] = []
        self._writer: MarkdownWriter | None = None
        self._drawing = asyncio.Lock()
        self._done = message is not None
        self._begun = time.monotonic()
        self._first_text = 0.0

    @property
    def text(self) -> str:
        return "".join(self._pieces) if self._pieces else super().text

    def compose(self) -> ComposeResult:
        from ui.widgets.markdown import ReplyMarkdown  # An empty chat has its first picture sooner.

        self._first_part = ReplyMarkdown(without_controls(super().text))
        yield self._first_part
        yield Static(self._status_of_message(), classes="status", markup=False)

    @property
    def coming(self) -> bool:
        """Whether it is not whole yet."""
        return not self._done

    def wait_for(self, what: str) -> None:
        """Says what is being waited for."""
        self._waiting = what
        self._begun = time.monotonic()
        self._show_status(what)

    def take(self, text: str) -> None:
        """A piece of the reply; it is shown with the next `drain`."""
        if not self._pieces:
            self._first_text = time.monotonic()
        self._pieces.append(text)
        self._new.append(text)

    async def drain(self, tokens: int, note: str) -> str:
        """Shows what came since last time, and returns it."""
        async with self._drawing:
            if self._done or not self.is_mounted:
                return ""
            text, self._new = "".join(self._new), []
            if text:
                await self._written().write(without_controls(text))
            self._show_speed(tokens, note)
            return text

    def _written(self) -> MarkdownWriter:
        """What writes the reply."""
        if self._writer is None:
            from ui.widgets.markdown import MarkdownWriter

            self._writer = MarkdownWriter(self, self._first_part)
        return self._writer

    def _show_speed(self, tokens: int, note: str) -> None:
        now = time.monotonic()
        if not self._pieces:
            self._show_status(f"{self._waiting} · {now - self._begun:.0f} s" if self._waiting else "")
        else:
            elapsed = now - self._first_text
            speed = f" · {(tokens - 1) / elapsed:.1f} tok/s" if tokens > 1 and elapsed > 0.5 else ""
            self._show_status(f"{tokens} tok{speed}{note}")

    async def finish(self, message: Message | None, versions: tuple[int, int], text: str) -> None:
        """It is whole; with no message it ended before a word of it came."""
        async with self._drawing:
            self._done = True
            self.message, self.versions = message, versions
            self._pieces, self._new = [], []
            writer, whole = self._written(), without_controls(text)
            if whole.startswith(writer.whole):
                await writer.write(whole[len(writer.whole) :])
                await writer.close()
            else:  # It is not what came: the engine has the last word.
                await writer.close()
                await self.query("ReplyMarkdown").exclude(":first-child").remove()
                await self._first_part.update(whole)
            self._writer = None
            self._waiting = "" if message else "stopped before the first word"
            self._show_status(self._status_of_message(), layout=True)

    def _show_status(self, text: str, *, layout: bool = False) -> None:
        # While a reply comes the line stays one line: nothing has to be laid out anew many times a second.
        self.query_one(".status", Static).update(text, layout=layout)

    def _status_of_message(self) -> str:
        if self.message is None:
            return self._waiting
        parts = [
            self._versions,
            _ENDINGS.get(self.message.finish_reason or "", ""),
            status_line(self.message.stats) if self.message.stats else "",
        ]
        return " · ".join(part for part in parts if part)


class Notice(Static, can_focus=True):
    """Something that the chat itself has to say.

    Args:
        text: One line or a few.
        kind: ``note``, ``warning`` or ``error``.
        action: What Enter and R do on it, in a word; empty for nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,r", "take", "Do it", show=False)]

    class Taken(Event):
        """Its key was pressed."""

        def __init__(self, notice: Notice) -> None:
            super().__init__()
            self.notice = notice

    def __init__(self, text: str, kind: str = "note", action: str = "") -> None:
        super().__init__(Content(without_controls(text)), classes=f"-{kind}")
        self.text = text
        self.action = action
        self.can_focus = bool(action)

    def action_take(self) -> None:
        self.post_message(self.Taken(self))

    def on_click(self) -> None:
        if self.action:
            self.action_take()


def _shortened(text: str) -> str:
    lines = text[:SHOWN_CHARACTERS].split("\n")
    cut = lines[:SHOWN_LINES]
    shown = "\n".join(cut)
    if len(shown) == len(text):
        return text
    lines_in_all = text.count("\n") + 1
    count = f"{lines_in_all:,} {'line' if lines_in_all == 1 else 'lines'}"
    return f"{shown} …\n({len(text):,} characters in all, {count})"
