"""The chat's conversations: kept, searched, exported. Importing this imports neither torch nor numpy."""

from ui.sessions.catch_up import Copies
from ui.sessions.export import export_json, export_markdown
from ui.sessions.records import FINISH_REASONS, Hit, Message, Session
from ui.sessions.rescue import rescue
from ui.sessions.store import SessionStore

__all__ = [
    "FINISH_REASONS",
    "Copies",
    "Hit",
    "Message",
    "Session",
    "SessionStore",
    "export_json",
    "export_markdown",
    "rescue",
]
