"""What the chat is started with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.settings import Resolved
from ui.engine_link import FindModel, MakeLink

if TYPE_CHECKING:
    from ui.source import TelemetrySource


@dataclass(frozen=True, slots=True)
class ChatSetup:
    """Everything that the chat needs from outside.

    Attributes:
        resolved: The settings in force.
        make_link: Makes an engine's process.
        find_model: Has a model.
        open_board: Opens an engine's counters, by the path that it says.
        database: Where sessions are kept.
        resume: Go on with the last session.
        session: Go on with this one: its number, its title or how that begins.
        record: Record the telemetry from the beginning, into this file.
        warnings: Lines to show at the start.
    """

    resolved: Resolved
    make_link: MakeLink
    find_model: FindModel
    open_board: Callable[[str], TelemetrySource]
    database: Path
    resume: bool = False
    session: str | None = None
    record: Path | None = None
    ascii_only: bool = False
    warnings: list[str] = field(default_factory=list)
