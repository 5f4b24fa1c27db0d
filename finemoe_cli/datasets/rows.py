"""From one row of a data set, as JSON or Parquet gives it, to a conversation.

Accepted is a string, which is one prompt, or an object with one of these:

=================  ====================================  =====================
key                value                                 known from
=================  ====================================  =====================
``turns``          list of strings                       finemoe's own sample
``conversation``   list of ``{"role", "content"}``       LMSYS-Chat-1M
``conversations``  list of ``{"from", "value"}``         ShareGPT
``messages``       list of ``{"role", "content"}``       chat APIs
``prompt``         string                                FineMoE's demo
=================  ====================================  =====================
"""

from __future__ import annotations

from collections.abc import Mapping

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.errors import BadRow

FORMS = ("turns", "conversation", "conversations", "messages", "prompt")
"""The keys above, in the order in which they are looked for."""
IDS = ("id", "conversation_id")
KEYS = (*FORMS, *IDS, "kind", "language", "system")
"""All keys that are looked at."""

_USERS = ("user", "human")
_JSON_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def conversation_of(row: object, number: int) -> Conversation:
    """The user's turns of one row.

    Args:
        row: What the file has, as Python's ``json`` gives it.
        number: Which row it is; its name where it has none.

    Raises:
        BadRow: There is no turn of a user in it, a turn is blank, or something has the wrong type.
    """
    unnamed = f"row-{number}"
    if isinstance(row, str):
        return Conversation(unnamed, (_turn(row, "the prompt"),))
    if not isinstance(row, Mapping):
        raise BadRow(f"it is {_name(row)}, neither an object nor a string")
    form = next((key for key in FORMS if row.get(key) is not None), None)
    if form is None:
        raise BadRow(f"it has none of {', '.join(FORMS)}")
    system = _optional(row, "system")
    if form == "prompt":
        turns = [_turn(row[form], "prompt")]
    elif form == "turns":
        turns = [_turn(turn, f"turn {place}") for place, turn in enumerate(_list(row[form], form), 1)]
    else:
        said_before, turns = _messages(_list(row[form], form), form)
        system = system or said_before
    if not turns:
        raise BadRow("it has no turn of a user")
    return Conversation(
        id=_id(row) or unnamed,
        turns=tuple(turns),
        kind=_optional(row, "kind"),
        language=_optional(row, "language"),
        system=system,
    )


def require_unicode(text: str, what: str) -> None:
    """Check that text has no half of a surrogate pair: not read from a file, and not written as an escape in JSON.

    Raises:
        BadRow: It has one.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{what} is not valid Unicode") from None


def _messages(messages: list[object], form: str) -> tuple[str, list[str]]:
    """The first system prompt, and the user's turns. What others say is not looked at."""
    system, turns = "", []
    for place, message in enumerate(messages, 1):
        what = f"message {place} of {form}"
        if not isinstance(message, Mapping):
            raise BadRow(f"{what} is {_name(message)}, not an object")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise BadRow(f"{what} does not say whose it is")
        text = message.get("content", message.get("value"))
        if role.lower() in _USERS:
            turns.append(_turn(text, what))
        elif role.lower() == "system" and not system:
            system = _string(text, what).strip()
    return system, turns


def _id(row: Mapping[str, object]) -> str:
    value = next((row[key] for key in IDS if row.get(key) is not None), "")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(value, "the id")


def _optional(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    return "" if value is None else _string(value, key)


def _turn(value: object, what: str) -> str:
    text = _string(value, what)
    if not text.strip():
        raise BadRow(f"{what} is empty")
    return text


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise BadRow(f"{what} is {_name(value)}, not a list")
    return value


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what} is {_name(value)}, not a string")
    require_unicode(value, what)
    return value


def _name(value: object) -> str:
    return _JSON_NAMES.get(type(value), f"a {type(value).__name__}")
