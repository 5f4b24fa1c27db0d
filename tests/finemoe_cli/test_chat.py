"""``finemoe chat`` as users start it: on a terminal with the real engine, and without one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from finemoe_cli.output import Output
from finemoe_cli.plain_chat import plain_conversation
from offload.errors import StorageError
from tests.support.terminal import Terminal
from ui.sessions import SessionStore

GREEDY = ("--temperature", "0", "--context", "1024", "-p", "low")
FRONT_DOOR = """
import sys
from finemoe_cli.cli import app
from finemoe_cli.commands import chat
chat._has_screen, chat._on_screen = (lambda: True), (lambda *_: None)
app(["chat"], standalone_mode=False)
from finemoe_cli.chatting import have_model, make_link, open_board
from ui.app import ChatApp
print(*sorted(name for name in sys.modules if "." not in name))
"""


@pytest.fixture
def sessions(finemoe):
    """Opens the sessions that the commands kept."""
    return lambda: SessionStore.open(Path(finemoe.environment["FINEMOE_DATA_DIR"]) / "sessions.db")


@pytest.fixture
def terminal(finemoe):
    """Starts ``finemoe`` on a terminal."""

    def start(*arguments, size=(120, 40), env=None):
        environment = finemoe.environment | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | (env or {})
        return Terminal([sys.executable, "-m", "finemoe_cli", *arguments], environment, size)

    return start


def test_a_whole_conversation(with_demo, terminal, sessions):
    """First start, streaming, stop, again, branch, search, profile during a reply, sizes, quit, resume."""
    with terminal("chat", *GREEDY, "-n", "12") as screen:
        screen.sees("Why is the sky blue?", "Enter sends")
        screen.type("Name three rivers.\r")
        screen.sees("Name three rivers.", "TTFT", "hit", "· low", "● ready")
        assert {"libtorch", "libnumba", "_dispatcher"} & mapped(screen.process.pid) == set()

        screen.type("/set max_new_tokens 400\r")
        screen.sees("max_new_tokens 400")
        screen.type("Tell a long story about a fox.\r")
        screen.until(lambda shown: "● answering" in shown and shown.count(" tok") == 2, "streaming")
        screen.press("escape")
        screen.sees("stopped · ", "● ready")

        screen.type("/set max_new_tokens 6\r")
        screen.sees("max_new_tokens 6")
        screen.press("ctrl+r")
        screen.sees("‹ 2/2 ›", " 6 tok ·", "● ready")

        # Each answer has a length of its own: a picture may be half drawn, with what was there before below it.
        screen.type("/set max_new_tokens 5\r")
        screen.sees("max_new_tokens 5")
        screen.type("/edit\r")
        screen.sees("editing: Enter sends it as a new branch", "Tell a long story about a fox.")
        screen.type(" And a hare.\r")
        asked = "▌ Tell a long story about a fox. And a hare."
        screen.sees(asked, " 5 tok ·", "● ready")

        screen.press("ctrl+o")
        screen.sees("type to search every message")
        screen.type("rivers")
        screen.sees("you: Name three rivers")
        screen.press("escape")
        screen.until(lambda shown: "^D: delete" not in shown)

        screen.type("/set max_new_tokens 300\r")
        screen.sees("max_new_tokens 300")
        screen.press("ctrl+n")
        screen.sees("Why is the sky blue?")
        screen.type("Tell a long story about a fox.\r")
        screen.until(lambda shown: "● answering" in shown and " tok" in shown)
        screen.type("/profile roomy\r")
        screen.sees("now roomy: ", "roomy ")
        screen.resize(80, 24)
        screen.sees("hits", "traffic", "memory", "F1 Help")
        screen.resize(60, 20)
        screen.sees("F1 Help", "^Q Quit")
        screen.press("escape")
        screen.sees("stopped · ", "● ready")
        screen.press("ctrl+q")
        assert screen.ended() == 0
        assert b"Traceback" not in screen.written
        assert b"\x1b[?1049l" in screen.written, "the terminal is as it was before"

    with sessions() as store:
        last, first = store.sessions()
        branch = store.path(first.leaf)
        assert [message.role for message in branch] == ["user", "assistant"] * 2
        assert branch[2].content == "Tell a long story about a fox. And a hare."
        assert branch[3].finish_reason in ("stop", "length")
        assert len(store.siblings(branch[2].id)) == 2
        (reply,) = store.path(last.leaf)[1:]
        assert (reply.finish_reason, reply.stats["profile"]) == ("stopped", "roomy")
        assert reply.content

    with terminal("chat", "-c", *GREEDY, size=(80, 24)) as screen:
        screen.sees("Tell a long story about a fox.", "stopped · ")
        screen.press("ctrl+q")
        assert screen.ended() == 0


def test_the_engine_is_killed_and_comes_back(with_demo, terminal):
    with terminal("chat", *GREEDY, "-n", "300", size=(80, 24)) as screen:
        screen.sees("Enter sends")
        screen.type("Tell a long story about a fox.\r")
        screen.until(lambda shown: " tok" in shown and "● answering" in shown)
        (engine,) = children(screen.process.pid)
        engine.kill()
        screen.sees("the engine ended: ", "Enter or R restarts it", "ended by an error", "● no engine")
        screen.press("enter")
        screen.sees("● ready")
        screen.press("ctrl+c", "ctrl+c")
        assert screen.ended() == 0
        assert not children(screen.process.pid)


def test_plain_lines_where_there_is_no_screen(with_demo, demo_model, finemoe, sessions):
    shown = finemoe("chat", *GREEDY, "-n", "5", stdin="Name a river.\n\nAnother one.\n")
    assert (shown.code, shown.err) == (0, "")
    answers = shown.out.removesuffix("\n\n").split("\n\n")
    with sessions() as store:
        (session,) = store.sessions()
        branch = store.path(session.leaf)
    assert [message.content for message in branch[::2]] == ["Name a river.", "Another one."]
    assert "".join(answers).replace("\n", "") == "".join(one.content for one in branch[1::2]).replace("\n", "")
    other = str(demo_model)
    again = finemoe("chat", "-c", "--model", other, *GREEDY, "-n", "2", stdin="And a lake.\n", env={"TERM": "dumb"})
    assert again.code == 0
    assert f"this session was with demo, and goes on with {other}" in again.err
    with sessions() as store:
        assert [(session.messages, session.model) for session in store.sessions()] == [(6, other)]


def test_plain_lines_while_the_sessions_are_locked(finemoe, sessions, monkeypatch, capsys):
    folder = Path(finemoe.environment["FINEMOE_DATA_DIR"])
    monkeypatch.setenv("FINEMOE_DATA_DIR", str(folder))
    with sessions() as store:
        store.create(model="demo")
    other = sqlite3.connect(folder / "sessions.db", isolation_level=None)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked"), plain_conversation(Output(), "rivers"):
        pass
    with plain_conversation(Output(), None) as conversation:
        conversation.new("demo", "")
        conversation.say("Name a river.")
        assert not conversation.saved
        other.execute("ROLLBACK")
        assert conversation.catch_up(patient=True)
        other.execute("BEGIN EXCLUSIVE")
        conversation.say("Another one.")
    other.execute("ROLLBACK")
    other.close()
    told = capsys.readouterr().err
    assert told.count("nothing is saved while that lasts") == 2
    (kept,) = folder.glob("unsaved-*.json")
    assert "Another one." in kept.read_text() and str(kept) in told.replace("\n", "")
    with sessions() as store:
        assert [one.title for one in store.sessions() if one.messages] == ["Name a river."]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-c", "--session", "x"], 2, "both --continue and --session"),
        (["--session", "nothing"], 3, "no session 'nothing'"),
        (["--model", "nothing"], 3, "no model or folder called 'nothing'"),
        (["--profile", "nothing"], 3, "no profile called 'nothing'"),
        (["--layout", "round"], 2, "--layout is 'round'"),
        (["--record", "x.finemoe"], 2, "--record needs the chat's screen"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be(finemoe, arguments, code, said):
    shown = finemoe("chat", *arguments)
    assert said in shown.error
    assert shown.code == code


def test_a_model_that_is_not_there_is_told_on_the_screen(finemoe, terminal):
    with terminal("chat", "--model", "nothing", size=(80, 24)) as screen:
        screen.sees("no model or folder called 'nothing'", "● no engine")
        screen.stopped()
        screen.sees("no model or folder called 'nothing'", "● no engine")
        screen.press("ctrl+q")
        assert screen.ended() == 0


def test_the_first_picture_needs_nothing_heavy(finemoe):
    done = subprocess.run(
        [sys.executable, "-c", FRONT_DOOR], capture_output=True, text=True, env=finemoe.environment, check=True
    )
    heavy = {
        "torch",
        "transformers",
        "numba",
        "accelerate",
        "sentence_transformers",
        "tokenizers",
        "numpy",
        "pandas",
        "filelock",
        "markdown_it",
        "pydantic",
    }
    assert set(done.stdout.split()) & heavy == set()


def mapped(pid: int) -> set[str]:
    """The beginnings of the names of libraries that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name.split(".")[0].split("_cpu")[0] for line in lines if ".so" in line}


def children(pid: int):
    """A process's children."""
    import psutil

    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
