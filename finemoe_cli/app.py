"""The command ``finemoe``: its commands put together, and every way it can end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from finemoe_cli.commands import config, doctor, profiles, pull, run
from finemoe_cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from finemoe_cli.models import ChildFailed
from finemoe_cli.output import (
    Output,
    StdoutClosed,
    drop_stdout,
    finish_stdout,
    open_standard_streams,
    print_error,
    print_plain,
)
from finemoe_cli.signals import interrupts
from offload.errors import FinemoeError

DEBUG_VARIABLE = "FINEMOE_DEBUG"

_EXAMPLES = """
[bold]Examples[/]

  finemoe run "Why is the sky blue?"
  finemoe run --budget 600MiB --stats "Write a haiku about disks"
  git diff | finemoe run "Write a commit message for this:"
"""

_EXIT_CODES = "[bold]Exit codes[/]\n\n" + "\n".join(
    f"  [bold]{code.value:>3}[/]  {meaning}" for code, meaning in MEANINGS.items()
)

app = typer.Typer(
    name="finemoe",
    help="Chat with a mixture-of-experts model that is larger than the memory you give it.",
    epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command()(run.run)
app.command()(pull.pull)
app.command()(doctor.doctor)
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
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Shows the help when no command is given."""
    if context.invoked_subcommand is None:
        context.get_help()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code."""
    open_standard_streams()
    interrupts.install()
    code = _ending(lambda: _invoke(arguments))
    interrupts.ignore()
    flushed = _ending(finish_stdout)
    drop_stdout()
    sys.exit(code or flushed)


def _invoke(arguments: Sequence[str] | None) -> int:
    result = app(args=arguments, prog_name="finemoe", standalone_mode=False)
    if result == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else ExitCode.OK


def _ending(work: Callable[[], int | None]) -> int:
    """The exit code of ``work``, whatever it ends with, having said on stderr what there is to say."""
    try:
        return work() or ExitCode.OK
    except StdoutClosed:
        drop_stdout()
        return ExitCode.OK
    except SystemExit as error:
        # Rich ends the process where it finds stdout closed, and typer does for other broken pipes.
        if isinstance(error.__context__, BrokenPipeError):
            drop_stdout()
            return ExitCode.OK
        return error.code if isinstance(error.code, int) else ExitCode.FAILURE
    except ChildFailed as error:
        return error.code
    except BaseException as error:
        return _tell(error)


def _tell(error: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if interrupts.seen or isinstance(error, KeyboardInterrupt):
        print_plain("interrupted")
        return ExitCode.INTERRUPTED
    if isinstance(error, FinemoeError):
        print_error(error.message, error.hint)
        return exit_code_of(error)
    if hasattr(error, "format_message"):  # A usage error of typer's, whichever version it vendors click in.
        context = getattr(error, "ctx", None)
        problem, _, guess = error.format_message().partition(" Did you mean ")
        see = f"see: {context.command_path} --help" if context else ""
        print_error(_as_message(problem), f"did you mean {guess}" if guess else see)
        return ExitCode.USAGE
    if isinstance(error, OSError):
        print_error(_as_message(str(error)))
        return ExitCode.FAILURE
    print_error(f"unexpected {type(error).__name__}: {error}", f"set {DEBUG_VARIABLE}=1 to see where it comes from")
    return exit_code_of(error)


def _as_message(text: str) -> str:
    """``text`` as our messages are: no capital and no full stop."""
    return text[:1].lower() + text[1:].rstrip(".")
