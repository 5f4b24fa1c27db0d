"""Experts read from a pack: one aligned record each, in one read, straight into the slot."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offload.errors import CorruptCheckpoint
from offload.models.spec import ModelSpec
from offload.store.data_files import DataFiles, read_failure
from offload.store.fingerprint import fingerprint
from offload.store.packed_format import PACK_AGAIN, PackHead, header_of, read_head
from offload.store.safetensors_index import CheckpointIndex


class PackedStore:
    """An :class:`~offload.store.base.ExpertStore` over a pack. Use :meth:`open`.

    Attributes:
        path: The pack.
    """

    spec: ModelSpec
    path: Path
    kind: str
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
        self.record_bytes = spec.expert_bytes
        self.slot_bytes = head.header.stride
        self.staging_bytes = 0
        self.gate_up_offset = np.full(spec.total_experts, head.header.gate_up, dtype=np.int64)
        self.down_offset = np.full(spec.total_experts, head.header.down, dtype=np.int64)
        self._first = head.head_bytes
        self._head = head
        self._files = DataFiles([path], direct)
        self.direct, self.direct_refused = self._files.direct, self._files.direct_refused

    @classmethod
    def open(
        cls, spec: ModelSpec, index: CheckpointIndex, path: Path, *, direct: bool | None = None
    ) -> PackedStore:
        """Checks the pack's head, and that it is of this very checkpoint; records are not read.

        Args:
            spec: The model's facts.
            index: The places of its tensors, for the fingerprint.
            path: The pack.
            direct: Whether to read past the page cache; ``None`` does where the filesystem allows it.

        Raises:
            UnsupportedModel: A pack of another version of the format, or in another precision.
            CorruptCheckpoint: No pack, a damaged one, or one of another model.
            StorageError: ``direct`` is asked for and the filesystem refuses it.
        """
        head = read_head(path)
        expected = header_of(spec, fingerprint(spec, index))
        if head.header.fingerprint != expected.fingerprint:
            raise CorruptCheckpoint(f"{path} is a pack of another model than {spec.folder}", PACK_AGAIN)
        if head.header != expected:
            raise CorruptCheckpoint(f"{path} describes other records than {spec.name} has", PACK_AGAIN)
        return cls(spec, path, head, direct)

    def read(self, expert_id: int, slot: memoryview) -> int:
        """See :meth:`ExpertStore.read <offload.store.base.ExpertStore.read>`."""
        return self._read(expert_id, self.record_bytes, slot)

    def read_checked(self, expert_id: int, slot: memoryview) -> bool:
        """As :meth:`read`, with all of the record; whether its checksum matches.

        Raises:
            ExpertReadError: The bytes could not be read.
        """
        self._read(expert_id, self.slot_bytes, slot)
        return hashlib.sha256(slot[: self.slot_bytes]).digest() == self._head.digest(expert_id)

    def close(self) -> None:
        """See :meth:`ExpertStore.close <offload.store.base.ExpertStore.close>`."""
        self._files.close()

    def _read(self, expert_id: int, nbytes: int, slot: memoryview) -> int:
        start = self._first + expert_id * self.slot_bytes
        try:
            return self._files.read(0, start, 0, nbytes, slot[: self.slot_bytes])
        except (OSError, EOFError) as error:
            raise read_failure(self.spec, expert_id, self.path, error) from error
