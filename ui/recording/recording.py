"""Reading a recording: everything that was said at once, frames when they are asked for."""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from offload.errors import EngineBroken, NotFound, StorageError
from offload.telemetry.frame import Facts, Frame, TokenRecord
from ui.recording.format import (
    CHECKSUM,
    CHUNK,
    CHUNK_BYTES,
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
    decode_entries,
    decode_frames,
    decode_records,
)

_KEPT = 8
"""Chunks of frames that are kept decoded."""

_FOREIGN = (ValueError, KeyError, TypeError, AttributeError, IndexError, EngineBroken)


class _Frames(NamedTuple):
    """A chunk of frames, as it lies in the file."""

    first: float
    last: float
    facts: Facts
    packed: bytes


@dataclass(frozen=True, slots=True)
class EngineRecords:
    """Token records of one engine; its number tells apart engines that were opened one after the other."""

    facts: Facts
    records: list[TokenRecord]


class Recording:
    """One recording, opened. Make it with `open`.

    Attributes:
        path: The file.
        title: What it is about.
        created: Unix time.
        made_by: Version of finemoe.
        complete: Whether it was ended as it should be; False after a kill.
        entries: Messages and events, oldest first.
        engines: Token records of every engine that was opened.
        texts: Texts of tokens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = ""
        self.created = 0.0
        self.made_by = ""
        self.complete = False
        self.entries: list[Entry] = []
        self.engines: list[EngineRecords] = []
        self.texts: dict[int, str] = {}
        self.start = self.end = 0.0
        self._chunks: list[_Frames] = []
        self._decoded: OrderedDict[int, list[Frame]] = OrderedDict()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads a recording.

        Raises:
            NotFound: There is no such file.
            StorageError: It cannot be read, is none, is damaged, or is of a newer version.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"there is no recording {path}") from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
        recording = cls(path)
        if len(data) < PREFIX.size or not data.startswith(MAGIC):
            raise StorageError(f"{path} is not a recording", "record a chat with F6, and give that file")
        _, version = PREFIX.unpack_from(data)
        if version > VERSION:
            raise StorageError(
                f"{path} is a recording of version {version}, and this finemoe reads up to {VERSION}",
                "install a newer finemoe",
            )
        try:
            for kind, first, last, packed in _chunks(data):
                recording._take(kind, first, last, packed)
        except (*_FOREIGN, zlib.error) as error:
            raise StorageError(
                f"the recording {path} is damaged", "nothing behind the damage can be read"
            ) from error
        recording._find_ends()
        return recording

    @property
    def seconds(self) -> float:
        """From the first to the last thing in it."""
        return self.end - self.start

    def frame_at(self, time_s: float) -> Frame | None:
        """The last frame at or before a time; None before the first."""
        at = bisect_right([chunk.first for chunk in self._chunks], time_s) - 1
        if at < 0:
            return None
        frames = self._frames(at)
        return frames[bisect_right([frame.time_s for frame in frames], time_s) - 1]

    def frames(self, after: float, until: float) -> Iterator[Frame]:
        """The frames behind one time and up to another, oldest first."""
        for number, chunk in enumerate(self._chunks):
            if chunk.last > after and chunk.first <= until:
                yield from (frame for frame in self._frames(number) if after < frame.time_s <= until)

    def records(self, facts: Facts | None, first: int, until: float) -> list[TokenRecord]:
        """The token records of one engine from a number on, up to a time."""
        return [
            record
            for engine in self.engines
            if engine.facts == facts
            for record in engine.records
            if record.number >= first and record.time_s <= until
        ]

    def token_text(self, token_id: int) -> str | None:
        """What a token reads as, where that was recorded."""
        return self.texts.get(token_id)

    def _frames(self, number: int) -> list[Frame]:
        frames = self._decoded.get(number)
        if frames is None:
            chunk = self._chunks[number]
            try:
                frames = decode_frames(chunk.facts, zlib.decompress(chunk.packed))
            except (*_FOREIGN, zlib.error) as error:
                raise StorageError(f"the recording {self.path} is damaged") from error
            self._decoded[number] = frames
            if len(self._decoded) > _KEPT:
                self._decoded.popitem(last=False)
        else:
            self._decoded.move_to_end(number)
        return frames

    def _take(self, kind: bytes, first: float, last: float, packed: bytes) -> None:
        if kind == FRAM:
            self._chunks.append(_Frames(first, last, self.engines[-1].facts, packed))
            return
        body = zlib.decompress(packed)
        if kind == SAID:
            self.entries += decode_entries(body)
        elif kind == RECS:
            self.engines[-1].records.extend(decode_records(self.engines[-1].facts, body))
        elif kind == FACT:
            self.engines.append(EngineRecords(Facts(**json.loads(body)), []))
        elif kind == WORD:
            self.texts |= {int(token): text for token, text in json.loads(body).items()}
        elif kind == HEAD:
            head: dict[str, Any] = json.loads(body)
            self.title, self.created, self.made_by = head["title"], head["created"], head["finemoe"]
        elif kind == DONE:
            self.complete = True

    def _find_ends(self) -> None:
        times = [entry.time_s for entry in self.entries]
        times += [time_s for chunk in self._chunks for time_s in (chunk.first, chunk.last)]
        times += [record.time_s for engine in self.engines for record in engine.records[:1] + engine.records[-1:]]
        self.start, self.end = (min(times), max(times)) if times else (self.created, self.created)


def _chunks(data: bytes) -> Iterator[tuple[bytes, float, float, bytes]]:
    """Kind, times and compressed bytes of each whole chunk; one that the end of the file cuts off is not.

    Raises:
        ValueError: A checksum is wrong.
    """
    at = PREFIX.size
    while at + CHUNK_BYTES <= len(data):
        kind, length, first, last = CHUNK.unpack_from(data, at)
        (checksum,) = CHECKSUM.unpack_from(data, at + CHUNK.size)
        packed = data[at + CHUNK_BYTES : at + CHUNK_BYTES + length]
        if len(packed) < length:
            return
        if zlib.crc32(packed, zlib.crc32(data[at : at + CHUNK.size])) != checksum:
            raise ValueError("checksum")
        yield kind, first, last, packed
        at += CHUNK_BYTES + length
