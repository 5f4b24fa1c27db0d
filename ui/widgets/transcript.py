"""The conversation. Only some of its messages are widgets, at first the last; others become some when scrolled to.

Those that are far away by then are let go of: neither memory nor the time of a layout grows with what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from ui.sessions import Message
from ui.widgets.turns import Notice, ReplyTurn, Turn, UserTurn

AT_FIRST = 12
AT_ONCE = 10
AT_MOST = 40
"""Messages that are widgets when a conversation is opened, that come with each step, and that are kept."""

Versions = Callable[[int], tuple[int, int]]


class Transcript(VerticalScroll, can_focus=False):
    """The conversation on the screen, followed at its end unless it was scrolled away from there."""

    def __init__(self, versions: Versions, welcome: Widget) -> None:
        super().__init__(id="transcript")
        self._versions = versions
        self._welcome = welcome
        self._branch: list[Message] = []
        self._first = self._end = 0  # The messages that are widgets.
        self._loading = False
        self._left_out: set[int] = set()  # Ids of messages that are not sent.

    def compose(self) -> ComposeResult:
        yield self._welcome
        yield Static("", id="earlier", classes="elsewhere")
        yield Static("", id="later", classes="elsewhere")

    def on_mount(self) -> None:
        self.anchor()
        self._show_others()

    @property
    def turns(self) -> list[Turn]:
        """Those that are widgets, oldest first."""
        return [child for child in self.children if isinstance(child, Turn)]

    @property
    def below(self) -> int:
        """How many messages come after those that are widgets."""
        return len(self._branch) - self._end

    async def show(self, branch: Sequence[Message]) -> None:
        """Shows a conversation from its end."""
        self._branch = list(branch)
        self._first, self._end = max(0, len(branch) - AT_FIRST), len(branch)
        with self.app.batch_update():
            await self.remove_children("Turn, Notice")
            await self.mount_all([self._widget(message) for message in self._branch[self._first :]])
        self._show_others()
        self.anchor()

    async def to_end(self) -> None:
        """Shows the end, and follows it."""
        if self.below:
            await self.show(self._branch)
        self.anchor()

    async def cut_after(self, branch: Sequence[Message]) -> None:
        """Takes away what comes after ``branch``, a beginning of what is shown."""
        kept = {message.id for message in branch}
        if self._first >= len(branch) or self.below:
            await self.show(branch)
            return
        self._branch = list(branch)
        self._end = len(branch)
        gone = [turn for turn in self.turns if turn.message is None or turn.message.id not in kept]
        notices = list(self.query(Notice))
        await self.remove_children([*gone, *notices])
        self._show_others()

    async def add(self, widget: Turn | Notice) -> None:
        """Adds something at the end."""
        if isinstance(widget, Turn):
            self._welcome.display = False
            if self.below:
                await self.show(self._branch)
            if widget.message is not None:
                self.keep(widget.message)
        await self.mount(widget)
        await self._let_go()

    def keep(self, message: Message) -> None:
        """Notes that the reply that was added last has become a message."""
        if not any(kept.id == message.id for kept in self._branch):
            self._branch.append(message)
            self._end = len(self._branch)

    def mark_left_out(self, first: int) -> None:
        """Dims what is not sent to the model, also where it is scrolled to later.

        Args:
            first: How many messages that is. Replies of which there is nothing are never sent, and do not count.
        """
        said = [place for place, message in enumerate(self._branch) if message.content]
        before = said[first] if first < len(said) else len(self._branch)
        self._left_out = {message.id for message in self._branch[: before if first else 0]}
        for turn in self.turns:
            turn.set_class(turn.message is not None and turn.message.id in self._left_out, "-left-out")

    async def renumber(self, id_of: Callable[[int], int]) -> None:
        """After messages have got other ids, and may have more or fewer versions."""
        self._branch = [replace(message, id=id_of(message.id)) for message in self._branch]
        self._left_out = {id_of(number) for number in self._left_out}
        for turn in self.turns:
            if turn.message is None:
                continue
            turn.message = replace(turn.message, id=id_of(turn.message.id))
            versions = self._versions(turn.message.id)
            if versions != turn.versions:
                turn.versions = versions
                await turn.recompose()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolled to where its widgets begin or end, it gets more messages."""
        super().watch_scroll_y(old_value, new_value)
        if self._loading:
            return
        if new_value < 2 and old_value > new_value and self._first:
            self._loading = True
            self.run_worker(self.load_earlier(), exit_on_error=False)
        elif new_value > max(old_value, self.max_scroll_y - 2) and self.below:
            self._loading = True
            self.run_worker(self.load_later(), exit_on_error=False)

    async def load_for(self, place: int) -> None:
        """Makes message number ``place`` a widget, and everything after it."""
        while place < self._first:
            await self.load_earlier()

    async def load_earlier(self) -> None:
        """Makes some earlier messages widgets; what is on the screen stays where it is."""
        try:
            before = max(0, self._first - AT_ONCE)
            widgets = [self._widget(message) for message in self._branch[before : self._first]]
            height = self.virtual_size.height
            await self.mount_all(widgets, after=self.query_one("#earlier"))
            self._first = before
            self._show_others()

            async def stay() -> None:
                self.scroll_to(y=self.scroll_y + self.virtual_size.height - height, animate=False, force=True)
                await self._let_go_below()

            self.call_after_refresh(stay)
        finally:
            self._loading = False

    async def load_later(self) -> None:
        """Makes some later messages widgets; what is on the screen stays where it is."""
        try:
            self.release_anchor()  # This is not the end of the conversation.
            end = min(len(self._branch), self._end + AT_ONCE)
            widgets = [self._widget(message) for message in self._branch[self._end : end]]
            await self.mount_all(widgets, after=self.turns[-1])
            self._end = end
            gone = self._far(self.turns[:-AT_MOST])
            if gone:
                first = self.turns[len(gone)]
                was = first.virtual_region.y
                await self.remove_children(gone)
                self._first += sum(turn.message is not None for turn in gone)

                def stay() -> None:
                    self.scroll_to(y=self.scroll_y + first.virtual_region.y - was, animate=False, force=True)

                self.call_after_refresh(stay)
            self._show_others()
        finally:
            self._loading = False

    async def _let_go_below(self) -> None:
        """Far from its end, a long conversation does not keep that."""
        gone = self._far(self.turns[AT_MOST:])
        if gone:
            await self.remove_children(gone)
            self._end -= sum(turn.message is not None for turn in gone)
            self._show_others()

    def _far(self, turns: list[Turn]) -> list[Turn]:
        """``turns``, if none of them is in use: the focus is not there, and no reply is being written."""
        in_use = any(turn.has_focus or (isinstance(turn, ReplyTurn) and turn.coming) for turn in turns)
        return [] if in_use else turns

    async def _let_go(self) -> None:
        """At its end, a long conversation keeps only its last messages."""
        turns = self.turns
        if len(turns) > AT_MOST and self.is_vertical_scroll_end:
            gone = turns[: len(turns) - AT_FIRST]
            await self.remove_children(gone)
            self._first += sum(turn.message is not None for turn in gone)
            self._show_others()

    def _show_others(self) -> None:
        """Says how many messages there are that are no widgets."""
        earlier, later = self.query_one("#earlier", Static), self.query_one("#later", Static)
        earlier.display, later.display = self._first > 0, self.below > 0
        earlier.update(f"{self._first:,} earlier {'message' if self._first == 1 else 'messages'} above")
        later.update(f"{self.below:,} later {'message' if self.below == 1 else 'messages'} below")
        if self.below:
            self.move_child(later, after=self.turns[-1])
        self._welcome.display = not self._branch and not self.turns

    def _widget(self, message: Message) -> Turn:
        kind = UserTurn if message.role == "user" else ReplyTurn
        turn = kind(message, self._versions(message.id))
        return turn.set_class(message.id in self._left_out, "-left-out")
