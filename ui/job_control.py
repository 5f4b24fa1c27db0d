"""A program with a screen that is stopped from outside, and goes on."""

from __future__ import annotations

import asyncio
import contextvars
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from textual.app import App, SuspendNotSupported


class StopSignals:
    """Gives the terminal up before it is taken again, where nobody did.

    Textual's driver takes the terminal at every SIGCONT, though it gives it up at SIGTSTP only. After a SIGSTOP,
    which nobody sees, or a SIGCONT out of the blue, it would have it twice: two threads that read keys, and the end
    waits for one of them in vain. Not to take it would leave what a shell has written and set meanwhile.

    Both happen between two turns of the loop. A signal comes in the middle of anything, of a picture half written
    too: to write to the terminal then would wait for a lock that its own thread holds.
    """

    def __init__(self, app: App[Any]) -> None:
        self._app = app
        self._given_up = False
        self._to_stop = False

    def watch(self) -> None:
        """Stand before the handlers that there are. Of the app's thread, once the app runs."""
        if not hasattr(signal, "SIGTSTP"):
            return
        stop, go = signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT)
        if not callable(stop) or not callable(go):  # No driver of a real terminal.
            return
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def give_up_and_stop(signum: int) -> None:
            if self._to_stop:  # And not gone on since.
                self._to_stop, self._given_up = False, True
                stop(signum, None)

        def stopped(signum: int, frame: FrameType | None) -> None:
            self._to_stop = True
            if loop.is_closed():
                give_up_and_stop(signum)
            else:
                loop.call_soon_threadsafe(give_up_and_stop, signum, context=context)

        def continued(signum: int, frame: FrameType | None) -> None:
            self._to_stop = False
            if self._given_up:
                self._given_up = False
                go(signum, frame)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(self._take_anew, context=context)

        signal.signal(signal.SIGTSTP, stopped)
        signal.signal(signal.SIGCONT, continued)

    def _take_anew(self) -> None:
        with suppress(SuspendNotSupported), self._app.suspend():
            pass
