"""What tells one checkpoint from another: its shape, the places of its tensors, and a sample of its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from offload.errors import CorruptCheckpoint
from offload.models.spec import ModelSpec
from offload.store.blocks import drop_cached, open_buffered, read_exact
from offload.store.safetensors_index import CheckpointIndex, TensorEntry

_SAMPLES = 64
_SAMPLE_BYTES = 4096


def fingerprint(spec: ModelSpec, index: CheckpointIndex) -> str:
    """64 hexadecimal digits that copies of a checkpoint share, and other checkpoints do not.

    A model and its fine-tuned siblings have the same shapes in the same places, so some weights are read too:
    4 KiB from the middle of up to 64 matrices, evenly spread. Times and the folder's name do not count.

    Raises:
        CorruptCheckpoint: A file cannot be read.
    """
    tensors = sorted(index.tensors.items())
    facts = {
        "model_type": spec.architecture.model_type,
        "moe_layers": spec.moe_layers,
        "num_experts": spec.num_experts,
        "hidden_size": spec.hidden_size,
        "expert_size": spec.expert_size,
        "tensors": [
            (key, entry.dtype, entry.shape, entry.path.name, entry.offset, entry.nbytes) for key, entry in tensors
        ],
        "files": sorted((path.name, path.stat().st_size) for path in data_paths(index)),
    }
    digest = hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode())
    matrices = [entry for _, entry in tensors if len(entry.shape) > 1] or [entry for _, entry in tensors]
    chosen = matrices[:: -(-len(matrices) // _SAMPLES) or 1]
    for path, entries in groupby(sorted(chosen, key=_place), key=lambda entry: entry.path):
        for sample in _samples(path, entries):
            digest.update(sample)
    return digest.hexdigest()


def data_paths(index: CheckpointIndex) -> set[Path]:
    """The files that hold the checkpoint's tensors."""
    return {entry.path for entry in index.tensors.values()}


def newest_change(index: CheckpointIndex) -> int:
    """When the last of the checkpoint's files was changed, in nanoseconds since the epoch."""
    return max((path.stat().st_mtime_ns for path in data_paths(index)), default=0)


def _place(entry: TensorEntry) -> tuple[Path, int]:
    return entry.path, entry.offset


def _samples(path: Path, entries: Iterable[TensorEntry]) -> Iterable[bytes]:
    try:
        fd = open_buffered(path)
        try:
            for entry in entries:
                sample = bytearray(min(_SAMPLE_BYTES, entry.nbytes))
                start = entry.offset + (entry.nbytes - len(sample)) // 2
                read_exact(fd, start, memoryview(sample))
                drop_cached(fd, start, len(sample))
                yield bytes(sample)
        finally:
            os.close(fd)
    except (OSError, EOFError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}", "fetch the model again") from error
