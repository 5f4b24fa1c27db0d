"""``finemoe replay``: a recorded conversation with its telemetry, without a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe_cli.output import Output
from offload.errors import ConfigError

if TYPE_CHECKING:
    from ui.recording.recording import Recording

app = typer.Typer()

_EPILOG = """
On anything but a terminal it prints the conversation and what it adds up to.

[bold]Examples[/]

  finemoe replay rivers.finemoe
  finemoe replay rivers.finemoe --speed 4 --at 90
  finemoe replay rivers.finemoe --json | jq .experts.decode.hit_rate
"""


@app.command(epilog=_EPILOG)
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording, as F6 in the chat makes it.")],
    speed: Annotated[
        float, typer.Option("--speed", metavar="FACTOR", help="0.25, 0.5, 1, 2, 4, 8 or 16 times as fast.")
    ] = 1.0,
    at: Annotated[
        float, typer.Option("--at", metavar="SECONDS", help="Where to start, from the beginning.", min=0.0)
    ] = 0.0,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print what it adds up to as one JSON object.")
    ] = False,
) -> None:
    """Play a recorded conversation with its telemetry; no model is needed."""
    output = Output(as_json=as_json)
    from ui.recording.player import SPEEDS
    from ui.recording.recording import Recording

    if speed not in SPEEDS:
        raise ConfigError(f"--speed {speed:g} is not possible", f"choose of {', '.join(f'{s:g}' for s in SPEEDS)}")
    recording = Recording.open(file)
    if as_json:
        from ui.recording.totals import totals

        output.json(totals(recording))
        return
    if not recording.complete:
        output.note("the recording was not ended as it should be; what is there is played")
    if not sys.stdout.isatty():
        _print(recording, output)
        return
    from ui.recording.screen import ReplayScreen
    from ui.watch import WatchApp, look_of_settings

    ascii_only, theme = look_of_settings()
    app = WatchApp(ReplayScreen(recording, speed=speed, at=at, ascii=ascii_only), theme=theme)
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def _print(recording: Recording, output: Output) -> None:
    from ui.recording.totals import totals, totals_line, transcript
    from ui.stats import status_line

    for turn in transcript(recording):
        output.line(f"{turn.role}: {turn.text}")
        if turn.completion is not None:
            output.line(f"  {status_line(turn.completion)}")
        output.line("")
    output.line(totals_line(totals(recording)))
