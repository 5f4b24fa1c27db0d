"""Progress of something with stages, each counted: pulling a model, loading one."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.text import Text


class Waiting:
    """A spinner beside a few words, on a terminal only; it goes away without a trace.

    It leaves stdout and stderr as they are, so that what is printed meanwhile is not held back: stop it first.
    """

    def __init__(self, console: Console, text: str) -> None:
        spinner = Spinner("dots" if console.encoding.startswith("utf") else "line", Text(text, "note"))
        self._live = Live(
            spinner,
            console=console,
            transient=True,
            refresh_per_second=10,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._shown = console.is_terminal

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes it off the terminal; may be called again."""
        self._live.stop()


class ProgressCallback(Protocol):
    """What the engine and the demo's builder report to: ``total`` is 0 where it is not known."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


_STAGES = {
    "wait": "waiting for another finemoe that builds it",
    "fetch": "fetching",
    "read": "reading the source",
    "write": "writing the model",
    "compile": "compiling the kernels",
    "pack": "packing the experts",
    "verify": "checking the experts",
    "record": "recording",
    "export": "writing the table",
    "load": "loading the model",
    "calibrate": "measuring the disk",
    "measure": "measuring",
    "history": "learning from the history",
    "evaluate": "evaluating",
    "check": "asking the resident model",
}
"""Stages in words; one that is not here is shown by its name."""


_DAYS_S = 7 * 24 * 3600.0


def stage_words(stage: str) -> str:
    """What ``stage`` is called."""
    return _STAGES.get(stage, stage)


class StageProgress:
    """A bar for each stage on a terminal; on anything else a line when a stage begins, or nothing.

    Args:
        console: Where to draw.
        transient: Remove the bars at the end.
        lines: Whether to write those lines where ``console`` is not a terminal.
        eta: Whether to show the time that is left.
    """

    def __init__(self, console: Console, *, transient: bool = False, lines: bool = True, eta: bool = False) -> None:
        self._console = console
        self._lines = lines and not console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="✓" if console.encoding.startswith("utf") else "*"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if eta else []),
            # Of the whole stage: one step of an evaluation may take longer than the half minute that Rich looks at.
            speed_estimate_period=_DAYS_S,
            console=console,
            transient=transient,
            disable=not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Reports that ``done`` of ``total`` of ``stage`` is through; may come from any thread."""
        task = self._tasks.get(stage)
        if task is None:
            self._finish_earlier()
            words = stage_words(stage)
            task = self._tasks[stage] = self._progress.add_task(words, total=total or None)
            if self._lines:
                self._console.print(f"{words} ...", style="note")
        self._progress.update(task, completed=done, total=total or None)

    def stop(self) -> None:
        """Takes the bars off the terminal, or leaves them as they are, as was asked for."""
        self._progress.stop()

    def _finish_earlier(self) -> None:
        """A stage that another one follows is done, whatever it last said."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)
