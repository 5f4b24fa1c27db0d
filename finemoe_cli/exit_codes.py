"""What the process's exit code means, and which error gives which."""

from __future__ import annotations

from enum import IntEnum

from offload.errors import ConfigError, DoesNotFit, NotFound


class ExitCode(IntEnum):
    """Every exit code of ``finemoe``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    DOES_NOT_FIT = 4
    GATE_FAILED = 5
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "success, also when a reader such as head closed the pipe early",
    ExitCode.FAILURE: "failure",
    ExitCode.USAGE: "wrong usage: an option, a setting or a profile that cannot be used",
    ExitCode.NOT_FOUND: "the model, the profile, the session or the process to watch does not exist",
    ExitCode.DOES_NOT_FIT: "the model does not fit into the budget, or the budget into the machine",
    ExitCode.GATE_FAILED: "an evaluation did not reach what it had to, or was not exact",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
}
"""For the help text."""

_BY_ERROR: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (DoesNotFit, ExitCode.DOES_NOT_FIT),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for a command that ended with ``error``."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILURE)
