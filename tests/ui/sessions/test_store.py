from __future__ import annotations

import sqlite3
import stat
import threading

import pytest

from offload.errors import ConfigError, SessionNotFound
from ui.sessions import SessionStore
from ui.sessions.titles import LONGEST, title_from


def test_a_conversation_is_there_again(path):
    with SessionStore.open(path) as store:
        session = store.create(model="demo", system="Be brief.")
        assert (session.title, session.leaf, session.messages) == ("", None, 0)
        question = store.add(session.id, None, "user", "Why is the sky blue?")
        answer = store.add(session.id, question.id, "assistant", "")
        assert answer.unfinished and not question.unfinished
        for piece in ("Ray", "leigh ", "scattering\n"):
            store.append(answer.id, piece)
        stats = {"completion_tokens": 3, "text": "Rayleigh", "token_ids": [1, 2, 3], "experts": {"hit_rate": 0.5}}
        store.finish(answer.id, "stop", stats)
    with SessionStore.open(path) as store:
        (session,) = store.sessions()
        assert (session.title, session.model, session.system) == ("Why is the sky blue?", "demo", "Be brief.")
        assert (session.leaf, session.messages) == (answer.id, 2)
        asked, answered = store.path(session.leaf)
        assert asked == question
        assert (answered.content, answered.finish_reason) == ("Rayleigh scattering\n", "stop")
        assert answered.stats == {"completion_tokens": 3, "experts": {"hit_rate": 0.5}}
        assert session.created <= asked.created <= answered.created <= session.updated
        assert store.latest() == store.get(session.id) == session


def test_the_file_is_its_owners_alone(store, path):
    store.add(store.create().id, None, "assistant", "")
    assert len(list(path.parent.iterdir())) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_what_was_used_last_comes_first(store):
    first, second, third = (store.create(title) for title in "abc")
    message = store.add(first.id, None, "user", "hi")
    store.add(second.id, None, "user", "hi")
    assert [session.title for session in store.sessions()] == ["b", "a", "c"]
    store.replace(message.id, "hello")
    store.rename(third.id, "C")
    store.set_model(third.id, "other")
    assert [session.title for session in store.sessions(limit=2)] == ["a", "b"]
    assert store.latest().title == "a"


def test_without_sessions_there_is_no_latest(store):
    assert store.sessions() == []
    assert store.latest() is None


def test_a_title_comes_from_the_first_words_and_stays(store):
    session = store.create()
    first = store.add(session.id, None, "user", "\n Explain\tto me, in detail, how a sourdough bread is baked")
    assert store.get(session.id).title == "Explain to me, in detail, how a sourdough bread…"
    store.add(session.id, None, "user", "Something else")
    store.replace(first.id, "Nothing")
    assert store.get(session.id).title.startswith("Explain")
    assert store.rename(session.id, " My\nbread ").title == "My bread"
    with pytest.raises(ConfigError, match="cannot be empty"):
        store.rename(session.id, " \n")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("short", "short"),
        ("", ""),
        ("a" * 100, "a" * LONGEST + "…"),
        ("为什么天空是蓝色的" * 10, ("为什么天空是蓝色的" * 10)[:LONGEST] + "…"),
        ("word " * 9 + "end of it", "word " * 8 + "word end…" if LONGEST == 48 else ""),
        ("x" * LONGEST, "x" * LONGEST),
    ],
)
def test_titles_end_at_a_word(text, title):
    assert title_from(text) == title


def test_sessions_are_found_as_people_name_them(store):
    blue, bread, bread_too, number = (
        store.create(title) for title in ("Why is the sky blue?", "Bread", "bread with seeds", "1 or 2")
    )
    assert store.find(str(blue.id)) == blue
    assert store.find("Bread") == bread
    assert store.find("bread") == bread
    assert store.find("why is") == blue
    assert store.find(" BREAD  with") == bread_too
    assert store.find("1 ") == blue  # a number is an id before it is a title
    assert store.find("1 o") == number
    for text in ("nothing", "", "99", "%", "sky"):
        with pytest.raises(SessionNotFound):
            store.find(text)
    with pytest.raises(ConfigError, match="'b' may be any of 2") as caught:
        store.find("b")
    assert f"{bread.id} 'Bread'" in caught.value.hint


def test_changes_reach_only_their_session(store):
    one, two = store.create("one"), store.create("two")
    assert store.set_system(one.id, "Be kind.").system == "Be kind."
    assert store.set_model(one.id, "demo").model == "demo"
    assert store.get(two.id) == two


