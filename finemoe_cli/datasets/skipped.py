"""Saying which rows of a file of prompts were skipped, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finemoe_cli.output import Output
from ui.text import many

TOLD = 10
"""So many rows are told one by one, so that a file that is bad from end to end fills no screen."""


def tell_skipped(output: Output, path: str | Path, skipped: Sequence[str], rows: int, where: str = "") -> None:
    """Warn of them, the first `TOLD` row by row.

    Args:
        skipped: The first of them, in words: "row 7: it is not JSON".
        rows: How many they are in all.
        where: Where more of them are described than here; empty for nowhere.
    """
    if not rows:
        return
    if rows == 1:
        output.warn(f"1 row of {path} was skipped; {skipped[0]}")
        return
    output.warn(f"{many(rows, 'row')} of {path} were skipped")
    for problem in skipped[:TOLD]:
        output.note(problem)
    if rows > TOLD:
        output.note(f"and {rows - TOLD:,} more{f', see {where}' if where else ''}")
