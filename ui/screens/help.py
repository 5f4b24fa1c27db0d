"""F1: what can be done where you are, and everything else below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

Rows = Sequence[tuple[str, str]]


class HelpScreen(ModalScreen[None]):
    """Groups of names and what they mean; the first is the one for where you are."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,enter", "leave", "Back")]

    def __init__(self, groups: Sequence[tuple[str, Rows]]) -> None:
        super().__init__()
        self._groups = groups

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide tall"):
            with VerticalScroll(id="help"):
                for title, rows in self._groups:
                    yield Static(title, classes="title", markup=False)
                    width = max((len(name) for name, _ in rows), default=0) + 2
                    for name, about in rows:
                        with Horizontal(classes="row"):
                            names = Static(name, classes="name", markup=False)
                            names.styles.width = min(width, 24)
                            yield names
                            yield Static(about, markup=False)
            yield Static("Esc: back · up and down: scroll", classes="keys", markup=False)

    def on_mount(self) -> None:
        self.query_one("#help").focus()

    def action_leave(self) -> None:
        self.dismiss(None)
