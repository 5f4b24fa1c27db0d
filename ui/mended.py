"""What Textual leaves undone that a chat of hours notices: look at it again with each version of it.

Importing this keeps Textual from holding on to what removed widgets have drawn: it remembers a widget's colours by
that widget's own cache of lines, for the last 1,024 of those, whether their widgets are still there or not.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

from textual._styles_cache import StylesCache
from textual.app import App
from textual.color import Color
from textual.style import Style


class MendedApp(App[None]):
    """Base of the programs here: after a batch of updates the screen is laid out, whatever else happens.

    A layout that is asked for while a batch goes on waits for its end, and Textual then wakes the program but not
    its screen: until the next message to that, nothing would be drawn.
    """

    @contextmanager
    def batch_update(self) -> Generator[None, None, None]:
        with super().batch_update():
            yield
        for screen in self.screen_stack[-1:]:
            screen.check_idle()


@lru_cache(1024)
def _inner_and_outer(base: Color, background: Color) -> tuple[Style, Style]:
    return Style(background=base + background), Style(background=base)


StylesCache.get_inner_outer = staticmethod(_inner_and_outer)  # type: ignore[method-assign, assignment]
