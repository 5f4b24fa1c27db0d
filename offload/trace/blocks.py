"""The blocks a trace file is made of, and what its header and its index say. ``docs/traces.md`` has the format."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from offload.telemetry.counters import Phase
from offload.trace.codec import BadPayload
from offload.trace.records import TraceModel

VERSION = 1
MAGIC = b"finemoe trace\r\n\0"
START = struct.Struct("<16sII")  # magic, version, CRC-32 of both
BLOCK = struct.Struct("<4sIQI")  # kind, CRC-32 of the payload, its bytes, CRC-32 of this header so far
TRAILER = struct.Struct("<8sQI")  # magic, offset of the index, CRC-32 of the trailer so far
TRAILER_MAGIC = b"fm index"
HEADER, ROUTERS, REQUEST, INDEX = b"HEAD", b"ROUT", b"REQU", b"INDX"


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """How a trace was recorded. Empty, 0 or None: not known.

    Attributes:
        created: When, as ISO 8601 in UTC.
        finemoe: Version that recorded it.
        policy: Which experts stayed and which were read ahead.
        profile: Name of the memory budget.
        budget_bytes: The memory budget.
        slots: Experts that could be resident.
        device / kernels: What computed.
        precision: How weights were kept.
        read_s: Time the link needed for one expert when the engine was opened, seconds.
        lanes: Reads that went on at once.
        residuals / prompt_residuals: Whether residual streams of decoded tokens and of prompts were kept.
        dataset: Where the prompts came from.
        sampling: How tokens were chosen, by the names of `offload.Sampling`.
    """

    created: str = ""
    finemoe: str = ""
    policy: str = ""
    profile: str = ""
    budget_bytes: int = 0
    slots: int = 0
    device: str = ""
    kernels: str = ""
    read_s: float = 0.0
    lanes: int = 0
    residuals: bool = False
    prompt_residuals: bool = False
    dataset: str = ""
    sampling: Mapping[str, float | None] = field(default_factory=dict)
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """What the index says of one request.

    Attributes:
        offset / nbytes: Of its block in the file.
        prompt_tokens: Computed for the prompt; those of an earlier turn are not among them.
        decoded_tokens: Passes of single decoded tokens.
    """

    name: str
    offset: int
    nbytes: int
    prompt_tokens: int
    decoded_tokens: int


class CutOff(BadPayload):
    """The file ends in the middle of a block."""


def block(kind: bytes, payload: bytes) -> bytes:
    """A block as it is in the file."""
    return sealed(struct.pack("<4sIQ", kind, zlib.crc32(payload), len(payload))) + payload


def sealed(data: bytes) -> bytes:
    """`data` with its CRC-32 behind it."""
    return data + struct.pack("<I", zlib.crc32(data))


def header_payload(model: TraceModel, header: TraceHeader) -> bytes:
    """The payload of `HEAD`."""
    known = {each.name: getattr(model, each.name) for each in fields(TraceModel) if each.name != "routers"}
    facts = {"model": known, "routers": model.routers is not None, "recorded": asdict(header)}
    return json.dumps(facts).encode()


def read_header(payload: memoryview) -> tuple[dict[str, Any], TraceHeader, bool]:
    """The model's facts but its routers, the header, and whether there are routers."""
    try:
        facts = json.loads(bytes(payload))
        model = {each.name: facts["model"][each.name] for each in fields(TraceModel) if each.name != "routers"}
        names = {each.name for each in fields(TraceHeader)}
        recorded = {name: value for name, value in facts["recorded"].items() if name in names}
        return model, TraceHeader(**recorded), bool(facts["routers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadPayload(str(error)) from error


def entry_of(facts: Mapping[str, Any], offset: int, nbytes: int) -> TraceEntry:
    """What the index says of a request with these facts.

    Raises:
        BadPayload: They are not those of a request.
    """
    try:
        phases = list(zip(facts["phase"], facts["tokens"], strict=True))
        return TraceEntry(
            name=facts["name"],
            offset=offset,
            nbytes=nbytes,
            prompt_tokens=sum(tokens for phase, tokens in phases if phase == Phase.PREFILL),
            decoded_tokens=sum(tokens for phase, tokens in phases if phase == Phase.DECODE),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadPayload(str(error)) from error


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    left = memoryview(data)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done


def read_all(descriptor: int, length: int, offset: int) -> bytes:
    """Exactly `length` bytes from `offset` on.

    Raises:
        CutOff: The file has not so many.
    """
    pieces = []
    while length:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            raise CutOff("the file ends")
        pieces.append(piece)
        length, offset = length - len(piece), offset + len(piece)
    return b"".join(pieces)
