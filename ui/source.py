"""Where telemetry comes from: a live engine's board, a recording, or a test. What draws it cannot tell."""

from __future__ import annotations

from typing import Protocol

from offload.telemetry.frame import Frame, TokenRecord


class TelemetrySource(Protocol):
    """Something that can be asked again and again, and answers at once.

    `offload.service.board.BoardReader` is one, `ui.recording.player.ReplaySource` another.
    """

    def frame(self) -> Frame | None:
        """The latest frame; None as long as there is none. Asked twice, it may give the same frame twice."""
        ...

    def records(self, first: int) -> list[TokenRecord]:
        """Records that are still there with a `number` of at least ``first``, oldest first."""
        ...
