"""A conversation and what is kept of it, also when nothing can be kept."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.ui.sessions.conftest import HEAD, ROOT
from ui.chat.conversation import Conversation
from ui.sessions import SessionStore

HOLDER = """
store = SessionStore.open(path)
with store._database.writing():
    say("held")
    sys.stdin.readline()
"""


@pytest.fixture
def database(tmp_path):
    return tmp_path / "sessions.db"


@pytest.fixture
def locked(database):
    """Begins another process that holds the file's lock until it is sent a line; then it does ``and_then``."""
    running = []

    def begin(and_then=""):
        script = HEAD.format(root=str(ROOT), path=str(database)) + HOLDER + and_then + "\nsay('done')"
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def store(database):
    with SessionStore.open(database, timeout=0.2) as store:
        yield store


def let_go(holder):
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "done\n"


def begun(store, told=None):
    conversation = Conversation(store, (told if told is not None else []).append)
    conversation.new("demo", "be brief")
    return conversation


def exchange(conversation, question, answer):
    asked = conversation.say(question)
    reply = conversation.begin_reply()
    conversation.grow(reply.id, answer[:3])
    return asked, conversation.finish(reply.id, "stop", answer, {"tokens_per_s": 10.0})


def test_nothing_is_kept_before_something_is_said(store):
    conversation = begun(store)
    assert store.sessions() == []
    exchange(conversation, "Name a river.", "The Rhine.")
    assert conversation.title == "Name a river."
    assert [message.content for message in store.path(store.latest().leaf)] == ["Name a river.", "The Rhine."]
    assert conversation.messages() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
    ]


def test_versions(store):
    conversation = begun(store)
    asked, first = exchange(conversation, "Name a river.", "The Rhine.")
    exchange(conversation, "Another.", "The Po.")
    conversation.go_back_to(asked.id)
    second = conversation.begin_reply()
    conversation.finish(second.id, "stop", "The Elbe.", None)
    assert conversation.siblings(second.id) == (2, 2)
    assert conversation.move(second.id, -1)
    assert [message.content for message in conversation.branch][1:] == ["The Rhine.", "Another.", "The Po."]
    assert not conversation.move(first.id, -1)
    conversation.go_back_to(None)
    other = conversation.say("Name a sea.")
    assert conversation.siblings(other.id) == (2, 2)
    again = Conversation(store, [].append)
    again.open(conversation.session.id)
    assert [message.content for message in again.branch] == ["Name a sea."]
    again.open(conversation.session.id, first.id)
    assert again.branch[-1].content == "The Po."


def test_replies_of_which_there_is_nothing_are_not_sent(store):
    conversation = begun(store)
    conversation.say("Hello?")
    reply = conversation.begin_reply()
    conversation.finish(reply.id, "stop", "", None)
    conversation.say("Still there?")
    assert [message["content"] for message in conversation.messages()] == ["be brief", "Hello?", "Still there?"]


def test_a_full_disk_in_the_middle_of_a_reply(store):
    told = []
    exchange(begun(store), "An older session.", "Yes.")
    conversation = begun(store, told)
    exchange(conversation, "Name a river.", "The Rhine.")
    asked = conversation.say("Go on.")
    reply = conversation.begin_reply()
    fill_up(store)
    text = ""
    for _ in range(200):
        conversation.grow(reply.id, "word " * 200)
        text += "word " * 200
    message = conversation.finish(reply.id, "stop", text, {"tokens_per_s": 1.0})
    assert len(told) == 1
    assert "full" in told[0].message
    assert not conversation.saved
    assert [one.content for one in conversation.branch] == ["Name a river.", "The Rhine.", "Go on.", text]
    assert conversation.id_of(asked.id) == conversation.branch[2].id
    assert conversation.siblings(message.id) == conversation.siblings(asked.id) == (1, 1)
    exchange(conversation, "And now?", "Still here.")
    assert conversation.messages()[-1]["content"] == "Still here."
    assert conversation.branch[1].stats == {"tokens_per_s": 10.0}
    assert len(told) == 1


def test_a_session_that_another_process_deleted(store, database):
    told = []
    conversation = begun(store, told)
    exchange(conversation, "Name a river.", "The Rhine.")
    with SessionStore.open(database) as other:
        other.delete(conversation.session.id)
    exchange(conversation, "Another.", "The Po.")
    assert [one.content for one in store.path(store.latest().leaf)] == [
        "Name a river.",
        "The Rhine.",
        "Another.",
        "The Po.",
    ]
    assert told == []


