"""The line at the top: which session, which model in how much memory, and what the engine is doing."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from textual.content import Content
from textual.widget import Widget

from ui.text import without_controls


class StatusBar(Widget, can_focus=False):
    """One line; what is least worth knowing goes first where it is narrow."""

    def __init__(self) -> None:
        super().__init__(id="status-bar")
        self._title = ""
        self._facts: tuple[str, ...] = ()
        self._doing = ""
        self._kind = ""

    def show(self, title: str, facts: tuple[str, ...], doing: str, kind: str) -> None:
        """Shows a title, facts (the first is worth most), and what is being done.

        Args:
            kind: ``ready``, ``busy`` or ``bad``.
        """
        shown = (without_controls(title), tuple(facts), doing, kind)
        if shown != (self._title, self._facts, self._doing, self._kind):
            self._title, self._facts, self._doing, self._kind = shown
            self.refresh()

    def render(self) -> Content:
        width = self.size.width - 2
        style = {"ready": "$success", "busy": "$accent", "bad": "$error"}.get(self._kind, "$foreground 60%")
        facts = list(self._facts)
        while facts and self._right_width(facts) > width * 2 // 3:
            facts.pop()
        right = self._right_width(facts)
        left = max(width - right - 2, 0)
        title = self._title if cell_len(self._title) <= left else f"{set_cell_size(self._title, max(left - 1, 0))}…"
        parts: list[str | Content | tuple[str, str]] = [
            " ",
            (set_cell_size(title, left), "bold"),
            "  ",
            (" · ".join(facts), "$foreground 60%"),
            "  " if facts else "",
            (f"● {self._doing} ", style),
        ]
        return Content.assemble(*parts)

    def _right_width(self, facts: list[str]) -> int:
        return cell_len(" · ".join(facts)) + (2 if facts else 0) + cell_len(self._doing) + 3
