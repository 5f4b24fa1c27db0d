"""The engine as the chat sees it: what it is doing, and an answer to each command that can be awaited.

Everything here happens on the event loop's thread; events come from the link's own thread and are handed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from offload import errors
from offload.config import EngineConfig, Sampling
from offload.errors import EngineBroken, FinemoeError
from offload.service.messages import Changed, Counted, Done, Event, Failed, Progress, Ready, Started, Text
from ui.engine_link import Conversation, EngineLink, Gone, MakeLink


class State(Enum):
    """What the engine is doing."""

    OFF = "off"
    LOADING = "loading"
    READY = "ready"
    ANSWERING = "answering"
    GONE = "gone"


@dataclass(slots=True)
class Reply:
    """What is known of a running answer.

    Attributes:
        on_text: Called with each piece of it.
        tokens: How many there are so far.
        first_record: Number of its first `TokenRecord`; None until it has begun.
    """

    on_text: Callable[[str], None]
    tokens: int = 0
    first_record: int | None = None


class EngineDriver:
    """Drives one engine after the other; a new one for each `open`.

    Args:
        make_link: Makes an engine's process.
        on_change: Told whenever something about it changed.
        on_gone: Told why the process ended, if nobody asked it to.
        on_event: Told everything that the engine says.

    Attributes:
        state: What it is doing.
        ready: What it said when it was opened; None before that.
        progress: What it is loading: stage, done, total.
        budget_bytes / slots / profile / policy: What holds now.
    """

    def __init__(
        self,
        make_link: MakeLink,
        on_change: Callable[[], None],
        on_gone: Callable[[str], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.state = State.OFF
        self.ready: Ready | None = None
        self.progress: tuple[str, int, int] | None = None
        self.budget_bytes = self.slots = 0
        self.profile = self.policy = ""
        self._make_link = make_link
        self._on_change = on_change
        self._on_gone = on_gone
        self._on_event = on_event
        self._link: EngineLink | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reply: tuple[int, Reply] | None = None

    async def open(self, config: EngineConfig, profile: str) -> Ready:
        """Ends the engine that there is, if any, and opens another.

        Raises:
            FinemoeError: It cannot be opened.
        """
        await self.close()
        loop = asyncio.get_running_loop()
        link: EngineLink

        def listen(event: Event | Gone) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._take, link, event)

        link = self._link = self._make_link(listen)
        self.profile = profile
        self._set(State.LOADING)
        try:
            await asyncio.to_thread(link.start)
            ready: Ready = await self._answer(link.open(config, profile, "chat"))
        except FinemoeError:
            if self._link is link:
                await self.close()
            raise
        self.ready, self.progress = ready, None
        self.budget_bytes, self.slots, self.policy = ready.budget_bytes, ready.slots, ready.policy
        self._set(State.READY)
        return ready

    async def chat(self, messages: Conversation, sampling: Sampling, reply: Reply) -> dict[str, Any]:
        """Has a conversation answered; `Completion.to_dict()`.

        Raises:
            FinemoeError: It could not be; what was said so far went to ``reply``.
        """
        link = self._require()
        number = link.chat(messages, sampling)
        self._reply = (number, reply)
        self._set(State.ANSWERING)
        try:
            completion: dict[str, Any] = await self._answer(number)
            return completion
        finally:
            self._reply = None
            if self.state is State.ANSWERING:
                self._set(State.READY)

    def stop(self) -> None:
        """Ends the running answer within a token."""
        if self._link is not None and self.state is State.ANSWERING:
            self._link.stop()

    async def count(self, conversation: Conversation) -> int:
        """How many tokens a conversation is."""
        tokens: list[int] = await self._answer(self._require().count_tokens([conversation]))
        return tokens[0]

    async def set_budget(self, budget_bytes: int | None, experts_fraction: float | None, profile: str) -> Changed:
        """Changes the memory budget, also while it answers.

        Raises:
            DoesNotFit: It cannot be kept; the old one stays.
        """
        link = self._require()
        changed: Changed = await self._answer(link.set_budget(budget_bytes, experts_fraction, profile))
        self._changed(changed)
        return changed

    async def set_policy(self, policy: str) -> Changed:
        """Changes how experts are chosen to be read and evicted."""
        changed: Changed = await self._answer(self._require().set_policy(policy))
        self._changed(changed)
        return changed

    async def reset_stats(self) -> None:
        """Puts all counters to zero."""
        await self._answer(self._require().reset_stats())

    async def close(self) -> None:
        """Ends the engine; a running answer fails."""
        link, self._link = self._link, None
        self.ready = self.progress = None
        self._set(State.OFF)
        self._give_up(EngineBroken("the engine was closed"))
        if link is not None:
            await asyncio.to_thread(link.close)

    def _changed(self, changed: Changed) -> None:
        self.budget_bytes, self.slots = changed.budget_bytes, changed.slots
        self.profile, self.policy = changed.profile, changed.policy
        self._on_change()

    def _set(self, state: State) -> None:
        self.state = state
        self._on_change()

    def _require(self) -> EngineLink:
        if self._link is None or self.state not in (State.READY, State.ANSWERING):
            raise EngineBroken("the engine is not ready", "wait until the model is loaded")
        return self._link

    async def _answer(self, number: int) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def _take(self, link: EngineLink, event: Event | Gone) -> None:
        if link is not self._link:
            return
        if not isinstance(event, Gone):
            self._on_event(event)
        match event:
            case Progress():
                self.progress = (event.stage, event.done, event.total)
                self._on_change()
            case Started():
                if self._reply and self._reply[0] == event.number:
                    self._reply[1].first_record = event.first_record
            case Text():
                if self._reply and self._reply[0] == event.number:
                    self._reply[1].tokens = event.tokens
                    self._reply[1].on_text(event.text)
            case Ready() | Changed():
                self._resolve(event.number, event)
            case Done():
                self._resolve(event.number, event.completion)
            case Counted():
                self._resolve(event.number, event.tokens)
            case Failed():
                self._fail(event)
            case Gone():
                self._die(event.reason)

    def _resolve(self, number: int, value: object) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(value)

    def _fail(self, event: Failed) -> None:
        future = self._waiting.get(event.number)
        if future is not None and not future.done():
            future.set_exception(as_error(event))
        if event.fatal:
            self._die(event.message)

    def _die(self, reason: str) -> None:
        if self.state is State.GONE:
            return
        self.progress = None
        self._set(State.GONE)
        self._give_up(EngineBroken(f"the engine ended: {reason}", "restart it"))
        self._on_gone(reason)

    def _give_up(self, error: FinemoeError) -> None:
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(error)


def as_error(event: Failed) -> FinemoeError:
    """The error that the engine's process met, of the same class where that can be made here."""
    kind = getattr(errors, event.kind, FinemoeError)
    if not (isinstance(kind, type) and issubclass(kind, FinemoeError)):
        kind = FinemoeError
    try:
        made: FinemoeError = kind(event.message, event.hint)
    except TypeError:  # One with more to say than came over the pipe: what it is a kind of will do.
        made = kind.__mro__[1](event.message, event.hint)
    return made
