"""What the session store gives out: plain values that do not change under whoever holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["user", "assistant"]

FINISH_REASONS = ("stop", "length", "stopped", "interrupted", "error")
"""How an answer can have ended: the first three as the engine has them; ``interrupted``: the process that wrote
it died; ``error``: the engine failed."""


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation.

    Attributes:
        title: The first words of its first message, unless it was given another; empty before that.
        model: Name of the model that it is with.
        system: The system prompt; empty if there is none.
        created: Seconds since 1970, UTC.
        updated: When a message was last added, replaced or finished, in seconds since 1970, UTC.
        leaf: The last message of the branch that is shown; None while there is no message.
        messages: How many there are, all branches together.
    """

    id: int
    title: str
    model: str
    system: str
    created: float
    updated: float
    leaf: int | None
    messages: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message, a node of its session's tree.

    Attributes:
        session: The session's id.
        parent: The message that it follows; None for a first one.
        role: ``user`` or ``assistant``.
        created: Seconds since 1970, UTC.
        finish_reason: How an answer ended, one of :data:`FINISH_REASONS`. None while it is being written, and for
            a user's message that was given none.
        stats: ``Completion.to_dict()`` without ``text`` and ``token_ids``, with ``profile``.
    """

    id: int
    session: int
    parent: int | None
    role: str
    content: str
    created: float
    finish_reason: str | None
    stats: dict[str, Any] | None

    @property
    def unfinished(self) -> bool:
        """Whether it is an answer that is being written."""
        return self.role == "assistant" and self.finish_reason is None


@dataclass(frozen=True, slots=True)
class Hit:
    """One message that a search found.

    Attributes:
        snippet: The place in it, on one line, with … where something was left out.
        score: The greater the better: -bm25 of a search for words, the cosine of a search by meaning.
    """

    session: Session
    message: Message
    snippet: str
    score: float
