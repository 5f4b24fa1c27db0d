"""Having a conversation answered: from a message that was sent to a reply that is kept."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual.worker import Worker

from offload.errors import FinemoeError
from ui.chat.context import fit, left_out
from ui.chat.engine import Reply, State
from ui.sessions import Message
from ui.widgets.turns import ReplyTurn, UserTurn

if TYPE_CHECKING:
    from ui.screens.chat import ChatScreen


class Answering:
    """The reply that is coming, and the message that waits for it to end.

    Attributes:
        queued: A message that was sent while a reply was coming; empty if there is none.
        sampling: What was changed by ``/set``, by name.
    """

    def __init__(self, screen: ChatScreen) -> None:
        self.queued = ""
        self.sampling: dict[str, Any] = {}
        self._screen = screen
        self._worker: Worker[None] | None = None
        self._turn: ReplyTurn | None = None
        self._message: Message | None = None
        self._reply = Reply(_ignore)
        self._note = ""
        self._first_sent = 0
        self._next_drain = 0.0

    @property
    def busy(self) -> bool:
        """Whether a reply is coming, or waited for."""
        return self._worker is not None and not self._worker.is_finished

    async def send(self, text: str) -> None:
        """Says ``text``, now or when the reply that is coming has ended."""
        if self.busy:
            self.queued = f"{self.queued}\n\n{text}" if self.queued else text
            self._screen.refresh_state()
            return
        conversation = self._screen.conversation
        if conversation.model != self._screen.room.model:
            conversation.set_model(self._screen.room.model)
        message = conversation.say(text)
        self._screen.telemetry.said("user", text)
        await self._screen.transcript.add(UserTurn(message, conversation.siblings(message.id)))
        self.begin()

    def begin(self) -> None:
        """Has the conversation as it is answered."""
        self._screen.transcript.anchor()
        self._worker = self._screen.run_worker(self._answer(), group="answer")
        self._screen.refresh_state()

    def forget_window(self) -> None:
        """Another conversation: nothing has been left out of it."""
        self._first_sent = 0
        self._screen.transcript.mark_left_out(0)

    def stop(self) -> None:
        """Ends the reply and keeps what there is; a message that waits goes back to the prompt."""
        if self._screen.room.driver.state is State.ANSWERING:
            self._screen.room.driver.stop()
        elif self._worker is not None:
            self._worker.cancel()

    def note(self, text: str) -> None:
        """Something to show in the running reply's status line."""
        self._note = f" · {text}"

    async def drain(self) -> None:
        """Shows and keeps what came since last time; called eight times a second.

        A long reply takes longer to lay out. It is then drawn less often, so that three quarters of the time are
        left for everything else.
        """
        begun = time.monotonic()
        if self._turn is None or begun < self._next_drain:
            return
        text = await self._turn.drain(self._reply.tokens, self._note)
        if not text:
            return
        if self._turn is not None:
            self._keep_text(text)

        def drawn() -> None:
            now = time.monotonic()
            self._next_drain = now + 3 * (now - begun)

        self._screen.call_after_refresh(drawn)

    async def _answer(self) -> None:
        room, conversation = self._screen.room, self._screen.conversation
        turn = self._turn = ReplyTurn(None, waiting="waiting for the model" if room.loading else "")
        self._message, self._note = None, ""
        await self._screen.transcript.add(turn)
        reason, text, error = "error", "", None
        stats: dict[str, Any] | None = None
        try:
            await room.until_ready()
            turn.wait_for("reading the prompt")
            messages = conversation.messages()
            sampling = replace(self._screen.setup.resolved.sampling(), **self.sampling)
            assert room.driver.ready is not None
            context = room.driver.ready.context
            window = await fit(messages, room.driver.count, context, sampling.max_new_tokens, self._first_sent)
            if window.first != self._first_sent:
                await self._screen.say(left_out(messages, window, context), "warning", before=turn)
                self._first_sent = window.first
            self._screen.transcript.mark_left_out(window.first)
            self._reply = Reply(turn.take)
            completion = await room.driver.chat(window.messages, sampling, self._reply)
            reason, text = completion["finish_reason"], completion["text"]
            stats = completion | {"profile": room.driver.profile, "first_record": self._reply.first_record}
        except asyncio.CancelledError:
            if not self._screen.is_running or not self._screen.app.is_running:
                raise
            reason = "stopped"
        except FinemoeError as failure:
            error = failure
        await self._end(turn, reason, text or turn.text, stats, error)

    async def _end(
        self, turn: ReplyTurn, reason: str, text: str, stats: dict[str, Any] | None, error: FinemoeError | None
    ) -> None:
        self._turn = None
        conversation, transcript = self._screen.conversation, self._screen.transcript
        if text or stats:
            if self._message is None:
                self._begin_message()
            assert self._message is not None
            message = conversation.finish(self._message.id, reason, text, stats)
            transcript.keep(message)
            await turn.finish(message, conversation.siblings(message.id), text)
        elif error is not None:
            await turn.remove()
        else:
            await turn.finish(None, (1, 1), "")
        if error is not None and self._screen.room.driver.state is not State.GONE and not self._screen.room.failed:
            self._screen.tell(error, action="try again")
        self._worker = None
        queued, self.queued = self.queued, ""
        self._screen.refresh_state()
        if queued and reason in ("stop", "length"):
            await self.send(queued)
        elif queued:
            self._screen.give_back(queued)

    def keep_on_quit(self) -> None:
        """Nothing is lost: what came so far, and a message that waits."""
        if self._turn is not None and self._turn.text:
            if self._message is None:
                self._begin_message()
            assert self._message is not None
            self._screen.conversation.finish(self._message.id, "stopped", self._turn.text, None)
            self._turn = None
        if self.queued:
            self._screen.conversation.say(self.queued)
            self.queued = ""

    def _keep_text(self, text: str) -> None:
        if self._message is None:
            self._begin_message()
        assert self._message is not None
        self._screen.conversation.grow(self._message.id, text)

    def _begin_message(self) -> None:
        self._message = self._screen.conversation.begin_reply()


def _ignore(text: str) -> None:
    """Nobody is answering."""
