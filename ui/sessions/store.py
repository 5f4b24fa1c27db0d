"""The conversations, kept in one SQLite file.

What it promises: every call that returned is kept, whatever happens to the process then; an answer is kept from
its first piece on; a chat and any number of commands may use the file at once; nothing is ever deleted but what
somebody asked to delete. A conversation is a tree: to edit a message, or to ask for an answer again, is to add a
sibling.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from offload.errors import ConfigError, SessionNotFound
from profiles.paths import unwritable
from ui.sessions import owners, search
from ui.sessions.catch_up import Copies, write_down
from ui.sessions.database import Database, set_aside
from ui.sessions.records import FINISH_REASONS, Hit, Message, Session
from ui.sessions.rows import (
    ABOVE,
    BELOW,
    MESSAGE,
    SESSION,
    UNFINISHED,
    checked_id,
    hits_of,
    interrupt,
    message_in,
    message_of,
    messages_of,
    no_message,
    one_line,
    session_of,
    touch,
    valid_text,
)
from ui.sessions.titles import title_from

if TYPE_CHECKING:
    from ui.sessions.search import Embed

BUSY_TIMEOUT_S = 5.0
"""How long to wait for another process that is just writing; a transaction takes milliseconds."""


class SessionStore:
    """All sessions. May be used from several threads, one call at a time.

    Every method raises :class:`StorageError` where the file cannot be read or written, and :class:`SessionNotFound`
    for a session or message that does not exist, or no longer does.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owner: owners.Owner | None = None

    @classmethod
    def open(cls, path: Path, *, timeout: float = BUSY_TIMEOUT_S) -> SessionStore:
        """Opens the store at ``path``; creates it, upgrades it and recovers what was left unfinished, if need be.

        Args:
            timeout: Seconds to wait for another process that writes.

        Raises:
            StorageError: It cannot be opened: locked, not writable, full, written by a newer version.
            DamagedFile: It is no database, or a damaged one. It stays as it is.
        """
        store = cls(Database(path, timeout))
        try:
            store.recover()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def in_memory(cls, after: int = 0) -> SessionStore:
        """An empty store that ends with the process: for conversations that nobody wants kept, or can keep.

        Args:
            after: The ids of its messages are greater, so that none of another store's means one of its own.
        """
        store = cls(Database(None, 0))
        if after:
            with store._database.writing() as connection:
                connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('messages', ?)", (after,))
        return store

    @staticmethod
    def set_aside(path: Path) -> Path:
        """Renames the store at ``path``, which nobody has open, so that the next :meth:`open` begins a new one.

        Returns:
            Its new path.

        Raises:
            StorageError: It cannot be renamed.
        """
        return set_aside(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Sessions.

    def create(self, title: str = "", model: str = "", system: str = "") -> Session:
        """A new session without messages."""
        now = time.time()
        values = (one_line(title), valid_text(model), valid_text(system), now, now)
        with self._database.writing() as connection:
            row = connection.execute(
                "INSERT INTO sessions (title, model, system, created, updated) VALUES (?, ?, ?, ?, ?)", values
            )
            return session_of(connection, row.lastrowid)

    def sessions(self, limit: int | None = None) -> list[Session]:
        """All of them or the first ``limit``, the last updated first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{SESSION} ORDER BY updated DESC, id DESC LIMIT ?", (-1 if limit is None else limit,)
            )
            return [Session(*row) for row in rows]

    def get(self, session_id: int) -> Session:
        """The session with that id."""
        with self._database.reading() as connection:
            return session_of(connection, session_id)

    def latest(self) -> Session | None:
        """The last updated session."""
        return next(iter(self.sessions(limit=1)), None)

    def find(self, text: str) -> Session:
        """The session that a user means: by its id, its title, or how only its title begins.

        Raises:
            SessionNotFound: There is none.
            ConfigError: There are several.
        """
        sessions = self.sessions()
        folded = one_line(text).casefold()
        ways: tuple[Callable[[Session], bool], ...] = (
            lambda session: str(session.id) == text.strip(),
            lambda session: session.title == one_line(text),
            lambda session: session.title.casefold() == folded,
            lambda session: bool(folded) and session.title.casefold().startswith(folded),
        )
        for way in ways:
            found = [session for session in sessions if way(session)]
            if len(found) == 1:
                return found[0]
            if found:
                some = ", ".join(f"{session.id} '{session.title}'" for session in found[:5])
                raise ConfigError(f"'{text}' may be any of {len(found)} sessions", f"give the number: {some}")
        raise SessionNotFound(f"no session '{text}'", "finemoe sessions list shows all there are")

    def rename(self, session_id: int, title: str) -> Session:
        """Gives the session another title.

        Raises:
            ConfigError: The title is empty.
        """
        if not one_line(title):
            raise ConfigError("a session's title cannot be empty", "give it a title")
        return self._set(session_id, "title", one_line(title))

    def set_system(self, session_id: int, system: str) -> Session:
        """Gives the session another system prompt; an empty one is none."""
        return self._set(session_id, "system", valid_text(system))

    def set_model(self, session_id: int, model: str) -> Session:
        """Notes that the session goes on with another model."""
        return self._set(session_id, "model", valid_text(model))

    def delete(self, session_id: int) -> None:
        """Deletes the session with all its messages."""
        with self._database.writing() as connection:
            session_of(connection, session_id)
            connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

    # Messages.

    def add(
        self, session_id: int, parent: int | None, role: str, content: str, finish_reason: str | None = None
    ) -> Message:
        """A new message below ``parent``, or a first one; the session's leaf from now on.

        An answer without a ``finish_reason`` is one that is being written, by this store. The first words of a
        user's message become the title of a session that has none.

        Raises:
            SessionNotFound: Or ``parent`` is not a message of it.
        """
        if role not in ("user", "assistant"):
            raise ValueError(f"no role: {role!r}")
        _check_reason(finish_reason)
        content, now = valid_text(content), time.time()
        with self._database.writing() as connection:
            session = session_of(connection, session_id)
            if parent is not None:
                message_in(connection, session_id, parent)
            owner = self._owner_name() if role == "assistant" and finish_reason is None else None
            made = connection.execute(
                """
                INSERT INTO messages (session, parent, role, content, created, finish_reason, owner)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
                (session_id, parent, role, content, now, finish_reason, owner),
            ).lastrowid
            title = session.title or (title_from(content) if role == "user" else "")
            connection.execute(
                "UPDATE sessions SET leaf = ?, title = ?, updated = ? WHERE id = ?", (made, title, now, session_id)
            )
            return message_of(connection, made)

    def append(self, message_id: int, text: str) -> None:
        """Adds ``text`` to the end of a message that is being written; returns without waiting for the disk."""
        with self._database.writing(durable=False) as connection:
            done = connection.execute(
                "UPDATE messages SET content = content || ? WHERE id = ?",
                (valid_text(text), checked_id(message_id)),
            )
            if not done.rowcount:
                raise no_message(message_id)

    def replace(self, message_id: int, content: str) -> None:
        """Gives a message another text."""
        with self._database.writing() as connection:
            session = message_of(connection, message_id).session
            connection.execute("UPDATE messages SET content = ? WHERE id = ?", (valid_text(content), message_id))
            touch(connection, session)

    def finish(self, message_id: int, finish_reason: str, stats: dict[str, Any] | None) -> Message:
        """Says that an answer is whole, how it ended, and what it cost."""
        _check_reason(finish_reason)
        kept = None
        if stats is not None:
            numbers = {name: value for name, value in stats.items() if name not in ("text", "token_ids")}
            kept = json.dumps(numbers, allow_nan=False)
        with self._database.writing() as connection:
            session = message_of(connection, message_id).session
            connection.execute(
                "UPDATE messages SET finish_reason = ?, stats = ?, owner = NULL WHERE id = ?",
                (finish_reason, kept, message_id),
            )
            touch(connection, session)
            return message_of(connection, message_id)

    def message(self, message_id: int) -> Message:
        """The message with that id."""
        with self._database.reading() as connection:
            return message_of(connection, message_id)

    def messages(self, session_id: int) -> list[Message]:
        """All messages of a session, of every branch, in the order of their creation."""
        with self._database.reading() as connection:
            session_of(connection, session_id)
            return messages_of(connection.execute(f"{MESSAGE} WHERE session = ? ORDER BY id", (session_id,)))

    def path(self, leaf: int | None) -> list[Message]:
        """The branch that ends with ``leaf``, from its first message on; empty for None."""
        if leaf is None:
            return []
        with self._database.reading() as connection:
            branch = messages_of(connection.execute(ABOVE, (checked_id(leaf),)))
        if not branch:
            raise no_message(leaf)
        return branch

    def siblings(self, message_id: int) -> list[Message]:
        """The messages with the same parent, itself among them, in the order of their creation."""
        with self._database.reading() as connection:
            message = message_of(connection, message_id)
            rows = connection.execute(
                f"{MESSAGE} WHERE session = ? AND parent IS ? ORDER BY id", (message.session, message.parent)
            )
            return messages_of(rows)

    def select(self, session_id: int, message_id: int) -> Session:
        """Makes the newest leaf below a message (it may be the message itself) the session's leaf."""
        with self._database.writing() as connection:
            session_of(connection, session_id)
            message_in(connection, session_id, message_id)
            (leaf,) = connection.execute(BELOW, (message_id,)).fetchone()
            connection.execute("UPDATE sessions SET leaf = ? WHERE id = ?", (leaf, session_id))
            return session_of(connection, session_id)

    # Search.

    def search(self, query: str, limit: int = 50) -> list[Hit]:
        """Messages with all of the query's words, the last of which may be a word's beginning; the best first.

        No character has a special meaning. What is just being written is not found.
        """
        with self._database.reading() as connection:
            return hits_of(connection, search.by_words(connection, valid_text(query), limit))

    def search_by_meaning(
        self, query: str, embed: Embed, limit: int = 20, progress: Callable[[int, int], None] | None = None
    ) -> list[Hit]:
        """Messages whose meaning is nearest to the query's, the nearest first.

        Messages that have not been embedded yet are, and their vectors are kept if ``embed`` has a ``name``.

        Args:
            embed: Turns n texts into an array [n, d] of floats; see :func:`ui.sessions.meaning.open_embedder`.
            progress: Called with how many of how many new messages are embedded.
        """
        nearest = search.by_meaning(self._database, valid_text(query), embed, limit, progress)
        with self._database.reading() as connection:
            return hits_of(connection, nearest)

    # Life.

    def recover(self) -> int:
        """Marks answers as interrupted that a process left unfinished which is no longer there.

        :meth:`open` does this.

        Returns:
            How many there were.
        """
        path = self._database.path
        if path is None:
            return 0
        with self._database.reading() as connection:
            if not self._dead_owners(path, connection):
                return 0
        with self._database.writing() as connection:
            recovered = 0
            for name in self._dead_owners(path, connection):
                recovered += interrupt(connection, name)
                if name is not None:
                    owners.forget(path, name)
            return recovered

    def take_over(self, other: SessionStore, known: Copies, *, patient: bool = True) -> Copies:
        """Writes down all that ``other`` has, whole or not at all: what was in memory while this was not writable.

        Args:
            known: What of it was here before.
            patient: Wait for another process that writes.

        Returns:
            Where all of it is now.
        """
        kept = [(session, other.messages(session.id)) for session in reversed(other.sessions())]
        with self._database.writing(patient=patient) as connection:
            return write_down(connection, kept, known, self._owner_name)

    def close(self) -> None:
        """Closes the store; an answer that it is still writing is marked as interrupted."""
        owner, self._owner = self._owner, None
        try:
            if owner is not None:
                with self._database.writing() as connection:
                    interrupt(connection, owner.name)
        finally:
            if owner is not None:
                owner.release()
            self._database.close()

    def _set(self, session_id: int, column: str, value: str) -> Session:
        with self._database.writing() as connection:
            session_of(connection, session_id)
            connection.execute(f"UPDATE sessions SET {column} = ? WHERE id = ?", (value, session_id))
            return session_of(connection, session_id)

    def _owner_name(self) -> str | None:
        """The name under which this store writes; called within a write transaction."""
        path = self._database.path
        if path is None:
            return None
        if self._owner is None:
            try:
                self._owner = owners.Owner(path)
            except OSError as error:
                raise unwritable(path, error) from error
        return self._owner.name

    def _dead_owners(self, path: Path, connection: sqlite3.Connection) -> list[str | None]:
        """Those whose process is no longer there; None if there is an unfinished message that nobody has."""
        unfinished = connection.execute(f"SELECT DISTINCT owner FROM messages WHERE {UNFINISHED}")
        try:
            known: set[str | None] = {name for (name,) in unfinished} | set(owners.names(path))
        except OSError as error:
            raise unwritable(path, error) from error
        if self._owner is not None:
            known.discard(self._owner.name)
        return [name for name in known if name is None or not owners.is_alive(path, name)]


def _check_reason(finish_reason: str | None) -> None:
    if finish_reason is not None and finish_reason not in FINISH_REASONS:
        raise ValueError(f"no finish reason: {finish_reason!r}")
