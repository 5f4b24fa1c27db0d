"""The disk's speed for a model that is not on it: the same reads, from a file written for the purpose."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offload.errors import StorageError
from offload.files import Progress, storage_errors
from offload.models.spec import ModelSpec
from offload.precision import BF16, Precision
from offload.store.blocks import align_up
from offload.store.calibrate import Calibration, measure_read_rate
from offload.store.data_files import DataFiles, read_failure
from offload.units import MIB, format_bytes

SCRATCH_BYTES = 384 * MIB
"""Bytes of the file: more than a disk's own cache is likely to hold of random reads."""

_FEWEST_RECORDS = 4
_PIECE = 8 * MIB


def measure_disk(folder: Path, spec: ModelSpec, progress: Progress | None = None) -> Calibration:
    """How fast records of the size of ``spec``'s experts can be read from ``folder``'s disk.

    Writes :data:`SCRATCH_BYTES` of noise (more for experts above a quarter of that), reads it as a store reads
    experts, and removes it. ``progress`` is called with ``"calibrate"`` and bytes written.

    Raises:
        StorageError: Too little space, or the file could not be written.
        ExpertReadError: It could not be read.
    """
    record = align_up(spec.expert_bytes)
    records = max(SCRATCH_BYTES // record, _FEWEST_RECORDS)
    free = shutil.disk_usage(folder).free
    if free < 2 * records * record:
        needed = format_bytes(2 * records * record)
        raise StorageError(
            f"measuring the disk needs {needed} of space, and {folder} has {format_bytes(free)}",
            "free some space, or set FINEMOE_CACHE_DIR to a folder on another disk",
        )
    with storage_errors("a file to measure the disk with", folder):
        descriptor, name = tempfile.mkstemp(prefix=".finemoe-calibrate-", dir=folder)
    path = Path(name)
    try:
        with storage_errors("a file to measure the disk with", folder):
            _write_noise(descriptor, records * record, progress)
        store = _ScratchStore(path, spec, record, records)
        try:
            return measure_read_rate(store)
        finally:
            store.close()
    finally:
        path.unlink(missing_ok=True)


class _ScratchStore:
    """An :class:`~offload.store.base.ExpertStore` whose experts are noise."""

    kind = "scratch"
    precision: Precision = BF16
    note = ""

    def __init__(self, path: Path, spec: ModelSpec, record: int, records: int) -> None:
        self.spec = replace(spec, moe_layers=(0,), num_experts=records)
        self.record_bytes = spec.expert_bytes
        self.slot_bytes = record
        self.staging_bytes = 0
        self.gate_up_offset: NDArray[np.int64] = np.zeros(records, np.int64)
        self.down_offset: NDArray[np.int64] = np.zeros(records, np.int64)
        self._files = DataFiles([path], None)
        self.direct = self._files.direct
        self.direct_refused = self._files.direct_refused

    def read(self, expert_id: int, slot: memoryview) -> int:
        """See :meth:`ExpertStore.read <offload.store.base.ExpertStore.read>`."""
        return sum(self.read_parts(expert_id, slot, self.slot_bytes))

    def read_parts(self, expert_id: int, slot: memoryview, part_bytes: int) -> Iterator[int]:
        """See :meth:`ExpertStore.read_parts <offload.store.base.ExpertStore.read_parts>`."""
        begin, size = expert_id * self.slot_bytes, self.slot_bytes
        try:
            yield from self._files.read_parts(0, begin, 0, size, slot[:size], part_bytes)
        except (OSError, EOFError) as error:
            raise read_failure(self.spec, expert_id, self._files.paths[0], error) from error

    def close(self) -> None:
        """See :meth:`ExpertStore.close <offload.store.base.ExpertStore.close>`."""
        self._files.close()


def _write_noise(descriptor: int, size: int, progress: Progress | None) -> None:
    # Noise, because some disks and filesystems make little of what repeats.
    noise = memoryview(np.random.default_rng(0).bytes(_PIECE))
    with os.fdopen(descriptor, "wb") as file:
        for done in range(0, size, _PIECE):
            file.write(noise[: size - done])
            if progress is not None:
                progress("calibrate", done, size)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
