"""Where you write: several lines, what you wrote before, and long pastes folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from textual import events
from textual.message import Message as Event
from textual.widgets import TextArea

from offload.units import format_bytes
from ui.chat.commands import Completion
from ui.widgets.completions import Completions

Complete = Callable[[str], list[Completion]]

LONG_PASTE = 8_000
"""Characters from which a paste is folded: laying a megabyte out again with every key would stall the chat."""

LONG_PASTE_LINES = 200


class Prompt(TextArea):
    """The prompt.

    What a key does is decided by what is written at that moment: keys may come faster than anything is drawn.

    Args:
        complete: What a text may become.
        completions: The list that shows it.

    Attributes:
        sent: What was sent before, oldest first.
    """

    class Sent(Event):
        """A message is to be sent, folded pastes unfolded."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, complete: Complete, completions: Completions) -> None:
        super().__init__(
            id="prompt",
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            highlight_cursor_line=False,
            placeholder="Ask anything, or / for commands",
            compact=True,
        )
        self.sent: list[str] = []
        self._complete = complete
        self._completions = completions
        self._left_at = ""
        self._pastes: dict[str, str] = {}
        self._place: int | None = None
        self._draft = ""

    @property
    def whole(self) -> str:
        """What is written, folded pastes unfolded."""
        text = self.text
        for folded, pasted in self._pastes.items():
            text = text.replace(folded, pasted)
        return text

    def set_text(self, text: str) -> None:
        """Puts ``text`` in the place of what is there, and the cursor at its end."""
        self._pastes.clear()
        self.text = self._fold(text) if _is_long(text) else text
        self.move_cursor(self.document.end)

    def remember(self, text: str) -> None:
        """Adds to the history."""
        if not self.sent or self.sent[-1] != text:
            self.sent.append(text)

    def remember_all(self, texts: Iterable[str]) -> None:
        """Makes ``texts`` the history."""
        self.sent = list(texts)
        self._place = None

    @property
    def completing(self) -> bool:
        """Whether completions are shown, or should be."""
        found = self._complete(self.text) if self.text != self._left_at else []
        self._completions.show(found)
        return bool(found)

    def leave_completions(self) -> None:
        """Hides them until something else is written."""
        self._left_at = self.text
        self._completions.show([])

    def on_text_area_changed(self) -> None:
        if self.text != self._left_at:
            self._left_at = ""
        self._completions.show(self._complete(self.text) if not self._left_at else [])

    async def _on_key(self, event: events.Key) -> None:
        if event.key in ("up", "down", "tab", "enter") and self.completing:
            self._take(event)
            self._complete_with(event.key)
        elif event.key == "enter":
            self._take(event)
            self._send()
        elif event.key in ("ctrl+j", "shift+enter", "alt+enter"):
            self._take(event)
            self.insert("\n")
        elif self._recalls(event.key):
            self._take(event)

    async def _on_paste(self, event: events.Paste) -> None:
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")  # Terminals end the lines of a paste with CR.
        if _is_long(text):
            event.prevent_default()
            event.stop()
            self.insert(self._fold(text))

    def _send(self) -> None:
        text = self.whole.strip()
        if text:
            self.set_text("")
            self.post_message(self.Sent(text))

    def _complete_with(self, key: str) -> None:
        if key in ("up", "down"):
            self._completions.move(1 if key == "down" else -1)
            return
        chosen = self._completions.chosen
        assert chosen is not None
        typed = self.text.rstrip() == chosen.text.rstrip()
        if key == "tab" or not (typed or (chosen.done and not chosen.text.endswith(" "))):
            self.set_text(chosen.text)
        else:
            self.set_text(chosen.text)
            self._send()

    def _fold(self, text: str) -> str:
        lines = text.count("\n") + 1
        size = format_bytes(len(text.encode(errors="replace")))
        name = f"[pasted {len(self._pastes) + 1}: {size}, {lines:,} {'line' if lines == 1 else 'lines'}]"
        self._pastes[name] = text
        return name

    def _recalls(self, key: str) -> bool:
        """Whether ``key``, at an edge of what is written, brought something back."""
        if key == "up" and self.cursor_at_first_line:
            return self._recall(-1)
        return key == "down" and self.cursor_at_last_line and self._recall(1)

    def _recall(self, step: int) -> bool:
        """Goes ``step`` in the history; False if there is nothing."""
        if step < 0 and self._place is None:
            self._draft = self.whole
        place = (len(self.sent) if self._place is None else self._place) + step
        if not 0 <= place <= len(self.sent) or (step > 0 and self._place is None):
            return False
        text = self._draft if place == len(self.sent) else self.sent[place]
        self.set_text(text)
        self._place = None if place == len(self.sent) else place
        if step < 0:
            self.move_cursor((0, 0))
            self.move_cursor(self.document.end if "\n" not in self.text else (0, 0))
        return True

    @staticmethod
    def _take(event: events.Key) -> None:
        event.stop()
        event.prevent_default()


def _is_long(text: str) -> bool:
    return len(text) > LONG_PASTE or text.count("\n") >= LONG_PASTE_LINES