def test_a_full_disk_that_gets_room_again(store, database):
    conversation = begun(store)
    asked, _ = exchange(conversation, "Name a river.", "The Rhine.")
    conversation.go_back_to(asked.id)
    exchange_of = conversation.begin_reply()
    fill_up(store)
    conversation.grow(exchange_of.id, "word " * 20_000)
    assert not conversation.saved and not conversation.catch_up(patient=True)
    make_room(store)
    assert conversation.catch_up(patient=True) and conversation.saved
    conversation.grow(exchange_of.id, "end")
    conversation.finish(exchange_of.id, "stop", "word " * 20_000 + "end", None)
    assert conversation.siblings(exchange_of.id) == (2, 2)
    with SessionStore.open(database) as other:
        session = other.latest()
        assert [len(one.content) for one in other.messages(session.id)] == [13, 10, 100_003]
        assert [one.content for one in other.path(session.leaf)][1] == "word " * 20_000 + "end"
        assert [hit.message.id for hit in other.search("end")] == [session.leaf]


def test_what_was_said_while_the_file_was_locked_is_saved_after_it(store, database, locked):
    told = []
    conversation = begun(store, told)
    asked, _ = exchange(conversation, "Name a river.", "The Rhine.")
    session = conversation.session.id
    holder = locked()
    exchange(conversation, "Another.", "The Po.")
    conversation.go_back_to(conversation.id_of(asked.id))
    second = conversation.begin_reply()
    conversation.grow(second.id, "The ")
    assert len(told) == 1 and "locked" in told[0].message
    assert not conversation.catch_up(patient=True)
    begun_elsewhere = conversation.session
    conversation.new("demo", "")
    exchange(conversation, "Name a sea.", "The North Sea.")
    conversation.open(begun_elsewhere.id, second.id)
    let_go(holder)
    while not conversation.catch_up():  # A second after it was tried last.
        time.sleep(0.05)
    assert conversation.session.id == session and conversation.store is store
    conversation.grow(second.id, "Elbe.")
    conversation.finish(second.id, "stop", "The Elbe.", {"tokens_per_s": 1.0})
    assert conversation.siblings(second.id) == (2, 2)
    assert len(told) == 1
    with SessionStore.open(database) as other:
        assert sorted(one.title for one in other.sessions()) == ["Name a river.", "Name a sea."]
        kept = other.messages(session)
        assert [one.content for one in kept] == ["Name a river.", "The Rhine.", "Another.", "The Po.", "The Elbe."]
        assert [one.finish_reason for one in kept] == [None, "stop", None, "stop", "stop"]
        assert kept[1].stats == {"tokens_per_s": 10.0}
        assert [one.content for one in other.path(other.get(session).leaf)] == ["Name a river.", "The Elbe."]


def test_what_is_not_saved_at_the_end_is_in_files(store, database, locked, monkeypatch):
    conversation = begun(store)
    assert conversation.last_words(database.parent) == ""
    exchange(conversation, "Name a river.", "The Rhine.")
    locked()
    exchange(conversation, "Another.", "The Po.")
    conversation.new("demo", "")
    exchange(conversation, "Name a sea.", "The North Sea.")
    told = conversation.last_words(database.parent)
    files = sorted(database.parent.glob("unsaved-*.json"))
    assert len(files) == 2 and all(str(file) in told for file in files) and "\n" not in told
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    said = [[one["content"] for one in json.loads(file.read_text())["messages"]] for file in files]
    assert sorted(said, key=len) == [
        ["Name a sea.", "The North Sea."],
        ["Name a river.", "The Rhine.", "Another.", "The Po."],
    ]
    monkeypatch.setattr("tempfile.tempdir", str(database.parent / "nothing"))
    told = conversation.last_words(database.parent / "nowhere")
    assert told == "what was said could not be saved, neither as a session nor in a file: No such file or directory"


def test_a_file_that_is_locked_twice(store, database, locked):
    conversation = begun(store)
    exchange(conversation, "Name a river.", "The Rhine.")
    for number in range(2):
        holder = locked()
        asked, reply = exchange(conversation, f"Another {number}.", f"The Po {number}.")
        let_go(holder)
        assert conversation.catch_up(patient=True)
    assert conversation.siblings(asked.id) == conversation.siblings(reply.id) == (1, 1)
    with SessionStore.open(database) as other:
        (session,) = other.sessions()
        assert [one.content for one in other.path(session.leaf)][2:] == [
            *("Another 0.", "The Po 0."),
            *("Another 1.", "The Po 1."),
        ]


def test_a_session_that_is_deleted_while_nothing_can_be_saved(store, database, locked):
    conversation = begun(store)
    exchange(conversation, "Name a river.", "The Rhine.")
    holder = locked("store.delete(1)")
    exchange(conversation, "Another.", "The Po.")
    let_go(holder)
    assert conversation.catch_up(patient=True)
    with SessionStore.open(database) as other:
        (session,) = other.sessions()
        assert session.id == 2 and len(other.path(session.leaf)) == 4


def make_room(store):
    store._database._connection.execute("PRAGMA max_page_count = 1000000")


def fill_up(store):
    """The database may not become any larger: SQLite then fails as on a full disk."""
    connection = store._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
