"""What the screens have in common that have panes and no chat, and a program that is one of them."""

from __future__ import annotations

import locale
import sys
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.screen import Screen

from offload.errors import FinemoeError
from profiles.settings import resolve
from ui.chat.keymap import footer_key
from ui.job_control import StopSignals
from ui.mended import MendedApp
from ui.panes.column import LayoutMode, PaneColumn
from ui.panes.history import FrameHistory
from ui.panes.token_routing import TokenText
from ui.screens.experts import ExpertsScreen
from ui.widgets.ascii import AsciiFilter
from ui.widgets.themes import DEFAULT, THEMES


class WatchScreen(Screen[None]):
    """Base of the monitor's screen and of a replay's.

    Args:
        ascii: Draw with ASCII characters only.

    Attributes:
        panes: To be put on the screen by who inherits.
        history: What they draw.
        token_text: Gives the text of a token, where that is known.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "panes", "Panes"),
        Binding("f3", "experts", "Experts"),
        Binding("f5", "freeze", "Freeze"),
        Binding("q,escape", "close", "Leave"),
    ]

    LAYOUTS: ClassVar[tuple[LayoutMode, ...]] = ("side", "full", "strip", "off")

    def __init__(self, *, ascii: bool = False) -> None:
        super().__init__()
        self.ascii = ascii
        self.panes = PaneColumn(self.LAYOUTS[0], ascii=ascii)
        self.history = FrameHistory()
        self.token_text: TokenText | None = None

    def show(self) -> None:
        """Draws the history."""
        self.panes.show(self.history)

    def action_panes(self) -> None:
        """The next layout."""
        modes = self.LAYOUTS
        self.panes.layout_mode = modes[(modes.index(self.panes.layout_mode) + 1) % len(modes)]

    def action_experts(self) -> None:
        """F3."""
        self.app.push_screen(ExpertsScreen(self.history, self.token_text, ascii=self.ascii))

    def action_freeze(self) -> None:
        """Holds the panes still, or lets them go on."""
        self.panes.freeze = not self.panes.freeze
        self.notify("the panes are held; F5 lets them go" if self.panes.freeze else "the panes go on", timeout=2)

    def action_close(self) -> None:
        """Back to where it was opened, or out."""
        self.dismiss()


class WatchApp(MendedApp):
    """A program that is one such screen, and ends when that is left.

    Args:
        first: The screen.
        theme: Name of the theme; one that is not known is the default.
    """

    TITLE = "finemoe"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+q,ctrl+c", "quit", show=False, priority=True)]

    def __init__(self, first: WatchScreen, *, theme: str = DEFAULT) -> None:
        super().__init__()
        self._first = first
        if first.ascii:
            utf8 = (getattr(sys.__stdout__, "encoding", None) or "").lower().replace("-", "") == "utf8"
            self._filters.append(AsciiFilter(keep_letters=utf8))
        for known in THEMES:
            self.register_theme(known)
        self.theme = theme if theme in self.available_themes else DEFAULT

    def on_mount(self) -> None:
        StopSignals(self).watch()
        self.push_screen(self._first, lambda _: self.exit())

    def get_key_display(self, binding: Binding) -> str:
        return footer_key(binding)


def look_of_settings() -> tuple[bool, str]:
    """Whether to draw with ASCII only, and the theme: as the settings and the locale say."""
    try:
        settings = resolve().settings
    except FinemoeError:
        ascii_setting, theme = "auto", DEFAULT
    else:
        ascii_setting, theme = settings.ascii, settings.theme
    utf8 = locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"
    return ascii_setting == "on" or (ascii_setting == "auto" and not utf8), theme
