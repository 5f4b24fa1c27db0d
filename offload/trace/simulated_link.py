"""A link that moves experts in simulated time: what `offload.transfer.lanes` does, without bytes or threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from offload.transfer.lanes import Completion


class SimulatedLink:
    """`count` servers that take requests as lanes do: demand reads first, then reads ahead by priority.

    A read ahead gives way to demand reads between its parts, and is broken off there if it is cancelled.

    Args:
        seconds: How long the next read of an expert takes.
        nbytes: Bytes of one expert.
        count: Reads that go on at once.
        parts: Of an expert that is read ahead.

    Attributes:
        now: The clock, in seconds. `advance` moves it, and `wait` where there is something to wait for.
        busy_s: Time that servers have spent reading, all together.
    """

    def __init__(self, seconds: Callable[[int], float], nbytes: int, count: int = 1, parts: int = 1) -> None:
        self.now = 0.0
        self.busy_s = 0.0
        self._seconds = seconds
        self._nbytes = nbytes
        self._count = count
        self._parts = parts
        self._demands: deque[_Read] = deque()
        self._ahead: dict[int, _Read] = {}  # in order of submission
        self._reading: dict[int, _Read] = {}
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
        read = _Read(expert, slot, demand, priority, 1 if demand else self._parts)
        if demand:
            self._demands.append(read)
        else:
            self._ahead[expert] = read
        if len(self._reading) < self._count:
            self._begin(self.now)

    def promote(self, expert: int) -> None:
        """Make a read ahead a demand read."""
        read = self._ahead.pop(expert, None)
        if read is not None:
            self._demands.append(read)
        else:
            read = self._reading.get(expert)
        if read is not None:
            read.demand = True
            read.cancelled = False

    def cancel(self, expert: int) -> bool:
        """Take a request back, as `Lanes.cancel`."""
        read = self._ahead.pop(expert, None)
        if read is None:
            read = self._reading.get(expert)
            if read is not None and not read.demand:
                read.cancelled = True
            return False
        if read.seconds:
            self._break_off(read)
            return False
        return True

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
        while not self._done:
            if not self._reading:
                raise RuntimeError("waiting for a transfer, and none is in flight")
            self.now = self._next_end()
            self._finish(self.now)
        return self.poll()

    def _next_end(self) -> float:
        return min(read.end for read in self._reading.values())

    def _finish(self, end: float) -> None:
        """All parts that end at `end`, and the beginning of the next ones."""
        for expert, read in [one for one in self._reading.items() if one[1].end <= end]:
            del self._reading[expert]
            read.left -= 1
            if not read.left:
                self._done.append(Completion(expert, read.slot, read.demand, self._nbytes, read.seconds, None))
            elif read.cancelled:
                self._break_off(read)
            elif read.demand or not self._demands:
                self._read_part(read, end)
            else:
                self._ahead[expert] = read
        self._begin(end)

    def _begin(self, at: float) -> None:
        while len(self._reading) < self._count and (self._demands or self._ahead):
            if self._demands:
                read = self._demands.popleft()
            else:
                read = self._ahead.pop(max(self._ahead, key=self._priority))  # the earliest among equals
            self._read_part(read, at)

    def _priority(self, expert: int) -> float:
        return self._ahead[expert].priority

    def _read_part(self, read: _Read, at: float) -> None:
        if not read.part_s:
            read.part_s = self._seconds(read.expert) / read.left
        self.busy_s += read.part_s
        read.seconds += read.part_s
        read.end = at + read.part_s
        self._reading[read.expert] = read

    def _break_off(self, read: _Read) -> None:
        nbytes = self._nbytes * (self._parts - read.left) // self._parts
        self._done.append(Completion(read.expert, read.slot, False, nbytes, read.seconds, None, True))


@dataclass(slots=True)
class _Read:
    """A request.

    Attributes:
        left: Parts that are still to come.
        part_s: Of each of them; 0 before the first begins.
        seconds: Of those that have begun.
        end: Of the running one.
    """

    expert: int
    slot: int
    demand: bool
    priority: float
    left: int
    part_s: float = 0.0
    seconds: float = 0.0
    end: float = 0.0
    cancelled: bool = False
