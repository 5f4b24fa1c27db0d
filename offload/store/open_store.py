"""Choosing the store of a model: its pack where there is one that can be used, else the checkpoint in place."""

from __future__ import annotations

import os
from pathlib import Path

from offload.errors import CorruptCheckpoint, FinemoeError, ModelNotFound
from offload.models.spec import ModelSpec
from offload.precision import BF16, BITS, Precision
from offload.store.base import ExpertStore
from offload.store.fingerprint import fingerprint, newest_change
from offload.store.packed_format import pack_name
from offload.store.packed_store import PackedStore
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from offload.telemetry.log import logger


def open_store(
    spec: ModelSpec,
    index: CheckpointIndex,
    precision: Precision = BF16,
    *,
    pack: Path | None = None,
    packs_folder: Path | None = None,
    direct: bool | None = None,
) -> ExpertStore:
    """Opens the pack of the model if there is one, whole and not older than the checkpoint, else the checkpoint.

    A pack that is there and is not used is logged, and ``note`` of the store says why. A quantised model has
    nothing but its pack.

    Args:
        spec: The model's facts.
        index: The places of its tensors.
        precision: How weights are kept.
        pack: Use this pack and no other.
        packs_folder: Where the packs of models are whose own folders cannot be written.
        direct: Whether to read past the page cache; ``None`` does where the filesystem allows it.

    Raises:
        UnsupportedModel: The experts are not in bfloat16; or ``pack`` is of another version or precision.
        CorruptCheckpoint: The checkpoint cannot be used; or ``pack``, or a quantised one, is damaged or of another
            model.
        ModelNotFound: There is no pack in a precision other than bfloat16.
        StorageError: ``direct`` is asked for and the filesystem refuses it.
    """
    if pack is not None:
        return PackedStore.open(spec, index, pack, precision, direct=direct)
    note = ""
    path = find_pack(spec, index, packs_folder, precision)
    if precision != BF16:
        return _quantised(spec, index, path, precision, direct)
    if path is not None:
        if is_older(path, index):
            note = f"{path} is older than the checkpoint and not used; pack the model again: finemoe pack"
        else:
            try:
                return PackedStore.open(spec, index, path, direct=direct)
            except FinemoeError as error:
                note = f"{error.message}, so it is not used; {error.hint}".rstrip("; ")
        logger.warning("%s", note)
    store = SafetensorsStore.open(spec, index, direct=direct)
    store.note = note
    return store


def _quantised(
    spec: ModelSpec, index: CheckpointIndex, path: Path | None, precision: Precision, direct: bool | None
) -> PackedStore:
    remedy = f"pack it: finemoe pack --bits {BITS[precision]} {spec.name}"
    if path is None:
        raise ModelNotFound(f"{spec.name} is not packed as {precision}", remedy)
    if is_older(path, index):
        raise CorruptCheckpoint(f"{path} is older than the checkpoint and cannot be used", remedy)
    return PackedStore.open(spec, index, path, precision, direct=direct)


def find_pack(
    spec: ModelSpec, index: CheckpointIndex, packs_folder: Path | None = None, precision: Precision = BF16
) -> Path | None:
    """The model's pack, usable or not: in the model's folder, or else in ``packs_folder``; ``None`` without one."""
    path = spec.folder / pack_name(precision)
    if os.path.lexists(path):
        return path
    if packs_folder is not None and packs_folder.is_dir():
        path = pack_in(packs_folder, spec, index, precision)
        if path.exists():
            return path
    return None


def pack_in(packs_folder: Path, spec: ModelSpec, index: CheckpointIndex, precision: Precision = BF16) -> Path:
    """Where the model's pack is in a folder of many: under its fingerprint, wherever the model itself lies."""
    return packs_folder / pack_name(precision, fingerprint(spec, index))


def is_older(pack: Path, index: CheckpointIndex) -> bool:
    """Whether the checkpoint was changed after the pack was written, as far as the files' times tell."""
    try:
        return pack.stat().st_mtime_ns < newest_change(index)
    except OSError:
        return False  # opening it says more
