"""Titles of sessions that nobody gave one."""

from __future__ import annotations

LONGEST = 48
"""Characters."""


def title_from(text: str) -> str:
    """The first words of ``text``, on one line; what was cut off is marked."""
    words = " ".join(text.split())
    if len(words) <= LONGEST:
        return words
    cut = words[:LONGEST]
    whole = cut.rpartition(" ")[0] if words[LONGEST] != " " else cut
    # A language without spaces, or one long word.
    return (whole if len(whole) >= LONGEST // 2 else cut).rstrip(" ,;:.-") + "…"
