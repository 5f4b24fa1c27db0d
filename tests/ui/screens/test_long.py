"""Much of everything: messages, tokens, pasted text."""

from __future__ import annotations

import gc
import weakref

import pytest
from textual.events import Paste
from textual.widgets import Static

from tests.support.scripted_engine import Script
from ui.sessions import SessionStore
from ui.widgets.transcript import AT_FIRST, AT_MOST, AT_ONCE


def fill(path, messages):
    """A session of so many messages."""
    with SessionStore.open(path) as store:
        session = store.create(model="demo")
        parent = None
        for number in range(messages):
            role = "user" if number % 2 == 0 else "assistant"
            reason = None if role == "user" else "stop"
            parent = store.add(session.id, parent, role, f"message {number}", reason).id


def test_only_the_end_of_a_long_conversation_is_widgets(run_chat):
    async def flow(chat):
        await chat.sees("message 499")
        earlier = chat.screen.query_one("#earlier", Static)
        assert str(earlier.render()) == f"{500 - AT_FIRST} earlier messages above"
        assert len(chat.turns) == AT_FIRST
        while len(chat.turns) < AT_FIRST + AT_ONCE:
            await chat.pilot.press("pageup")
            await chat.pilot.pause()
        assert chat.turns[-1][1] == "message 499"
        before = [text for _, text in chat.turns]
        assert before == [f"message {number}" for number in range(500 - len(before), 500)]
        await chat.pilot.press("ctrl+end")
        for number in range(2):
            await chat.ask(f"more {number}")
        assert len(chat.turns) <= AT_MOST + 2
        (messages, _), _ = chat.script.told_of("chat")
        assert len(messages) == 501

    fill(run_chat.database, 500)
    run_chat(flow, Script(context=100_000), resume=True)


def test_nothing_of_what_was_let_go_of_stays_in_memory(run_chat):
    async def flow(chat):
        await chat.sees("message 199")
        last = chat.screen.transcript.turns[-1]
        drawn = [weakref.ref(widget._styles_cache) for widget in last.walk_children(with_self=True)]
        del last
        assert drawn
        for _ in range(25):
            await chat.pilot.press("pageup")
            await chat.pilot.pause()
        assert chat.turns[-1][1] != "message 199"
        gc.collect()
        assert not [lines() for lines in drawn if lines()]

    fill(run_chat.database, 200)
    run_chat(flow, Script(context=100_000), resume=True)


def test_what_was_scrolled_away_from_is_let_go_of(run_chat):
    async def flow(chat):
        transcript = chat.screen.transcript

        said, more = [f"message {number}" for number in range(200)], ["and now?", "It is blue."]

        async def scroll(key, arrived):
            seen = 0
            while not arrived():
                await chat.pilot.press(key)
                await chat.pilot.pause()
                texts = [text for _, text in chat.turns]
                first = int(texts[0].split()[1])
                assert texts == (said + more)[first : first + len(texts)]
                assert len(texts) <= AT_MOST + AT_ONCE
                seen += 1
                assert seen < 500

        await chat.sees("message 199")
        await scroll("pageup", lambda: chat.turns[0][1] == "message 0" and transcript.scroll_y < 1)
        await chat.until(lambda: len(chat.turns) == AT_MOST, "the end is let go of")
        assert transcript.below == 200 - AT_MOST
        await scroll("pagedown", lambda: not transcript.below)
        assert len(chat.turns) == AT_MOST
        await chat.pilot.press("ctrl+end")
        await chat.sees("message 199")

        await scroll("pageup", lambda: transcript.below > 0)
        await chat.ask("and now?")
        await chat.sees("and now?")
        assert transcript.below == 0 and chat.turns[-2] == ("user", "and now?")
        await scroll("pageup", lambda: transcript.below > 0)
        await chat.pilot.press("ctrl+up")
        await chat.until(lambda: getattr(chat.app.focused, "text", "") == "It is blue.", "the last message")
        await chat.pilot.press("escape")
        await scroll("pageup", lambda: transcript.below > 0)
        await chat.pilot.press("ctrl+end")
        await chat.sees("and now?", "It is blue.")
        assert transcript.below == 0

    fill(run_chat.database, 200)
    run_chat(flow, Script(context=100_000), resume=True)


def test_going_up_message_by_message_goes_on_into_what_was_not_there(run_chat):
    async def flow(chat):
        for _ in range(AT_FIRST + 3):
            await chat.pilot.press("ctrl+up")
        await chat.until(lambda: getattr(chat.app.focused, "text", "") == f"message {40 - AT_FIRST - 3}")

    fill(run_chat.database, 40)
    run_chat(flow, resume=True)


def test_what_does_not_fit_is_left_out_and_it_is_said_which(run_chat):
    async def flow(chat):
        await chat.ask("And now?")
        await chat.sees("turns are left out of this reply, up to “message")
        assert any(turn.has_class("-left-out") for turn in chat.screen.transcript.turns)
        ((messages, _),) = chat.script.told_of("chat")
        assert messages[-1]["content"] == "And now?"
        assert sum(4 + len(message["content"].split()) for message in messages) < 100
        await chat.send("word " * 200)
        await chat.sees("the message is too long", "try again")
        transcript = chat.screen.transcript
        await transcript.load_for(0)
        dimmed = [turn.text for turn in transcript.turns if turn.has_class("-left-out")]
        assert dimmed == [f"message {number}" for number in range(40 - len(messages) + 1)]
        await chat.screen.show_session(chat.screen.conversation.session.id)
        assert not any(turn.has_class("-left-out") for turn in transcript.turns)

    fill(run_chat.database, 40)
    run_chat(flow, Script(context=100), resume=True, flags={"max_new_tokens": "20"})


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CR LF"])
def test_a_paste_keeps_its_lines(run_chat, end):
    """Terminals end the lines of what is pasted with CR."""
    lines = [f"line {number}" for number in range(1000)]

    async def flow(chat):
        for pasted in (lines[:3], lines):
            chat.app.post_message(Paste(end.join(pasted)))
            await chat.until(lambda: chat.screen.prompt.text)
            await chat.pilot.press("enter")
            await chat.idle()

    script = run_chat(flow, Script(context=100_000))
    for (messages, _), pasted in zip(script.told_of("chat"), (lines[:3], lines), strict=True):
        assert messages[-1]["content"] == "\n".join(pasted)


def test_a_long_reply_and_a_long_paste(run_chat):
    words = [f"word{number} " if number % 10 else f"\n\nparagraph {number}: " for number in range(4000)]
    paste = "x" * 999 + "\n"

    async def flow(chat):
        chat.app.post_message(Paste(paste * 1000))
        await chat.until(lambda: chat.screen.prompt.text)
        assert chat.screen.prompt.text == "[pasted 1: 977 KiB, 1,001 lines]"
        await chat.pilot.press("o", "k")
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.script.told_of("chat"))
        await chat.sees("1,000,0")
        for _ in range(40):
            chat.script.engine.say(100)
            await chat.pilot.pause()
        await chat.idle()
        assert chat.turns[-1][1] == "".join(words)
        await chat.sees("word3999", "4000 tok")
        chat.app.post_message(Paste("short"))
        await chat.until(lambda: chat.screen.prompt.text == "short")

    script = run_chat(flow, Script([words], held=True, context=1_000_000))
    ((messages, _),) = script.told_of("chat")
    assert messages[0]["content"] == (paste * 1000 + "ok").strip()
