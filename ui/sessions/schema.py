"""The tables of the session store, as migrations with names.

A database knows the names of those that were applied to it. They are applied in order and never changed once
they were released: what comes later is one more.

Conversations are trees: a message knows its parent. Ids are never used twice, and a parent is always older than
its children, so that along a branch, and among the leaves below a message, the order of ids is the order of time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, applied whole or not at all."""

    name: str
    statements: tuple[str, ...]


MIGRATIONS = (
    Migration(
        "sessions-and-messages",
        (
            """
            CREATE TABLE sessions (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                title TEXT NOT NULL,
                model TEXT NOT NULL,
                system TEXT NOT NULL,
                created REAL NOT NULL,
                updated REAL NOT NULL,
                leaf INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED
            )
            """,
            # A parent's deletion does not cascade: SQLite nests no deeper than 1,000, and branches may be longer.
            """
            CREATE TABLE messages (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
                parent INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
                role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
                content TEXT NOT NULL,
                created REAL NOT NULL,
                finish_reason TEXT,
                stats TEXT,
                owner TEXT
            )
            """,
            "CREATE INDEX sessions_by_leaf ON sessions (leaf)",
            "CREATE INDEX sessions_by_update ON sessions (updated)",
            "CREATE INDEX messages_by_session ON messages (session)",
            "CREATE INDEX messages_by_parent ON messages (parent)",
            """
            CREATE INDEX messages_unfinished ON messages (owner)
            WHERE role = 'assistant' AND finish_reason IS NULL
            """,
        ),
    ),
    Migration(
        "full-text-search",
        (
            # Only whole messages are in the index: otherwise every piece of an answer would index it all again.
            # Beginnings of words have an index of their own, so that a search may follow the typing.
            """
            CREATE VIEW searchable AS
            SELECT id, content FROM messages WHERE role = 'user' OR finish_reason IS NOT NULL
            """,
            """
            CREATE VIRTUAL TABLE messages_text USING fts5 (
                content, content = 'searchable', content_rowid = 'id',
                tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3'
            )
            """,
            """
            CREATE TRIGGER text_of_new AFTER INSERT ON messages
            WHEN new.role = 'user' OR new.finish_reason IS NOT NULL
            BEGIN
                INSERT INTO messages_text (rowid, content) VALUES (new.id, new.content);
            END
            """,
            """
            CREATE TRIGGER text_of_old AFTER DELETE ON messages
            WHEN old.role = 'user' OR old.finish_reason IS NOT NULL
            BEGIN
                INSERT INTO messages_text (messages_text, rowid, content) VALUES ('delete', old.id, old.content);
            END
            """,
            """
            CREATE TRIGGER text_before_change AFTER UPDATE OF content, finish_reason ON messages
            WHEN old.role = 'user' OR old.finish_reason IS NOT NULL
            BEGIN
                INSERT INTO messages_text (messages_text, rowid, content) VALUES ('delete', old.id, old.content);
                INSERT INTO messages_text (rowid, content)
                SELECT new.id, new.content WHERE new.role = 'user' OR new.finish_reason IS NOT NULL;
            END
            """,
            """
            CREATE TRIGGER text_of_finished AFTER UPDATE OF finish_reason ON messages
            WHEN old.role = 'assistant' AND old.finish_reason IS NULL AND new.finish_reason IS NOT NULL
            BEGIN
                INSERT INTO messages_text (rowid, content) VALUES (new.id, new.content);
            END
            """,
            "INSERT INTO messages_text (messages_text) VALUES ('rebuild')",
        ),
    ),
    Migration(
        "search-by-meaning",
        (
            # start and stop are characters of the message, which may be too long for one vector.
            """
            CREATE TABLE embeddings (
                message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
                embedder TEXT NOT NULL,
                start INTEGER NOT NULL,
                stop INTEGER NOT NULL,
                vector BLOB NOT NULL,
                PRIMARY KEY (message, embedder, start)
            ) WITHOUT ROWID
            """,
            """
            CREATE TRIGGER embeddings_of_changed AFTER UPDATE OF content ON messages
            WHEN old.role = 'user' OR old.finish_reason IS NOT NULL
            BEGIN
                DELETE FROM embeddings WHERE message = old.id;
            END
            """,
        ),
    ),
)


def applied(connection: sqlite3.Connection) -> list[str] | None:
    """Names of the migrations that a database has had; None if it has tables, and no record of migrations."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "migrations" not in tables:
        return None if tables else []
    return [name for (name,) in connection.execute("SELECT name FROM migrations ORDER BY rowid")]


def apply(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Applies ``migrations``, within the transaction that the caller has begun."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT NOT NULL UNIQUE, applied REAL NOT NULL)")
    for migration in migrations:
        for statement in migration.statements:
            connection.execute(statement)
        connection.execute("INSERT INTO migrations VALUES (?, ?)", (migration.name, time.time()))
