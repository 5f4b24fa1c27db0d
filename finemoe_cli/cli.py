"""The Typer application: every command put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer.core
import typer.main

from finemoe_cli.exit_codes import MEANINGS
from finemoe_cli.output import Output

_COMMANDS = (
    *("chat", "run", "top", "replay", "pull", "pack", "plan", "doctor", "simulate", "plot"),
    *("models", "sessions", "trace", "eval", "bench", "maps", "profiles", "config"),
)
"""In the order of the help. Each is a module of `finemoe_cli.commands`: its ``app`` has the command or group."""

_EXAMPLES = """
[bold]Examples[/]

  finemoe run "Why is the sky blue?"
  finemoe run --budget 900MiB --stats "Write a haiku about disks"
  git diff | finemoe run "Write a commit message for this:"
"""

_EXIT_CODES = "[bold]Exit codes[/]\n\n" + "\n".join(
    f"  [bold]{code.value:>3}[/]  {meaning}" for code, meaning in MEANINGS.items()
)


class _Modules(Mapping[str, Any]):
    """The commands by their names, each imported when it is asked for: one that runs does not wait for others."""

    def __getitem__(self, name: str) -> Any:
        if name not in _COMMANDS:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


@cache
def _command(name: str) -> Any:
    alone = typer.Typer(rich_markup_mode="rich")
    alone.add_typer(import_module(f"finemoe_cli.commands.{name}").app)
    return typer.main.get_group(alone).commands[name]


def _leave_absent(kind: Any) -> None:
    """Has parameters of that kind take None for what was not given.

    They would anyway, but Typer has pydantic look at that None first, and to import pydantic takes most of the time
    in which a command line is read.
    """
    convert = kind.process_value

    def process_value(self: Any, context: Any, value: Any) -> Any:
        if value is not None or self.required or self.multiple or self.nargs != 1:
            return convert(self, context, value)
        return self.callback(context, self, None) if self.callback else None

    kind.process_value = process_value


class _Commands(typer.core.TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": None})
        self.commands = _Modules()  # type: ignore[assignment]


_leave_absent(typer.core.TyperOption)
_leave_absent(typer.core.TyperArgument)
app = typer.Typer(
    name="finemoe",
    cls=_Commands,
    help="Chat with a mixture-of-experts model that is larger than the memory you give it.",
    epilog=f"{_EXAMPLES.strip()}\n\n{_EXIT_CODES}",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        Output().line(f"finemoe {version('finemoe')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", metavar="", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Shows the help when no command is given."""
    if context.invoked_subcommand is None:
        context.get_help()
