"""An engine for the chat's tests that says what was written down for it: real messages, when a test wants them.

It computes nothing. An answer is a list of pieces of text; they are given out at once, or one by one by the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from offload.config import EngineConfig, Sampling
from offload.service.messages import Changed, Counted, Done, Event, Failed, Progress, Ready, Started, Text
from ui.engine_link import Conversation, Gone, Listener

MIB = 1 << 20


def completion(text: str, reason: str = "stop", tokens: int = 0) -> dict[str, Any]:
    """A completion as the engine gives it."""
    counts = {"selections": 100, "hit_rate": 0.92, "resident": 92, "missed": 8, "stall_s": 0.1, "bytes_demand": MIB}
    return {
        "model": "demo",
        "completion_tokens": tokens,
        "prompt_tokens": 12,
        "token_ids": [],
        "text": text,
        "finish_reason": reason,
        "ttft_s": 0.84,
        "tpot_s": 0.098,
        "tokens_per_s": 10.2,
        "e2e_s": 2.0,
        "experts": {"decode": counts, "prefill": counts},
    }


@dataclass
class Script:
    """What the engines of one test say, and what they were told.

    Attributes:
        answers: Pieces of text of each answer, in order; an error fails it. The last comes again.
        opening: What `open` is answered with, by turns: None for success.
        held: Whether text waits for `say`.
        refuse: The error that a change of budget is refused with.
        told: Every command, by name, with its arguments.
        engines: All that were started.
    """

    answers: list[Sequence[str] | Failed] = field(default_factory=lambda: [["It is ", "blue."]])
    opening: list[Failed | None] = field(default_factory=lambda: [None])
    context: int = 1024
    held: bool = False
    held_open: bool = False
    refuse: Failed | None = None
    told: list[tuple[str, Any]] = field(default_factory=list)
    engines: list[ScriptedEngine] = field(default_factory=list)
    said: int = 0

    def make_link(self, listener: Listener) -> ScriptedEngine:
        """For `ChatSetup.make_link`."""
        engine = ScriptedEngine(self, listener)
        self.engines.append(engine)
        return engine

    @property
    def engine(self) -> ScriptedEngine:
        """The one that runs."""
        return self.engines[-1]

    def told_of(self, name: str) -> list[Any]:
        """The arguments of every command of that name."""
        return [what for kind, what in self.told if kind == name]


class ScriptedEngine:
    """One engine of a script."""

    def __init__(self, script: Script, listener: Listener) -> None:
        self._script = script
        self._listener = listener
        self._number = 0
        self._pieces: list[str] = []
        self._said: list[str] = []
        self._answering = 0
        self._opening: Callable[[], None] = lambda: None
        self._budget = 900 * MIB
        self.closed = False

    def start(self) -> None:
        self._tell("start", None)

    def open(self, config: EngineConfig, profile: str, command: str) -> int:
        number = self._tell("open", (config, profile))
        outcome = self._script.opening[0] if len(self._script.opening) == 1 else self._script.opening.pop(0)

        def finish() -> None:
            if outcome is not None:
                self._emit(Failed(number, outcome.kind, outcome.message, outcome.hint, outcome.fatal))
                return
            size = config.budget_bytes or self._budget
            self._emit(Ready(number, "demo", "cpu", "fast", "demand", self._script.context, size, 450, "board"))

        self._emit(Progress(number, "load", 30, 100))
        self._opening = finish
        if not self._script.held_open:
            finish()
        return number

    def finish_opening(self) -> None:
        """Ends an opening that was held."""
        self._opening()

    def chat(self, messages: Conversation, sampling: Sampling) -> int:
        number = self._answering = self._tell("chat", (messages, sampling))
        answers = self._script.answers
        answer = answers[min(self._script.said, len(answers) - 1)]
        self._script.said += 1
        self._emit(Started(number, self._script.said, 0))
        if isinstance(answer, Failed):
            self._emit(Failed(number, answer.kind, answer.message, answer.hint, answer.fatal))
            return number
        self._pieces, self._said = list(answer), []
        if not self._script.held:
            self.say()
        return number

    def say(self, pieces: int | None = None) -> None:
        """Says the next pieces, or all that are left, which ends the answer."""
        count = len(self._pieces) if pieces is None else pieces
        for _ in range(count):
            self._said.append(self._pieces.pop(0))
            self._emit(Text(self._answering, self._said[-1], len(self._said)))
        if pieces is None or not self._pieces:
            self._end("stop")

    def stop(self) -> None:
        self._tell("stop", None)
        if self._answering:
            self._end("stopped")

    def die(self, reason: str) -> None:
        """Ends as a process that was killed."""
        self._listener(Gone(reason))

    def set_budget(
        self, budget_bytes: int | None = None, experts_fraction: float | None = None, profile: str = ""
    ) -> int:
        number = self._tell("set_budget", (budget_bytes, experts_fraction, profile))
        refused = self._script.refuse
        if refused is not None:
            self._emit(Failed(number, refused.kind, refused.message, refused.hint))
        else:
            self._budget = budget_bytes or round((experts_fraction or 0.1) * 2000) * MIB
            self._emit(Changed(number, "demand", profile, self._budget, 900))
        return number

    def set_policy(self, policy: str) -> int:
        number = self._tell("set_policy", policy)
        self._emit(Changed(number, policy, "", self._budget, 450))
        return number

    def count_tokens(self, conversations: list[Conversation]) -> int:
        number = self._tell("count_tokens", conversations)
        counts = [sum(4 + len(one["content"].split()) for one in conversation) for conversation in conversations]
        self._emit(Counted(number, counts))
        return number

    def reset_stats(self) -> int:
        number = self._tell("reset_stats", None)
        self._emit(Changed(number, "demand", "", self._budget, 450))
        return number

    def close(self) -> None:
        self._tell("close", None)
        self.closed = True

    def _end(self, reason: str) -> None:
        number, self._answering = self._answering, 0
        self._emit(Done(number, completion("".join(self._said), reason, len(self._said))))

    def _tell(self, name: str, what: Any) -> int:
        self._script.told.append((name, what))
        self._number += 1
        return self._number

    def _emit(self, event: Event) -> None:
        self._listener(event)
