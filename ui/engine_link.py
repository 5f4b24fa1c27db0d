"""What the user interface needs of an engine in a process of its own, and of whoever watches one.

`offload.service` has both. Tests have others: events written down, and frames made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offload.config import EngineConfig, Sampling
from offload.service.messages import Event

Conversation = list[dict[str, str]]
"""Messages as a chat template takes them: ``[{"role": "user", "content": "Hello"}]``."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The engine's process ended without being asked to; ``reason`` says why in one line."""

    reason: str


Listener = Callable[["Event | Gone"], None]
"""Called with whatever the engine says, from any thread."""


class EngineLink(Protocol):
    """An engine's process. No call waits for an answer; each that has one returns the number it will carry."""

    def start(self) -> None:
        """Starts the process."""

    def open(self, config: EngineConfig, profile: str, command: str) -> int: ...

    def chat(self, messages: Conversation, sampling: Sampling) -> int: ...

    def stop(self) -> None: ...

    def set_budget(
        self, budget_bytes: int | None = None, experts_fraction: float | None = None, profile: str = ""
    ) -> int: ...

    def set_policy(self, policy: str) -> int: ...

    def count_tokens(self, conversations: list[Conversation]) -> int: ...

    def reset_stats(self) -> int: ...

    def close(self) -> None:
        """Ends the process, and nothing more is heard of it."""


MakeLink = Callable[[Listener], EngineLink]
Progress = Callable[[str, int, int], None]
FindModel = Callable[[str, Progress], Path]
"""The folder of a model, which it may have to build first; called in a thread. Raises ``FinemoeError``."""
