"""Trace files: one file of blocks, to which requests are appended, and which is read request by request.

``docs/traces.md`` has the format. A file that was not finished, because the program was ended or the disk was full,
opens with the requests that are complete.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from offload.errors import TraceError
from offload.files import storage_errors, sync_folder
from offload.telemetry.counters import Phase
from offload.trace.codec import (
    BadPayload,
    facts_of,
    pack_request,
    pack_routers,
    unpack_request,
    unpack_routers,
)
from offload.trace.records import TraceModel, TraceRequest

VERSION = 1
MAGIC = b"finemoe trace\r\n\0"
CACHE_BYTES = 256 << 20
"""Decoded requests that a reader keeps."""

_START = struct.Struct("<16sII")  # magic, version, CRC-32 of both
_BLOCK = struct.Struct("<4sIQI")  # kind, CRC-32 of the payload, its bytes, CRC-32 of this header so far
_TRAILER = struct.Struct("<8sQI")  # magic, offset of the index, CRC-32 of the trailer so far
_TRAILER_MAGIC = b"fm index"
_HEADER, _ROUTERS, _REQUEST, _INDEX = b"HEAD", b"ROUT", b"REQU", b"INDX"
_AGAIN = "record it again"


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
        read_s: Time the link needed for one expert when the engine was opened, seconds.
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
    residuals: bool = False
    prompt_residuals: bool = False
    dataset: str = ""
    sampling: Mapping[str, float | None] = field(default_factory=dict)


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


class TraceWriter:
    """Appends requests to a new trace. Each one is on its way to the disk when `append` returns."""

    def __init__(self, path: Path, descriptor: int, model: TraceModel) -> None:
        self.path = path
        self.entries: list[TraceEntry] = []
        self._model = model
        self._descriptor = descriptor
        self._end = 0

    @classmethod
    def create(cls, path: Path, model: TraceModel, header: TraceHeader, *, replace: bool = False) -> TraceWriter:
        """Begin a trace at `path`.

        Args:
            replace: Put it in the place of a file that is there; who reads that one goes on reading it.

        Raises:
            TraceError: There is a file at `path`.
            StorageError: It cannot be written.
        """
        with storage_errors("the trace", path):
            if replace:
                path.unlink(missing_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except FileExistsError:
                raise TraceError(f"{path} is there already", "choose another name, or say --force") from None
            writer = cls(path, descriptor, model)
            try:
                writer._write(_sealed(MAGIC + struct.pack("<I", VERSION)))
                writer._write(_block(_HEADER, _header_payload(model, header)))
                if model.routers is not None:
                    writer._write(_block(_ROUTERS, pack_routers(model.routers)))
            except BaseException:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None:
            self.close()
            return
        try:
            self.close()
        except Exception:
            pass  # What went wrong first is what counts; the file is readable without its index.

    @property
    def nbytes(self) -> int:
        """Bytes of the file so far."""
        return self._end

    def append(self, request: TraceRequest) -> None:
        """Write one request.

        Raises:
            StorageError: It could not be written; those before it are in the file.
        """
        payload = pack_request(request, self._model)
        entry = _entry(facts_of(memoryview(payload)), self._end, _BLOCK.size + len(payload))
        try:
            with storage_errors("the trace", self.path):
                self._write(_block(_REQUEST, payload))
        except BaseException:
            self._cut()
            raise
        self.entries.append(entry)

    def close(self) -> None:
        """Write the index and bring everything to the disk. May be called twice.

        Raises:
            StorageError: The index could not be written; the trace can be read without.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        index = json.dumps({"requests": [asdict(entry) for entry in self.entries]}, separators=(",", ":"))
        trailer = _sealed(_TRAILER_MAGIC + struct.pack("<Q", self._end))
        data = _block(_INDEX, zlib.compress(index.encode())) + trailer
        try:
            with storage_errors("the trace", self.path):
                os.ftruncate(descriptor, self._end)  # An interrupted `append` may have left something.
                _write_all(descriptor, data, self._end)
                os.fsync(descriptor)
                sync_folder(self.path.parent)
        finally:
            os.close(descriptor)

    def _write(self, data: bytes) -> None:
        _write_all(self._descriptor, data, self._end)
        self._end += len(data)

    def _cut(self) -> None:
        """Back to the last complete request; this gives space back where there is none."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError:
            pass  # A reader finds the end of what is complete by itself.


class Trace:
    """A trace that is read request by request: ``len(trace)``, ``trace[0]``, ``for request in trace``.

    Attributes:
        path: The file.
        model: Whose passes these are.
        header: How it was recorded.
        entries: What there is to know of each request without reading it.
        warning: What is wrong with the file, in one line; empty for nothing.
    """

    def __init__(self, path: Path, descriptor: int, cache_bytes: int) -> None:
        self.path = path
        self.warning = ""
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, tuple[TraceRequest, int]] = OrderedDict()
        self.model, self.header, first = self._read_front()
        self.entries: tuple[TraceEntry, ...] = tuple(self._entries(first))

    @classmethod
    def open(cls, path: Path, *, cache_bytes: int = CACHE_BYTES) -> Trace:
        """Open a trace.

        Args:
            cache_bytes: Decoded requests to keep; the one read last is always kept.

        Raises:
            TraceError: It is no trace, or one of a newer version, or damaged before its first request.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TraceError(f"the trace {path} cannot be read: {error.strerror or error}") from error
        try:
            return cls(path, descriptor, cache_bytes)
        except OSError as error:
            os.close(descriptor)
            raise TraceError(f"the trace {path} cannot be read: {error.strerror or error}") from error
        except BaseException:
            os.close(descriptor)
            raise

    @staticmethod
    def write(path: Path, model: TraceModel, header: TraceHeader, requests: Iterable[TraceRequest]) -> None:
        """Write a whole trace.

        Raises:
            TraceError: There is a file at `path`.
            StorageError: It cannot be written.
        """
        with TraceWriter.create(path, model, header) as writer:
            for request in requests:
                writer.append(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[TraceRequest]:
        for number in range(len(self)):
            yield self[number]

    def __getitem__(self, number: int) -> TraceRequest:
        """One request.

        Raises:
            IndexError: There are not so many.
            TraceError: It is damaged.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        if number in self._cached:
            self._cached.move_to_end(number)
            return self._cached[number][0]
        entry = self.entries[number]
        try:
            kind, payload = self._block(entry.offset)
            if kind != _REQUEST:
                raise BadPayload("it is no request")
            request = unpack_request(payload, self.model)
        except (BadPayload, OSError) as error:
            raise TraceError(f"request {entry.name} of {self.path} is damaged: {error}", _AGAIN) from error
        self._keep(number, request)
        return request

    def check_model(self, fingerprint: str) -> None:
        """Make sure that this trace was recorded with the model of this fingerprint.

        Raises:
            TraceError: It was not.
        """
        if fingerprint != self.model.fingerprint:
            raise TraceError(
                f"{self.path} was recorded with other weights of {self.model.name}, or with another model",
                "record a trace with this model",
            )

    def close(self) -> None:
        """Give the file back. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _keep(self, number: int, request: TraceRequest) -> None:
        self._cached[number] = request, _nbytes(request)
        while len(self._cached) > 1 and sum(size for _, size in self._cached.values()) > self._cache_bytes:
            self._cached.popitem(last=False)

    def _read_front(self) -> tuple[TraceModel, TraceHeader, int]:
        """Model, header, and where the first block behind them begins."""
        start = os.pread(self._descriptor, _START.size, 0)
        if start[: len(MAGIC)] != MAGIC[: len(start)]:
            raise TraceError(f"{self.path} is not a trace", "finemoe trace record makes one")
        if len(start) < _START.size:
            raise TraceError(f"{self.path} is cut off before its first request", _AGAIN)
        _, version, checksum = _START.unpack(start)
        if checksum != zlib.crc32(start[:-4]):
            raise TraceError(f"{self.path} is damaged before its first request", _AGAIN)
        if version > VERSION:
            raise TraceError(
                f"{self.path} has version {version} of the format, and this finemoe knows {VERSION}",
                "use the finemoe that recorded it, or a newer one",
            )
        try:
            kind, payload = self._block(_START.size)
            if kind != _HEADER:
                raise BadPayload("it has no header")
            facts, header, has_routers = _read_header(payload)
            at = _START.size + _BLOCK.size + len(payload)
            routers = None
            if has_routers:
                kind, payload = self._block(at)
                if kind != _ROUTERS:
                    raise BadPayload("it has no routers")
                routers = unpack_routers(payload)
                at += _BLOCK.size + len(payload)
            return TraceModel(**facts, routers=routers), header, at
        except _CutOff as error:
            raise TraceError(f"{self.path} is cut off before its first request", _AGAIN) from error
        except BadPayload as error:
            raise TraceError(f"{self.path} is damaged before its first request: {error}", _AGAIN) from error

    def _entries(self, first: int) -> Iterator[TraceEntry]:
        """From the index, or else from the blocks themselves."""
        try:
            yield from self._index(first)
            return
        except BadPayload:
            pass
        at, count = first, 0
        try:
            while at < self._size:
                kind, payload = self._block(at)
                if kind == _INDEX:
                    break
                if kind != _REQUEST:
                    raise BadPayload("there is a block of an unknown kind")
                entry = _entry(facts_of(payload), at, _BLOCK.size + len(payload))
                yield entry
                count += 1
                at += entry.nbytes
        except _CutOff:
            pass
        except BadPayload as error:
            self.warning = f"{self.path} is damaged after {_requests(count)}, what follows is left out: {error}"
            return
        self.warning = f"{self.path} was not finished; it has {_requests(count)} that are complete"

    def _index(self, first: int) -> list[TraceEntry]:
        at = self._size - _TRAILER.size
        if at < first:
            raise BadPayload("there is no index")
        data = os.pread(self._descriptor, _TRAILER.size, at)
        magic, offset, checksum = _TRAILER.unpack(data)
        if magic != _TRAILER_MAGIC or checksum != zlib.crc32(data[:-4]):
            raise BadPayload("there is no index")
        kind, payload = self._block(offset)
        if kind != _INDEX:
            raise BadPayload("there is no index")
        try:
            return [TraceEntry(**entry) for entry in json.loads(zlib.decompress(payload))["requests"]]
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise BadPayload(str(error)) from error

    def _block(self, offset: int) -> tuple[bytes, memoryview]:
        """Kind and payload of the block at `offset`.

        Raises:
            BadPayload: It is damaged; `_CutOff` if the file ends in it.
        """
        data = os.pread(self._descriptor, _BLOCK.size, offset)
        if len(data) < _BLOCK.size:
            raise _CutOff("the file ends")
        kind, checksum, length, own = _BLOCK.unpack(data)
        if own != zlib.crc32(data[:-4]):
            raise BadPayload("a block's header does not have its checksum")
        begin = offset + _BLOCK.size
        if begin + length > self._size:
            raise _CutOff("the file ends")
        payload = _read_all(self._descriptor, length, begin)
        if zlib.crc32(payload) != checksum:
            raise BadPayload("a block does not have its checksum")
        return kind, memoryview(payload)


class _CutOff(BadPayload):
    """The file ends in the middle of a block."""


def _block(kind: bytes, payload: bytes) -> bytes:
    return _sealed(struct.pack("<4sIQ", kind, zlib.crc32(payload), len(payload))) + payload


def _sealed(data: bytes) -> bytes:
    """`data` with its CRC-32 behind it."""
    return data + struct.pack("<I", zlib.crc32(data))


def _header_payload(model: TraceModel, header: TraceHeader) -> bytes:
    known = {each.name: getattr(model, each.name) for each in fields(TraceModel) if each.name != "routers"}
    facts = {"model": known, "routers": model.routers is not None, "recorded": asdict(header)}
    return json.dumps(facts).encode()


def _read_header(payload: memoryview) -> tuple[dict[str, Any], TraceHeader, bool]:
    """The model's facts but its routers, the header, and whether there are routers."""
    try:
        facts = json.loads(bytes(payload))
        model = {each.name: facts["model"][each.name] for each in fields(TraceModel) if each.name != "routers"}
        names = {each.name for each in fields(TraceHeader)}
        recorded = {name: value for name, value in facts["recorded"].items() if name in names}
        return model, TraceHeader(**recorded), bool(facts["routers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadPayload(str(error)) from error


def _entry(facts: Mapping[str, Any], offset: int, nbytes: int) -> TraceEntry:
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


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done


def _read_all(descriptor: int, length: int, offset: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            raise _CutOff("the file ends")
        pieces.append(piece)
        length, offset = length - len(piece), offset + len(piece)
    return b"".join(pieces)


def _nbytes(request: TraceRequest) -> int:
    """Bytes of a request's arrays."""
    kept = ("probabilities", "chosen", "margins", "residual", "shared", "embedding", "token_ids", "stall_s")
    arrays = (getattr(each, name) for each in request.passes for name in kept)
    return sum(array.nbytes for array in arrays if array is not None)


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
