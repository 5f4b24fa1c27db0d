"""The prompt, from the command line, from stdin, or from both."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import BinaryIO

from finemoe_cli.output import Output
from offload.errors import ConfigError
from offload.units import MIB, format_bytes

LONGEST = 16 * MIB
"""Bytes of stdin that can be a prompt; far more than any context holds."""

_PATIENCE_S = 2.0
_HOW = "give it as an argument, or pipe it in: echo Hello | finemoe run"


def read_prompt(argument: str | None, output: Output) -> str:
    """What to ask.

    Without an argument, or with ``-``, it is stdin. With one, text that is piped in follows it after an empty
    line; that is how ``finemoe run 'Summarise:' < notes.txt`` works.

    Raises:
        ConfigError: There is none, or it is empty, or too long.
    """
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    if argument is None or argument == "-":
        if stdin is None or (argument is None and stdin.isatty()):
            raise ConfigError("no prompt", _HOW)
        parts = [_read(stdin, output)]
    else:
        piped = _read(stdin, output) if stdin is not None and _is_piped(stdin) else ""
        parts = [_readable(argument.encode("utf-8", "surrogateescape"), output), piped]
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise ConfigError("the prompt is empty", _HOW)
    return prompt


def _is_piped(stdin: BinaryIO) -> bool:
    """Whether stdin is a pipe or a file: a thing somebody put there. A socket or a device may never end."""
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(stdin: BinaryIO, output: Output) -> str:
    if not stdin.isatty() and not select.select([stdin], [], [], _PATIENCE_S)[0]:
        output.note("reading the prompt from stdin")
    try:
        data = stdin.read(LONGEST + 1)
    except OSError as error:
        raise ConfigError(f"cannot read stdin: {error.strerror or error}") from error
    if len(data) > LONGEST:
        raise ConfigError(f"the prompt on stdin is longer than {format_bytes(LONGEST)}")
    text = _readable(data, output)
    return text.removesuffix("\n").removesuffix("\r")


def _readable(data: bytes, output: Output) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        output.warn("the prompt is not all UTF-8; what is not was replaced")
        return data.decode("utf-8", "replace")
