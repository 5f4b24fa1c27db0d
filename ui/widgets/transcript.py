"""The conversation. Only some of its messages are widgets, at first the last; others become some when scrolled to.

Those that are far away by then are let go of: neither memory nor the time of a layout grows with what was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.geometry import Region, Size
from textual.layout import DockArrangeResult
from textual.scrollbar import ScrollBar, ScrollDown, ScrollUp
from textual.widget import Widget
from textual.widgets import Static

from ui.sessions import Message
from ui.widgets.turns import Notice, ReplyTurn, Turn, UserTurn

AT_FIRST = 12
AT_ONCE = 10
AT_MOST = 40
"""Messages that are widgets when a conversation is opened, that come with each step, and that are kept.

Those that are seen, or less than a page away, are kept however many they are.
"""
_PAGES_AHEAD = 3
"""Pages that are still turned where keys come faster than pages are drawn; let go of, a key has an end."""

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
        self._changing = asyncio.Lock()  # What messages are widgets.
        self._places: dict[Widget, Region] = {}  # Where things were in the last layout.
        self._height = 0  # Of what can be seen at once.
        self._pages = 0  # To be turned, up if less than none.
        self._towards = 0  # Where it was scrolled to last: -1 is up.
        self._drawn = True
        self._left_out: set[int] = set()  # Ids of messages that are not sent.

    def compose(self) -> ComposeResult:
        yield self._welcome
        yield Static("", id="earlier", classes="elsewhere")
        yield Static("", id="later", classes="elsewhere")

    def on_mount(self) -> None:
        self.anchor()
        self._show_others()
        self.screen.screen_layout_refresh_signal.subscribe(self, self._was_drawn, immediate=True)

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
        async with self._changing:
            await self._show(branch)

    async def _show(self, branch: Sequence[Message]) -> None:
        self._branch = list(branch)
        self._pages = self._towards = 0
        self._first, self._end = max(0, len(branch) - AT_FIRST), len(branch)
        with self.app.batch_update():
            await self.remove_children("Turn, Notice")
            await self.mount_all([self._widget(message) for message in self._branch[self._first :]])
        self._changed()
        self.anchor()

    async def to_end(self) -> None:
        """Shows the end, and follows it."""
        if self.below:
            await self.show(self._branch)
        self.anchor()

    async def cut_after(self, branch: Sequence[Message]) -> None:
        """Takes away what comes after ``branch``, a beginning of what is shown."""
        async with self._changing:
            kept = {message.id for message in branch}
            if self._first >= len(branch) or self.below:
                await self._show(branch)
                return
            self._branch = list(branch)
            self._end = len(branch)
            gone = [turn for turn in self.turns if turn.message is None or turn.message.id not in kept]
            notices = list(self.query(Notice))
            await self.remove_children([*gone, *notices])
            self._show_others()

    async def add(self, widget: Turn | Notice) -> None:
        """Adds something at the end."""
        async with self._changing:
            if isinstance(widget, Turn):
                self._welcome.display = False
                if self.below:
                    await self._show(self._branch)
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

    def arrange(self, size: Size, optimal: bool = False) -> DockArrangeResult:
        """Arranges its children, and keeps what is seen where it is, whatever came, went or grew above it.

        Only here is it known where everything will be before any of it is drawn there. However late a message gets
        its height, no picture in between is of another place. If the end is followed, that has the last word.
        """
        arrangement = super().arrange(size, optimal)
        self._height = size.height
        places = {placement.widget: placement.region for placement in arrangement.placements}
        held = self._held(places)
        shift = places[held].y - self._places[held].y if held is not None else 0
        self._places = places
        if shift:
            self.app.animator.force_stop_animation(self, "scroll_y")
            y = max(0.0, self.scroll_y + shift)
            self.set_scroll(None, y)
            self.set_reactive(Widget.scroll_target_y, y)
            self.vertical_scrollbar.set_reactive(ScrollBar.position, y)
        return arrangement

    def _held(self, places: dict[Widget, Region]) -> Widget | None:
        """What stays where it is: the first that begins in what is seen, or what fills all of that."""
        top, bottom = self.scroll_y, self.scroll_y + self._height
        seen = [widget for widget, region in self._places.items() if top < region.bottom and region.y < bottom]
        candidates = [widget for widget in seen if isinstance(widget, (Turn, Notice)) and widget in places]
        candidates.sort(key=lambda widget: (self._places[widget].y < top, self._places[widget].y))
        return candidates[0] if candidates else None

    def page(self, step: int) -> None:
        """Turns a page, up if ``step`` is less than none. Each is drawn, and whole, before the next is turned."""
        self._pages = max(-_PAGES_AHEAD, min(_PAGES_AHEAD, self._pages + step))
        self._turn_page()

    def on_scroll_up(self, event: ScrollUp) -> None:
        """A click above the scrollbar's handle."""
        event.prevent_default()
        self.page(-1)

    def on_scroll_down(self, event: ScrollDown) -> None:
        """A click below it."""
        event.prevent_default()
        self.page(1)

    def _turn_page(self) -> None:
        if not self._pages:
            return
        step = 1 if self._pages > 0 else -1
        before, target = self.scroll_y, self.scroll_y + step * self._height
        self._towards = step
        if self._look_further(target):
            return  # It goes on when they are drawn.
        self._pages -= step
        # At once: where it will be after the next layout is not where it is now.
        self.scroll_to(y=target, animate=False, immediate=True)
        self._drawn = self.scroll_y == before

    def _was_drawn(self, _: object) -> None:
        self._drawn = True
        self._look_further(self.scroll_y)
        self._turn_page()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolled to near where its widgets begin or end, it gets more messages; at the end that is followed."""
        super().watch_scroll_y(old_value, new_value)
        # Followed, the end can rise by itself, as what is written last becomes shorter.
        self._towards = -1 if new_value < min(old_value, self.max_scroll_y) else 1
        if not self.below and not self.is_anchored and new_value >= self.max_scroll_y:
            self.anchor()
        self._look_further(new_value)

    def _look_further(self, y: float) -> bool:
        """Whether more messages have to be widgets before it can be scrolled to ``y``; they will be then."""
        waiting = self._loading or self._changing.locked() or not self._drawn
        if waiting or not self.size:
            return waiting
        if self._first and (self.max_scroll_y == 0 or (self._towards < 0 and y < self._height)):
            load: Callable[[], Coroutine[None, None, None]] = self.load_earlier
        elif self.below and self._towards > 0 and y > self.max_scroll_y - self._height:
            load = self.load_later
        else:
            return False
        self._loading = True
        self.run_worker(load(), exit_on_error=False)
        return True

    async def load_for(self, place: int) -> None:
        """Makes message number ``place`` a widget, and everything after it."""
        while place < self._first:
            await self.load_earlier()

    async def load_earlier(self) -> None:
        """Makes some earlier messages widgets; what is on the screen stays where it is."""
        try:
            async with self._changing:
                before = max(0, self._first - AT_ONCE)
                widgets = await self._mount_unseen(self._branch[before : self._first], self.query_one("#earlier"))
                with self.app.batch_update():
                    _reveal(widgets)
                    self._first = before
                    await self._let_go_below()
                    self._changed()
        finally:
            self._loading = False

    async def load_later(self) -> None:
        """Makes some later messages widgets; what is on the screen stays where it is."""
        try:
            async with self._changing:
                self.anchor(False)  # This is not the end of the conversation.
                end = min(len(self._branch), self._end + AT_ONCE)
                widgets = await self._mount_unseen(self._branch[self._end : end], self.turns[-1])
                with self.app.batch_update():
                    _reveal(widgets)
                    self._end = end
                    await self._let_go_above(len(self.turns) - AT_MOST)
                    self._changed()
        finally:
            self._loading = False

    async def _mount_unseen(self, messages: Sequence[Message], after: Widget) -> list[Turn]:
        """Makes messages widgets that are not displayed yet: what is in a reply is mounted piece by piece."""
        widgets = [self._widget(message) for message in messages]
        for widget in widgets:
            widget.display = False
        await self.mount_all(widgets, after=after)
        return widgets

    def _changed(self) -> None:
        """More or other messages are widgets: no page is turned before that is drawn."""
        self._show_others()
        self._drawn = False
        self.refresh(layout=True)

    async def _let_go_below(self) -> None:
        """Far from its end, a long conversation does not keep that."""
        far = self.scroll_y + 2 * self._height
        gone = self._unused([turn for turn in self.turns[AT_MOST:] if self._place(turn).y > far])
        if gone:
            self.anchor(False)
            await self.remove_children(gone)
            self._end -= sum(turn.message is not None for turn in gone)

    async def _let_go_above(self, count: int) -> None:
        """Far from its beginning, it does not keep that: at most so many messages of it."""
        far = self.scroll_y - self._height
        turns = self.turns[: max(0, count)]
        gone = self._unused([turn for turn in turns if self._place(turn).bottom < far])
        if gone:
            await self.remove_children(gone)
            self._first += sum(turn.message is not None for turn in gone)

    def _place(self, turn: Turn) -> Region:
        """Where it is; one that was not laid out yet is where it does not matter."""
        return self._places.get(turn, Region(0, int(self.scroll_y), 0, 1))

    @staticmethod
    def _unused(turns: list[Turn]) -> list[Turn]:
        """``turns``, if none of them is in use: the focus is not there, and no reply is being written."""
        in_use = any(turn.has_focus or (isinstance(turn, ReplyTurn) and turn.coming) for turn in turns)
        return [] if in_use else turns

    async def _let_go(self) -> None:
        """At its end, a long conversation keeps only its last messages."""
        count = len(self.turns)
        if count > AT_MOST and self.is_vertical_scroll_end:
            await self._let_go_above(count - AT_FIRST)
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


def _reveal(widgets: Sequence[Widget]) -> None:
    for widget in widgets:
        widget.display = True
