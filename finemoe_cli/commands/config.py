"""``finemoe config``: the settings in force, where they come from, and the file that keeps them."""

from __future__ import annotations

from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.output import Output
from profiles import settings
from profiles.budget import Budget
from profiles.config_file import remove_setting, store_setting
from profiles.paths import cache_dir, config_dir, config_file, data_dir

app = typer.Typer(
    name="config",
    help="Settings: what is in force, where it comes from, and how to change it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
A flag wins over the environment (FINEMOE_CONTEXT for context), that over the file, that over the default.
A profile's settings count as if given where the profile was named.

[bold]Examples[/]

  finemoe config show --origin
  finemoe config set context 8192
  FINEMOE_PROFILE=low finemoe config show
""",
)

Key = Annotated[
    str, typer.Argument(metavar="SETTING", help="The setting.", autocompletion=options.complete_setting)
]


@app.command()
def show(
    origin: Annotated[bool, typer.Option("--origin", metavar="", help="Say where each value comes from.")] = False,
    about: Annotated[bool, typer.Option("--about", metavar="", help="Say what each setting means.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show every setting and its value."""
    output = Output(as_json=as_json)
    resolved = settings.resolve()
    values = {name: getattr(resolved.settings, name) for name in settings.SETTINGS}
    if as_json:
        entries: dict[str, object] = {name: _plain(value) for name, value in values.items()}
        if origin:
            entries = {
                name: {
                    "value": value,
                    "origin": resolved.origins[name].kind,
                    "where": resolved.origins[name].label,
                }
                for name, value in entries.items()
            }
        output.json(entries)
        return
    headers = ["SETTING", "VALUE", *(["ORIGIN"] if origin else []), *(["MEANING"] if about else [])]
    rows = []
    for name, value in values.items():
        row = [name, "-" if value is None else str(value)]
        row += [resolved.origins[name].label] if origin else []
        row += [settings.meaning(name)] if about else []
        rows.append(row)
    output.table(headers, rows)


@app.command()
def get(key: Key) -> None:
    """Print one setting's value; nothing if it has none."""
    settings.check_known(key)
    value = getattr(settings.resolve().settings, key)
    Output().line("" if value is None else str(value))


@app.command("set")
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value.")],
    quiet: options.Quiet = False,
) -> None:
    """Keep a setting in the settings file."""
    path = store_setting(key, value)
    Output(quiet=quiet).note(f"{key} = {value} in {path}")


@app.command()
def unset(key: Key, quiet: options.Quiet = False) -> None:
    """Take a setting out of the settings file."""
    output = Output(quiet=quiet)
    if remove_setting(key):
        output.note(f"{key} is no longer in {config_file()}")
    else:
        output.note(f"{key} was not in {config_file()}")


@app.command()
def path(
    everything: Annotated[
        bool, typer.Option("--all", metavar="", help="Also the folders for caches and data.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Print where the settings file is."""
    paths = {"settings": config_file(), "config": config_dir(), "cache": cache_dir(), "data": data_dir()}
    output = Output(as_json=as_json)
    if as_json:
        output.json({name: str(folder) for name, folder in paths.items()})
    elif everything:
        output.table(("WHAT", "WHERE"), [(name, str(folder)) for name, folder in paths.items()])
    else:
        output.line(str(config_file()))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Budget) else value
