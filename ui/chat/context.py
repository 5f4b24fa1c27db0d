"""What of a conversation goes to the model when not all of it fits.

Whole turns are left out, the oldest first; never the system prompt, and never the last message. Room is kept for
the reply. When turns have to go, a few more go than need to, so that the next replies begin with the same messages:
the engine then finds their keys and values in its cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from offload.errors import ContextOverflow
from ui.engine_link import Conversation

Count = Callable[[Conversation], Awaitable[int]]
"""How many tokens a conversation is, as the engine says."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is sent.

    Attributes:
        messages: The system prompt, if there is one, and the messages from ``first`` on.
        first: How many of the conversation's oldest messages are left out, the system prompt not counted.
        turns: How many turns they are.
        tokens: What is sent.
        wanted: What all of it would have been.
    """

    messages: Conversation
    first: int
    turns: int
    tokens: int
    wanted: int


async def fit(
    conversation: Conversation, count: Count, context: int, max_new_tokens: int, first: int = 0
) -> Window:
    """As much of ``conversation`` as fits into ``context`` tokens beside a reply.

    Args:
        first: What was left out last time; more may be now, and less if all fits.

    Raises:
        ContextOverflow: The system prompt and the last message alone are too long.
    """
    head = [message for message in conversation[:1] if message["role"] == "system"]
    rest = conversation[len(head) :]
    room = min(max_new_tokens, context // 4)
    wanted = await count(conversation)
    if wanted + room <= context:
        return Window(conversation, 0, 0, wanted, wanted)

    starts = [place for place, message in enumerate(rest) if message["role"] == "user"]
    if first in starts[1:]:
        tokens = await count(head + rest[first:])
        if tokens + room <= context:
            return Window(head + rest[first:], first, starts.index(first), tokens, wanted)

    goal = context - room - context // 8
    low, high = 1, len(starts) - 1
    tokens_at: dict[int, int] = {}
    while low < high:
        middle = (low + high) // 2
        tokens_at[middle] = await count(head + rest[starts[middle] :])
        if tokens_at[middle] <= goal:
            high = middle
        else:
            low = middle + 1
    turns = max(min(low, len(starts) - 1), 0)
    sent = head + rest[starts[turns] if starts else 0 :]
    tokens = tokens_at[turns] if turns in tokens_at else await count(sent)
    if tokens >= context:
        raise ContextOverflow(
            f"the message is too long: with the system prompt it has {tokens:,} tokens, and the context has room "
            f"for {context:,}, reply included",
            "shorten it, or start with a larger --context",
        )
    return Window(sent, starts[turns] if starts else 0, turns, tokens, wanted)


def left_out(conversation: Conversation, window: Window, context: int) -> str:
    """One line that says exactly what ``window`` leaves out of ``conversation``; empty if nothing."""
    if not window.turns:
        return ""
    rest = [message for message in conversation if message["role"] != "system"]
    what = f"the first {window.turns} turns are" if window.turns > 1 else "the first turn is"
    last = _few_words(rest[window.first - 1]["content"])
    return (
        f"{what} left out of this reply, up to “{last}”: all of it would be {window.wanted:,} tokens, and the "
        f"context holds {context:,}; {window.tokens:,} were sent"
    )


def _few_words(text: str, longest: int = 40) -> str:
    line = " ".join(text[:400].split())
    return line if len(line) <= longest else f"{line[: longest - 1].rstrip()}…"
