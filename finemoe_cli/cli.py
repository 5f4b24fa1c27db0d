"""The Typer application: every command put together."""

from __future__ import annotations

from typing import Annotated

import typer

from finemoe_cli.commands import (
    bench,
    chat,
    config,
    doctor,
    evaluate,
    maps,
    models,
    pack,
    plan,
    plot,
    profiles,
    pull,
    replay,
    run,
    sessions,
    simulate,
    top,
    trace,
)
from finemoe_cli.exit_codes import MEANINGS
from finemoe_cli.output import Output

_EXAMPLES = """
[bold]Examples[/]

  finemoe run "Why is the sky blue?"
  finemoe run --budget 900MiB --stats "Write a haiku about disks"
  git diff | finemoe run "Write a commit message for this:"
"""

_EXIT_CODES = "[bold]Exit codes[/]\n\n" + "\n".join(
    f"  [bold]{code.value:>3}[/]  {meaning}" for code, meaning in MEANINGS.items()
)

app = typer.Typer(
    name="finemoe",
    help="Chat with a mixture-of-experts model that is larger than the memory you give it.",
    epilog=f"{_EXAMPLES.strip()}\n\n{_EXIT_CODES}",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=run.EPILOG)(run.run)
app.command(epilog=top.EPILOG)(top.top)
app.command(epilog=replay.EPILOG)(replay.replay)
app.command()(pull.pull)
app.command()(pack.pack)
app.command(epilog=plan.EPILOG)(plan.plan)
app.command()(doctor.doctor)
app.add_typer(models.app, name="models")
app.add_typer(sessions.app, name="sessions")
app.add_typer(trace.app, name="trace")
app.command(epilog=simulate.EPILOG)(simulate.simulate)
app.add_typer(evaluate.app, name="eval")
app.command(epilog=plot.EPILOG)(plot.plot)
app.add_typer(bench.app, name="bench")
app.add_typer(maps.app, name="maps")
app.add_typer(profiles.app, name="profiles")
app.add_typer(config.app, name="config")


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
