"""Writing down what was kept in memory while the file could not be written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ui.sessions.records import Message, Session


@dataclass(frozen=True, slots=True)
class Copies:
    """Where the sessions and messages of a store in memory are in a file: its id there, by the one in memory."""

    sessions: dict[int, int] = field(default_factory=dict)
    messages: dict[int, int] = field(default_factory=dict)


def write_down(
    connection: sqlite3.Connection,
    kept: Iterable[tuple[Session, list[Message]]],
    known: Copies,
    owner: Callable[[], str | None],
) -> Copies:
    """Adds what is new of ``kept``, and changes what was there before; called within a write transaction.

    Args:
        kept: Sessions with all of their messages, oldest first.
        known: What was there before. It may have been deleted meanwhile, and is then new.
        owner: The name of who writes the answers that are not whole yet.
    """
    written = Copies()
    for session, messages in kept:
        place = _session(connection, session, known.sessions.get(session.id))
        written.sessions[session.id] = place
        for message in messages:
            parent = None if message.parent is None else written.messages[message.parent]
            name = owner() if message.unfinished else None
            there = known.messages.get(message.id)
            written.messages[message.id] = _message(connection, message, place, parent, there, name)
        leaf = None if session.leaf is None else written.messages[session.leaf]
        connection.execute(
            "UPDATE sessions SET title = ?, model = ?, system = ?, updated = ?, leaf = ? WHERE id = ?",
            (session.title, session.model, session.system, session.updated, leaf, place),
        )
    return written


def _session(connection: sqlite3.Connection, session: Session, there: int | None) -> int:
    if there is not None and connection.execute("SELECT 1 FROM sessions WHERE id = ?", (there,)).fetchone():
        return there
    made = connection.execute(
        "INSERT INTO sessions (title, model, system, created, updated) VALUES (?, ?, ?, ?, ?)",
        (session.title, session.model, session.system, session.created, session.updated),
    ).lastrowid
    assert made is not None
    return made


def _message(
    connection: sqlite3.Connection,
    message: Message,
    session: int,
    parent: int | None,
    there: int | None,
    owner: str | None,
) -> int:
    stats = None if message.stats is None else json.dumps(message.stats, allow_nan=False)
    row = connection.execute(
        "SELECT content, finish_reason FROM messages WHERE id = ? AND session = ?", (there, session)
    ).fetchone()
    if there is None or row is None:
        made = connection.execute(
            """
            INSERT INTO messages (session, parent, role, content, created, finish_reason, stats, owner)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (
                *(session, parent, message.role, message.content),
                *(message.created, message.finish_reason, stats, owner),
            ),
        ).lastrowid
        assert made is not None
        return made
    if row != (message.content, message.finish_reason):
        connection.execute(
            "UPDATE messages SET content = ?, finish_reason = ?, stats = ?, owner = ? WHERE id = ?",
            (message.content, message.finish_reason, stats, owner, there),
        )
    return there
