"""What each seed of an evaluation draws: conversations to learn from and to test with, and when they come."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.sample import split
from finemoe_cli.evaluation.arrivals import arrival_times
from finemoe_cli.evaluation.prompts import Prompts, find_prompts
from offload.errors import ConfigError

SPLIT = "70:30"
"""As the paper divides its prompts."""

_SPLIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Draw:
    """What one seed draws.

    Attributes:
        prompts: Where the conversations are from.
        history: Conversations that policies learn from.
        test: Conversations that are measured, in this order.
        arrivals: When each of those comes, in seconds from the first on; None where each waits for the one before.
    """

    seed: int
    prompts: Prompts
    history: Sequence[Conversation]
    test: Sequence[Conversation]
    arrivals: Sequence[float] | None

    @property
    def digest(self) -> str:
        """Stands for the conversations."""
        text = json.dumps([asdict(conversation) for conversation in [*self.history, *self.test]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw_all(asked: Mapping[str, Any]) -> list[Draw]:
    """What each seed that is asked for draws.

    Args:
        asked: `dataset`, `data`, `limit`, `seed`, `split`, `online`, `arrivals` and `arrival_scale`.

    Raises:
        FinemoeError: Something cannot be used.
    """
    share = _share(asked["split"], asked["online"])
    data = None if asked["data"] is None else Path(asked["data"])
    draws = []
    for seed in parse_seeds(asked["seed"]):
        prompts = find_prompts(asked["dataset"], data, asked["limit"], seed)
        conversations = prompts.conversations
        if share and len(conversations) < 2:
            where = f" in {prompts.path}" if prompts.path else ""
            raise ConfigError(
                f"there is one conversation{where}, and a history and a test need two",
                "measure it alone with --online",
            )
        history, test = split(conversations, share, seed) if share else ([], list(conversations))
        times = arrival_times(asked["arrivals"], asked["arrival_scale"], len(test), seed)
        draws.append(Draw(seed, prompts, history, test, times))
    return draws


def parse_seeds(text: str) -> list[int]:
    """The seeds in a text such as ``0,1,2``.

    Raises:
        ConfigError: They are none.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise ConfigError(f"--seed is '{text}'", "give whole numbers from 0 on, with commas between: 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seed is '{text}', which names a seed twice", "name each once")
    return seeds


def _share(text: str | None, online: bool) -> float:
    if online:
        if text is not None:
            raise ConfigError(
                "both --online and --split are given", "an online run has no history; give one of the two"
            )
        return 0.0
    match = _SPLIT.fullmatch(text or SPLIT)
    parts = [float(part) for part in match.groups()] if match else []
    if not parts or parts[1] == 0:
        raise ConfigError(f"'{text}' is not a split", "give two numbers, such as 70:30; the second above 0")
    return parts[0] / sum(parts)
