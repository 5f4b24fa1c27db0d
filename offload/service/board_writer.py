"""Publishing an engine: keeping its board up to date, without the engine's thread ever waiting for it.

That thread only copies what it has into memory of its own: each token's record, and at most ten times a second the
rest. A thread beside it writes the file. It writes and does not map it: a mapped file would count for the memory
budget, and a disk that fills up would end the process.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import secrets
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from offload.memory.residency import RESIDENT
from offload.service.board_files import SUFFIX, UNFINISHED_SUFFIX
from offload.service.board_format import (
    BEGUN,
    ENDED,
    MOST_MARKS,
    SEQUENCE,
    WORD_BYTES,
    BoardLayout,
    Texts,
)
from offload.telemetry.counters import Phase
from offload.telemetry.frame import DECODE, IDLE, PREFILL, Facts, Mark
from offload.telemetry.log import logger
from offload.telemetry.probes import DeviceReading, HostReading, MemoryProbe
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.telemetry.snapshot import EngineView, Snapshot

_BUSY_S = 0.1
_QUIET_S = 0.25
"""How old what is published may get: while tokens come, and where nothing or a long prompt goes on."""

_PROBE_S = 0.5
_IDLE_AFTER_S = 1.0
_MANY_WAITING = 128
_MOST_WAITING = 512
"""Token records that wait to be written: from how many on nothing else is waited for, and how many are kept."""


class Source(Protocol):
    """What is published, asked from any thread; an `Engine` is one."""

    def view(self) -> EngineView:
        """Its own arrays and counters."""
        ...

    def snapshot(self) -> Snapshot:
        """Of which the memory is taken."""
        ...


_OF_VIEW = ("state", "fresh")
_OF_COUNTERS = (
    *("uses", "misses", "tally", "stall_ns"),
    *("bytes_demand", "bytes_prefetch", "bytes_prefetch_wasted", "evictions"),
)


class BoardWriter:
    """Makes a board and keeps it up to date until it is closed; an `Observer` of the engine.

    Args:
        folder: Where boards are; made if need be.
        facts: What does not change.
        source: The engine.
        host: The machine's memory.
        gpu: The device's memory; None on the CPU.
        profile: Name of the budget's profile; empty for a bare budget.

    Attributes:
        path: The file.
        wants_residual: No.

    Raises:
        OSError: The file cannot be made.
    """

    wants_residual = False

    def __init__(
        self,
        folder: Path,
        facts: Facts,
        source: Source,
        host: MemoryProbe[HostReading],
        gpu: MemoryProbe[DeviceReading] | None = None,
        profile: str = "",
    ) -> None:
        self._source = source
        self._probes = (host, gpu)
        self._layout = layout = BoardLayout.of(facts)
        self._profile = profile
        self._lock = threading.Lock()
        self._numbers: NDArray[np.void] = np.zeros(1, layout.frame_dtype)
        self._fields: dict[str, NDArray[Any]] = {
            name: self._numbers[name][0:1] if self._numbers[name].ndim == 1 else self._numbers[name][0]
            for name in layout.frame_dtype.names or ()
        }
        self._captured_at = -math.inf
        self._chosen = np.zeros((facts.layers, facts.top_k), np.int32)
        self._record: NDArray[np.void] = np.zeros(1, layout.record_dtype)
        self._waiting: deque[tuple[int, bytes]] = deque(maxlen=_MOST_WAITING)
        self._marks: deque[Mark] = deque(maxlen=MOST_MARKS)
        self._decoding = False
        self._inside = False
        self._phase = IDLE
        self._pass_at = 0.0
        self._request = 0
        self._request_at = 0.0
        self._token_id = 0
        self._ttft: float | None = None
        self._last_token = 0.0
        self._tokens = 0
        self._memory = source.snapshot().memory
        self._readings: tuple[HostReading, DeviceReading | None] = (host.read(), gpu.read() if gpu else None)
        self._said: tuple[Any, ...] = ()
        self._texts = self._texts_written = b""
        self._sequence = 0
        self._broken = False
        self._ending = False
        self._wake = threading.Event()
        self.path, self._file = _new_file(folder, layout)
        try:
            self._publish()
            unfinished, self.path = self.path, self.path.with_suffix(SUFFIX)
            unfinished.rename(self.path)
        except BaseException:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._keep_publishing, name="finemoe-board", daemon=True)
        self._thread.start()

    @property
    def next_record(self) -> int:
        """Number that the next decoded token's record will have."""
        return self._tokens

    # What the engine's thread tells.

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Observer`."""
        now = time.time()
        self._decoding = forward.phase == Phase.DECODE
        self._token_id = int(forward.token_ids[-1])
        if forward.request != self._request:
            self._request, self._request_at, self._ttft = forward.request, now, None
            self._marks.append(Mark(now, "request", f"request {forward.request}"))
        if self._decoding and self._ttft is None:
            self._ttft, self._last_token = now - self._request_at, now
        self._phase = DECODE if self._decoding else PREFILL
        self._inside = True

    def routed(self, routing: Routing) -> None:
        """See `Observer`."""
        if self._decoding and not self._broken:
            try:
                self._chosen[routing.layer] = routing.chosen[-1]
            except (ValueError, IndexError) as error:
                self._give_up(error)

    def end_pass(self, outcome: PassOutcome) -> None:
        """See `Observer`."""
        now = time.time()
        self._pass_at = now
        self._inside = False
        if self._broken:
            return
        try:
            view = self._source.view()
            if self._decoding:
                self._last_token = now
                self._append_record(now, outcome, view.state.tobytes().count(RESIDENT))
                if len(self._waiting) >= _MANY_WAITING:
                    self._wake.set()
            if now - self._captured_at >= _BUSY_S or now < self._captured_at:
                self._capture(view, now)
        except Exception as error:  # whatever it is, the answer goes on
            self._give_up(error)

    # What whoever drives the engine tells, from any thread.

    def request_ended(self, ttft_s: float | None = None) -> None:
        """The engine has nothing to do; `ttft_s` is what it measured itself."""
        self._inside = False
        self._phase = IDLE
        if ttft_s is not None:
            self._ttft = ttft_s
            self._last_token = self._last_token or time.time()
        self._captured_at = -math.inf
        self._wake.set()

    def mark(self, kind: str, text: str) -> None:
        """Something happened; see `Mark`."""
        self._marks.append(Mark(time.time(), kind, " ".join(text.split())))
        self._captured_at = -math.inf
        self._wake.set()

    def set_profile(self, name: str) -> None:
        """The budget is another profile's now; empty for a bare budget."""
        self._profile = name

    def close(self) -> None:
        """Remove the board: who reads it keeps the last frame. May be called twice."""
        self.path.unlink(missing_ok=True)
        self._ending = True
        self._wake.set()
        self._thread.join()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # Copying, on the engine's thread or while it is busy with a long pass.

    def _append_record(self, now: float, outcome: PassOutcome, resident: int) -> None:
        record = self._record
        record["number"] = self._tokens
        record["request"] = self._request
        record["token_id"] = self._token_id
        record["time_s"] = now
        record["pass_ns"] = outcome.ended_ns - outcome.began_ns
        record["resident"] = resident
        record["stall_ns"][0] = outcome.stall_ns
        record["chosen"][0] = self._chosen
        record["kinds"][0] = 0 if outcome.kinds is None else outcome.kinds
        self._waiting.append((self._tokens, record.tobytes()))
        self._tokens += 1

    def _capture(self, view: EngineView, now: float) -> None:
        with self._lock:
            fields = self._fields
            for name in _OF_VIEW:
                fields[name][...] = getattr(view, name)
            for name in _OF_COUNTERS:
                fields[name][...] = getattr(view.counters, name)
            fields["time_s"][0] = now
            fields["ttft_s"][0] = math.nan if self._ttft is None else self._ttft
            fields["last_token_s"][0] = self._last_token
            fields["requests"][0] = self._request
            fields["tokens"][0] = self._tokens
            fields["queued"][0] = view.link.queued
            fields["reading"][0] = view.link.in_flight
            fields["phase"][0] = self._phase_at(now)
            fields["prefetching"][0] = view.policy.looks_ahead
            self._captured_at = now

    def _phase_at(self, now: float) -> int:
        # A request that failed is not told of; passes of one that runs follow one another at once.
        return self._phase if self._inside or now - self._pass_at < _IDLE_AFTER_S else IDLE

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        logger.warning("the counters are not published any more: %s", error)

    # Writing, on a thread beside.

    def _keep_publishing(self) -> None:
        probed = 0.0
        while not self._ending:
            # Waking this thread would cost the engine's as much as all the rest; so it looks by itself.
            busy = time.time() - self._pass_at < _IDLE_AFTER_S
            self._wake.wait(_BUSY_S if busy else _QUIET_S)
            self._wake.clear()
            if self._broken or self._ending:
                continue
            try:
                now = time.monotonic()
                if now - probed >= _PROBE_S:
                    host, gpu = self._probes
                    self._readings = (host.read(), gpu.read() if gpu else None)
                    self._memory = self._source.snapshot().memory
                    probed = now
                self._publish()
            except Exception as error:
                self._give_up(error)

    def _publish(self) -> None:
        now = time.time()
        view = self._source.view()
        if not _QUIET_S > now - self._captured_at >= 0:
            self._capture(view, now)
        self._encode_texts(view)
        texts = self._texts
        self._write_records()
        with self._lock:
            self._fields["text_bytes"][0] = len(texts)
            numbers = self._numbers.tobytes()
        layout = self._layout
        self._write_word(SEQUENCE, self._sequence + 1)
        os.pwrite(self._file, numbers, layout.frame_at)
        if texts is not self._texts_written:
            os.pwrite(self._file, texts, layout.text_at)
            self._texts_written = texts
        self._sequence += 2
        self._write_word(SEQUENCE, self._sequence)

    def _encode_texts(self, view: EngineView) -> None:
        """Most of the time nothing of it has changed, and making JSON takes longer than all the rest."""
        policy, marks = view.policy, self._marks
        said = (policy.name, policy.note, self._profile, self._memory, self._readings, marks[-1] if marks else None)
        if said == self._said:
            return
        host, gpu = self._readings
        texts = Texts(policy.name, self._profile, policy.note, self._memory, host, gpu, tuple(marks.copy()))
        self._said, self._texts = said, texts.encode()

    def _write_records(self) -> None:
        layout = self._layout
        records = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not records:
            return
        end = records[-1][0] + 1
        self._write_word(BEGUN, end)
        # Neighbours in the ring go in one piece.
        for _, run in itertools.groupby(enumerate(records), lambda at: (at[1][0] - at[0], at[1][0] // layout.ring)):
            piece = [record for _, record in run]
            at = layout.ring_at + piece[0][0] % layout.ring * layout.record_dtype.itemsize
            os.pwrite(self._file, b"".join(data for _, data in piece), at)
        self._write_word(ENDED, end)

    def _write_word(self, word: int, value: int) -> None:
        os.pwrite(self._file, value.to_bytes(WORD_BYTES, "little"), self._layout.words_at + WORD_BYTES * word)


def _new_file(folder: Path, layout: BoardLayout) -> tuple[Path, int]:
    """A locked file of the layout's size with its head in it, under a name that readers do not look at yet."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED_SUFFIX}"
    # Which tokens came is nobody else's business.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(file, 0, layout.file_bytes)
        os.pwrite(file, layout.head(), 0)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(file)
        raise
    return path, file
