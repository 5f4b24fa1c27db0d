"""What several changes at once owe the screen when they are done."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from textual.app import App


class WakesScreen(App[None]):
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
