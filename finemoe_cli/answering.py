"""Answering on a plain terminal, or on none: the engine in this process, text as it comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe_cli.output import Output, StdoutClosed
from finemoe_cli.signals import interrupts
from offload.telemetry.log import logger
from profiles.settings import Resolved
from ui.stream import StreamPrinter

if TYPE_CHECKING:
    from offload import Engine

Messages = Sequence[dict[str, str]]


def open_engine(folder: Path, resolved: Resolved, output: Output) -> Engine:
    """The model in ``folder``, opened with the settings in force; what of it cannot be used is told."""
    with _log_told(output), output.progress(transient=True, lines=False) as progress:
        from offload import Engine

        return Engine(resolved.engine_config(folder), progress)


@contextmanager
def _log_told(output: Output) -> Iterator[None]:
    """What the engine logs within the block is told behind it, where no progress bar is."""
    kept = _Kept(logging.WARNING)
    logger.addHandler(kept)
    try:
        yield
    finally:
        logger.removeHandler(kept)
    for message in kept.messages:
        output.warn(message)


class _Kept(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def answer(
    engine: Engine, asked: Messages | str, resolved: Resolved, output: Output, *, stream: bool
) -> dict[str, Any]:
    """The completion of a conversation, or of raw text, as a dictionary.

    Ctrl-C, and a reader that goes away, end it early.

    Raises:
        StdoutClosed: The reader went away.
    """
    unwritable: list[OSError] = []
    printer: StreamPrinter
    with output.waiting("reading the prompt") as stop_waiting:
        printer = output.stream(before_first=stop_waiting)

        def show(text: str) -> None:
            if unwritable:
                return
            try:
                printer.write(text)
            except OSError as error:
                # The engine is not to see an error that is not its own.
                unwritable.append(error)
                engine.stop()

        on_text = show if stream else None
        with interrupts.stopping(engine.stop):
            if isinstance(asked, str):
                completion = engine.complete(asked, resolved.sampling(), on_text)
            else:
                completion = engine.chat(asked, resolved.sampling(), on_text)
    if unwritable:
        if isinstance(unwritable[0], BrokenPipeError):
            raise StdoutClosed
        raise unwritable[0]
    if stream:
        printer.end()
    said: dict[str, Any] = completion.to_dict()
    return said
