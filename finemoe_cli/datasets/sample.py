"""The sample of prompts that comes with finemoe, and dividing conversations into a history and what is held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from random import Random

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.errors import DatasetError
from finemoe_cli.datasets.rows import conversation_of


def load_sample(limit: int | None = None, seed: int | None = None) -> list[Conversation]:
    """The bundled conversations.

    Args:
        limit: Only so many of them, the first; ``None`` for all.
        seed: Shuffle them before, always alike for the same seed; ``None`` leaves the order of the file, in which
            languages and kinds are mixed.
    """
    text = files("finemoe_cli.datasets").joinpath("sample.jsonl").read_text(encoding="utf-8")
    # Not splitlines: it also splits at characters that may stand in a prompt.
    rows = [json.loads(line) for line in text.split("\n") if line]
    conversations = [conversation_of(row, number) for number, row in enumerate(rows, 1)]
    if seed is not None:
        Random(seed).shuffle(conversations)
    return conversations[:limit]


def split(
    conversations: Sequence[Conversation], share: float = 0.7, seed: int = 0
) -> tuple[list[Conversation], list[Conversation]]:
    """Divide conversations by chance, always alike for the same seed, as the paper divides its prompts 7 to 3.

    Args:
        share: Of the first part, between 0 and 1; it is rounded to whole conversations, and each part has one.

    Returns:
        The history, from which routing is learned, and the held out conversations, with which it is tested.

    Raises:
        DatasetError: There are fewer than two conversations, or the share is not between 0 and 1.
    """
    if len(conversations) < 2:
        raise DatasetError("a history and a test need two conversations at least")
    if not 0 < share < 1:
        raise DatasetError(f"the share of the history is {share:g}, not between 0 and 1")
    shuffled = list(conversations)
    Random(seed).shuffle(shuffled)
    first = min(max(round(share * len(shuffled)), 1), len(shuffled) - 1)
    return shuffled[:first], shuffled[first:]
