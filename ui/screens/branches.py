"""Going from message to message, and making other versions of them: answering once more, and editing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ui.sessions import Message
from ui.widgets.turns import Turn

if TYPE_CHECKING:
    from ui.screens.chat import ChatScreen


class Branches:
    """What can be done with the messages of a chat.

    Attributes:
        editing: The message that is being edited; None if none is.
    """

    def __init__(self, screen: ChatScreen) -> None:
        self.editing: Message | None = None
        self._screen = screen

    async def asked(self, event: Turn.Asked) -> None:
        """Does what a key on a message asks for."""
        turn = event.turn
        if event.what == "other":
            await self._go_from(turn, event.step)
        elif turn.message is None:
            if event.what == "again":
                await self.regenerate()
        elif event.what == "edit":
            self.edit(turn.message)
        elif event.what == "again":
            await self.regenerate(turn.message)
        elif event.what == "version":
            await self._show_version(turn.message, event.step)

    async def go(self, step: int) -> None:
        """Goes to the message ``step`` after the one that has the focus, or from the prompt to the last."""
        focused = self._screen.focused
        if isinstance(focused, Turn):
            await self._go_from(focused, step)
        elif step < 0 and self._screen.transcript.turns:
            await self._screen.transcript.to_end()
            self._screen.transcript.turns[-1].focus()

    async def other_version(self, step: int) -> None:
        """Another version of the message that has the focus, or of the last one that has several."""
        focused = self._screen.focused
        turns = [focused] if isinstance(focused, Turn) else reversed(self._screen.transcript.turns)
        for turn in turns:
            if turn.message is not None and turn.versions[1] > 1:
                await self._show_version(turn.message, step)
                return

    def edit(self, message: Message) -> None:
        """Puts a message of the user's into the prompt; sending it makes a new branch."""
        if self._busy():
            return
        self.editing = message
        self._screen.prompt.set_text(message.content)
        self._screen.prompt.border_title = "editing: Enter sends it as a new branch, Esc leaves it"
        self._screen.prompt.add_class("-editing")
        self._screen.prompt.focus()

    async def regenerate(self, message: Message | None = None) -> None:
        """Answers once more what the message answers, or what it says if it is the user's."""
        conversation = self._screen.conversation
        if self._busy():
            return
        if not conversation.branch:
            self._screen.notify("there is nothing to answer yet")
            return
        last = message or conversation.branch[-1]
        ids = [one.id for one in conversation.branch]
        place = ids.index(conversation.id_of(last.id))
        asked = place if last.role == "user" else place - 1
        conversation.go_back_to(ids[asked] if asked >= 0 else None)
        await self._screen.transcript.cut_after(conversation.branch)
        self._screen.prompt.focus()
        self._screen.answering.begin()

    async def send_edited(self, text: str) -> None:
        """Says ``text`` in the place of the message that was edited; that one stays as another branch."""
        message, conversation = self.editing, self._screen.conversation
        assert message is not None
        self.end_editing()
        ids = [one.id for one in conversation.branch]
        place = ids.index(conversation.id_of(message.id))
        conversation.go_back_to(ids[place - 1] if place else None)
        await self._screen.transcript.cut_after(conversation.branch)
        await self._screen.answering.send(text)

    def end_editing(self) -> None:
        """The prompt is for new messages again."""
        self.editing = None
        self._screen.prompt.border_title = None
        self._screen.prompt.remove_class("-editing")

    def _busy(self) -> bool:
        """Whether a reply is coming, which is said then: branches wait for it."""
        busy = self._screen.answering.busy
        if busy:
            self._screen.notify("stop the reply first (Esc)", severity="warning")
        return busy

    async def _show_version(self, message: Message, step: int) -> None:
        if self._busy():
            return
        conversation, transcript = self._screen.conversation, self._screen.transcript
        place = [one.id for one in conversation.branch].index(conversation.id_of(message.id))
        if not conversation.move(message.id, step):
            return
        focused = isinstance(self._screen.focused, Turn)
        await transcript.show(conversation.branch)
        await transcript.load_for(place)
        if focused:
            shown = conversation.branch[place].id
            next(turn for turn in transcript.turns if turn.message and turn.message.id == shown).focus()
        self._screen.refresh_state()

    async def _go_from(self, turn: Turn, step: int) -> None:
        turns = self._screen.transcript.turns
        place = turns.index(turn) + step
        if place < 0:
            await self._screen.transcript.load_earlier()
            place = self._screen.transcript.turns.index(turn) + step
            turns = self._screen.transcript.turns
        elif place >= len(turns) and self._screen.transcript.below:
            await self._screen.transcript.load_later()
            place = self._screen.transcript.turns.index(turn) + step
            turns = self._screen.transcript.turns
        if place >= len(turns):
            self._screen.prompt.focus()
        elif place >= 0:
            turns[place].focus()
