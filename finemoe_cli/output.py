"""The one place that prints. Stdout carries data, stderr everything about how it came to be.

A command makes an :class:`Output` and tells it what it has; whether that is text, a table or JSON, and how
much of the rest is shown, is decided here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from offload.errors import ConfigError
from ui.text import without_controls

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ui.progress import StageProgress
    from ui.stream import StreamPrinter


class StdoutClosed(Exception):
    """Whoever read stdout went away; there is nobody to tell anything to."""


class Reported(Exception):
    """The command failed, and why has been said already, by another process.

    Attributes:
        code: The exit code to end with.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Output:
    """What a command prints through.

    Args:
        as_json: The data is one JSON object.
        quiet: Nothing on stderr but errors.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    # Data, on stdout.

    def line(self, text: str) -> None:
        """One line of data."""
        with _stdout() as stream:
            stream.write(f"{without_controls(text) if stream.isatty() else text}\n")

    def json(self, data: Mapping[str, Any]) -> None:
        """One JSON object, indented for a terminal, otherwise on one line."""
        with _stdout() as stream:
            stream.write(to_json(data, indent=2 if stream.isatty() else None) + "\n")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns of text; the first is what the row is about, the last one wraps."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for number, header in enumerate(headers):
            last = number == len(headers) - 1
            table.add_column(
                header,
                style="name" if number == 0 else "",
                no_wrap=not last,
                overflow="fold" if last else "ellipsis",
            )
        for row in rows:
            table.add_row(*(Text(without_controls(cell)) for cell in row))
        self.render(table)

    def render(self, what: RenderableType) -> None:
        """Something made with Rich."""
        with _stdout() as stream:
            _render(stream, what)

    def findings(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Status (a word that is also a style), name and text of each finding."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for status, name, text in rows:
            table.add_row(Text(status, status), name, Text(without_controls(text)))
        self.render(table)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what is to say of each."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="name", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(name, Text(without_controls(text)))
        self.render(table)

    def stream(self, before_first: Callable[[], None] | None = None) -> StreamPrinter:
        """A printer for text that comes in pieces.

        Its writes raise ``OSError`` where stdout cannot be written.
        """
        from ui.stream import StreamPrinter

        return StreamPrinter(sys.stdout, before_first)

    # About it, on stderr.

    def note(self, text: str) -> None:
        """Something worth knowing."""
        if not self.quiet:
            _stderr_line(text, "note")

    def warn(self, text: str) -> None:
        """Something that is not as it should be, and did not stop the command."""
        if not self.quiet:
            _stderr_line(text, "", label="warning", label_style="warn")

    def aside(self, what: RenderableType) -> None:
        """Something made with Rich, on stderr, that was asked for: shown even when quiet."""
        try:
            if sys.stderr.isatty():
                sys.stderr.write("\n")
            _render(sys.stderr, what)
        except OSError:
            pass  # Nobody can be told.

    def confirm(self, what: str) -> bool:
        """Asks whether to do ``what``, on the terminal.

        Raises:
            ConfigError: There is nobody to ask.
        """
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfigError(f"this would {without_controls(what)}", "say --yes where nobody can be asked")
        import typer

        return typer.confirm(without_controls(f"{what[:1].upper()}{what[1:]}?"), err=True)

    @contextmanager
    def progress(
        self, *, transient: bool = False, lines: bool = True, eta: bool = False
    ) -> Iterator[StageProgress | None]:
        """Bars for work with stages, with the time that is left where ``eta``; None when quiet."""
        if self.quiet:
            yield None
            return
        from ui.progress import StageProgress

        with StageProgress(_console(sys.stderr), transient=transient, lines=lines, eta=eta) as progress:
            yield progress

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[], None]]:
        """A spinner on a terminal until the block ends, or until what it gives is called."""
        if self.quiet:
            yield lambda: None
            return
        from ui.progress import Waiting

        with Waiting(_console(sys.stderr), text) as waiting:
            yield waiting.stop


def print_error(message: str, hint: str = "") -> None:
    """``error: ...`` and, if there is one, ``hint: ...``, one line each, on stderr."""
    _stderr_line(message, "", label="error", label_style="error")
    if hint:
        _stderr_line(hint, "hint", label="hint", label_style="hint")


def print_plain(text: str) -> None:
    """One line on stderr."""
    _stderr_line(text, "")


def to_json(data: Mapping[str, Any], indent: int | None = None) -> str:
    """``data`` as JSON that is safe to show in a terminal and readable where that is UTF-8."""
    as_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(data, ensure_ascii=as_ascii, indent=indent, allow_nan=False)
    # JSON itself escapes the C0 controls only.
    return "".join(f"\\u{ord(c):04x}" if "\x7f" <= c <= "\x9f" else c for c in text)


def open_standard_streams() -> None:
    """Makes stdout and stderr usable even if they are closed, or in an encoding that lacks characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def finish_stdout() -> None:
    """Flushes stdout while errors can still be told.

    Raises:
        StdoutClosed: Its reader went away.
        OSError: It cannot be written.
    """
    with _stdout():
        pass


def drop_stdout() -> None:
    """Sends what is still buffered nowhere, so that the interpreter's flush at exit finds nothing wrong."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """Stdout, flushed at the end."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise StdoutClosed from error


def _console(stream: TextIO) -> Console:
    from ui.console import make_console

    return make_console(stream)


def _render(stream: TextIO, what: RenderableType) -> None:
    console = _console(stream)
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as capture:
        console.print(what)
    # Rich pads every line of a table to its width.
    stream.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
    stream.flush()


def _stderr_line(text: str, style: str, label: str = "", label_style: str = "") -> None:
    text = without_controls(" ".join(text.split()))
    try:
        if sys.stderr.isatty():
            from rich.text import Text

            line = Text.assemble((f"{label}: ", label_style) if label else "", (text, style))
            _console(sys.stderr).print(line, soft_wrap=True)
        else:
            sys.stderr.write(f"{label}: {text}\n" if label else f"{text}\n")
            sys.stderr.flush()
    except OSError:
        pass  # Nobody can be told.
