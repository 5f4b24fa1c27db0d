"""The chat: the conversation, the prompt under it, and what the engine is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Static

from offload.errors import DamagedFile, FinemoeError
from offload.precision import BF16
from offload.service.messages import Ready
from offload.units import format_bytes
from ui.chat.commands import code_blocks
from ui.chat.conversation import Conversation, Reach
from ui.chat.draft import keep_draft, take_draft
from ui.chat.engine import State
from ui.chat.keymap import CHAT_KEYS
from ui.chat.setup import ChatSetup
from ui.garbage import settle
from ui.screens.answering import Answering
from ui.screens.branches import Branches
from ui.screens.command_runner import CommandRunner
from ui.screens.engine_room import EngineRoom
from ui.screens.telemetry import Telemetry
from ui.sessions import SessionStore
from ui.widgets.completions import Completions
from ui.widgets.prompt import Prompt
from ui.widgets.status_bar import StatusBar
from ui.widgets.transcript import Transcript
from ui.widgets.turns import Notice, Turn
from ui.widgets.welcome import Question, Welcome

if TYPE_CHECKING:
    from ui.app import ChatApp
    from ui.screens.sessions import Chosen

TICK_S = 0.125
"""How often what came is drawn and saved: each piece by itself would cost ten times as much."""
TELEMETRY_TICKS = 2
"""The panes move with every second tick, four times a second."""


class ChatScreen(Screen[None]):
    """The main screen.

    Attributes:
        conversation: What is on the screen.
        room: The engine.
        answering: The reply that is coming.
        branches: Going to messages, and making other versions of them.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key.keys, key.action, key.label, id=key.id, show=key.shown, priority=True) for key in CHAT_KEYS
    ]
    AUTO_FOCUS = "#prompt"

    def __init__(self, setup: ChatSetup, store: SessionStore, *, saved: bool, reach: Reach | None = None) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (80, "-normal"), (120, "-wide")]
        self.setup = setup
        self.conversation = Conversation(store, self._unsaved, saved=saved, reach=reach)
        self.telemetry = Telemetry(self, setup)
        self.room = EngineRoom(self, setup)
        self.answering = Answering(self)
        self.transcript = Transcript(self.conversation.siblings, Welcome())
        self.runner = CommandRunner(self)
        self.commands = self.runner.commands
        self._completions = Completions()
        self.prompt = Prompt(self.commands.complete, self._completions)
        self._bar = StatusBar()
        self._queue = Static("", id="queued", markup=False)
        self.branches = Branches(self)
        self._left = False
        self._ticks = 0

    @property
    def chat_app(self) -> ChatApp:
        """The application."""
        return cast("ChatApp", self.app)

    def compose(self) -> ComposeResult:
        yield self._bar
        with Container(id="body"), Vertical(id="chat"):
            yield self.transcript
            yield self._queue
            yield self._completions
            yield self.prompt
        yield Footer(show_command_palette=False, compact=True)

    async def on_mount(self) -> None:
        self._completions.display = self._queue.display = False
        self.prompt.focus()
        await self._begin()
        self.set_interval(TICK_S, self._tick)

    def on_show(self) -> None:
        # It is laid out for the first time. Its first picture comes before any of this.
        self.call_after_refresh(self._start)

    async def _start(self) -> None:
        if self._left or not self.is_attached:
            return  # Quit before its first picture was out: there is nothing left to mount anything into.
        self.room.start()
        await self.telemetry.start(self.query_one("#body"))
        settle()
        if self.setup.record is not None:
            await self.runner.run(self.commands["record"], str(self.setup.record))

    async def _tick(self) -> None:
        """Draws all that moves in one go: a picture of the text and one of the panes take nearly twice as long."""
        self._ticks += 1
        with self.app.batch_update():
            if self._ticks % TELEMETRY_TICKS == 0:
                self.telemetry.poll()
            await self.answering.drain()
            # A dialog may hold the store that the conversation has now.
            if self.is_current and self.conversation.catch_up():
                await self._renumber()
                await self.say("saved again, with all that was said meanwhile")

    def on_resize(self) -> None:
        self.telemetry.fit()
        if not self.is_current:
            self.call_later(self._redraw_above)

    def _redraw_above(self) -> None:
        """Dialogs draw what is behind them only when they are drawn themselves."""
        for screen in self.app.screen_stack:
            screen.refresh()

    # What others tell it.

    def refresh_state(self) -> None:
        """Shows what the engine is doing now."""
        if not self.is_mounted:
            return
        room, driver = self.room, self.room.driver
        size = format_bytes(driver.budget_bytes) if driver.ready else ""
        # A budget that is a size is not said twice.
        label = room.profile or ("" if size and room.budget.total_bytes is not None else str(room.budget))
        facts = [room.model, f"{label} {size}".strip()]
        if self.telemetry.recorder is not None:
            facts.insert(0, "recording")
        if driver.ready:
            facts += [driver.ready.kernels, driver.ready.device]
            if driver.ready.precision != BF16:
                facts.append(driver.ready.precision)
        if not self.conversation.saved:
            facts.insert(0, "not saved")
        doing, kind = room.doing, "busy" if room.loading else "ready"
        if not room.loading and driver.state in (State.OFF, State.GONE):
            kind = "bad"
        elif not room.loading and self.answering.busy:
            doing, kind = "answering", "busy"
        self._bar.show(self.conversation.title or "new session", tuple(facts), doing, kind)
        self.prompt.cursor_blink = not self.answering.busy  # Each blink is a picture more.
        queued = self.answering.queued
        self._queue.display = bool(queued)
        self._queue.update(f"next: {' '.join(queued[:200].split())}")

    def opened(self, ready: Ready) -> None:
        """An engine is open."""
        try:
            self.telemetry.watch(ready.board)
        except FinemoeError as error:
            self.tell(error)
        self.refresh_state()

    def engine_gone(self, reason: str) -> None:
        """It ended without being asked to."""
        notice = Notice(
            f"the engine ended: {reason.removeprefix('the engine was ')}\n"
            "Enter or R restarts it; the conversation is kept",
            "error",
            "restart",
        )
        self._add_notice(notice)

    def tell(self, error: FinemoeError, action: str = "") -> None:
        """Shows an error; with ``action`` its notice can do something about it."""
        text = error.message + (f"\n{error.hint}" if error.hint else "")
        if action:
            text += f"\nEnter or R: {action}"
        self._add_notice(Notice(text, "error", action))

    async def say(self, text: str, kind: str = "note", before: Turn | None = None) -> None:
        """Shows a line of the chat's own."""
        if not text:
            return
        if before is not None:
            await self.transcript.mount(Notice(text, kind), before=before)
        else:
            await self.transcript.add(Notice(text, kind))

    def give_back(self, text: str) -> None:
        """Puts a message that was not sent back into the prompt."""
        self.prompt.set_text(f"{text}\n{self.prompt.whole}".strip())

    # What the user does.

    async def on_prompt_sent(self, event: Prompt.Sent) -> None:
        try:
            command = self.commands.parse(event.text)
        except FinemoeError as error:
            self.notify(f"{error.message}\n{error.hint}", severity="warning", markup=False)
            self.give_back(event.text)
            return
        self.prompt.remember(event.text)
        if command is not None:
            await self.runner.run(*command)
            return
        text = event.text[1:] if event.text.startswith("//") else event.text
        if self.branches.editing is not None:
            await self.branches.send_edited(text)
        else:
            await self.answering.send(text)

    async def on_question_chosen(self, event: Question.Chosen) -> None:
        self.prompt.focus()
        self.prompt.remember(event.text)
        await self.answering.send(event.text)

    async def on_turn_asked(self, event: Turn.Asked) -> None:
        if event.what in ("copy", "copy_code"):
            self.copy(code_blocks(event.turn.text) if event.what == "copy_code" else event.turn.text)
        else:
            await self.branches.asked(event)

    async def on_notice_taken(self, event: Notice.Taken) -> None:
        action = event.notice.action
        await event.notice.remove()
        self.prompt.focus()
        if action == "restart":
            self.room.start()
        elif action == "try again" and not self.answering.busy:
            await self.branches.regenerate()

    # Actions.

    def action_stop(self) -> None:
        if self.prompt.has_focus and self.prompt.completing:
            self.prompt.leave_completions()
        elif self.answering.busy:
            self.answering.stop()
        elif self.branches.editing is not None:
            self.branches.end_editing()
            self.prompt.set_text("")
        self.prompt.focus()

    async def action_new(self) -> None:
        await self.show_session(None)

    def action_help(self) -> None:
        from ui.screens.help import HelpScreen

        self.app.push_screen(HelpScreen(self.chat_app.help_groups(self.focused, self.commands)))

    def action_palette(self) -> None:
        self.app.action_command_palette()

    def action_sessions(self, query: str = "") -> None:
        from ui.screens.sessions import SessionsScreen

        current = self.conversation.session.id if self.conversation.session else None
        screen = SessionsScreen(self.conversation.store, query, current)

        async def chosen(choice: Chosen | None) -> None:
            if current in screen.deleted:
                await self.show_session(None)
            elif screen.renamed and current is not None:
                self.conversation.session = self.conversation.store.get(current)
            if choice is not None:
                await self.show_session(choice.session, choice.message)
            self.refresh_state()

        self.app.push_screen(screen, chosen)

    async def action_regenerate(self) -> None:
        await self.branches.regenerate()

    def action_profiles(self) -> None:
        self.runner.choose_profile()

    def action_panes(self) -> None:
        self.telemetry.cycle()

    def action_freeze(self) -> None:
        self.telemetry.freeze()

    async def action_record(self) -> None:
        await self.runner.run(self.commands["record"], "")

    def action_experts(self) -> None:
        self.telemetry.show_experts()

    def action_editor(self) -> None:
        self.chat_app.edit_in_editor(self.prompt)

    async def action_message(self, step: int) -> None:
        await self.branches.go(step)

    async def action_version(self, step: int) -> None:
        await self.branches.other_version(step)

    def action_page(self, step: int) -> None:
        self.transcript.page(step)

    async def action_end(self) -> None:
        await self.transcript.to_end()

    def copy(self, text: str) -> None:
        """Puts text on the terminal's clipboard (OSC 52)."""
        if text:
            self.app.copy_to_clipboard(text)
            self.notify(f"copied {len(text):,} characters", timeout=2)
        else:
            self.notify("there is nothing to copy", severity="warning", timeout=2)

    async def show_session(self, session_id: int | None, message_id: int | None = None) -> None:
        """Shows a kept session, or a new one."""
        if self.answering.busy:
            self.notify("stop the reply first (Esc)", severity="warning")
            return
        self.branches.end_editing()
        self.answering.forget_window()
        try:
            if session_id is None:
                self.conversation.new(self.room.model, self.setup.resolved.settings.system or "")
            else:
                self.conversation.open(session_id, message_id)
        except FinemoeError as error:
            self.tell(error)
            return
        await self.transcript.show(self.conversation.branch)
        if change := self.conversation.change_of_model(self.room.model):
            await self.say(f"{change}; /model {self.conversation.model} goes back to that one")
        said = [message.content for message in self.conversation.branch if message.role == "user"]
        self.prompt.remember_all([*said, *(text for text in self.prompt.sent if text not in said)])
        self.prompt.focus()
        self.refresh_state()

    # The rest.

    def leave(self) -> None:
        """Ends it all: what was said is kept, the engine is told to go."""
        if not self._left:
            self._left = True
            try:
                self.answering.keep_on_quit()
                self.chat_app.last_words = self.conversation.last_words(self.setup.database.parent)
            except FinemoeError as error:
                self.chat_app.last_words = f"nothing could be saved: {error.message}"
            keep_draft(self.prompt.whole)
            self.telemetry.close()

    async def on_unmount(self) -> None:
        self.leave()
        await self.room.close()

    async def _begin(self) -> None:
        """Shows the session to begin with."""
        store, chosen = self.conversation.store, None
        try:
            if self.setup.session is not None:
                chosen = store.find(self.setup.session).id
            elif self.setup.resume:
                latest = store.latest()
                chosen = latest.id if latest else None
        except FinemoeError as error:
            self.tell(error)
        await self.show_session(chosen)
        self.prompt.set_text(take_draft())
        for warning in self.setup.warnings:
            await self.say(warning, "warning")

    def _unsaved(self, error: FinemoeError) -> None:
        until = "any more" if isinstance(error, DamagedFile) else "while that lasts, and all of it after that"
        self._add_notice(
            Notice(
                f"{error.message}\nthe chat goes on; nothing is saved {until}. /export keeps it elsewhere",
                "warning",
            )
        )
        self.call_later(self._renumber)

    async def _renumber(self) -> None:
        """After the conversation has moved: its messages have other ids, and other versions may be there."""
        await self.transcript.renumber(self.conversation.id_of)
        self.refresh_state()

    def _add_notice(self, notice: Notice) -> None:
        async def add() -> None:
            await self.transcript.add(notice)
            if notice.action and not self.prompt.text and self.app.screen is self:
                notice.focus()

        self.call_later(add)
