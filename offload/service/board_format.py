"""How a board, the file with a running engine's counters, is laid out.

::

    prefix      magic, version, length of the head, length of the file, checksum of the head
    head        JSON: the facts, and where everything is, field by field
    words       three integers: sequence, begun, ended
    frame       one record of numbers, as in `Frame`
    text        JSON of what is not numbers, such as names, memory and marks
    ring        the latest token records

All numbers are little-endian. The sequence is odd while frame and text are being written: who reads compares it
before and after. In the ring, records below `ended` have been written, and those a whole ring below `begun` are
being overwritten; every record carries its number.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.errors import BoardError
from offload.telemetry.frame import Facts, Frame, Mark, TokenRecord
from offload.telemetry.probes import DeviceReading, HostReading
from offload.telemetry.snapshot import MemoryUse

VERSION = 1
HEAD_BYTES = 16 << 10
"""Room for prefix and head."""
WORD_BYTES = 8
SEQUENCE, BEGUN, ENDED = range(3)
"""The words."""
TEXT_BYTES = 32 << 10
MOST_MARKS = 64

_MAGIC = b"finemoeB"
_PREFIX = struct.Struct("<8sIIQI")
_RING_BYTES = 8 << 20
_RING_RECORDS = 4096
_PAGE = 4096
_MOST_LETTERS = 200  # of a note, a mark or a name


@dataclass(frozen=True)
class BoardLayout:
    """Where everything is in the board of one engine.

    Attributes:
        facts: What the sizes follow from, and the rest that does not change.
        ring: Token records that are kept.
    """

    facts: Facts
    ring: int

    @classmethod
    def of(cls, facts: Facts) -> BoardLayout:
        """The layout for an engine: as many records as 8 MiB hold, at most 4,096."""
        record = BoardLayout(facts, 1).record_dtype.itemsize
        return cls(facts, max(16, min(_RING_RECORDS, _RING_BYTES // record)))

    @cached_property
    def frame_dtype(self) -> np.dtype[np.void]:
        """The numbers of a `Frame`; a NaN stands for None."""
        layers, experts = self.facts.layers, self.facts.layers * self.facts.experts
        return np.dtype(
            [
                ("time_s", "<f8"),
                ("ttft_s", "<f8"),
                ("last_token_s", "<f8"),
                ("requests", "<i8"),
                ("tokens", "<i8"),
                ("queued", "<i8"),
                ("reading", "<i8"),
                ("bytes_demand", "<i8", (2,)),
                ("bytes_prefetch", "<i8", (2,)),
                ("bytes_prefetch_wasted", "<i8", (2,)),
                ("evictions", "<i8", (2,)),
                ("tally", "<i8", (2, 4, layers)),
                ("stall_ns", "<i8", (2, layers)),
                ("uses", "<i8", (experts,)),
                ("misses", "<i8", (experts,)),
                ("text_bytes", "<u4"),
                ("phase", "u1"),
                ("prefetching", "u1"),
                ("state", "u1", (experts,)),
                ("fresh", "u1", (experts,)),
            ],
            align=True,
        )

    @cached_property
    def record_dtype(self) -> np.dtype[np.void]:
        """A `TokenRecord`."""
        layers, top_k = self.facts.layers, self.facts.top_k
        return np.dtype(
            [
                ("number", "<i8"),
                ("request", "<i8"),
                ("token_id", "<i8"),
                ("time_s", "<f8"),
                ("pass_ns", "<i8"),
                ("resident", "<i8"),
                ("stall_ns", "<i8", (layers,)),
                ("chosen", "<i4", (layers, top_k)),
                ("kinds", "u1", (layers, top_k)),
            ],
            align=True,
        )

    @property
    def words_at(self) -> int:
        return HEAD_BYTES

    @property
    def frame_at(self) -> int:
        return self.words_at + 64

    @cached_property
    def text_at(self) -> int:
        return self.frame_at + self.frame_dtype.itemsize

    @cached_property
    def ring_at(self) -> int:
        return -(-(self.text_at + TEXT_BYTES) // _PAGE) * _PAGE

    @cached_property
    def file_bytes(self) -> int:
        return self.ring_at + self.ring * self.record_dtype.itemsize

    def head(self) -> bytes:
        """Prefix and head."""
        text = json.dumps(self._described()).encode()
        if _PREFIX.size + len(text) > HEAD_BYTES:
            raise BoardError("the model's name is too long for a board")
        return _PREFIX.pack(_MAGIC, VERSION, len(text), self.file_bytes, zlib.crc32(text)) + text

    def _described(self) -> dict[str, Any]:
        return {
            "facts": asdict(self.facts),
            "ring": self.ring,
            "words_at": self.words_at,
            "frame_at": self.frame_at,
            "text_at": self.text_at,
            "ring_at": self.ring_at,
            "record_bytes": self.record_dtype.itemsize,
            "frame": list(_fields(self.frame_dtype)),
            "record": list(_fields(self.record_dtype)),
        }

    @classmethod
    def parse(cls, head: bytes, file_bytes: int) -> BoardLayout:
        """The layout that a file of `file_bytes` bytes says it has; `head` is how it begins.

        Raises:
            BoardError: It is no board, is damaged, or is of another version.
        """
        if len(head) < _PREFIX.size or not head.startswith(_MAGIC):
            raise BoardError("it is no board")
        _, version, length, size, checksum = _PREFIX.unpack_from(head)
        if version != VERSION:
            raise BoardError(
                f"it is a board of version {version}, and this finemoe reads version {VERSION}",
                "use the finemoe that runs the model",
            )
        text = head[_PREFIX.size : _PREFIX.size + length]
        if size != file_bytes or len(text) != length or zlib.crc32(text) != checksum:
            raise BoardError("the board is damaged")
        try:
            described = json.loads(text)
            layout = cls(Facts(**described["facts"]), described["ring"])
            same = layout._described() == described and layout.file_bytes == size
        except (ValueError, TypeError, KeyError) as error:
            raise BoardError("the board is damaged") from error
        if not same:
            raise BoardError("the board is damaged")
        return layout


@dataclass(frozen=True, slots=True)
class Texts:
    """What a frame has besides numbers."""

    policy: str
    profile: str
    note: str
    memory: MemoryUse
    host: HostReading
    gpu: DeviceReading | None
    marks: tuple[Mark, ...]

    def encode(self) -> bytes:
        """As JSON of at most `TEXT_BYTES`: long texts are cut, and the oldest marks left out where need be."""
        marks = [[mark.time_s, mark.kind, mark.text[:_MOST_LETTERS]] for mark in self.marks[-MOST_MARKS:]]
        values = {
            "policy": self.policy[:_MOST_LETTERS],
            "profile": self.profile[:_MOST_LETTERS],
            "note": self.note[:_MOST_LETTERS],
            "memory": asdict(self.memory),
            "host": _cut(asdict(self.host)),
            "gpu": None if self.gpu is None else _cut(asdict(self.gpu)),
        }
        encoded = json.dumps({**values, "marks": marks}).encode()
        while len(encoded) > TEXT_BYTES:
            marks = marks[len(marks) // 4 + 1 :]
            encoded = json.dumps({**values, "marks": marks}).encode()
        return encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Texts:
        """The reverse of `encode`.

        Raises:
            ValueError, TypeError, KeyError: `encoded` comes from elsewhere.
        """
        values = json.loads(encoded)
        return cls(
            policy=values["policy"],
            profile=values["profile"],
            note=values["note"],
            memory=MemoryUse(**values["memory"]),
            host=HostReading(**values["host"]),
            gpu=None if values["gpu"] is None else DeviceReading(**values["gpu"]),
            marks=tuple(Mark(*mark) for mark in values["marks"]),
        )


def to_frame(facts: Facts, numbers: NDArray[np.void], texts: Texts) -> Frame:
    """The frame in a record of `BoardLayout.frame_dtype`, whose arrays it keeps."""
    ttft = float(numbers["ttft_s"])

    def pair(name: str) -> tuple[int, int]:
        first, second = numbers[name].tolist()
        return first, second

    return Frame(
        facts=facts,
        time_s=float(numbers["time_s"]),
        phase=int(numbers["phase"]),
        policy=texts.policy,
        profile=texts.profile,
        requests=int(numbers["requests"]),
        tokens=int(numbers["tokens"]),
        ttft_s=None if np.isnan(ttft) else ttft,
        last_token_s=float(numbers["last_token_s"]),
        prefetching=bool(numbers["prefetching"]),
        note=texts.note,
        state=numbers["state"],
        fresh=numbers["fresh"],
        uses=numbers["uses"],
        misses=numbers["misses"],
        tally=numbers["tally"],
        stall_ns=numbers["stall_ns"],
        bytes_demand=pair("bytes_demand"),
        bytes_prefetch=pair("bytes_prefetch"),
        bytes_prefetch_wasted=pair("bytes_prefetch_wasted"),
        evictions=pair("evictions"),
        queued=int(numbers["queued"]),
        reading=int(numbers["reading"]),
        memory=texts.memory,
        host=texts.host,
        gpu=texts.gpu,
        marks=texts.marks,
    )


def to_record(row: NDArray[np.void]) -> TokenRecord:
    """The token record in a record of `BoardLayout.record_dtype`, whose arrays it keeps."""
    return TokenRecord(
        number=int(row["number"]),
        request=int(row["request"]),
        token_id=int(row["token_id"]),
        time_s=float(row["time_s"]),
        pass_ns=int(row["pass_ns"]),
        chosen=row["chosen"],
        kinds=row["kinds"],
        stall_ns=row["stall_ns"],
        resident=int(row["resident"]),
    )


def _cut(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:_MOST_LETTERS] if isinstance(value, str) else value for name, value in values.items()}


def _fields(dtype: np.dtype[np.void]) -> Iterator[list[Any]]:
    """Name, element type, shape and offset of every field."""
    assert dtype.names is not None and dtype.fields is not None
    for name in dtype.names:
        kind, offset = dtype.fields[name][:2]
        yield [name, kind.base.str, list(kind.shape), offset]
