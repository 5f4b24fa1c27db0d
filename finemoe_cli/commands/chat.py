"""``finemoe chat``: a conversation in the terminal."""

from __future__ import annotations

import gc
import locale
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.output import Output
from offload.errors import ConfigError
from profiles.environment import prepare_process
from profiles.paths import sessions_file
from profiles.settings import Resolved, resolve

_CHAT = "Chat"

app = typer.Typer()

_EPILOG = """
On anything but a terminal, and with TERM=dumb, it reads a question a line from stdin and prints plain answers.

[bold]Examples[/]

  finemoe chat
  finemoe chat -c
  finemoe chat --profile low --session rivers
  printf 'Name a river.\\nAnd where is it?\\n' | finemoe chat
"""


def complete_session() -> list[str]:
    """Titles of sessions, for the shell."""
    from offload.errors import FinemoeError
    from ui.sessions import SessionStore

    if not sessions_file().exists():
        return []
    try:
        with SessionStore.open(sessions_file(), timeout=0.2) as store:
            return [session.title for session in store.sessions(50)]
    except FinemoeError:
        return []


@app.command(epilog=_EPILOG)
def chat(
    resume: Annotated[
        bool,
        typer.Option("--continue", "-c", metavar="", help="Go on with the last session.", rich_help_panel=_CHAT),
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="ID|TITLE",
            help="Go on with this session: its number, its title, or how that begins.",
            autocompletion=complete_session,
            rich_help_panel=_CHAT,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="Telemetry beside the chat: auto, off, strip, side, full.",
            autocompletion=options.complete_layout,
            rich_help_panel=_CHAT,
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Record the telemetry to a file.", rich_help_panel=_CHAT),
    ] = None,
    ascii_only: Annotated[
        bool, typer.Option("--ascii", metavar="", help="Draw with ASCII only.", rich_help_panel=_CHAT)
    ] = False,
    model: options.RunModel = None,
    profile: options.RunProfile = None,
    budget: options.Budget = None,
    host_budget: options.HostBudget = None,
    context: options.Context = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    kernels: options.Kernels = None,
    precision: options.PrecisionOption = None,
    device: options.Device = None,
    threads: options.Threads = None,
    lanes: options.Lanes = None,
    policy: options.Policy = None,
) -> None:
    """Chat in the terminal, with what it costs beside it.

    Sessions are kept as they are written, and the memory budget can be changed in the middle of a reply. With no
    model configured it uses the demo, which it builds by itself the first time.
    """
    output = Output()
    resolved = resolve(
        {
            "model": model,
            "profile": profile,
            "budget": budget,
            "host_budget": host_budget,
            "context": context,
            "system": system,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "kernels": kernels,
            "precision": precision,
            "device": device,
            "threads": threads,
            "lanes": lanes,
            "policy": policy,
            "layout": layout,
            "ascii": "on" if ascii_only else None,
        }
    )
    if resume and session is not None:
        raise ConfigError("both --continue and --session are given", "give one of the two")
    if _has_screen():
        _on_screen(resolved, output, resume, session, record)
        return
    if record is not None:
        raise ConfigError("--record needs the chat's screen", "run it in a terminal, or use: finemoe trace")
    from finemoe_cli.models import ensure_model
    from finemoe_cli.plain_chat import plain_chat

    plain_chat(resolved, output, ensure_model, resume=resume, session=session)


def _has_screen() -> bool:
    """Whether there is a terminal that an application can draw on."""
    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()
    return terminal and os.environ.get("TERM", "dumb") != "dumb"


def _on_screen(resolved: Resolved, output: Output, resume: bool, session: str | None, record: Path | None) -> None:
    gc.disable()  # Until all is there: see `ui.garbage`.
    from finemoe_cli.chatting import have_model, make_link, open_board
    from ui.app import ChatApp
    from ui.chat.setup import ChatSetup

    warnings = prepare_process()
    choice = resolved.settings.ascii
    utf8 = locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"
    setup = ChatSetup(
        resolved=resolved,
        make_link=make_link,
        find_model=have_model,
        open_board=open_board,
        database=sessions_file(),
        resume=resume,
        session=session,
        record=record,
        ascii_only=choice == "on" or (choice == "auto" and not utf8),
        warnings=warnings,
    )
    app = ChatApp(setup)
    app.run()
    if app.last_words:
        output.warn(app.last_words)
    if app.return_code:
        raise typer.Exit(app.return_code)
