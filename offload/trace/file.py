"""Reading a trace file, request by request. `offload.trace.writer` writes it, ``docs/traces.md`` has the format.

A file that was not finished, because the program was ended or the disk was full, opens with the requests that are
complete.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from offload.errors import TraceError
from offload.trace.blocks import (
    BLOCK,
    HEADER,
    INDEX,
    MAGIC,
    REQUEST,
    ROUTERS,
    START,
    TRAILER,
    TRAILER_MAGIC,
    VERSION,
    CutOff,
    TraceEntry,
    TraceHeader,
    entry_of,
    read_all,
    read_header,
)
from offload.trace.codec import BadPayload, facts_of, unpack_request, unpack_routers
from offload.trace.records import TraceModel, TraceRequest
from offload.trace.writer import TraceWriter

__all__ = ["Trace", "TraceEntry", "TraceHeader", "TraceWriter"]

CACHE_BYTES = 256 << 20
"""Decoded requests that a reader keeps."""

_AGAIN = "record it again"


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
            hint = "finemoe trace record makes one" if isinstance(error, FileNotFoundError) else ""
            raise TraceError(f"the trace {path} cannot be read: {error.strerror or error}", hint) from error
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
            if kind != REQUEST:
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
        start = os.pread(self._descriptor, START.size, 0)
        if start[: len(MAGIC)] != MAGIC[: len(start)]:
            raise TraceError(f"{self.path} is not a trace", "finemoe trace record makes one")
        if len(start) < START.size:
            raise TraceError(f"{self.path} is cut off before its first request", _AGAIN)
        _, version, checksum = START.unpack(start)
        if checksum != zlib.crc32(start[:-4]):
            raise TraceError(f"{self.path} is damaged before its first request", _AGAIN)
        if version > VERSION:
            raise TraceError(
                f"{self.path} has version {version} of the format, and this finemoe knows {VERSION}",
                "use the finemoe that recorded it, or a newer one",
            )
        try:
            kind, payload = self._block(START.size)
            if kind != HEADER:
                raise BadPayload("it has no header")
            facts, header, has_routers = read_header(payload)
            at = START.size + BLOCK.size + len(payload)
            routers = None
            if has_routers:
                kind, payload = self._block(at)
                if kind != ROUTERS:
                    raise BadPayload("it has no routers")
                routers = unpack_routers(payload)
                at += BLOCK.size + len(payload)
            return TraceModel(**facts, routers=routers), header, at
        except CutOff as error:
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
                if kind == INDEX:
                    break
                if kind != REQUEST:
                    raise BadPayload("there is a block of an unknown kind")
                entry = entry_of(facts_of(payload), at, BLOCK.size + len(payload))
                yield entry
                count += 1
                at += entry.nbytes
        except CutOff:
            pass
        except BadPayload as error:
            self.warning = f"{self.path} is damaged after {_requests(count)}, what follows is left out: {error}"
            return
        self.warning = f"{self.path} was not finished; it has {_requests(count)} that are complete"

    def _index(self, first: int) -> list[TraceEntry]:
        at = self._size - TRAILER.size
        if at < first:
            raise BadPayload("there is no index")
        data = os.pread(self._descriptor, TRAILER.size, at)
        magic, offset, checksum = TRAILER.unpack(data)
        if magic != TRAILER_MAGIC or checksum != zlib.crc32(data[:-4]):
            raise BadPayload("there is no index")
        kind, payload = self._block(offset)
        if kind != INDEX:
            raise BadPayload("there is no index")
        try:
            return [TraceEntry(**entry) for entry in json.loads(zlib.decompress(payload))["requests"]]
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise BadPayload(str(error)) from error

    def _block(self, offset: int) -> tuple[bytes, memoryview]:
        """Kind and payload of the block at `offset`.

        Raises:
            BadPayload: It is damaged; `CutOff` if the file ends in it.
        """
        data = os.pread(self._descriptor, BLOCK.size, offset)
        if len(data) < BLOCK.size:
            raise CutOff("the file ends")
        kind, checksum, length, own = BLOCK.unpack(data)
        if own != zlib.crc32(data[:-4]):
            raise BadPayload("a block's header does not have its checksum")
        begin = offset + BLOCK.size
        if begin + length > self._size:
            raise CutOff("the file ends")
        payload = read_all(self._descriptor, length, begin)
        if zlib.crc32(payload) != checksum:
            raise BadPayload("a block does not have its checksum")
        return kind, memoryview(payload)


def _nbytes(request: TraceRequest) -> int:
    """Bytes of a request's arrays."""
    kept = ("probabilities", "chosen", "margins", "residual", "shared", "embedding", "token_ids", "stall_s")
    arrays = (getattr(each, name) for each in request.passes for name in kept)
    return sum(array.nbytes for array in arrays if array is not None)


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
