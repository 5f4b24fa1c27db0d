"""The conversation. Only its last messages are widgets; earlier ones become some when they are scrolled to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from ui.sessions import Message
from ui.widgets.turns import Notice, ReplyTurn, Turn, UserTurn

AT_FIRST = 12
AT_ONCE = 20
AT_MOST = 60
"""Messages that are widgets when a conversation is opened, that come with each step back, and that are kept."""

Versions = Callable[[int], tuple[int, int]]


class Transcript(VerticalScroll, can_focus=False):
    """The conversation on the screen, followed at its end unless it was scrolled away from there."""

    def __init__(self, versions: Versions, welcome: Widget) -> None:
        super().__init__(id="transcript")
        self._versions = versions
        self._welcome = welcome
        self._branch: list[Message] = []
        self._first = 0
        self._loading = False

    def compose(self) -> ComposeResult:
        yield self._welcome
        yield Static("", id="earlier")

    def on_mount(self) -> None:
        self.anchor()
        self._show_earlier()

    @property
    def turns(self) -> list[Turn]:
        """Those that are widgets, oldest first."""
        return [child for child in self.children if isinstance(child, Turn)]

    async def show(self, branch: Sequence[Message]) -> None:
        """Shows a conversation from its end."""
        self._branch = list(branch)
        self._first = max(0, len(branch) - AT_FIRST)
        with self.app.batch_update():
            await self.remove_children("Turn, Notice")
            await self.mount_all([self._widget(message) for message in self._branch[self._first :]])
        self._show_earlier()
        self.anchor()

    async def cut_after(self, branch: Sequence[Message]) -> None:
        """Takes away what comes after ``branch``, a beginning of what is shown."""
        kept = {message.id for message in branch}
        if self._first >= len(branch):
            await self.show(branch)
            return
        self._branch = list(branch)
        gone = [turn for turn in self.turns if turn.message is None or turn.message.id not in kept]
        notices = list(self.query(Notice))
        await self.remove_children([*gone, *notices])
        self._show_earlier()

    async def add(self, widget: Turn | Notice) -> None:
        """Adds something at the end."""
        if isinstance(widget, Turn):
            self._welcome.display = False
            if widget.message is not None:
                self._branch.append(widget.message)
        await self.mount(widget)
        await self._let_go()

    def keep(self, message: Message) -> None:
        """Notes that the reply that was added last has become a message."""
        if not any(kept.id == message.id for kept in self._branch):
            self._branch.append(message)

    def mark_left_out(self, first: int) -> None:
        """Dims what is not sent to the model: everything before message number ``first``."""
        out = {message.id for message in self._branch[:first]}
        for turn in self.turns:
            turn.set_class(turn.message is not None and turn.message.id in out, "-left-out")

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolled to the top, it gets earlier messages."""
        super().watch_scroll_y(old_value, new_value)
        if new_value < 2 and old_value > new_value and self._first and not self._loading:
            self._loading = True
            self.run_worker(self.load_earlier(), exit_on_error=False)

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
            self._show_earlier()

            def stay() -> None:
                self.scroll_to(y=self.scroll_y + self.virtual_size.height - height, animate=False, force=True)

            self.call_after_refresh(stay)
        finally:
            self._loading = False

    async def _let_go(self) -> None:
        """At its end, a long conversation keeps only its last messages."""
        turns = self.turns
        if len(turns) > AT_MOST and self.is_vertical_scroll_end:
            gone = turns[: len(turns) - AT_FIRST]
            await self.remove_children(gone)
            self._first += sum(turn.message is not None for turn in gone)
            self._show_earlier()

    def _show_earlier(self) -> None:
        earlier = self.query_one("#earlier", Static)
        earlier.display = self._first > 0
        earlier.update(f"{self._first:,} earlier {'message' if self._first == 1 else 'messages'} above")
        self._welcome.display = not self._branch and not self.turns

    def _widget(self, message: Message) -> Turn:
        kind = UserTurn if message.role == "user" else ReplyTurn
        return kind(message, self._versions(message.id))
