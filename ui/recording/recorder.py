"""Recording a conversation while it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from offload.errors import StorageError
from offload.files import storage_errors, sync_folder
from offload.service.messages import Event, Ready
from offload.telemetry.frame import Facts, Frame, TokenRecord
from ui.recording.format import (
    DONE,
    FACT,
    FRAM,
    HEAD,
    MAGIC,
    PREFIX,
    RECS,
    SAID,
    VERSION,
    WORD,
    Entry,
    Said,
    encode_entries,
    encode_frames,
    encode_json,
    encode_records,
    pack_chunk,
)

SUFFIX = ".finemoe"

_FRAMES = 20
_RECORDS = 128
_ENTRIES = 64
_SECONDS = 5.0
"""What waits in memory goes to the file when there is so much of it, or when it is so old."""


class Recorder:
    """Writes a new recording. What was written is safe when the process is killed: at most five seconds are lost.

    Everything may raise ``StorageError``; the recorder is closed then. One thread at a time.

    Args:
        path: The file, which must not be there yet; its folder must.
        title: What the recording is about.
        now: Gives the time of messages and events.

    Attributes:
        bytes_written: Length of the file.
    """

    def __init__(self, path: Path, title: str = "", now: Callable[[], float] = time.time) -> None:
        self.path = path
        self.bytes_written = 0
        self._now = now
        self._began = self._flushed = now()
        self._facts: Facts | None = None
        self._frames: list[Frame] = []
        self._records: list[TokenRecord] = []
        self._entries: list[Entry] = []
        self._last_frame = -1.0
        self._next_record = 0
        if path.exists():
            raise StorageError(f"{path} exists already", "choose another name")
        with storage_errors("the recording", path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._open = True
        head = {"title": title, "created": self._began, "finemoe": _own_version()}
        chunk = pack_chunk(HEAD, encode_json(head), self._began, self._began)
        self._write(PREFIX.pack(MAGIC, VERSION) + chunk)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._began

    def said(self, role: str, text: str) -> None:
        """A message went into the conversation; answers need not be told, their events are."""
        self._enter(Entry(self._now(), Said(role, text)))

    def event(self, event: Event) -> None:
        """The engine said something. Where its board is, is nobody's business who replays it."""
        if isinstance(event, Ready):
            event = replace(event, board="")
        self._enter(Entry(self._now(), event))

    def frame(self, frame: Frame) -> None:
        """The engine was seen; a frame that is known already is passed over."""
        if frame.facts != self._facts:
            self.flush()
            self._facts = frame.facts
            self._last_frame, self._next_record = -1.0, 0
            self._write(pack_chunk(FACT, encode_json(asdict(frame.facts)), frame.time_s, frame.time_s))
        if frame.time_s > self._last_frame:
            self._last_frame = frame.time_s
            self._frames.append(frame)
            self._flush_if_due()

    def records(self, records: Sequence[TokenRecord]) -> None:
        """Tokens were decoded by the engine of the last frame; those known already are passed over."""
        for record in records:
            if record.number >= self._next_record and self._facts is not None:
                self._next_record = record.number + 1
                self._records.append(record)
        self._flush_if_due()

    def token_texts(self, texts: Mapping[int, str]) -> None:
        """What tokens read as."""
        if texts:
            body = encode_json({str(token): text for token, text in texts.items()})
            self._write(pack_chunk(WORD, body, self._now(), self._now()))

    def flush(self) -> None:
        """Brings to the file what waits in memory."""
        self._flushed = self._now()
        chunks = b""
        if self._entries:
            chunks += pack_chunk(
                SAID, encode_entries(self._entries), self._entries[0].time_s, self._entries[-1].time_s
            )
        if self._frames:
            chunks += pack_chunk(FRAM, encode_frames(self._frames), self._frames[0].time_s, self._frames[-1].time_s)
        if self._records and self._facts is not None:
            body = encode_records(self._facts, self._records)
            chunks += pack_chunk(RECS, body, self._records[0].time_s, self._records[-1].time_s)
        self._entries, self._frames, self._records = [], [], []
        if chunks:
            self._write(chunks)

    def close(self) -> None:
        """Ends the recording; may be called again."""
        if not self._open:
            return
        self.flush()
        self._write(pack_chunk(DONE, encode_json({}), self._now(), self._now()))
        with storage_errors("the recording", self.path):
            try:
                os.fsync(self._file)
                sync_folder(self.path.parent)
            finally:
                self._give_up()

    def _enter(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        many = len(self._frames) >= _FRAMES or len(self._records) >= _RECORDS or len(self._entries) >= _ENTRIES
        if many or self._now() - self._flushed >= _SECONDS:
            self.flush()

    def _write(self, data: bytes) -> None:
        if not self._open:
            raise StorageError(f"the recording {self.path} has ended")
        try:
            with storage_errors("the recording", self.path):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
        except StorageError:
            self._give_up()
            raise
        self.bytes_written += len(data)

    def _give_up(self) -> None:
        self._open = False
        os.close(self._file)


def _own_version() -> str:
    try:
        return version("finemoe")
    except PackageNotFoundError:
        return ""
