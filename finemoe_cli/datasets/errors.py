"""What can be wrong with a file of prompts."""

from __future__ import annotations

from offload.errors import FinemoeError


class DatasetError(FinemoeError):
    """A file of prompts cannot be used."""


class BadRow(DatasetError):
    """One row of it cannot; the message says why, in words that follow "row 7: "."""
