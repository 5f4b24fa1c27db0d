"""Lists with commas, as options take them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from offload.errors import ConfigError


def words(text: str, option: str) -> list[str]:
    """The values in a list; `option` is how the user calls it.

    Raises:
        ConfigError: One of them is empty.
    """
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise ConfigError(f"{option} '{text}' has an empty place", "put one comma between two values")
    return found


def words_or_default(text: str | None, option: str) -> list[str | None]:
    """The values in a list, or None alone, for what is set, where there is no list. Raises as `words`."""
    return [None] if text is None else [*words(text, option)]


def chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    """The names in a list, each once; all have to be known.

    Raises:
        ConfigError: There is another one, or none.
    """
    names = list(dict.fromkeys(name for one in text.split(",") if (name := one.strip())))
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"there is no {what} '{name}'", hint)
    if not names:
        raise ConfigError(f"--{what} names nothing", f"there are {', '.join(known)}")
    return names
