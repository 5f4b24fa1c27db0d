"""Slash commands: what is one, what it may become, and which code a reply has."""

from __future__ import annotations

import pytest

from offload.errors import ConfigError
from ui.chat.commands import Commands, code_blocks
from ui.screens.command_runner import CommandRunner

COMMANDS = Commands(profiles=lambda: ["minimal", "low", "balanced"])


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/help", ("help", "")),
        ("/Profile  low ", ("profile", "low")),
        ("/system You are\na pirate.", ("system", "You are\na pirate.")),
        ("/reset-stats", ("reset-stats", "")),
        ("hello", None),
        ("//help", None),
        ("/usr/bin is a folder", None),
        ("/ what", None),
        ("/2 is a half", None),
    ],
)
def test_what_is_a_command(line, command):
    parsed = COMMANDS.parse(line)
    assert (None if parsed is None else (parsed[0].name, parsed[1])) == command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/profil", "did you mean /profile?"),
        ("/xyzzy", "see /help"),
        ("/budget", "/budget SIZE"),
        ("/search ", "WORDS"),
    ],
)
def test_what_is_none_is_told(line, said):
    with pytest.raises(ConfigError) as caught:
        COMMANDS.parse(line)
    assert said in caught.value.hint


def test_completion():
    assert [one.text for one in COMMANDS.complete("/re")] == [
        "/rename ",
        "/reset-stats",
        "/record ",
        "/replay ",
        "/regen",
    ]
    assert [one.shown for one in COMMANDS.complete("/stat")] == ["/reset-stats"]
    assert [one.text for one in COMMANDS.complete("/profile ")] == [
        "/profile minimal",
        "/profile low",
        "/profile balanced",
    ]
    assert [one.text for one in COMMANDS.complete("/profile LO")] == ["/profile low"]
    assert COMMANDS.complete("/profile low") == []
    assert COMMANDS.complete("//") == COMMANDS.complete("profile") == COMMANDS.complete("/nothing ") == []


def test_every_command_does_something():
    for command in COMMANDS.all:
        assert hasattr(CommandRunner, f"do_{command.name.replace('-', '_')}"), command.name


def test_code_of_a_reply():
    reply = "Like this:\n\n```python\nx = 1\n```\n\nor\n\n~~~\ny\n~~~\n\nand ```not``` this\n\n"
    reply += "````\n```\nz\n```\n````\n"
    assert code_blocks(reply) == "x = 1\n\ny\n\n```\nz\n```"
    assert code_blocks("```sh\nstill coming") == "still coming"
    assert code_blocks("no code") == ""
