"""Terminals and tastes: ASCII, no colours, themes, keys, the prompt, an editor, and a store that cannot be used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import nullcontext

import pytest

from profiles.config_file import config_file
from tests.support.scripted_engine import Script
from ui.sessions import SessionStore
from ui.widgets.ascii import as_ascii

FANCY = [
    ["A list:\n\n- one\n- two\n\n> and “quoted”\n\n| a | b |\n|---|---|\n| 1 | naïve |\n\n```python\nx = 1\n```\n"]
]


def test_ascii_only(run_chat):
    async def flow(chat):
        await chat.ask("Draw")
        await chat.sees("* one", "na")
        chat.turn(0).focus()
        for keys in ((), ("f4",), ("escape", "ctrl+o"), ("escape", "f1"), ("escape", "f2")):
            await chat.pilot.press(*keys)
            await chat.pilot.pause(0.1)
            strips = [
                strip.apply_filter(chat.app._filters[-1], chat.app.screen.background_colors[1])
                for strip in chat.app.screen._compositor.render_strips()
            ]
            text = "".join(strip.text for strip in strips)
            assert {character for character in text if not character.isascii()} <= {"ï"}

    run_chat(flow, Script(FANCY), size=(120, 40), ascii_only=True)


def test_ascii_keeps_every_cell():
    from rich.cells import cell_len

    for text in ("│─╭ • “x” …", "日本語", "⣿⠁ ▁▂▃█", "naïve é", "👩‍🚀", "a\u0301"):
        for keep in (False, True):
            drawn = as_ascii(text, keep)
            assert cell_len(drawn) == sum(cell_len(character) for character in text), (text, drawn)
        assert as_ascii(text).isascii()


def test_nothing_is_drawn_without_need(run_chat):
    async def flow(chat):
        await chat.send("Draw")
        await chat.until(lambda: chat.script.told_of("chat"))
        assert not chat.screen.prompt.cursor_blink
        drawn = {widget.id for widget in chat.app.screen._compositor.visible_widgets}
        assert {"transcript", "prompt", "panes"} <= drawn
        assert not {"body", "chat", "panes-map", "panes-rest"} & drawn
        chat.script.engine.say()
        await chat.idle()
        assert chat.screen.prompt.cursor_blink

    run_chat(flow, Script(FANCY, held=True), size=(120, 40))


def test_no_colours(run_chat, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    async def flow(chat):
        await chat.ask("Draw")
        strips = chat.app.screen._compositor.render_strips()
        colours = set()
        for strip in strips:
            for segment in strip:
                for colour in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                    if colour is not None and colour.triplet is not None:
                        colours.add(tuple(colour.triplet))
        assert colours
        assert all(red == green == blue for red, green, blue in colours)

    run_chat(flow, Script(FANCY))


def test_themes_are_kept_and_unknown_ones_told(run_chat):
    async def flow(chat):
        await chat.sees("there is no theme 'neon'")
        assert chat.app.theme == "finemoe"
        await chat.send("/theme nord")
        assert chat.app.theme == "nord"
        await chat.send("/theme neon")
        await chat.sees("no theme 'neon'")

    run_chat(flow, flags={"theme": "neon"})
    assert 'theme = "nord"' in config_file().read_text()
    run_chat(check_theme("nord"))


def check_theme(name):
    async def flow(chat):
        assert chat.app.theme == name

    return flow


def test_other_keys(run_chat):
    async def flow(chat):
        await chat.sees("keymap: f4 is profiles's key already, so panes keeps f2")
        await chat.pilot.press("f9")
        await chat.sees("In the prompt", "F9")
        await chat.pilot.press("escape", "f1")
        await chat.pilot.pause()
        assert "In the prompt" not in chat.shown

    run_chat(flow, flags={"keymap": "help=f9, panes=f4"})


def test_the_prompt(run_chat):
    async def flow(chat):
        prompt = chat.screen.prompt
        await chat.pilot.press("a", "ctrl+j", "b")
        assert prompt.text == "a\nb"
        await chat.pilot.press("enter")
        await chat.idle()
        assert chat.turns[0] == ("user", "a\nb")
        await chat.ask("second")
        await chat.pilot.press("d")
        await chat.pilot.press("up")
        assert prompt.text == "second"
        await chat.pilot.press("up")
        assert prompt.text == "a\nb"
        await chat.pilot.press("up")
        assert prompt.text == "a\nb"
        prompt.move_cursor(prompt.document.end)
        await chat.pilot.press("down")
        assert prompt.text == "second"
        await chat.pilot.press("down")
        assert prompt.text == "d"
        await chat.pilot.press("enter")
        await chat.idle()
        await chat.pilot.press("enter")
        assert len(chat.script.told_of("chat")) == 3

    run_chat(flow)


def test_an_editor(run_chat, monkeypatch, tmp_path):
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import sys; path = sys.argv[1]; text = open(path).read(); open(path, 'w').write(text.upper())"
    )

    async def flow(chat):
        await chat.write("hello")
        await chat.pilot.press("ctrl+g")
        await chat.sees("set $EDITOR")
        monkeypatch.setenv("EDITOR", f"{sys.executable} {editor}")
        await chat.pilot.press("ctrl+g")
        await chat.sees("cannot be given to an editor")
        monkeypatch.setattr(chat.app, "suspend", nullcontext)
        await chat.pilot.press("ctrl+g")
        await chat.until(lambda: chat.screen.prompt.text == "HELLO")
        monkeypatch.setenv("EDITOR", "/nothing/there")
        await chat.pilot.press("ctrl+g")
        await chat.sees("cannot run /nothing/there")

    run_chat(flow)


LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
if connection.in_transaction:
    print("locked", flush=True)
else:
    sys.stdin.readline()
    connection.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("let go", flush=True)
"""


