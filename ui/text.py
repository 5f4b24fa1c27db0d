"""Text to show in a terminal: what a model says, made safe, and counts and times in words."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0 controls but tab and newline, DEL, and the C1 controls, which are escape sequences of one character."""


def without_controls(text: str) -> str:
    """``text`` without the characters by which it could command a terminal.

    Only the introducing character goes; what followed it stays as the harmless text that it then is. So
    nothing has to be remembered between two pieces of a stream, and an unfinished sequence cannot swallow
    the rest.
    """
    return _CONTROLS.sub("", text)


def many(count: int, one: str, more: str = "") -> str:
    """``1 reply``, ``2,000 replies``; without `more`, an s is put behind."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def clock(seconds: float) -> str:
    """``1:05``, ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
