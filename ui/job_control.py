"""A program with a screen that is stopped from outside, and goes on."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignals:
    """Lets a screen take the terminal again only if it has given it up before.

    Textual's driver takes the terminal anew at every SIGCONT, and it gives it up at SIGTSTP only (Ctrl-Z). After a
    SIGSTOP, which nobody sees, or a SIGCONT out of the blue, it would have it twice: two threads that read keys, of
    which the end waits for one in vain.
    """

    def __init__(self) -> None:
        self._given_up = False

    def watch(self) -> None:
        """Stand before the handlers that there are. Of the main thread; once the screen has its terminal."""
        if not hasattr(signal, "SIGTSTP"):
            return
        stop, go = signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT)
        if not callable(stop) or not callable(go):  # No driver of a real terminal.
            return

        def stopped(signum: int, frame: FrameType | None) -> None:
            self._given_up = True
            stop(signum, frame)

        def continued(signum: int, frame: FrameType | None) -> None:
            if self._given_up:
                self._given_up = False
                go(signum, frame)

        signal.signal(signal.SIGTSTP, stopped)
        signal.signal(signal.SIGCONT, continued)
