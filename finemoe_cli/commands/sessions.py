"""``finemoe sessions``: the conversations that are kept."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe_cli import options
from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import Output, to_json
from offload.errors import ConfigError, FinemoeError, ModelNotFound, SessionNotFound
from offload.files import storage_errors
from profiles.files import write_atomically
from profiles.paths import sessions_file

if TYPE_CHECKING:
    from ui.sessions import Hit, Session, SessionStore

app = typer.Typer(
    name="sessions",
    help="Conversations: list, read, search, export, rename and delete them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe sessions show 3
  finemoe sessions search --meaning "the recipe with apples"
  finemoe sessions export 3 -o talk.md
""",
)


class Format(StrEnum):
    """What ``export`` writes."""

    MD = "md"
    JSON = "json"


def _complete_session() -> list[tuple[str, str]]:
    """Ids with their titles, for the shell."""
    try:
        with _open() as store:
            return [(str(session.id), session.title) for session in store.sessions()]
    except FinemoeError:
        return []


Id = Annotated[
    int,
    typer.Argument(
        metavar="ID", help="The session's number.", autocompletion=_complete_session, show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")]


@app.command("list")
def list_(
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="NUMBER", min=1, help="Only the newest.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the sessions, the last used first."""
    from ui.sessions.export import local_time, session_to_dict

    output = Output(as_json=as_json)
    with _open() as store:
        sessions = store.sessions(limit)
    if as_json:
        output.json({"sessions": [session_to_dict(session) for session in sessions]})
    elif not sessions:
        output.note("no session yet")
    else:
        output.table(
            ("ID", "MESSAGES", "LAST USED", "MODEL", "TITLE"),
            [
                (
                    str(session.id),
                    str(session.messages),
                    local_time(session.updated),
                    session.model or "-",
                    _title(session),
                )
                for session in sessions
            ],
        )


@app.command()
def show(
    which: Annotated[
        str,
        typer.Argument(
            metavar="ID|TITLE",
            help="The session: its number, its title, or how only its title begins.",
            autocompletion=_complete_session,
        ),
    ],
    every: Annotated[
        bool, typer.Option("--all", "-a", metavar="", help="Every branch, not only the one that was shown last.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Print a conversation as Markdown."""
    from ui.sessions import export_markdown
    from ui.sessions.export import message_to_dict, session_to_dict

    output = Output(as_json=as_json)
    with _open() as store:
        session = store.find(which)
        if as_json:
            messages = store.messages(session.id) if every else store.path(session.leaf)
            shown = {"messages": [message_to_dict(message) for message in messages]}
            output.json(session_to_dict(session) | shown)
        else:
            output.line(export_markdown(store, session.id, all_branches=every).rstrip("\n"))


@app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Words; the last one may be a beginning.")],
    meaning: Annotated[
        bool, typer.Option("--meaning", metavar="", help="By meaning, with a sentence-transformers model.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="NUMBER", min=1, help="At most so many.")] = 20,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find messages by their words, or by their meaning."""
    from ui.sessions.export import hit_to_dict

    output = Output(as_json=as_json, quiet=quiet)
    if not query.strip():
        raise ConfigError("there is nothing to search for", "give a word or more")
    with _open() as store:
        hits = _search_by_meaning(store, query, limit, output) if meaning else store.search(query, limit)
    if as_json:
        output.json({"query": query, "meaning": meaning, "hits": [hit_to_dict(hit) for hit in hits]})
    elif not hits:
        output.note("nothing found")
    else:
        output.table(("ID", "MESSAGE", "SCORE", "TITLE", "FOUND"), [_row(hit) for hit in hits])


@app.command()
def export(
    session_id: Id,
    format_: Annotated[
        Format | None,
        typer.Option("--format", metavar="md|json", help="The shown branch as Markdown (default), or all as JSON."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead of stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", metavar="", help="Write over the file.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a session out; a FILE that ends in .json is JSON."""
    from ui.sessions import export_json, export_markdown

    output = Output(quiet=quiet)
    if to is not None and not force and to.exists():
        raise ConfigError(f"{to} exists already", "--force writes over it")
    if format_ is None:
        format_ = Format.JSON if to is not None and to.suffix == ".json" else Format.MD
    with _open() as store:
        if format_ is Format.MD:
            text = export_markdown(store, session_id)
        elif to is None:
            output.json(export_json(store, session_id))
            return
        else:
            text = to_json(export_json(store, session_id), indent=2) + "\n"
    if to is None:
        output.line(text.rstrip("\n"))
        return
    _write(to, text)
    output.note(f"wrote {to}")


@app.command()
def rm(
    session_ids: Annotated[
        list[int],
        typer.Argument(metavar="ID...", help="The sessions' numbers.", autocompletion=_complete_session),
    ],
    yes: Yes = False,
    quiet: options.Quiet = False,
) -> None:
    """Delete sessions with all their messages."""
    output = Output(quiet=quiet)
    with _open() as store:
        sessions = [store.get(session_id) for session_id in dict.fromkeys(session_ids)]
        named = ", ".join(f"{session.id} '{_title(session)}'" for session in sessions)
        messages = sum(session.messages for session in sessions)
        if not yes and not output.confirm(f"delete {named}, {messages} message{'' if messages == 1 else 's'}"):
            raise typer.Exit(ExitCode.FAILURE)
        for session in sessions:
            store.delete(session.id)
            output.note(f"deleted {session.id} '{_title(session)}'")


@app.command()
def rename(
    session_id: Id,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="Its new title.")],
    quiet: options.Quiet = False,
) -> None:
    """Give a session another title."""
    with _open() as store:
        session = store.rename(session_id, title)
    Output(quiet=quiet).note(f"{session.id} is '{session.title}'")


@app.command("set-aside")
def set_aside(yes: Yes = False) -> None:
    """Rename the file of all sessions and begin with none: for one that is damaged. Prints its new path."""
    from ui.sessions import SessionStore

    output = Output()
    path = sessions_file()
    if not path.exists():
        raise SessionNotFound("there are no sessions", f"they would be in {path}")
    if not yes and not output.confirm(f"rename {path}, and begin with no sessions"):
        raise typer.Exit(ExitCode.FAILURE)
    output.line(str(SessionStore.set_aside(path)))


def _open() -> SessionStore:
    """The store; an empty one where there is none yet, so that looking makes no file."""
    from ui.sessions import SessionStore

    path = sessions_file()
    try:
        path.stat()
    except FileNotFoundError:
        return SessionStore.in_memory()
    except OSError:
        pass  # Opening says why.
    return SessionStore.open(path)


def _search_by_meaning(store: SessionStore, query: str, limit: int, output: Output) -> list[Hit]:
    from profiles.embedder import HOW_TO_GET
    from ui.sessions.meaning import open_embedder

    embedder = open_embedder()
    if embedder is None:
        raise ModelNotFound("there is no embedder here to search by meaning", HOW_TO_GET)
    try:
        with output.waiting("comparing meanings; messages that are new to the embedder take a moment each"):
            return store.search_by_meaning(query, embedder, limit)
    finally:
        embedder.close()


def _row(hit: Hit) -> tuple[str, ...]:
    return str(hit.session.id), str(hit.message.id), f"{hit.score:.2f}", _title(hit.session), hit.snippet


def _title(session: Session) -> str:
    return session.title or "untitled"


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():  # A pipe or a device must not be replaced.
        with storage_errors("the session", path), path.open("w", encoding="utf-8") as file:
            file.write(text)
    else:
        write_atomically(path, text)
