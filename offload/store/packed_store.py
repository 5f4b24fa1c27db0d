"""Experts read from a pack: one aligned record each, in one read, straight into the slot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.models.spec import ModelSpec
from offload.precision import BF16, Precision, expert_layout
from offload.store.data_files import DataFiles, read_failure
from offload.store.fingerprint import fingerprint
from offload.store.packed_format import PACK_AGAIN, PackHead, read_head
from offload.store.packed_header import PackHeader, header_of
from offload.store.records import dense_tensors
from offload.store.safetensors_index import CheckpointIndex, read_into


class PackedStore:
    """An :class:`~offload.store.base.ExpertStore` over a pack. Use :meth:`open`.

    Attributes:
        path: The pack.
        head: What it says about itself.
    """

    spec: ModelSpec
    path: Path
    kind: str
    precision: Precision
    note: str
    record_bytes: int
    slot_bytes: int
    staging_bytes: int
    direct: bool
    direct_refused: str
    gate_up_offset: NDArray[np.int64]
    down_offset: NDArray[np.int64]

    def __init__(self, spec: ModelSpec, path: Path, head: PackHead, direct: bool | None) -> None:
        self.spec = spec
        self.path = path
        self.kind = "packed"
        self.note = ""
        self.precision = head.header.precision
        self.record_bytes = expert_layout(self.precision, spec.hidden_size, spec.expert_size).nbytes
        self.slot_bytes = head.header.stride
        self.staging_bytes = 0
        self.gate_up_offset = np.full(spec.total_experts, head.header.gate_up, dtype=np.int64)
        self.down_offset = np.full(spec.total_experts, head.header.down, dtype=np.int64)
        self.head = head
        self._files = DataFiles([path], direct)
        self.direct, self.direct_refused = self._files.direct, self._files.direct_refused

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        index: CheckpointIndex,
        path: Path,
        precision: Precision = BF16,
        *,
        direct: bool | None = None,
    ) -> PackedStore:
        """Checks the pack's head, and that it is of this very checkpoint; records are not read.

        Args:
            spec: The model's facts.
            index: The places of its tensors, for the fingerprint.
            path: The pack.
            precision: How its weights have to be kept.
            direct: Whether to read past the page cache; ``None`` does where the filesystem allows it.

        Raises:
            UnsupportedModel: A pack of another version of the format, or in another precision; or a model that
                cannot be quantised.
            CorruptCheckpoint: No pack, a damaged one, or one of another model.
            StorageError: ``direct`` is asked for and the filesystem refuses it.
        """
        head = read_head(path)
        expected = pack_header(spec, index, precision)
        if head.header.fingerprint != expected.fingerprint:
            raise CorruptCheckpoint(f"{path} is a pack of another model than {spec.folder}", PACK_AGAIN)
        if head.header.precision != precision:
            raise UnsupportedModel(
                f"{path} keeps its weights as {head.header.precision} and not as {precision}",
                f"use --precision {head.header.precision}, or pack the model again: finemoe pack",
            )
        if head.header.without_error() != expected:
            raise CorruptCheckpoint(f"{path} describes other records than {spec.name} has", PACK_AGAIN)
        return cls(spec, path, head, direct)

    def read(self, expert_id: int, slot: memoryview) -> int:
        """See :meth:`ExpertStore.read <offload.store.base.ExpertStore.read>`."""
        return sum(self.read_parts(expert_id, slot, self.slot_bytes))

    def read_parts(self, expert_id: int, slot: memoryview, part_bytes: int) -> Iterator[int]:
        """See :meth:`ExpertStore.read_parts <offload.store.base.ExpertStore.read_parts>`."""
        start, _ = self.head.place(expert_id)
        try:
            yield from self._files.read_parts(0, start, 0, self.record_bytes, slot[: self.slot_bytes], part_bytes)
        except (OSError, EOFError) as error:
            raise read_failure(self.spec, expert_id, self.path, error) from error

    def read_dense(self, name: str, out: memoryview) -> None:
        """Reads the weight called ``name``, as it is packed, into ``out`` (bytes, of exactly its size).

        They are not left in the page cache.

        Raises:
            CorruptCheckpoint: There is no such weight, or the pack cannot be read.
        """
        piece = next((piece for piece in self.head.pieces if piece.tensor.name == name), None)
        if piece is None:
            raise CorruptCheckpoint(f"{self.path} has no tensor '{name}'", PACK_AGAIN)
        if out.nbytes != piece.tensor.nbytes:
            raise ValueError(f"{name} has {piece.tensor.nbytes} bytes, the buffer {out.nbytes}")
        read_into(self.path, self.head.dense_start + piece.begin, out, PACK_AGAIN)

    def read_checked(self, record: int, buffer: memoryview) -> bool:
        """Reads any record, of an expert or of dense weights; whether its checksum matches.

        Raises:
            CorruptCheckpoint: The bytes could not be read.
        """
        begin, nbytes = self.head.place(record)
        read_into(self.path, begin, buffer[:nbytes], PACK_AGAIN)
        return hashlib.sha256(buffer[:nbytes]).digest() == self.head.digest(record)

    def close(self) -> None:
        """See :meth:`ExpertStore.close <offload.store.base.ExpertStore.close>`."""
        self._files.close()


def pack_header(spec: ModelSpec, index: CheckpointIndex, precision: Precision) -> PackHeader:
    """The header that a pack of the model must have, without the errors of its weights.

    Raises:
        UnsupportedModel: A model that finemoe does not quantise.
    """
    dense = dense_tensors(spec, index, precision)
    return replace(header_of(spec, fingerprint(spec, index), precision), dense=dense)
