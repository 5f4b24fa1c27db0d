"""What an empty chat shows: what this is, three questions to begin with, and the keys."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message as Event
from textual.widgets import Static

QUESTIONS = (
    "Why is the sky blue?",
    "Write a haiku about a slow disk.",
    "Explain to a child what a mixture of experts is.",
)


class Question(Static, can_focus=True):
    """An example that Enter or a click asks."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "ask", "Ask it")]

    class Chosen(Event):
        """It is to be asked."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, text: str) -> None:
        super().__init__(Content(f"› {text}"))
        self.text = text

    def action_ask(self) -> None:
        self.post_message(self.Chosen(self.text))

    def on_click(self) -> None:
        self.action_ask()


class Welcome(Vertical):
    """The empty state."""

    def compose(self) -> ComposeResult:
        yield Static("finemoe", classes="name")
        yield Static(
            "A mixture-of-experts model larger than the memory you give it: its experts come from disk when a "
            "token chooses them. The answer is the same at every budget.",
            classes="about",
            markup=False,
        )
        for question in QUESTIONS:
            yield Question(question)
        yield Static(
            "Enter sends · Ctrl-J new line · / commands · F1 help · F4 memory", classes="keys", markup=False
        )
