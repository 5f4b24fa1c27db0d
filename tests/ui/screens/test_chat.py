"""The chat on its screen: asking, stopping, branching, and what is kept of it."""

from __future__ import annotations

import pytest
from textual.app import App

from offload.service.messages import Failed
from profiles.paths import sessions_file
from tests.support.scripted_engine import Script
from ui.screens.chat import ChatScreen
from ui.sessions import SessionStore
from ui.widgets.turns import Notice

BLUE = [["It is ", "**blue**."]]
TWO = [["The first."], ["The second."], ["The third."]]


def test_a_question_and_its_reply_are_shown_and_kept(run_chat):
    async def flow(chat):
        await chat.sees("Enter sends", "Why is the sky blue?")
        await chat.ask("What colour is the sky?")
        assert chat.turns == [("user", "What colour is the sky?"), ("reply", "It is **blue**.")]
        await chat.sees("It is blue.", "2 tok · 10.2 tok/s · TTFT 0.84 s · hit 92% · balanced")
        assert chat.branch == [
            ("user", "What colour is the sky?", None),
            ("assistant", "It is **blue**.", "stop"),
        ]
        await chat.sees("What colour is the sky?  ")
        assert "Enter sends" not in chat.shown

    script = run_chat(flow, Script(BLUE))
    ((messages, sampling),) = script.told_of("chat")
    assert messages == [{"role": "user", "content": "What colour is the sky?"}]
    assert sampling.max_new_tokens == 512
    with SessionStore.open(run_chat.database) as store:
        session = store.latest()
        assert session.model == "demo"
        reply = store.path(session.leaf)[-1]
        assert reply.stats["tokens_per_s"] == 10.2
        assert reply.stats["profile"] == "balanced"
        assert reply.stats["first_record"] == 0


def test_the_engine_starts_when_the_first_picture_is_there(run_chat, monkeypatch, tmp_path):
    pictures, display = [], App._display

    def displayed(app, screen, picture):
        if picture is not None and not app._batch_count:
            pictures.append(type(screen))
        display(app, screen, picture)

    def have_model(name, progress):
        assert ChatScreen in pictures
        return tmp_path

    async def flow(chat):
        await chat.sees("Ask anything", "● ready")

    monkeypatch.setattr(App, "_display", displayed)
    run_chat(flow, find_model=have_model)


