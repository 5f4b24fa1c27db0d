"""``finemoe doctor``: what this machine offers, and what stands in the way."""

from __future__ import annotations


def doctor() -> None:
    """Check this machine."""
