"""What goes over the pipe between an engine's process and whoever drives it: one JSON object a line.

Commands go in, events come out. Every command has a number, and whatever comes of it carries the same number.
Counters do not go this way: they are in the board, a file (`offload.service.board`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from offload.errors import EngineBroken


@dataclass(frozen=True, slots=True)
class Open:
    """Open a model; answered by `Progress`, then `Ready` or `Failed`. `config`: fields of `EngineConfig`."""

    number: int
    config: dict[str, Any]
    profile: str = ""
    command: str = "chat"


@dataclass(frozen=True, slots=True)
class Chat:
    """Answer a conversation; answered by `Started`, `Text` ..., then `Done` or `Failed`.

    `sampling`: fields of `offload.config.Sampling`.
    """

    number: int
    messages: list[dict[str, str]]
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the running answer within a token; its `Done` says ``stopped``. No answer of its own."""

    number: int


@dataclass(frozen=True, slots=True)
class SetBudget:
    """Change the memory budget, also in the middle of an answer; answered by `Changed` or `Failed`."""

    number: int
    budget_bytes: int | None = None
    experts_fraction: float | None = None
    profile: str = ""


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Change the policy before the next forward pass; answered by `Changed` or `Failed`."""

    number: int
    policy: str


@dataclass(frozen=True, slots=True)
class CountTokens:
    """How long conversations are in tokens, for each of `conversations`; answered by `Counted` or `Failed`."""

    number: int
    conversations: list[list[dict[str, str]]]


@dataclass(frozen=True, slots=True)
class ResetStats:
    """Put all counters to zero; answered by `Changed`."""

    number: int


@dataclass(frozen=True, slots=True)
class Close:
    """End the process."""

    number: int


@dataclass(frozen=True, slots=True)
class Progress:
    number: int
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is open. `board` is the path of its counters; `context` the positions of its cache."""

    number: int
    model: str
    device: str
    kernels: str
    policy: str
    context: int
    budget_bytes: int
    slots: int
    board: str
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Started:
    """`first_record`: number of the `TokenRecord` that this answer's first decode pass will have."""

    number: int
    request: int
    first_record: int


@dataclass(frozen=True, slots=True)
class Text:
    """Pieces of the answer, joined where several came within a moment; `tokens`: how many there are so far."""

    number: int
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """`completion`: `Completion.to_dict()`."""

    number: int
    completion: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Changed:
    """A budget, policy or reset took effect: what holds now."""

    number: int
    policy: str
    profile: str
    budget_bytes: int
    slots: int


@dataclass(frozen=True, slots=True)
class Counted:
    number: int
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Failed:
    """A command failed; the engine goes on unless `fatal`. `kind`: name of the error class in `offload.errors`."""

    number: int
    kind: str
    message: str
    hint: str
    fatal: bool = False


Command = Open | Chat | Stop | SetBudget | SetPolicy | CountTokens | ResetStats | Close
Event = Progress | Ready | Started | Text | Done | Changed | Counted | Failed

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*get_args(Command), *get_args(Event))}


def to_line(message: Command | Event) -> str:
    """The message as one line of JSON, newline included."""
    return json.dumps({"is": type(message).__name__, **asdict(message)}, ensure_ascii=False) + "\n"


def from_line(line: str) -> Any:
    """The message that a line holds.

    Raises:
        EngineBroken: It is none of ours.
    """
    try:
        fields = json.loads(line)
        return _KINDS[fields.pop("is")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineBroken(f"the engine's process said something else than expected: {line[:200]!r}") from error
