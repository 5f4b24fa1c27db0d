"""The chat's keys: what each does, where it can be changed, and what a user's own keymap says.

A keymap is a setting, ``keymap = "experts=f9, quit=ctrl+x"``: the name of an action and the key it gets instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        id: The name it is changed by.
        keys: The keys it has by default, with commas between them, as Textual writes them.
        action: Textual's action.
        label: In the footer, a word or two.
        about: In the help.
        shown: Whether it is in the footer.
    """

    id: str
    keys: str
    action: str
    label: str
    about: str
    shown: bool = False


CHAT_KEYS = (
    Key("help", "f1", "help", "Help", "what can be done here", True),
    Key("stop", "escape", "stop", "Stop", "stop the reply and keep what is there; or go back to the prompt"),
    Key("panes", "f2", "panes", "Panes", "telemetry: off, strip, side, full", True),
    Key("experts", "f3", "experts", "Experts", "every expert, and the routing of each token"),
    Key("profiles", "f4", "profiles", "Memory", "change the memory profile, also during a reply", True),
    Key("freeze", "f5", "freeze", "Freeze", "hold the telemetry still"),
    Key("record", "f6", "record", "Record", "record telemetry and conversation to a file; again to end it"),
    Key("sessions", "ctrl+o", "sessions", "Sessions", "open, search, rename and delete sessions", True),
    Key("new", "ctrl+n", "new", "New", "a new session"),
    Key("palette", "ctrl+p", "palette", "Commands", "every command", True),
    Key("editor", "ctrl+g", "editor", "Editor", "write the message in your editor"),
    Key("regenerate", "ctrl+r", "regenerate", "Again", "answer once more; the old reply stays"),
    Key("older", "ctrl+up", "message(-1)", "Older", "go to the message before"),
    Key("newer", "ctrl+down", "message(1)", "Newer", "go to the message after, and then to the prompt"),
    Key("version_before", "alt+left", "version(-1)", "Before", "the version before of this message"),
    Key("version_after", "alt+right", "version(1)", "After", "the version after of this message"),
    Key("page_up", "pageup", "page(-1)", "Up", "a page up in the conversation"),
    Key("page_down", "pagedown", "page(1)", "Down", "a page down"),
    Key("end", "ctrl+end", "end", "End", "the end of the conversation, and stay there"),
)
"""Keys of the chat screen, those of the footer in its order."""

APP_KEYS = (
    Key("interrupt", "ctrl+c", "interrupt", "Stop", "stop the reply; twice: quit"),
    Key("quit", "ctrl+q", "quit", "Quit", "quit; nothing is lost", True),
)
"""Keys that work everywhere."""

MESSAGE_KEYS = (
    Key("message_edit", "e", "edit", "Edit", "edit your message and go on from there; the old branch stays", True),
    Key("message_again", "r", "again", "Again", "answer once more", True),
    Key("message_copy", "c,y", "copy", "Copy", "copy the message", True),
    Key("message_code", "shift+c", "copy_code", "Copy code", "copy its code", True),
    Key("message_before", "left,left_square_bracket", "version(-1)", "Before", "the version before", True),
    Key("message_after", "right,right_square_bracket", "version(1)", "After", "the version after", True),
    Key("message_up", "up,k", "other(-1)", "Up", "the message before"),
    Key("message_down", "down,j", "other(1)", "Down", "the message after"),
)
"""Keys of a message that was gone to."""

PROMPT_KEYS = (
    ("Enter", "send"),
    ("Ctrl-J", "a new line; Shift-Enter too, where the terminal can tell it"),
    ("Up, Down", "at the first and last line: what you wrote before"),
    ("/", "a command, with completion"),
)
"""Keys of the prompt, which cannot be changed."""

ALL_KEYS = (*CHAT_KEYS, *APP_KEYS, *MESSAGE_KEYS)


def parse_keymap(text: str) -> tuple[dict[str, str], list[str]]:
    """The keymap that ``text`` says, and what of it cannot be used, one line each.

    A key that something else has already is left to that, unless it, too, gets another.
    """
    wanted: dict[str, str] = {}
    problems: list[str] = []
    known = {key.id: key for key in ALL_KEYS}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, key = (piece.strip() for piece in part.partition("="))
        if name not in known or not key:
            problems.append(f"keymap: '{part}' is not a name and a key; names: {', '.join(known)}")
        else:
            wanted[name] = key.lower()
    changed = True
    while changed:
        changed = False
        for name, key in list(wanted.items()):
            rival = _holder(key, name, wanted)
            if rival:
                problems.append(f"keymap: {key} is {rival}'s key already, so {name} keeps {known[name].keys}")
                del wanted[name]
                changed = True
                break
    return wanted, problems


def key_names(keys: str) -> str:
    """``ctrl+o`` as people write it: ``Ctrl-O``."""
    names = {
        "escape": "Esc",
        "left_square_bracket": "[",
        "right_square_bracket": "]",
        "pageup": "PageUp",
        "pagedown": "PageDown",
    }

    def one(key: str) -> str:
        *modifiers, last = key.split("+")
        last = names.get(last, last.capitalize() if modifiers or len(last) > 1 else last)
        return "-".join([*(modifier.capitalize() for modifier in modifiers), last])

    return ", ".join(one(key.strip()) for key in keys.split(","))


def footer_key(binding: Binding) -> str:
    """A key as the footer writes it: ``F1``, ``^O``, ``C``."""
    if binding.key_display:
        return binding.key_display
    *modifiers, last = binding.key.split("+")
    if modifiers == ["ctrl"] and len(last) == 1:
        return f"^{last.upper()}"
    if modifiers == ["shift"] and len(last) == 1:
        return last.upper()
    return key_names(binding.key)


def effective(keys: Iterable[Key], keymap: dict[str, str]) -> list[tuple[str, str]]:
    """Names of keys and what they do, as they are now, for the help."""
    return [(key_names(keymap.get(key.id, key.keys)), key.about) for key in keys]


def _holder(key: str, name: str, wanted: dict[str, str]) -> str | None:
    """What else has ``key`` where ``name`` works."""
    groups = [group for group in (CHAT_KEYS, MESSAGE_KEYS) if any(one.id == name for one in group)] or [
        CHAT_KEYS,
        MESSAGE_KEYS,
    ]
    for other in (*(one for group in groups for one in group), *APP_KEYS):
        if other.id != name and key in wanted.get(other.id, other.keys).split(","):
            return other.id
    return None
