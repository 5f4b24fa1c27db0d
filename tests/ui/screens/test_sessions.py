"""The list of sessions."""

from __future__ import annotations

import pytest

import ui.screens.sessions as screen_module
from tests.support.scripted_engine import Script
from ui.screens.ask import AskLine, Confirm
from ui.screens.sessions import SessionsScreen
from ui.sessions import SessionStore

ANSWERS = [["The Rhine flows to the sea."], ["Cheese is made of milk."], ["Fine."]]


@pytest.fixture
def kept(run_chat):
    """Two sessions, the one about cheese the later."""

    async def flow(chat):
        await chat.ask("Tell me of a river")
        await chat.pilot.press("ctrl+n")
        await chat.until(lambda: not chat.turns)
        await chat.ask("Tell me of food")

    run_chat(flow, Script(ANSWERS))
    return run_chat


def test_found_as_you_type_and_opened_where_it_was_found(kept):
    async def flow(chat):
        await chat.pilot.press("ctrl+o")
        await chat.sees("Tell me of food", "Tell me of a river", "2 messages", "demo")
        await chat.pilot.press(*"rhi")
        await chat.sees("Rhine flows")
        assert "Tell me of food" not in chat.shown.split("Sessions")[1]
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.turns[-1:] == [("reply", "The Rhine flows to the sea.")])
        await chat.ask("Go on")

    kept(flow, Script([["On."]]))
    with SessionStore.open(kept.database) as store:
        assert [session.messages for session in store.sessions()] == [4, 2]


def test_found_by_a_command(kept):
    async def flow(chat):
        await chat.send("/search cheese milk")
        await chat.sees("Cheese is made of milk")
        await chat.pilot.press("escape")
        await chat.until(lambda: not isinstance(chat.app.screen, SessionsScreen))
        assert chat.turns == []

    kept(flow)


def test_renamed_and_deleted(kept):
    async def flow(chat):
        await chat.pilot.press("ctrl+o", "down", "ctrl+r")
        await chat.until(lambda: isinstance(chat.app.screen, AskLine))
        await chat.pilot.press("end", "s", "enter")
        await chat.sees("Tell me of a rivers")
        await chat.pilot.press("up", "ctrl+d")
        await chat.until(lambda: isinstance(chat.app.screen, Confirm))
        await chat.sees("Delete “Tell me of food”?", "2 messages")
        await chat.pilot.press("escape")
        await chat.until(lambda: isinstance(chat.app.screen, SessionsScreen))
        await chat.sees("Tell me of food")
        await chat.pilot.press("ctrl+d")
        await chat.until(lambda: isinstance(chat.app.screen, Confirm))
        await chat.pilot.press("y")
        await chat.until(lambda: chat.shown.count("2 messages") == 1)
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.turns == [])

    kept(flow, resume=True)
    with SessionStore.open(kept.database) as store:
        assert [session.title for session in store.sessions()] == ["Tell me of a rivers"]


def test_by_meaning_where_there_is_an_embedder(kept, monkeypatch):
    async def without(chat):
        await chat.pilot.press("ctrl+o", "ctrl+t")
        await chat.sees("no embedder is installed here")

    async def flow(chat):
        await chat.pilot.press("ctrl+o", "ctrl+t")
        await chat.sees("Enter searches by meaning")
        await chat.pilot.press(*"brie", "enter")
        await chat.sees("Cheese is made of milk", "Enter opens what is highlighted")
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.turns[-1:] == [("reply", "Cheese is made of milk.")])

    kept(without)
    embedder = Embedder()
    monkeypatch.setattr(screen_module, "open_embedder", lambda: embedder)
    kept(flow)
    assert embedder.closed


class Embedder:
    """Knows what is food: one direction for what mentions it, another for the rest."""

    name = "food"
    closed = False

    def __call__(self, texts):
        import numpy as np

        food = ("brie", "Cheese", "milk")
        return np.array([[1.0, 0.1] if any(word in text for word in food) else [0.0, 1.0] for text in texts], "f4")

    def close(self):
        self.closed = True


@pytest.mark.parametrize("size", [(80, 24), (60, 20)], ids=str)
def test_keys_are_said_below_many_hits(run_chat, size):
    async def flow(chat):
        await chat.pilot.press("ctrl+o")
        await chat.pilot.press(*"river")
        await chat.sees("a river number", "Enter: open", "Esc: back")

    with SessionStore.open(run_chat.database) as store:
        session = store.create("rivers")
        for number in range(30):
            store.add(session.id, None, "user", f"a river number {number} " + "and more of the same " * 9)
    run_chat(flow, size=size)
