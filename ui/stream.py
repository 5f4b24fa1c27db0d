"""Showing a model's text while it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from ui.text import without_controls


class StreamPrinter:
    """Writes pieces of text to a stream as they come and ends them with a newline.

    Args:
        stream: Where to write. Control characters are left out if it is a terminal.
        before_first: Called once, before the first piece is written.
    """

    def __init__(self, stream: TextIO, before_first: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._before_first = before_first
        self._terminal = stream.isatty()
        self._last = ""

    def write(self, text: str) -> None:
        """Shows ``text`` at once.

        Raises:
            OSError: The stream cannot be written.
        """
        if self._before_first is not None:
            self._before_first()
            self._before_first = None
        text = without_controls(text) if self._terminal else text
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._last = text[-1]

    def end(self) -> None:
        """Ends the last line, if it has not ended."""
        if self._last not in ("", "\n"):
            self.write("\n")
