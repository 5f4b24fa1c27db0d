"""Sending events without ever making the sender wait: a thread writes them, and joins text that comes fast."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from offload.service.messages import Event, Text, to_line

TEXT_EVERY_S = 0.05
TEXT_LETTERS = 64
"""Text is sent when so much has come together, or as soon as the last was sent so long ago."""


class Outbox:
    """Writes events to a pipe, in order.

    Args:
        descriptor: Where to; a pipe without a reader is no error, as there is nobody to tell.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._number = 0
        self._tokens = 0
        self._pieces: list[str] = []
        self._letters = 0
        self._ending = False
        self._thread = threading.Thread(target=self._keep_sending, name="finemoe-outbox", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        """Send an event, after the text that came before it."""
        with self._changed:
            self._finish_text()
            self._events.append(event)
            self._changed.notify()

    def text(self, number: int, piece: str, tokens: int) -> None:
        """Send a piece of text in a moment, with what else of the same answer has come by then."""
        with self._changed:
            if number != self._number:
                self._finish_text()
            first = not self._pieces
            self._number, self._tokens = number, tokens
            self._pieces.append(piece)
            self._letters += len(piece)
            if first or self._letters >= TEXT_LETTERS:
                self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Send what is there, and end; gives up after a time where nobody reads."""
        with self._changed:
            self._finish_text()
            self._ending = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _finish_text(self) -> None:
        if self._pieces:
            self._events.append(Text(self._number, "".join(self._pieces), self._tokens))
            self._pieces = []
            self._letters = 0

    def _keep_sending(self) -> None:
        sent_at = 0.0
        while True:
            with self._changed:
                while not self._events:
                    wait_s = None
                    if self._pieces:
                        wait_s = sent_at + TEXT_EVERY_S - time.monotonic()
                        if wait_s <= 0 or self._letters >= TEXT_LETTERS:
                            sent_at = time.monotonic()
                            self._finish_text()
                            continue
                    elif self._ending:
                        return
                    self._changed.wait(wait_s)
                events = list(self._events)
                self._events.clear()
            try:
                _write_all(self._descriptor, "".join(map(to_line, events)).encode("utf-8", "replace"))
            except OSError:
                pass  # Whoever listened is gone; that ends the process by another way.


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
