"""Playing a recording: the same events and frames as from a live engine, at any speed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from offload.service.messages import Event
from offload.telemetry.frame import Frame, TokenRecord
from ui.recording.format import Said
from ui.recording.recording import Recording

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class ReplaySource:
    """A recording as a `TelemetrySource`, with a clock of its own that whoever plays it moves on.

    Args:
        recording: What is played.
        on_event: Called with every message and event as its time comes.
        on_rewind: Called before a seek: what was shown goes, and all events up to the new place come again.

    Attributes:
        position: Seconds from the beginning.
        speed: Seconds of the recording in a second, one of `SPEEDS`.
        paused: Whether `advance` does nothing.
    """

    def __init__(
        self,
        recording: Recording,
        on_event: Callable[[Event | Said], None] | None = None,
        on_rewind: Callable[[], None] | None = None,
    ) -> None:
        self.recording = recording
        self.position = 0.0
        self.speed = 1.0
        self.paused = False
        self._on_event = on_event
        self._on_rewind = on_rewind
        self._times = [entry.time_s for entry in recording.entries]
        self._told = 0
        self._seen = float("-inf")
        self._tell()

    @property
    def now(self) -> float:
        """The Unix time that is played."""
        return self.recording.start + self.position

    @property
    def ended(self) -> bool:
        return self.position >= self.recording.seconds

    def advance(self, seconds: float) -> None:
        """So much time has passed outside."""
        if not self.paused:
            self.position = min(self.recording.seconds, self.position + seconds * self.speed)
            self._tell()

    def seek(self, position: float) -> None:
        """Goes to a place, in seconds from the beginning; one outside is the nearest inside."""
        self.position = min(self.recording.seconds, max(0.0, position))
        if self._on_rewind is not None:
            self._on_rewind()
        self._told, self._seen = 0, float("-inf")
        self._tell()

    def faster(self, steps: int) -> None:
        """The next speed up, or down where ``steps`` is negative."""
        at = SPEEDS.index(self.speed) + steps
        self.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, at))]

    def frame(self) -> Frame | None:
        """See `TelemetrySource`."""
        return self.recording.frame_at(self.now)

    def records(self, first: int) -> list[TokenRecord]:
        """See `TelemetrySource`."""
        frame = self.frame()
        return self.recording.records(frame.facts if frame is not None else None, first, self.now)

    def new_frames(self, reach: float = 600.0) -> list[Frame]:
        """The frames since the last call; after a seek, those of the last ``reach`` seconds."""
        frames = list(self.recording.frames(max(self._seen, self.now - reach), self.now))
        self._seen = self.now
        return frames

    def _tell(self) -> None:
        until = bisect_right(self._times, self.now)
        if self._on_event is not None:
            for entry in self.recording.entries[self._told : until]:
                self._on_event(entry.what)
        self._told = max(self._told, until)
