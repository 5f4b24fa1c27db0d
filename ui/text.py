"""Text of a model, made safe to show in a terminal."""

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
