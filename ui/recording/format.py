"""How a recording is laid out: a conversation and its telemetry, written piece by piece as they come.

::

    prefix      magic, version
    chunk*      kind, length, checksum, time of its first and last entry; then so many bytes, compressed with zlib

    kinds:      HEAD  JSON: when and by what it was made
                FACT  JSON: `Facts` of the engine that what follows is of
                SAID  JSON lines: messages and the engine's events, each with its time
                WORD  JSON: texts of token numbers
                FRAM  frames, field by field, each as its difference from the one before
                RECS  token records, in the same way
                DONE  JSON: that it was ended as it should be

A chunk is whole or it is not there: what comes behind the last whole one, as after a kill, is passed over. All
numbers are little-endian, times are Unix times. FRAM and RECS begin with a line of JSON: their fields with their
types and shapes, so that fields may come and go; the rest of a version stays as it is.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.service.board_format import BoardLayout, Texts, to_frame, to_record
from offload.service.messages import Event, from_line, to_line
from offload.telemetry.frame import Facts, Frame, TokenRecord
from offload.telemetry.probes import DeviceReading, HostReading
from offload.telemetry.snapshot import MemoryUse

MAGIC = b"finemoeR"
VERSION = 1
PREFIX = struct.Struct("<8sI")
CHUNK = struct.Struct("<4sIdd")
CHECKSUM = struct.Struct("<I")
CHUNK_BYTES = CHUNK.size + CHECKSUM.size

HEAD, FACT, SAID, WORD, FRAM, RECS, DONE = (b"HEAD", b"FACT", b"SAID", b"WORD", b"FRAM", b"RECS", b"DONE")

_TEXT_FIELDS = ("text_bytes",)


@dataclass(frozen=True, slots=True)
class Said:
    """A message that went into the conversation; ``role`` as in a chat template."""

    role: str
    text: str


class Entry(NamedTuple):
    """Something that happened in the conversation, and when."""

    time_s: float
    what: Event | Said


def pack_chunk(kind: bytes, body: bytes, first: float, last: float) -> bytes:
    """A chunk with its head."""
    packed = zlib.compress(body, 6)
    head = CHUNK.pack(kind, len(packed), first, last)
    return head + CHECKSUM.pack(zlib.crc32(packed, zlib.crc32(head))) + packed


def encode_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """A line for each: its time, a tab, and what `offload.service.messages` writes, or the like for a message."""
    lines = []
    for time_s, what in entries:
        if isinstance(what, Said):
            line = json.dumps({"is": "Said", **asdict(what)}, ensure_ascii=False) + "\n"
        else:
            line = to_line(what)
        lines.append(f"{time_s!r}\t{line}")
    return "".join(lines).encode()


def decode_entries(body: bytes) -> list[Entry]:
    """The reverse. Raises ValueError, KeyError, TypeError or EngineBroken where it comes from elsewhere."""
    entries = []
    for line in body.decode().split("\n")[:-1]:
        time_s, _, text = line.partition("\t")
        fields = json.loads(text)
        said = Said(fields["role"], fields["text"]) if fields["is"] == "Said" else from_line(text)
        entries.append(Entry(float(time_s), said))
    return entries


def encode_frames(frames: Sequence[Frame]) -> bytes:
    """Frames of one engine, at least one."""
    rows = np.zeros(len(frames), BoardLayout(frames[0].facts, 1).frame_dtype)
    names = [name for name in rows.dtype.names or () if name not in _TEXT_FIELDS]
    texts: list[Any] = []
    last = ""
    for row, frame in zip(rows, frames, strict=True):
        for name in names:
            value = getattr(frame, name)
            row[name] = np.nan if value is None else value
        text = json.dumps(_texts(frame))
        texts.append(None if text == last else json.loads(text))
        last = text
    return _encode_rows(rows, names, {"texts": texts})


def decode_frames(facts: Facts, body: bytes) -> list[Frame]:
    """The reverse. Raises ValueError, KeyError or TypeError where it comes from elsewhere."""
    head, rows = _decode_rows(body, BoardLayout(facts, 1).frame_dtype)
    frames = []
    texts: Texts | None = None
    for row, text in zip(rows, head["texts"], strict=True):
        texts = Texts.decode(json.dumps(_as_of_today(text)).encode()) if text is not None else texts
        if texts is None:
            raise ValueError("the first frame has no texts")
        frames.append(to_frame(facts, row, texts))
    return frames


def encode_records(facts: Facts, records: Sequence[TokenRecord]) -> bytes:
    """Token records of one engine, at least one."""
    rows = np.zeros(len(records), BoardLayout(facts, 1).record_dtype)
    names = list(rows.dtype.names or ())
    for row, record in zip(rows, records, strict=True):
        for name in names:
            row[name] = getattr(record, name)
    return _encode_rows(rows, names, {})


def decode_records(facts: Facts, body: bytes) -> list[TokenRecord]:
    """The reverse. Raises ValueError, KeyError or TypeError where it comes from elsewhere."""
    _, rows = _decode_rows(body, BoardLayout(facts, 1).record_dtype)
    return [to_record(row) for row in rows]


def _texts(frame: Frame) -> dict[str, Any]:
    """What a frame has besides numbers, as `Texts.decode` takes it."""
    texts = Texts(frame.policy, frame.profile, frame.note, frame.memory, frame.host, frame.gpu, frame.marks)
    values: dict[str, Any] = json.loads(texts.encode())
    return values


def _as_of_today(text: dict[str, Any]) -> dict[str, Any]:
    """A frame's texts with the fields of this version: what was not recorded yet is 0 or not known."""
    today = dict(text)
    today["memory"] = {field.name: text["memory"].get(field.name, 0) for field in fields(MemoryUse)}
    for name, kind in (("host", HostReading), ("gpu", DeviceReading)):
        if text[name] is not None:
            known = {field.name for field in fields(kind)}
            today[name] = {key: value for key, value in text[name].items() if key in known}
    return today


def _encode_rows(rows: NDArray[np.void], names: Sequence[str], head: dict[str, Any]) -> bytes:
    listed, parts = [], []
    for name in names:
        values = np.ascontiguousarray(rows[name])
        listed.append([name, values.dtype.str, list(values.shape[1:])])
        if values.dtype.kind in "iu":  # wraps around, and back again
            values = np.concatenate([values[:1], values[1:] - values[:-1]])
        parts.append(values.tobytes())
    line = encode_json({"count": len(rows), "fields": listed, **head}) + b"\n"
    return line + b"".join(parts)


def _decode_rows(body: bytes, dtype: np.dtype[np.void]) -> tuple[dict[str, Any], NDArray[np.void]]:
    line, _, data = body.partition(b"\n")
    head = json.loads(line)
    rows = np.zeros(head["count"], dtype)
    at = 0
    for name, kind, shape in head["fields"]:
        field = np.dtype(kind)
        count = head["count"] * int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(data, field, count, at).reshape(head["count"], *shape)
        at += count * field.itemsize
        if field.kind in "iu":
            values = np.cumsum(values, axis=0, dtype=field)
        if name in (dtype.names or ()):
            rows[name] = values
    if at != len(data):
        raise ValueError("a chunk is longer than it says")
    return head, rows
