"""Rows of the session database and what they become. Every function works within the caller's transaction."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from offload.errors import SessionNotFound
from ui.sessions.records import Hit, Message, Session

SESSION = """
    SELECT id, title, model, system, created, updated, leaf,
        (SELECT count(*) FROM messages WHERE messages.session = sessions.id)
    FROM sessions
"""
"""What a :class:`Session` is made of."""

MESSAGE = "SELECT id, session, parent, role, content, created, finish_reason, stats FROM messages"
"""What a :class:`Message` is made of."""

BELOW = """
    WITH RECURSIVE below (id) AS (
        SELECT ? UNION ALL SELECT messages.id FROM messages JOIN below ON messages.parent = below.id
    )
    SELECT max(id) FROM below
"""
"""The newest of a message and all below it, which is a leaf: whatever is below a message is newer."""

ABOVE = f"""
    WITH RECURSIVE above (id, parent) AS (
        SELECT id, parent FROM messages WHERE id = ?
        UNION ALL SELECT messages.id, messages.parent FROM messages JOIN above ON messages.id = above.parent
    )
    {MESSAGE} WHERE id IN (SELECT id FROM above) ORDER BY id
"""
"""A message and all above it, from the first one on."""

UNFINISHED = "role = 'assistant' AND finish_reason IS NULL"
"""Of a message: it is being written."""

_LARGEST_ID = 2**63 - 1
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def hits_of(connection: sqlite3.Connection, found: Iterable[tuple[int, str, float]]) -> list[Hit]:
    """Hits for the ids, snippets and scores that a search found; what was deleted since is left out."""
    sessions: dict[int, Session] = {}
    hits = []
    for message_id, snippet, score in found:
        for message in messages_of(connection.execute(f"{MESSAGE} WHERE id = ?", (message_id,))):
            if message.session not in sessions:
                sessions[message.session] = session_of(connection, message.session)
            hits.append(Hit(sessions[message.session], message, snippet, score))
    return hits


def session_of(connection: sqlite3.Connection, session_id: int | None) -> Session:
    """The session with that id."""
    row = connection.execute(f"{SESSION} WHERE id = ?", (checked_id(session_id),)).fetchone()
    if row is None:
        raise SessionNotFound(f"no session {session_id}", "finemoe sessions list shows all there are")
    return Session(*row)


def message_of(connection: sqlite3.Connection, message_id: int | None) -> Message:
    """The message with that id."""
    found = messages_of(connection.execute(f"{MESSAGE} WHERE id = ?", (checked_id(message_id),)))
    if not found:
        raise no_message(message_id)
    return found[0]


def message_in(connection: sqlite3.Connection, session_id: int, message_id: int) -> Message:
    """The message with that id, which has to be one of the session."""
    message = message_of(connection, message_id)
    if message.session != session_id:
        raise no_message(message_id)
    return message


def messages_of(rows: Iterable[tuple[Any, ...]]) -> list[Message]:
    """What rows of :data:`MESSAGE` are."""
    return [
        Message(
            number, session, parent, role, content, created, reason, None if stats is None else json.loads(stats)
        )
        for number, session, parent, role, content, created, reason, stats in rows
    ]


def touch(connection: sqlite3.Connection, session_id: int) -> None:
    """Notes that something in the session changed just now."""
    connection.execute("UPDATE sessions SET updated = ? WHERE id = ?", (time.time(), session_id))


def interrupt(connection: sqlite3.Connection, owner: str | None) -> int:
    """Marks what ``owner`` left unfinished; returns how many messages that were."""
    return connection.execute(
        f"UPDATE messages SET finish_reason = 'interrupted', owner = NULL WHERE {UNFINISHED} AND owner IS ?",
        (owner,),
    ).rowcount


def no_message(message_id: int | None) -> SessionNotFound:
    """The error for a message that does not exist."""
    return SessionNotFound(f"no message {message_id}", "its session may have been deleted")


def checked_id(number: int | None) -> int:
    """``number``, or 0, which is no id, for one that SQLite cannot take."""
    return number if number is not None and 0 < number <= _LARGEST_ID else 0


def valid_text(text: str) -> str:
    """``text`` as UTF-8 can hold it."""
    return _SURROGATES.sub("\ufffd", text)


def one_line(text: str) -> str:
    """``text`` with every run of blanks as one space."""
    return " ".join(valid_text(text).split())
