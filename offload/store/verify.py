"""Finding what is damaged in a model's folder, down to the expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offload.errors import ExpertReadError, FinemoeError
from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec, read_spec
from offload.store.open_store import find_pack, is_older
from offload.store.packed_store import PackedStore
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from offload.store.sweep import sweep

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what was found.

    Attributes:
        folder: The model's folder.
        problems: What is damaged, one line each; empty if nothing is.
        notes: What is worth knowing and no damage, one line each.
        tensors: Tensors whose places were checked.
        experts: Experts whose bytes were read and checked against the checksums of the pack; 0 without a pack.
        compared: Whether they were also compared with those of the checkpoint.
        pack: The pack that was read; ``None`` if there is none.
    """

    folder: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    tensors: int
    experts: int
    compared: bool
    pack: Path | None

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON, with ``ok``."""
        fields = asdict(self)
        fields["folder"] = str(self.folder)
        fields["pack"] = None if self.pack is None else str(self.pack)
        return {"ok": self.ok, **fields}


def verify_model(
    folder: Path,
    progress: Progress | None = None,
    *,
    packs_folder: Path | None = None,
    compare: bool = True,
) -> VerifyReport:
    """Checks the safetensors headers of a model and, where it has a pack, every record of it.

    The checkpoint's own weights have no checksums; with ``compare`` they are checked against the pack's.

    Args:
        folder: The model's folder.
        progress: Called with ``"verify"``, and how many bytes of how many are checked.
        packs_folder: Where the packs of models are whose own folders cannot be written.
        compare: Whether to read the experts of the checkpoint too, and compare them with the pack's.

    Raises:
        ModelNotFound: There is no model in ``folder``.
        UnsupportedModel: One that finemoe does not run, and so cannot judge.
    """
    spec = read_spec(folder)
    index, checkpoint, broken = _open_checkpoint(spec)
    if index is None:
        return VerifyReport(folder, broken, (), 0, 0, False, None)
    try:
        path = find_pack(spec, index, packs_folder)
        if path is None:
            return VerifyReport(folder, broken, (), len(index.tensors), 0, False, None)
        notes = (f"{path} is older than the checkpoint and not used",) if is_older(path, index) else ()
        try:
            pack = PackedStore.open(spec, index, path)
        except FinemoeError as error:
            return VerifyReport(folder, (*broken, error.message), notes, len(index.tensors), 0, False, path)
        source = checkpoint if compare else None
        try:
            damaged = find_damage(pack, source, progress)
        finally:
            pack.close()
    finally:
        if checkpoint is not None:
            checkpoint.close()
    problems = (*broken, *damaged)
    return VerifyReport(folder, problems, notes, len(index.tensors), spec.total_experts, source is not None, path)


def find_damage(
    pack: PackedStore, checkpoint: SafetensorsStore | None, progress: Progress | None = None
) -> list[str]:
    """A line for each expert that is damaged in ``pack``, or another one in ``checkpoint``, in their order."""
    spec, done = pack.spec, 0
    damage: dict[int, str] = {}
    buffers = [pack.slot_bytes] if checkpoint is None else [pack.slot_bytes, checkpoint.slot_bytes]

    def check(expert: int, views: list[memoryview]) -> str:
        try:
            if not pack.read_checked(expert, views[0]):
                return f"{_name(spec, expert)} is damaged in {pack.path}: its checksum does not match"
            if checkpoint is not None:
                checkpoint.read(expert, views[1])
                if not _same(pack, views[0], checkpoint, views[1], expert):
                    return f"{_name(spec, expert)} in {spec.folder} is not the one in {pack.path}"
        except ExpertReadError as error:
            return error.message
        return ""

    def take(expert: int, problem: str) -> None:
        nonlocal done
        done += 1
        if problem:
            damage[expert] = problem
        if progress is not None:
            progress("verify", done * pack.record_bytes, spec.total_experts * pack.record_bytes)

    sweep(range(spec.total_experts), buffers, check, take)
    return [damage[expert] for expert in sorted(damage)]


def _open_checkpoint(
    spec: ModelSpec,
) -> tuple[CheckpointIndex | None, SafetensorsStore | None, tuple[str, ...]]:
    """As much of the checkpoint as can be opened, and why not more."""
    index = None
    try:
        index = CheckpointIndex.open(spec.folder)
        return index, SafetensorsStore.open(spec, index), ()
    except FinemoeError as error:
        return index, None, (error.message,)


def _same(
    pack: PackedStore, packed: memoryview, checkpoint: SafetensorsStore, plain: memoryview, expert: int
) -> bool:
    half = pack.spec.expert_size * pack.spec.hidden_size * BYTES_PER_WEIGHT
    ours, theirs = np.frombuffer(packed, np.uint8), np.frombuffer(plain, np.uint8)
    for nbytes, mine, other in (
        (2 * half, pack.gate_up_offset, checkpoint.gate_up_offset),
        (half, pack.down_offset, checkpoint.down_offset),
    ):
        a, b = int(mine[expert]), int(other[expert])
        if not np.array_equal(ours[a : a + nbytes], theirs[b : b + nbytes]):
            return False
    return True


def _name(spec: ModelSpec, expert_id: int) -> str:
    layer, expert = divmod(expert_id, spec.num_experts)
    return f"expert {expert} of layer {spec.moe_layers[layer]}"