def test_text_is_saved_while_it_comes(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(2)
        await chat.sees("one two")
        await chat.until(lambda: chat.branch[-1] == ("assistant", "one two ", None))
        chat.script.engine.say()
        await chat.idle()
        assert chat.branch[-1] == ("assistant", "one two three", "stop")

    run_chat(flow, Script([["one ", "two ", "three"]], held=True))


def test_esc_stops_and_keeps_what_is_there(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(1)
        await chat.sees("one")
        await chat.pilot.press("escape")
        await chat.idle()
        assert chat.branch[-1] == ("assistant", "one ", "stopped")
        await chat.sees("stopped · 1 tok")

    script = run_chat(flow, Script([["one ", "two "]], held=True))
    assert len(script.told_of("stop")) == 1


def test_a_reply_stopped_before_its_first_word_leaves_nothing(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.sees("waiting for the model")
        await chat.pilot.press("escape")
        await chat.idle()
        await chat.sees("stopped before the first word")
        assert chat.branch == [("user", "Count.", None)]
        chat.script.engine.finish_opening()
        await chat.ready()
        await chat.pilot.press("ctrl+r")
        await chat.until(lambda: len(chat.branch) == 2)
        assert [who for who, _ in chat.turns] == ["user", "reply"]

    run_chat(flow, Script(BLUE, held_open=True), ready=False)


def test_a_question_can_be_asked_before_the_model_is_there(run_chat):
    async def flow(chat):
        await chat.sees("loading the model 30%")
        await chat.send("Are you there?")
        assert chat.branch == [("user", "Are you there?", None)]
        await chat.sees("waiting for the model")
        chat.script.engine.finish_opening()
        await chat.idle()
        assert [text for _, text in chat.turns] == ["Are you there?", "It is **blue**."]

    run_chat(flow, Script(BLUE, held_open=True), ready=False)


def test_what_is_sent_during_a_reply_is_asked_after_it(run_chat):
    async def flow(chat):
        await chat.send("First?")
        await chat.until(lambda: chat.script.told_of("chat"))
        await chat.send("And then?")
        await chat.sees("next: And then?")
        chat.script.engine.say()
        await chat.until(lambda: len(chat.script.told_of("chat")) == 2)
        chat.script.engine.say()
        await chat.idle()
        assert [text for _, text in chat.turns] == ["First?", "The first.", "And then?", "The second."]
        assert "next:" not in chat.shown

    run_chat(flow, Script(TWO, held=True))


def test_stopping_gives_what_waits_back(run_chat):
    async def flow(chat):
        await chat.send("First?")
        await chat.until(lambda: chat.script.told_of("chat"))
        await chat.send("And then?")
        await chat.pilot.press("escape")
        await chat.idle()
        assert chat.screen.prompt.text == "And then?"
        assert len(chat.script.told_of("chat")) == 1

    run_chat(flow, Script(TWO, held=True))


def test_regenerating_makes_a_version_and_keeps_the_old_one(run_chat):
    async def flow(chat):
        await chat.ask("Which?")
        await chat.pilot.press("ctrl+r")
        await chat.until(lambda: len(chat.script.told_of("chat")) == 2)
        await chat.idle()
        assert [text for _, text in chat.turns] == ["Which?", "The second."]
        await chat.sees("‹ 2/2 ›")
        await chat.pilot.press("alt+left")
        await chat.sees("The first.", "‹ 1/2 ›")
        assert chat.branch[-1][1] == "The first."
        await chat.pilot.press("alt+left")
        await chat.sees("The first.")
        await chat.ask("Go on.")
        assert [text for _, text in chat.turns] == ["Which?", "The first.", "Go on.", "The third."]

    script = run_chat(flow, Script(TWO))
    messages, _ = script.told_of("chat")[1]
    assert [message["content"] for message in messages] == ["Which?"]


def test_editing_a_message_makes_a_branch(run_chat):
    async def flow(chat):
        await chat.ask("Name a river.")
        await chat.ask("And a lake.")
        chat.turn(0).focus()
        await chat.pilot.press("e")
        await chat.sees("editing: Enter sends it as a new branch")
        assert chat.screen.prompt.text == "Name a river."
        await chat.ask("Name a sea.")
        assert [text for _, text in chat.turns] == ["Name a sea.", "The third."]
        chat.turn(0).focus()
        await chat.sees("‹ 2/2 ›")
        await chat.pilot.press("left")
        await chat.until(lambda: len(chat.turns) == 4)
        assert [text for _, text in chat.turns] == ["Name a river.", "The first.", "And a lake.", "The second."]
        assert chat.app.focused is chat.turn(0)

    run_chat(flow, Script(TWO))


def test_leaving_an_edit_changes_nothing(run_chat):
    async def flow(chat):
        await chat.ask("Name a river.")
        await chat.send("/edit")
        assert chat.screen.prompt.text == "Name a river."
        await chat.pilot.press("escape")
        assert chat.screen.prompt.text == ""
        await chat.ask("Another.")
        assert len(chat.turns) == 4

    run_chat(flow, Script(TWO))


def test_the_last_session_is_gone_on_with(run_chat):
    async def first(chat):
        await chat.ask("Remember me.")

    async def again(chat):
        assert chat.turns == [("user", "Remember me."), ("reply", "It is **blue**.")]
        await chat.sees("Remember me.", "10.2 tok/s")
        await chat.pilot.press("up")
        assert chat.screen.prompt.text == "Remember me."
        await chat.ask("And now?")

    run_chat(first, Script(BLUE))
    script = run_chat(again, Script(BLUE), resume=True)
    messages, _ = script.told_of("chat")[0]
    assert [message["content"] for message in messages] == ["Remember me.", "It is **blue**.", "And now?"]
    run_chat(lambda chat: chat.until(lambda: len(chat.turns) == 4), session="remember")
    run_chat(lambda chat: chat.sees("no session 'nothing'"), session="nothing")


def test_a_session_that_another_model_goes_on_with_says_so(run_chat):
    run_chat(lambda chat: chat.ask("Remember me."), Script(BLUE))
    with SessionStore.open(sessions_file()) as store:
        store.set_model(store.latest().id, "the one before")

    async def again(chat):
        await chat.sees("with the one before, and goes on with", "/model the one before")
        await chat.ask("And now?")

    run_chat(again, Script(BLUE), resume=True)

    async def settled(chat):
        await chat.until(lambda: len(chat.turns) == 4)
        assert not chat.screen.query(Notice)

    run_chat(settled, resume=True)


def test_quitting_in_the_middle_keeps_everything(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(1)
        await chat.sees("one")
        await chat.send("And then?")
        await chat.write("Not sent yet")
        await chat.pilot.press("ctrl+q")
        await chat.until(lambda: not chat.app.is_running)

    async def again(chat):
        assert chat.screen.prompt.text == "Not sent yet"
        await chat.write("")

    script = run_chat(flow, Script([["one ", "two"]], held=True))
    assert script.engine.closed
    with SessionStore.open(run_chat.database) as store:
        kept = [(one.role, one.content, one.finish_reason) for one in store.path(store.latest().leaf)]
    assert kept == [("user", "Count.", None), ("assistant", "one ", "stopped"), ("user", "And then?", None)]
    run_chat(again)
    run_chat(lambda chat: chat.until(lambda: chat.screen.prompt.text == ""))


def test_ctrl_c_stops_and_the_second_one_quits(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(1)
        await chat.pilot.press("ctrl+c")
        await chat.idle()
        assert chat.branch[-1][2] == "stopped"
        await chat.pilot.press("ctrl+c")
        await chat.until(lambda: not chat.app.is_running)

    run_chat(flow, Script([["one ", "two"]], held=True))


def test_the_engine_dies_and_one_key_restarts_it(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(1)
        await chat.sees("one")
        chat.script.engine.die("it ran out of memory")
        await chat.idle()
        await chat.sees("the engine ended: it ran out of memory", "restarts it")
        await chat.sees("ended by an error")
        assert chat.branch[-1] == ("assistant", "one ", "error")
        await chat.until(lambda: isinstance(chat.app.focused, Notice))
        await chat.pilot.press("r")
        await chat.until(lambda: len(chat.script.engines) == 2)
        await chat.ready()
        await chat.pilot.press("ctrl+r")
        await chat.until(lambda: chat.script.engine._answering)
        chat.script.engine.say()
        await chat.idle()
        assert chat.turns[-1] == ("reply", "one two")

    run_chat(flow, Script([["one ", "two"]], held=True))


def test_asking_restarts_an_engine_that_died(run_chat):
    async def flow(chat):
        chat.script.engine.die("it was killed")
        await chat.sees("it was killed")
        await chat.ask("Are you there?")
        assert chat.turns[-1] == ("reply", "It is **blue**.")

    script = run_chat(flow, Script(BLUE))
    assert len(script.engines) == 2


def test_a_model_that_does_not_fit_is_told_and_a_budget_helps(run_chat):
    small = Failed(0, "BudgetTooSmall", "a budget of 10 MiB is too small", "the smallest that works is 800MiB")

    async def flow(chat):
        await chat.sees("a budget of 10 MiB is too small", "the smallest that works is 800MiB", "no engine")
        await chat.send("/budget 900MiB")
        await chat.ready()
        await chat.ask("Hello?")
        assert chat.turns[-1] == ("reply", "It is **blue**.")

    script = run_chat(flow, Script(BLUE, opening=[small, None]), ready=False, flags={"budget": "10MiB"})
    assert script.told_of("open")[-1][0].budget_bytes == 900 << 20


def test_a_reply_that_fails_is_tried_again_with_one_key(run_chat):
    failed = Failed(0, "ExpertReadError", "expert 3 of layer 2 cannot be read", "see whether the disk is there")

    async def flow(chat):
        await chat.ask("Hello?")
        await chat.sees("expert 3 of layer 2 cannot be read", "try again")
        assert [who for who, _ in chat.turns] == ["user"]
        await chat.until(lambda: isinstance(chat.app.focused, Notice))
        await chat.pilot.press("enter")
        await chat.until(lambda: len(chat.turns) == 2)
        await chat.idle()
        assert chat.turns[-1] == ("reply", "It is **blue**.")
        assert "cannot be read" not in chat.shown

    run_chat(flow, Script([failed, *BLUE]))


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
def test_it_fits(run_chat, size):
    async def flow(chat):
        await chat.sees("finemoe", "Why is the sky blue?", "Enter sends")
        await chat.ask("What colour is the sky?")
        await chat.sees("It is blue.", "10.2 tok/s", "Ask anything", "Help")

    run_chat(flow, Script(BLUE), size=size)
