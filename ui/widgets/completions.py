"""The list above the prompt while a command is written."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from ui.chat.commands import Completion


class Completions(OptionList, can_focus=False):
    """What the line may become; the prompt keeps the focus."""

    def __init__(self) -> None:
        super().__init__(id="completions")
        self._found: list[Completion] = []

    @property
    def chosen(self) -> Completion | None:
        """The one that is highlighted."""
        if self.highlighted is None or not self._found:
            return None
        return self._found[self.highlighted]

    def show(self, found: list[Completion]) -> None:
        """Shows ``found``; goes away if that is nothing."""
        self.display = bool(found)
        if found == self._found:
            return
        self._found = found
        self.clear_options()
        width = max((len(one.shown) for one in found), default=0)
        self.add_options(
            Option(Content.assemble(one.shown.ljust(width), ("   " + one.about, "$foreground 60%")))
            for one in found
        )
        self.highlighted = 0 if found else None

    def move(self, step: int) -> None:
        """Highlights the next one, or the one before."""
        if self._found:
            self.highlighted = ((self.highlighted or 0) + step) % len(self._found)
