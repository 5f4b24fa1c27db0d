"""Paging through a long conversation: nothing is passed over, however late the screen settles."""

from __future__ import annotations

import asyncio
import itertools
import re
from dataclasses import dataclass, field

import pytest
from textual.widgets import Static

from tests.support.chat_app import PATIENCE_S, Chat
from tests.support.scripted_engine import Script
from ui.screens.answering import Answering
from ui.sessions import SessionStore
from ui.widgets.markdown import ReplyMarkdown

LAST = 299
"""Number of the last message; they say their numbers."""


def fill(path):
    with SessionStore.open(path) as store:
        session = store.create(model="demo")
        parent = None
        for number in range(LAST + 1):
            if number % 2 == 0:
                parent = store.add(session.id, parent, "user", f"number {number}").id
            else:  # A list, in widgets of its own.
                parent = store.add(session.id, parent, "assistant", f"- number {number}", "stop").id


@dataclass
class Frames:
    """What was on the terminal, frame by frame: the first and the last of the messages."""

    chat: Chat
    seen: set[int] = field(default_factory=set)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chat.screen.screen_layout_refresh_signal.subscribe(self.chat.app, self._look, immediate=True)

    def _look(self, _: object) -> None:
        below_the_title = self.chat.shown.split("\n", 1)[1]
        numbers = [int(number) for number in re.findall(r"\bnumber (\d+)\b", below_the_title)]
        if numbers:
            self.seen.update(numbers)
            self.spans.append((min(numbers), max(numbers)))

    def jumps(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Frames between which messages were passed over."""
        pairs = zip(self.spans, self.spans[1:], strict=False)
        return [(one, two) for one, two in pairs if two[1] < one[0] - 1 or two[0] > one[1] + 1]


@pytest.fixture
def slow(monkeypatch):
    """A busy machine: replies get their height late, each at another time, and batches take long."""
    at_once, turn = ReplyMarkdown.update, itertools.count()

    def update(self, markdown):
        async def later():
            await asyncio.sleep(0.002 * (next(turn) % 5))
            await at_once(self, markdown)

        return later()

    async def drain(self):
        await asyncio.sleep(0.02)

    monkeypatch.setattr(ReplyMarkdown, "update", update)
    monkeypatch.setattr(Answering, "drain", drain)


async def page(chat, key, arrived):
    """Presses a key, once or five times at once, until a frame has its first and its last message so.

    Returns:
        All frames on the way.
    """
    frames = Frames(chat)
    for keys_at_once in itertools.islice(itertools.cycle([1, 5, 1]), 5_000):
        if frames.spans and arrived(*frames.spans[-1]):
            chat.screen.screen_layout_refresh_signal.unsubscribe(chat.app)
            return frames
        for _ in range(keys_at_once):
            chat.app.simulate_key(key)
        await asyncio.sleep(0.03)
    raise AssertionError(f"{key} led nowhere\n{chat.shown}")


def test_paging_passes_over_nothing(run_chat, slow):
    async def flow(chat):
        await chat.sees(f"number {LAST}")
        up = await page(chat, "pageup", lambda first, last: first == 0)
        assert up.jumps() == [] and up.seen == set(range(LAST + 1))
        down = await page(chat, "pagedown", lambda first, last: last == LAST)
        first_page = range(up.spans[-1][0], up.spans[-1][1] + 1)
        assert down.jumps() == [] and down.seen.union(first_page) == up.seen
        assert chat.screen.transcript.below == 0

    fill(run_chat.database)
    run_chat(flow, Script(context=100_000), size=(120, 36), resume=True, flags={"layout": "off"})


def test_what_is_seen_stays_where_it_is(run_chat):
    """While something above it becomes higher, however late, or goes."""

    async def flow(chat):
        await page(chat, "pageup", lambda first, last: first < LAST - 30)
        await chat.until(lambda: not chat.screen.transcript._pages and chat.screen.transcript._drawn)
        frames, before = Frames(chat), chat.shown
        above = chat.turn(1)
        for _ in range(3):
            late = Static("\n".join(["late"] * 40))
            await above.mount(late)
            drawn = len(frames.spans)
            await chat.until(lambda drawn=drawn: len(frames.spans) > drawn)
            await late.remove()
        await chat.until(lambda: above.size.height < 10)
        assert set(frames.spans) == {frames.spans[0]} and _texts(chat.shown) == _texts(before)

    fill(run_chat.database)
    run_chat(flow, Script(context=100_000), size=(120, 36), resume=True, flags={"layout": "off"})


def test_a_high_terminal_is_filled(run_chat):
    async def flow(chat):
        transcript = chat.screen.transcript
        await chat.sees(f"number {LAST}")
        await chat.until(lambda: transcript.max_scroll_y > 0, "more than its first messages")
        up = await page(chat, "pageup", lambda first, last: first < LAST - 150)
        assert up.jumps() == []

    fill(run_chat.database)
    run_chat(flow, Script(context=100_000), size=(100, 90), resume=True, flags={"layout": "off"})


def test_a_batch_ends_with_a_layout(run_chat):
    """Also where the layout was asked for, and its message came, while the batch went on."""

    async def flow(chat):
        drawn = asyncio.Event()
        chat.screen.prompt.cursor_blink = False  # This would wake it, twice a second.
        with chat.app.batch_update():
            await chat.screen.transcript.mount(Static("mounted in a batch"))
            await asyncio.sleep(0.2)  # All messages are through: nothing else wakes the screen.
            assert "mounted in a batch" not in chat.shown
            chat.screen.screen_layout_refresh_signal.subscribe(chat.app, lambda _: drawn.set(), immediate=True)
        await asyncio.wait_for(drawn.wait(), PATIENCE_S)
        assert "mounted in a batch" in chat.shown

    run_chat(flow, flags={"layout": "off"})


def _texts(shown):
    """The conversation without its scrollbar."""
    return re.findall(r"\bnumber \d+", shown)
