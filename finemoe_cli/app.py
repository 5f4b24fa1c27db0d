"""``main``: runs one command, and every way it can end.

What is imported here is light: from the first line of :func:`main` on, Ctrl-C ends the command in one line, and
the imports of the commands themselves are already under that roof.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from finemoe_cli.exit_codes import ExitCode, exit_code_of
from finemoe_cli.output import (
    Reported,
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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code."""
    open_standard_streams()
    interrupts.install()
    code = _ending(lambda: _invoke(arguments))
    interrupts.ignore()
    flushed = _ending(finish_stdout)
    drop_stdout()
    if interrupts.seen:
        _exit_after_interrupt(code or flushed)
    sys.exit(code or flushed)


def _exit_after_interrupt(code: int) -> NoReturn:
    """Exits with ``code`` for certain.

    Python remembers a ``KeyboardInterrupt`` that passed through an ``exec``, as dataclasses have many, and on its
    way out ends itself with SIGINT for it, although the exception was caught long before.
    """
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def _invoke(arguments: Sequence[str] | None) -> int:
    from finemoe_cli.cli import app

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
    except Reported as error:
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
