"""Where terminal output goes, and what it may look like there.

Colour follows ``NO_COLOR``, ``FORCE_COLOR`` and ``TERM`` as Rich reads them; a stream that is not a terminal
gets plain text.
"""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.theme import Theme

PLAIN_WIDTH = 10_000
"""Columns of what does not go to a terminal: nothing is wrapped."""

THEME = Theme(
    {
        "ok": "green",
        "warn": "yellow",
        "fail": "bold red",
        "error": "bold red",
        "hint": "dim",
        "note": "dim",
        "name": "bold cyan",
        "value": "default",
        "quiet": "dim",
    }
)


def make_console(stream: TextIO) -> Console:
    """A console that writes to ``stream`` and changes nothing in what it is given but style."""
    return Console(
        file=stream,
        theme=THEME,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else PLAIN_WIDTH,
    )


def stdout_console() -> Console:
    """For data."""
    return make_console(sys.stdout)


def stderr_console() -> Console:
    """For progress, hints and errors."""
    return make_console(sys.stderr)


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether ``text`` survives on ``stream``."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