def test_what_does_not_exist_is_said_so(store):
    session = store.create()
    message = store.add(session.id, None, "user", "hi")
    for attempt in (
        lambda: store.get(99),
        lambda: store.get(0),
        lambda: store.get(2**80),
        lambda: store.rename(99, "x"),
        lambda: store.delete(99),
        lambda: store.add(99, None, "user", "x"),
        lambda: store.add(session.id, 99, "user", "x"),
        lambda: store.add(store.create().id, message.id, "user", "x"),
        lambda: store.select(store.create().id, message.id),
        lambda: store.append(99, "x"),
        lambda: store.replace(99, "x"),
        lambda: store.finish(99, "stop", None),
        lambda: store.message(-1),
        lambda: store.messages(99),
        lambda: store.path(99),
        lambda: store.siblings(2**80),
    ):
        with pytest.raises(SessionNotFound):
            attempt()
    assert store.messages(session.id) == [message]


def test_a_number_is_never_used_twice(store):
    first = store.create()
    message = store.add(first.id, None, "user", "hi")
    store.delete(first.id)
    second = store.create()
    assert second.id > first.id
    assert store.add(second.id, None, "user", "hi").id > message.id


def test_a_long_conversation_can_be_read_and_deleted(store):
    session = store.create()
    leaf = None
    with store._database.writing() as connection:  # 3,000 calls of add() would wait for the disk 3,000 times
        for number in range(3000):
            leaf = connection.execute(
                "INSERT INTO messages (session, parent, role, content, created) VALUES (?, ?, 'user', ?, 0)",
                (session.id, leaf, str(number)),
            ).lastrowid
    assert [message.content for message in store.path(leaf)] == [str(number) for number in range(3000)]
    root = store.path(leaf)[0]
    assert store.select(session.id, root.id).leaf == leaf
    store.delete(session.id)
    assert store.search("2999") == []


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800 half of a pair", "naïve 天 🙂", "'; DROP TABLE messages; --"])
def test_any_text_can_be_kept(store, text):
    session = store.create(text, text, text)
    message = store.add(session.id, None, "user", text, "stop")
    store.append(message.id, text)
    kept = text.replace("\ud800", "\ufffd")
    assert store.message(message.id).content == kept + kept
    assert store.get(session.id).system == kept
    store.replace(message.id, text)
    store.delete(session.id)
    with store._database.writing() as connection:
        connection.execute("INSERT INTO messages_text (messages_text) VALUES ('integrity-check')")


def test_roles_and_reasons_are_the_known_ones(store):
    session = store.create()
    with pytest.raises(ValueError, match="no role"):
        store.add(session.id, None, "system", "x")
    with pytest.raises(ValueError, match="no finish reason"):
        store.add(session.id, None, "assistant", "x", "done")
    message = store.add(session.id, None, "assistant", "x")
    with pytest.raises(ValueError, match="no finish reason"):
        store.finish(message.id, "done", None)
    with pytest.raises(ValueError, match="JSON"):
        store.finish(message.id, "stop", {"tpot_s": float("nan")})
    assert store.message(message.id).unfinished


def test_threads_may_share_a_store(store):
    session = store.create()
    message = store.add(session.id, None, "assistant", "")

    def write() -> None:
        for _ in range(50):
            store.append(message.id, "x")
            store.sessions()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.message(message.id).content == "x" * 200


def test_closing_ends_what_was_being_written(path):
    with SessionStore.open(path) as store:
        message = store.add(store.create().id, None, "assistant", "half")
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]
    with SessionStore.open(path) as store:
        assert store.message(message.id).finish_reason == "interrupted"


def test_a_store_in_memory_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SessionStore.in_memory() as store:
        session = store.create()
        message = store.add(session.id, None, "assistant", "a")
        store.append(message.id, "b")
        assert store.recover() == 0
        assert store.finish(message.id, "stop", None).content == "ab"
        assert store.search("ab")[0].message.id == message.id
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_the_program_is_not_called_a_failure_of_the_disk(path):
    store = SessionStore.open(path)
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.sessions()


def test_importing_it_imports_nothing_heavy(start):
    process = start("say(*sys.modules)")
    loaded = set(process.communicate()[0].split())
    assert "ui.sessions.store" in loaded
    assert loaded & {"torch", "numpy", "textual", "rich", "transformers", "sentence_transformers"} == set()
