"""Ctrl-C: while nothing is being said it ends the command; while an answer comes it ends the answer."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import print_plain

Handler = Callable[[int, FrameType | None], None]


class Interrupts:
    """The process's handling of SIGINT. A SIGINT that the parent made it ignore stays ignored.

    Attributes:
        seen: Whether there was one. Code that is interrupted may turn ``KeyboardInterrupt`` into another
            exception, or lose it; this tells.
    """

    def __init__(self) -> None:
        self.seen = False

    def install(self) -> None:
        """From here on a SIGINT raises ``KeyboardInterrupt``, wherever it comes."""
        self._handle(self._raise)
        sys.unraisablehook = _raise_again

    def ignore(self) -> None:
        """From here on nothing interrupts: the command is ending anyway."""
        self._handle(signal.SIG_IGN)

    def check(self) -> None:
        """Raises ``KeyboardInterrupt`` if there was a SIGINT that got lost."""
        if self.seen:
            raise KeyboardInterrupt

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Within the block the first SIGINT calls ``stop``, and the second one ends the process at once."""

        def first(signum: int, frame: FrameType | None) -> None:
            self.seen = True
            self._handle(_abort)
            stop()

        self._handle(first)
        try:
            yield
        finally:
            self._handle(_abort if self.seen else self._raise)

    @contextmanager
    def left_to_child(self) -> Iterator[None]:
        """Within the block a SIGINT, which the child process gets too, is the child's to answer."""

        def note(signum: int, frame: FrameType | None) -> None:
            self.seen = True

        self._handle(note)
        try:
            yield
        finally:
            self._handle(self._raise)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def _handle(self, handler: Handler | signal.Handlers) -> None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN or handler is signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """In a finalizer Python drops an exception and tells of it; an interruption is kept, and nothing is told."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        # A little later and from another thread: raised here, it would be dropped here.
        again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _abort(signum: int, frame: FrameType | None) -> None:
    print_plain("interrupted")
    os._exit(ExitCode.INTERRUPTED)


interrupts = Interrupts()
"""This process's."""
