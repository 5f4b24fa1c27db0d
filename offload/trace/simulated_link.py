"""A link that moves experts in simulated time: what `offload.transfer.lanes` does, without bytes or threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from offload.transfer.lanes import Completion


class SimulatedLink:
    """`count` servers that take requests as lanes do: demand reads first, then reads ahead by priority.

    A read that has begun is never broken off.

    Args:
        seconds: How long the next read of an expert takes.
        nbytes: Bytes of one expert.
        count: Reads that go on at once.

    Attributes:
        now: The clock, in seconds. `advance` moves it, and `wait` where there is something to wait for.
        busy_s: Time that servers have spent reading, all together.
    """

    def __init__(self, seconds: Callable[[int], float], nbytes: int, count: int = 1) -> None:
        self.now = 0.0
        self.busy_s = 0.0
        self._seconds = seconds
        self._nbytes = nbytes
        self._count = count
        self._demands: deque[int] = deque()
        self._ahead: dict[int, float] = {}  # in order of submission
        self._slots: dict[int, int] = {}
        self._reading: dict[int, tuple[float, float, bool]] = {}  # expert -> end, duration, whether it is a demand
        self._done: list[Completion] = []

    @property
    def count(self) -> int:
        """Reads that go on at once."""
        return self._count

    @property
    def queued(self) -> int:
        """Requests that no server has begun with."""
        return len(self._demands) + len(self._ahead)

    @property
    def in_flight(self) -> int:
        """Requests whose completion has not been collected."""
        return len(self._demands) + len(self._ahead) + len(self._reading) + len(self._done)

    def submit(self, expert: int, slot: int, *, demand: bool, priority: float = 0.0) -> None:
        """Ask for `expert` in `slot`, as `Lanes.submit`."""
        self._slots[expert] = slot
        if demand:
            self._demands.append(expert)
        else:
            self._ahead[expert] = priority
        if len(self._reading) < self._count:
            self._begin(self.now)

    def promote(self, expert: int) -> None:
        """Make a read ahead a demand read."""
        if expert in self._ahead:
            del self._ahead[expert]
            self._demands.append(expert)
        elif expert in self._reading:
            end, duration, _ = self._reading[expert]
            self._reading[expert] = end, duration, True

    def cancel(self, expert: int) -> bool:
        """Take a request back; True only if no server had begun with it."""
        if self._ahead.pop(expert, None) is not None:
            del self._slots[expert]
            return True
        return False

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        until = self.now + seconds
        while self._reading:
            end = self._next_end()
            if end > until:
                break
            self._finish(end)
        self.now = until

    def poll(self) -> list[Completion]:
        """The completions that are there."""
        done, self._done = self._done, []
        return done

    def wait(self) -> list[Completion]:
        """As `poll`; where there is none, time goes on to the next one."""
        if not self._done:
            if not self._reading:
                raise RuntimeError("waiting for a transfer, and none is in flight")
            self.now = self._next_end()
            self._finish(self.now)
        return self.poll()

    def _next_end(self) -> float:
        return min(end for end, _, _ in self._reading.values())

    def _finish(self, end: float) -> None:
        """All reads that end at `end`, and the beginning of the next ones."""
        for expert in [expert for expert, read in self._reading.items() if read[0] <= end]:
            _, duration, demand = self._reading.pop(expert)
            slot = self._slots.pop(expert)
            self._done.append(Completion(expert, slot, demand, self._nbytes, duration, None))
        self._begin(end)

    def _begin(self, at: float) -> None:
        while len(self._reading) < self._count and (self._demands or self._ahead):
            demand = bool(self._demands)
            if demand:
                expert = self._demands.popleft()
            else:
                expert = max(self._ahead, key=self._ahead.__getitem__)  # the earliest among equals
                del self._ahead[expert]
            duration = self._seconds(expert)
            self.busy_s += duration
            self._reading[expert] = at + duration, duration, demand
