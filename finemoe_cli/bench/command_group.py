"""A group of commands that is a command itself, with an argument and options of its own."""

from __future__ import annotations

from typing import Any

import typer.core


class MeasuringGroup(typer.core.TyperGroup):
    """``bench MODEL -n 16`` measures; ``bench sweep MODEL`` is a command of the group.

    Whichever it is, the first word says it. Click would take that word for the argument, and options behind it
    for those of a command.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        is_command = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not is_command
        # The group's own argument, which a command leaves open.
        return super().parse_args(ctx, ["", *args] if is_command else args)
