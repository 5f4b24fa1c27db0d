"""Slash commands: their names, what they take, and how they are completed. The palette has the same ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from offload.config import POLICIES
from offload.errors import ConfigError
from profiles import values

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
"""Settings that can be changed between two replies."""

Words = Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: Without the slash.
        takes: What follows it, for the help; in brackets if it may be left out; empty for nothing.
        about: What it does.
        words: What its argument is completed with.
    """

    name: str
    takes: str
    about: str
    words: Words = tuple

    @property
    def needs_argument(self) -> bool:
        """Whether it cannot do anything without one."""
        return bool(self.takes) and not self.takes.startswith("[")

    @property
    def usage(self) -> str:
        """``/profile NAME``."""
        return f"/{self.name} {self.takes}".rstrip()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a beginning may become.

    Attributes:
        text: The whole line then.
        shown: How it is listed.
        about: What it is.
        done: Whether it can be sent as it is.
    """

    text: str
    shown: str
    about: str
    done: bool


class Commands:
    """Every command.

    Args:
        profiles / models / themes / recordings: What arguments are completed with, asked for when needed.
    """

    def __init__(
        self, profiles: Words = tuple, models: Words = tuple, themes: Words = tuple, recordings: Words = tuple
    ) -> None:
        self.all = (
            Command("help", "", "keys and commands"),
            Command("new", "", "begin a new session"),
            Command("sessions", "", "open, search, rename or delete sessions"),
            Command("search", "WORDS", "search all sessions"),
            Command("rename", "TITLE", "give this session another title"),
            Command("system", "[TEXT|none]", "show or change the system prompt"),
            Command(
                "set",
                "[NAME VALUE]",
                "show or change how replies are drawn; VALUE default takes it back",
                _set_words,
            ),
            Command("model", "[NAME|PATH]", "show the model, or open another", models),
            Command("profile", "[NAME]", "change the memory profile, also during a reply", profiles),
            Command(
                "budget", "SIZE|SHARE", "change the memory budget: 900MiB, 25%, minimum", lambda: ("minimum", "25%")
            ),
            Command("policy", "[NAME]", "show or change how experts are chosen", lambda: POLICIES),
            Command("reset-stats", "", "put all counters to zero"),
            Command("record", "[FILE]", "record the telemetry and what is said; again to end it"),
            Command("replay", "[FILE]", "play a recording; without a file the latest", recordings),
            Command("export", "[FILE]", "write the session to a file: .md, or .json with every branch"),
            Command("copy", "[code]", "copy the last reply, or only its code", lambda: ("code",)),
            Command("regen", "", "answer once more; the old reply stays"),
            Command("edit", "", "edit your last message and go on from there"),
            Command("editor", "", "write the message in your editor"),
            Command("theme", "[NAME]", "choose other colours", themes),
            Command(
                "layout",
                "[NAME]",
                "telemetry beside the chat: auto, off, strip, side, full",
                lambda: values.LAYOUT.words,
            ),
            Command("quit", "", "quit; nothing is lost"),
        )
        self._by_name = {command.name: command for command in self.all}

    def __getitem__(self, name: str) -> Command:
        return self._by_name[name]

    def parse(self, text: str) -> tuple[Command, str] | None:
        """The command and its argument; None if ``text`` is a message.

        A line that begins with a slash and one word is a command; ``//`` begins a message with a slash.

        Raises:
            ConfigError: There is no such command, or it needs an argument.
        """
        match = _COMMAND.fullmatch(text.strip())
        if match is None:
            return None
        name, argument = match.group(1), (match.group(2) or "").strip()
        command = self._by_name.get(name.lower())
        if command is None:
            close = difflib.get_close_matches(name.lower(), self._by_name, n=1)
            guess = f"did you mean /{close[0]}? " if close else "see /help; "
            raise ConfigError(f"no command /{name}", f"{guess}a message that begins with a slash begins with two")
        if command.needs_argument and not argument:
            raise ConfigError(f"/{name} needs something", command.usage)
        return command, argument

    def complete(self, text: str) -> list[Completion]:
        """What ``text``, the beginning of a command, may become; best first."""
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return []
        head, space, argument = text[1:].partition(" ")
        if not space:
            found = [one for one in self.all if one.name.startswith(head.lower())]
            found = found or [one for one in self.all if head.lower() in one.name]
            return [
                Completion(
                    f"/{one.name} " if one.takes else f"/{one.name}", one.usage, one.about, not one.needs_argument
                )
                for one in found
            ]
        command = self._by_name.get(head.lower())
        if command is None:
            return []
        words = [word for word in command.words() if word.lower().startswith(argument.lower()) and word != argument]
        return [Completion(f"/{command.name} {word}", word, "", True) for word in words]


def code_blocks(markdown: str) -> str:
    """The fenced code of a reply, one block after the other; empty if there is none."""
    return "\n\n".join(match.group(2).rstrip("\n") for match in _FENCE.finditer(markdown))


def _set_words() -> list[str]:
    return [f"{name} " for name in SAMPLING]


_COMMAND = re.compile(r"/([A-Za-z][A-Za-z-]*)(?:\s+(.*))?", re.DOTALL)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
