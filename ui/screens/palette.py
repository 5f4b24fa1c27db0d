"""Ctrl-P: every command, and what its argument may be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from ui.chat.commands import Command
from ui.screens.command_runner import CommandRunner

WITH_WORDS = ("profile", "theme", "layout", "model", "policy")
"""Commands that the palette has once for each word that they can be given."""


class ChatCommands(Provider):
    """The chat's commands."""

    async def discover(self) -> Hits:
        """Every command, without anything being typed."""
        for command, line, run in self._entries():
            if line == command.usage:
                yield DiscoveryHit(Content(line), run, line, command.about)

    async def search(self, query: str) -> Hits:
        """Those that fit."""
        matcher = self.matcher(query)
        for command, line, run in self._entries():
            words = f"{line} {command.about}"
            score = matcher.match(words)
            if score > 0:
                yield Hit(score, matcher.highlight(words), run, line, None)

    def _entries(self) -> list[tuple[Command, str, Callable[[], None]]]:
        runner = getattr(self.screen, "runner", None)
        if not isinstance(runner, CommandRunner):
            return []
        entries: list[tuple[Command, str, Callable[[], None]]] = []
        for command in runner.commands.all:
            entries.append((command, command.usage, partial(runner.from_palette, command, "")))
            if command.name in WITH_WORDS:
                for word in command.words():
                    entries.append(
                        (command, f"/{command.name} {word}", partial(runner.from_palette, command, word))
                    )
        return entries
