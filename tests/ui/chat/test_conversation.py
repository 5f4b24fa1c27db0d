"""A conversation and what is kept of it, also when nothing can be kept."""

from __future__ import annotations

import pytest

from ui.chat.conversation import Conversation
from ui.sessions import SessionStore


@pytest.fixture
def database(tmp_path):
    return tmp_path / "sessions.db"


@pytest.fixture
def store(database):
    with SessionStore.open(database, timeout=0.2) as store:
        yield store


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


def fill_up(store):
    """The database may not become any larger: SQLite then fails as on a full disk."""
    connection = store._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
