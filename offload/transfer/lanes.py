"""Reading threads, and the two queues between them and the engine's thread.

Demand reads, which the computation waits for, go ahead of every prefetch. A prefetch that has begun gives way to
them between its parts (`offload.transfer.parts`) where it goes straight into its slot, and goes on when none is
left; there it can be broken off too. All methods of :class:`Lanes` belong to the engine's thread. Waking a thread
costs one lock of a :class:`queue.SimpleQueue`, which is written in C: a read costs Python a few microseconds beside
the system call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum, auto
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import NamedTuple

from offload.errors import EngineBroken, ExpertReadError, FinemoeError
from offload.store.base import ExpertStore
from offload.telemetry.log import logger
from offload.transfer.parts import part_bytes
from offload.transfer.stage import Stage


class Completion(NamedTuple):
    """One transfer that is over.

    Attributes:
        expert: The expert's number.
        slot: The slot it was meant for.
        demand: Whether it was a demand read when it ended.
        nbytes: Bytes read from the disk; 0 after an error.
        seconds: Time of the read and the landing, without the time in the queue and while it gave way.
        error: Why the expert is not in the slot; ``None`` if it is, or if the read was broken off.
        broken_off: Whether the expert is not in the slot because the read was cancelled on its way.
    """

    expert: int
    slot: int
    demand: bool
    nbytes: int
    seconds: float
    error: FinemoeError | None
    broken_off: bool = False


class _Request:
    """A request, and how far it has come.

    Attributes:
        parts: What is still to be read, once a lane has begun; it may go on on any lane.
    """

    __slots__ = ("cancelled", "demand", "expert", "nbytes", "parts", "priority", "seconds", "slot")

    def __init__(self, expert: int, slot: int, demand: bool, priority: float) -> None:
        self.expert = expert
        self.slot = slot
        self.demand = demand
        self.priority = priority
        self.parts: Iterator[int] | None = None
        self.nbytes = 0
        self.seconds = 0.0
        self.cancelled = False


class Lanes:
    """``count`` threads that read experts from ``store`` into the places that ``stage`` names.

    The store and the stage stay the caller's, to be closed after the lanes.
    """

    def __init__(self, store: ExpertStore, stage: Stage, count: int) -> None:
        if count < 1:
            raise ValueError(f"{count} lanes")
        self._store = store
        self._stage = stage
        self._part_bytes = part_bytes(store.record_bytes)
        # The lock guards the three tables; each request is in exactly one of them until it is done.
        self._lock = threading.Lock()
        self._demands: OrderedDict[int, _Request] = OrderedDict()
        self._prefetches: dict[int, _Request] = {}
        self._reading: dict[int, _Request] = {}
        # One token for each submitted request. A cancelled request leaves its token, and the lane that gets
        # it finds nothing to do. False ends one lane.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Completion] = SimpleQueue()
        self._in_flight = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"finemoe-lane-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Reading threads."""
        return len(self._threads)

    @property
    def queued(self) -> int:
        """Requests that no lane has begun with."""
        return len(self._demands) + len(self._prefetches)

    @property
    def in_flight(self) -> int:
        """Requests whose completion has not been collected: queued, being read, or done."""
        return self._in_flight

    def submit(self, expert: int, slot: int, *, demand: bool, priority: float = 0.0) -> None:
        """Asks for ``expert`` in ``slot``.

        Args:
            expert: The expert's number; it must not be queued or being read already.
            slot: Its slot; nobody else may use it until the completion.
            demand: Whether the computation waits for it. Demand reads are served in order of submission,
                before all prefetches.
            priority: Among prefetches, the higher goes first, then the earlier.

        Raises:
            EngineBroken: The lanes are closed.
        """
        if self._closed:
            raise EngineBroken("the reading threads are closed")
        request = _Request(expert, slot, demand, priority)
        with self._lock:
            if expert in self._demands or expert in self._prefetches or expert in self._reading:
                raise ValueError(f"expert {expert} is on its way already")
            if demand:
                self._demands[expert] = request
            else:
                self._prefetches[expert] = request
        self._in_flight += 1
        self._tokens.put(True)

    def promote(self, expert: int) -> None:
        """Makes a prefetch a demand read; nothing happens if it is one, or is done already.

        One that was cancelled on its way is read after all, unless it has been broken off by now.
        """
        with self._lock:
            request = self._prefetches.pop(expert, None)
            if request is not None:
                self._demands[expert] = request
            else:
                request = self._reading.get(expert)
            if request is not None:
                request.demand = True
                request.cancelled = False

    def cancel(self, expert: int) -> bool:
        """Takes a request back. ``True`` only if no lane had begun with it: then no completion comes.

        A prefetch that has begun is broken off before its next part, if there is one; its completion says so.
        """
        with self._lock:
            request = self._prefetches.pop(expert, None) or self._demands.pop(expert, None)
            if request is None:
                request = self._reading.get(expert)
                if request is not None and not request.demand:
                    request.cancelled = True
                return False
        if request.parts is not None:  # It had given way.
            self._done.put(_broken_off(request))
            return False
        self._in_flight -= 1
        return True

    def poll(self) -> list[Completion]:
        """The completions that are there, oldest first, without waiting."""
        completions: list[Completion] = []
        try:
            while True:
                completions.append(self._done.get_nowait())
        except Empty:
            pass
        self._in_flight -= len(completions)
        return completions

    def wait(self) -> list[Completion]:
        """As :meth:`poll`, but waits until there is at least one.

        Raises:
            RuntimeError: Nothing is in flight, so that none would ever come.
        """
        if self._in_flight == 0:
            raise RuntimeError("waiting for a transfer, and none is in flight")
        first = self._done.get()
        self._in_flight -= 1
        return [first, *self.poll()]

    def close(self) -> None:
        """Drops what is queued, lets the reads under way end, and ends the threads. May be called twice.

        Completions of reads that were under way can still be collected.
        """
        self._closed = True
        with self._lock:
            self._in_flight -= len(self._demands) + len(self._prefetches)
            self._demands.clear()
            self._prefetches.clear()
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        while self._tokens.get():
            request = self._next()
            if request is not None:
                completion = self._serve(request)
                if completion is not None:
                    self._done.put(completion)

    def _next(self) -> _Request | None:
        with self._lock:
            if self._demands:
                _, request = self._demands.popitem(last=False)
            elif self._prefetches:
                best = max(self._prefetches.values(), key=_priority)  # the earliest among equals
                request = self._prefetches.pop(best.expert)
            else:
                return None
            self._reading[request.expert] = request
            return request

    def _serve(self, request: _Request) -> Completion | None:
        """Read what is left of it; None if it gave way."""
        error: FinemoeError | None = None
        begin = perf_counter()
        try:
            if request.parts is None:
                request.parts = self._parts(request)
            for nbytes in request.parts:
                request.nbytes += nbytes
                turn = self._turn(request, begin)
                if turn is not _Turn.GO_ON:
                    return _broken_off(request) if turn is _Turn.BREAK_OFF else None
            self._stage.land(request.slot)
        except FinemoeError as failure:
            error = failure
        except BaseException as failure:  # a lane that dies would leave the engine waiting for ever
            logger.exception("reading expert %d failed unexpectedly", request.expert)
            error = ExpertReadError(f"expert {request.expert} cannot be read: {failure!r}")
            error.__cause__ = failure
        seconds = request.seconds + perf_counter() - begin
        with self._lock:
            del self._reading[request.expert]
        nbytes = 0 if error else request.nbytes
        return Completion(request.expert, request.slot, request.demand, nbytes, seconds, error)

    def _parts(self, request: _Request) -> Iterator[int]:
        whole = request.demand or not self._stage.in_place
        part = self._store.slot_bytes if whole else self._part_bytes
        return self._store.read_parts(request.expert, self._stage.target(request.slot), part)

    def _turn(self, request: _Request, begin: float) -> _Turn:
        """Behind a part: what becomes of the rest. Whatever is not to go on is no longer being read."""
        if request.nbytes >= self._store.record_bytes:
            return _Turn.GO_ON  # There is no rest.
        with self._lock:
            if request.demand:
                return _Turn.GO_ON
            if not request.cancelled and not (self._demands and self._stage.in_place):
                return _Turn.GO_ON
            request.seconds += perf_counter() - begin
            del self._reading[request.expert]
            if request.cancelled:
                return _Turn.BREAK_OFF
            self._prefetches[request.expert] = request
        self._tokens.put(True)
        return _Turn.GIVE_WAY


class _Turn(Enum):
    GO_ON = auto()
    GIVE_WAY = auto()
    BREAK_OFF = auto()


def _broken_off(request: _Request) -> Completion:
    return Completion(request.expert, request.slot, False, request.nbytes, request.seconds, None, True)


def _priority(request: _Request) -> float:
    return request.priority
