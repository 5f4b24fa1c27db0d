"""``finemoe top``: watching a model that runs in another terminal."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finemoe_cli.output import Output, to_json
from offload.errors import ConfigError, NotFound
from profiles.paths import boards_dir

if TYPE_CHECKING:
    from offload.service.board import BoardReader

_RECORDS = 1024
"""Token records that the speed is worked out from: the last reply may have been longer than is worth reading."""

app = typer.Typer()

_EPILOG = """
[bold]Examples[/]

  finemoe top
  finemoe top --once
  finemoe top --json | jq .experts.decode.hit_rate
  finemoe top --jsonl --interval 5 >> night.jsonl
"""


@app.command(epilog=_EPILOG)
def top(
    pid: Annotated[
        int | None,
        typer.Argument(metavar="PID", help="Process to watch; without it the one opened last.", show_default=False),
    ] = None,
    list_them: Annotated[
        bool, typer.Option("--list", metavar="", help="List the models that run, one a line.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", metavar="", help="Print one table. The default where there is no terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object.")] = False,
    as_jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", metavar="", help="Print a JSON object a line until the model is closed, or Ctrl-C."
        ),
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="Time between two of them.", min=0.05)
    ] = 1.0,
) -> None:
    """Watch a model that runs: speed, hits and misses, traffic and memory.

    It only looks: the model's process takes no notice of who watches it.
    """
    output = Output(as_json=as_json)
    chosen = [
        flag
        for flag, given in (("--list", list_them), ("--once", once), ("--json", as_json), ("--jsonl", as_jsonl))
        if given
    ]
    if len(chosen) > 1:
        raise ConfigError(f"both {chosen[0]} and {chosen[1]} are given", "give one of the two")

    from offload.service.board import list_boards

    with ExitStack() as opened:
        boards = [opened.enter_context(board) for board in list_boards(boards_dir())]
        if not boards:
            raise NotFound(
                "no model runs here", "start one in another terminal; while it is being opened it is not seen yet"
            )
        if list_them:
            _list(boards, output)
            return
        board = _choose(boards, pid)
        if as_jsonl:
            _stream(board, interval, output)
        elif as_json:
            output.json(_numbers(board))
        elif once or not sys.stdout.isatty():
            from ui.top import top_table

            output.render(top_table(_numbers(board)))
        else:
            from ui.monitor import run_monitor

            code = run_monitor(board.path)
            if code:
                raise typer.Exit(code)


def _choose(boards: list[BoardReader], pid: int | None) -> BoardReader:
    if pid is None:
        return boards[0]
    for board in boards:
        if board.facts.pid == pid:
            return board
    raise NotFound(f"process {pid} runs no model", "finemoe top --list says which do")


def _list(boards: list[BoardReader], output: Output) -> None:
    from ui.top import PHASES

    rows = []
    for board in boards:
        facts, frame = board.facts, board.frame()
        opened = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts.opened))
        rows.append((str(facts.pid), f"finemoe {facts.command}", opened, PHASES[frame.phase], facts.model))
    output.table(("pid", "command", "opened", "phase", "model"), rows)


def _stream(board: BoardReader, interval: float, output: Output) -> None:
    due = time.monotonic()
    while board.alive():
        output.line(to_json(_numbers(board)))
        due = max(due + interval, time.monotonic())
        while board.alive() and (rest := due - time.monotonic()) > 0:
            time.sleep(min(rest, 0.2))


def _numbers(board: BoardReader) -> dict[str, Any]:
    from ui.top import top_numbers

    return top_numbers(board.frame(), board.records(board.next_record - _RECORDS))
