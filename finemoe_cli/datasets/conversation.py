"""A conversation to hold with a model: what the user says, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """The user's side of a conversation; the answers are for the model under test to give."""

    id: str
    """Its name in the data set; ``row-7`` where the file gives none."""
    turns: tuple[str, ...]
    """What the user says, at least one turn, none of them blank."""
    kind: str = ""
    """What it is about, in one word, such as ``code``; empty where it is not known."""
    language: str = ""
    """As the data set has it: ``en``, ``English``; empty where it is not known."""
    system: str = ""
    """The system prompt; empty for none."""
