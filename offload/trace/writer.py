"""Writing a trace file: requests are appended one by one, and what was appended stays readable whatever comes."""

from __future__ import annotations

import json
import os
import struct
import zlib
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from offload.errors import TraceError
from offload.files import storage_errors, sync_folder
from offload.trace.blocks import (
    BLOCK,
    HEADER,
    INDEX,
    MAGIC,
    REQUEST,
    ROUTERS,
    TRAILER_MAGIC,
    VERSION,
    TraceEntry,
    TraceHeader,
    block,
    entry_of,
    header_payload,
    sealed,
    write_all,
)
from offload.trace.claim import being_made, claim_in_place, claim_new
from offload.trace.codec import facts_of, pack_request, pack_routers
from offload.trace.records import TraceModel, TraceRequest


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
            TraceError: There is a file at `path`, or another process is writing the one to replace.
            StorageError: It cannot be written; what is to be replaced is still there.
        """
        with storage_errors("the trace", path), ExitStack() as old:
            begun = path
            if replace:
                descriptor, replaced = claim_in_place(path)
                if replaced is not None:
                    old.callback(os.close, replaced)
                    begun = being_made(path)
            else:
                try:
                    descriptor = claim_new(path)
                except FileExistsError:
                    raise TraceError(f"{path} is there already", "choose another name, or say --force") from None
            writer = cls(path, descriptor, model)
            try:
                writer._write(sealed(MAGIC + struct.pack("<I", VERSION)))
                writer._write(block(HEADER, header_payload(model, header)))
                if model.routers is not None:
                    writer._write(block(ROUTERS, pack_routers(model.routers)))
                begun.replace(path)
            except BaseException:
                begun.unlink(missing_ok=True)  # While it is still ours.
                os.close(descriptor)
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
        entry = entry_of(facts_of(memoryview(payload)), self._end, BLOCK.size + len(payload))
        try:
            with storage_errors("the trace", self.path):
                self._write(block(REQUEST, payload))
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
        trailer = sealed(TRAILER_MAGIC + struct.pack("<Q", self._end))
        data = block(INDEX, zlib.compress(index.encode())) + trailer
        try:
            with storage_errors("the trace", self.path):
                os.ftruncate(descriptor, self._end)  # An interrupted `append` may have left something.
                write_all(descriptor, data, self._end)
                os.fsync(descriptor)
                sync_folder(self.path.parent)
        finally:
            os.close(descriptor)

    def _write(self, data: bytes) -> None:
        write_all(self._descriptor, data, self._end)
        self._end += len(data)

    def _cut(self) -> None:
        """Back to the last complete request; this gives space back where there is none."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError:
            pass  # A reader finds the end of what is complete by itself.