def test_damaged_sessions_are_put_aside(run_chat):
    async def left_alone(chat):
        await chat.sees("The sessions are damaged", "put it aside", "chat without saving")
        await chat.pilot.press("n")
        await chat.ready()
        await chat.sees("nothing is saved", "not saved")
        await chat.ask("Hello?")

    async def put_aside(chat):
        await chat.sees("The sessions are damaged")
        await chat.pilot.press("y")
        await chat.ready()
        await chat.sees("the damaged sessions are kept in")
        await chat.ask("Hello?")

    run_chat.database.parent.mkdir(parents=True)
    run_chat.database.write_bytes(b"no database" * 1000)
    run_chat(left_alone, ready=False)
    assert run_chat.database.read_bytes() == b"no database" * 1000
    run_chat(put_aside, ready=False)
    with SessionStore.open(run_chat.database) as store:
        assert len(store.sessions()) == 1


def test_a_disk_that_fills_up(run_chat):
    async def flow(chat):
        await chat.ask("First")
        connection = chat.screen.conversation.store._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        await chat.ask("Second " + "word " * 5000)
        await chat.sees("nothing is saved while that lasts")
        await chat.ask("Third")
        assert [who for who, _ in chat.turns] == ["user", "reply"] * 3
        assert sum("nothing is saved" in note for note in chat.notes) == 1
        await chat.sees("not saved")
        await chat.send("/export kept.md")
        await chat.sees("written to")
        await chat.pilot.press("ctrl+r")
        await chat.until(lambda: len(chat.script.told_of("chat")) == 4)
        await chat.idle()

    run_chat(flow, Script(context=100_000))


def test_sessions_locked_by_somebody_else(run_chat):
    run_chat(lambda chat: chat.ask("Hello?"))
    other = sqlite3.connect(run_chat.database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    async def flow(chat):
        await chat.ask("Hello again?")
        await chat.sees("locked")
        assert chat.turns[-1][0] == "reply"
        apps.append(chat.app)

    apps = []
    run_chat(flow)
    (kept,) = run_chat.database.parent.glob("unsaved-*.json")
    assert "Hello again?" in kept.read_text() and str(kept) in apps[0].last_words
    other.execute("ROLLBACK")
    other.close()


@pytest.mark.parametrize(
    "begin", ["PRAGMA journal_mode = WAL", "BEGIN EXCLUSIVE"], ids=["during", "from the start"]
)
def test_a_lock_of_seconds_loses_nothing(run_chat, begin):
    """Another process has the file, from before the chat or from its first reply on, and lets it go at a line."""
    run_chat.database.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCKS, str(run_chat.database), begin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    if "EXCLUSIVE" in begin:
        assert holder.stdout.readline() == "locked\n"

    def line(said):
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == said

    async def flow(chat):
        if "EXCLUSIVE" not in begin:
            await chat.ask("First")
            line("locked\n")
        await chat.send("Second")
        await chat.until(lambda: chat.script.told_of("chat"))
        await chat.sees("not saved")
        assert "is locked by another process" in chat.notes[0]
        await chat.pilot.pause(2.5)
        await chat.ask("Third")
        assert sum("nothing is saved" in note for note in chat.notes) == 1
        line("let go\n")
        await chat.sees("saved again")
        assert "not saved" not in chat.shown
        await chat.ask("Fourth")
        said = [text for _, text in chat.turns]
        assert said[-4::2] == ["Third", "Fourth"]
        assert [content for _, content, _ in chat.branch] == said
        assert len(chat.notes) == 2
        await chat.pilot.press("ctrl+r")
        await chat.until(lambda: chat.turn(-1).versions == (2, 2))

    try:
        run_chat(flow)
    finally:
        holder.kill()
        holder.communicate()
