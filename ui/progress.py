"""Progress of something with stages, each counted: pulling a model, loading one."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)


class ProgressCallback(Protocol):
    """What the engine and the demo's builder report to: ``total`` is 0 where it is not known."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


class StageProgress:
    """A bar for each stage on a terminal; on anything else a line when a stage begins, or nothing.

    Args:
        console: Where to draw.
        transient: Remove the bars at the end.
        lines: Whether to write those lines where ``console`` is not a terminal.
    """

    def __init__(self, console: Console, *, transient: bool = False, lines: bool = True) -> None:
        self._console = console
        self._lines = lines and not console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="✓" if console.encoding.startswith("utf") else "*"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=transient,
            disable=not console.is_terminal,
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
            task = self._tasks[stage] = self._progress.add_task(stage, total=total or None)
            if self._lines:
                self._console.print(f"{stage} ...", style="note")
        self._progress.update(task, completed=done, total=total or None)

    def stop(self) -> None:
        """Takes the bars off the terminal, or leaves them as they are, as was asked for."""
        self._progress.stop()

    def _finish_earlier(self) -> None:
        """A stage that another one follows is done, whatever it last said."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)
