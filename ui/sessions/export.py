"""Sessions as text to read and as data to keep. The fields of the data are defined in docs/sessions.md."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ui.sessions.records import Hit, Message, Session
from ui.sessions.store import SessionStore

FORMAT = "finemoe-session"
VERSION = 1

_ROLES = {"user": "User", "assistant": "Assistant"}
_ENDINGS = {
    None: "being written",
    "length": "cut at the limit",
    "stopped": "stopped",
    "interrupted": "interrupted",
    "error": "ended by an error",
}


def export_markdown(store: SessionStore, session_id: int, *, all_branches: bool = False) -> str:
    """The session's current branch as Markdown, or its whole tree, message by message, depth first.

    Raises:
        SessionNotFound: There is no such session.
        StorageError: The store cannot be read.
    """
    session = store.get(session_id)
    branch = store.path(session.leaf)
    parts = [_head(session)]
    if all_branches:
        shown = {message.id for message in branch}
        for message in _depth_first(store.messages(session_id)):
            after = f"after {message.parent}" if message.parent is not None else "first"
            mark = ", shown" if message.id in shown else ""
            parts += _section(message, f" ({message.id}, {after}{mark})")
    else:
        for message in branch:
            parts += _section(message, "")
    return "\n\n".join(parts) + "\n"


def export_json(store: SessionStore, session_id: int) -> dict[str, Any]:
    """The whole session as plain values, every branch and the numbers of every answer.

    Raises:
        SessionNotFound: There is no such session.
        StorageError: The store cannot be read.
    """
    head = session_to_dict(store.get(session_id))
    messages = [message_to_dict(message) for message in store.messages(session_id)]
    return {"format": FORMAT, "version": VERSION} | head | {"message_count": len(messages), "messages": messages}


def session_to_dict(session: Session) -> dict[str, Any]:
    """For JSON."""
    return {
        "id": session.id,
        "title": session.title,
        "model": session.model,
        "system": session.system,
        "created": _iso(session.created),
        "updated": _iso(session.updated),
        "leaf": session.leaf,
        "message_count": session.messages,
    }


def message_to_dict(message: Message) -> dict[str, Any]:
    """For JSON."""
    return {
        "id": message.id,
        "parent": message.parent,
        "role": message.role,
        "content": message.content,
        "created": _iso(message.created),
        "finish_reason": message.finish_reason,
        "stats": message.stats,
    }


def hit_to_dict(hit: Hit) -> dict[str, Any]:
    """For JSON."""
    return {
        "session": session_to_dict(hit.session),
        "message": message_to_dict(hit.message),
        "snippet": hit.snippet,
        "score": hit.score,
    }


def local_time(seconds: float) -> str:
    """A time as people read it: ``2026-11-23 16:45``."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _head(session: Session) -> str:
    lines = [f"# {session.title or 'Untitled'}", ""]
    if session.model:
        lines.append(f"- Model: {session.model}")
    lines += [f"- Begun: {local_time(session.created)}", f"- Session: {session.id}"]
    if session.system:
        lines += ["", "## System", "", session.system]
    return "\n".join(lines)


def _section(message: Message, where: str) -> list[str]:
    from ui.stats import status_line

    parts = [f"## {_ROLES[message.role]}{where}"]
    if message.content.strip():
        parts.append(message.content.strip("\n"))
    notes = [status_line(message.stats)] if message.stats else []
    if message.role == "assistant" and message.finish_reason in _ENDINGS:
        notes.append(_ENDINGS[message.finish_reason])
    if notes:
        parts.append(f"*{' · '.join(notes)}*")
    return parts


def _depth_first(messages: list[Message]) -> list[Message]:
    """Each message followed by all that is below it."""
    children: dict[int | None, list[Message]] = {}
    for message in messages:
        children.setdefault(message.parent, []).append(message)
    ordered = []
    waiting = children.get(None, [])[::-1]
    while waiting:
        message = waiting.pop()
        ordered.append(message)
        waiting += children.get(message.id, [])[::-1]
    return ordered


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
