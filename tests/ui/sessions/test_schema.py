from __future__ import annotations

import sqlite3

import pytest

from offload.errors import StorageError
from ui.sessions import SessionStore
from ui.sessions.schema import MIGRATIONS, Migration, applied, apply


def tables_of(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def test_names_are_unique():
    names = [migration.name for migration in MIGRATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("level", range(1, len(MIGRATIONS)))
def test_an_older_store_is_upgraded_with_all_it_has(path, level):
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    apply(connection, MIGRATIONS[:level])
    connection.execute("INSERT INTO sessions VALUES (7, 'Sky', 'demo', '', 1, 2, NULL)")
    messages = [
        (1, 7, None, "user", "Why is it blue?", None),
        (2, 7, 1, "assistant", "Rayleigh scattering", "stop"),
        (3, 7, 1, "assistant", "It is half writ", None),
    ]
    connection.executemany(
        """
        INSERT INTO messages (id, session, parent, role, content, created, finish_reason)
        VALUES (?, ?, ?, ?, ?, 0, ?)
        """,
        messages,
    )
    connection.execute("UPDATE sessions SET leaf = 2")
    assert applied(connection) == [migration.name for migration in MIGRATIONS[:level]]
    connection.close()
    with SessionStore.open(path) as store:
        assert [message.content for message in store.path(store.find("sky").leaf)] == [
            "Why is it blue?",
            "Rayleigh scattering",
        ]
        assert [hit.message.id for hit in store.search("rayleigh")] == [2]
        assert store.message(3).finish_reason == "interrupted"
        assert [hit.message.id for hit in store.search("writ")] == [3]
        with SessionStore.open(path.with_name("new.db")) as new:
            assert tables_of(store._database._connection) == tables_of(new._database._connection)
    with SessionStore.open(path) as store:
        assert len(store.messages(7)) == 3


def test_a_migration_that_fails_leaves_the_store_as_it_was(path, monkeypatch):
    with SessionStore.open(path) as store:
        store.create("kept")
    broken = Migration("broken", ("CREATE TABLE extra (x)", "CREATE TABLE extra (x)"))
    monkeypatch.setattr("ui.sessions.database.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(StorageError):
        SessionStore.open(path)
    monkeypatch.undo()
    with SessionStore.open(path) as store:
        assert store.find("kept")
        assert "extra" not in {name for _, name, _ in tables_of(store._database._connection)}


def test_opening_again_writes_nothing(path):
    SessionStore.open(path).close()
    before = path.read_bytes()
    with SessionStore.open(path) as store:
        store.sessions()
    assert path.read_bytes() == before
