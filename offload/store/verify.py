"""Finding what is damaged in a model's folder, down to the expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offload.errors import CorruptCheckpoint, ExpertReadError, FinemoeError
from offload.models.spec import ModelSpec, read_spec
from offload.precision import PRECISIONS
from offload.store.open_store import find_pack, is_older
from offload.store.packed_store import PackedStore
from offload.store.records import RecordSource, record_name
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
        experts: Experts whose bytes were read and checked against the checksums of packs, in all packs together.
        compared: Whether they were also compared with those of the checkpoint.
        packs: The packs that there are.
    """

    folder: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    tensors: int
    experts: int
    compared: bool
    packs: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON, with ``ok``."""
        fields = asdict(self)
        fields["folder"] = str(self.folder)
        fields["packs"] = [str(pack) for pack in self.packs]
        return {"ok": self.ok, **fields}


def verify_model(
    folder: Path,
    progress: Progress | None = None,
    *,
    packs_folder: Path | None = None,
    compare: bool = True,
) -> VerifyReport:
    """Checks the safetensors headers of a model and, where it has packs, every record of them.

    The checkpoint's own weights have no checksums; with ``compare`` they are checked against the packs'.

    Args:
        folder: The model's folder.
        progress: Called with ``"verify"``, and how many bytes of how many are checked.
        packs_folder: Where the packs of models are whose own folders cannot be written.
        compare: Whether to read the weights of the checkpoint too, and compare them with those of the packs.

    Raises:
        ModelNotFound: There is no model in ``folder``.
        UnsupportedModel: One that finemoe does not run, and so cannot judge.
    """
    spec = read_spec(folder)
    index, readable, broken = _open_checkpoint(spec)
    if index is None:
        return VerifyReport(folder, broken, (), 0, 0, False, ())
    problems, notes, packs, experts = list(broken), [], [], 0
    for precision in PRECISIONS:
        path = find_pack(spec, index, packs_folder, precision)
        if path is None:
            continue
        packs.append(path)
        if is_older(path, index):
            notes.append(f"{path} is older than the checkpoint and not used")
        try:
            pack = PackedStore.open(spec, index, path, precision)
        except FinemoeError as error:
            problems.append(error.message)
            continue
        source = None
        try:
            source = RecordSource(spec, index, pack.head.header.without_error()) if compare and readable else None
            problems += find_damage(pack, source, progress)
        finally:
            pack.close()
            if source is not None:
                source.close()
        experts += spec.total_experts
    compared = compare and readable and experts > 0
    return VerifyReport(folder, tuple(problems), tuple(notes), len(index.tensors), experts, compared, tuple(packs))


def find_damage(pack: PackedStore, source: RecordSource | None, progress: Progress | None = None) -> list[str]:
    """A line for each record that is damaged in ``pack``, or another one in the checkpoint, in their order."""
    head, done = pack.head, 0
    damage: dict[int, str] = {}
    largest = max(head.place(record)[1] for record in (0, *range(head.header.experts, head.records)))
    total = sum(head.place(record)[1] for record in range(head.records))
    buffers = [largest] if source is None else [largest, source.scratch_bytes, source.record_bytes]

    def check(record: int, views: list[memoryview]) -> str:
        name = record_name(pack.spec, head, record)
        try:
            if not pack.read_checked(record, views[0]):
                return f"{name} is damaged in {pack.path}: its checksum does not match"
            if source is not None:
                expected = source.fill(record, views[1], views[2])
                if not np.array_equal(
                    np.frombuffer(views[0], np.uint8)[: len(expected)], np.frombuffer(expected, np.uint8)
                ):
                    return f"{name} in {pack.spec.folder} is not the one in {pack.path}"
        except (ExpertReadError, CorruptCheckpoint) as error:
            return error.message
        return ""

    def take(record: int, problem: str) -> None:
        nonlocal done
        done += head.place(record)[1]
        if problem:
            damage[record] = problem
        if progress is not None:
            progress("verify", done, total)

    sweep(range(head.records), buffers, check, take)
    return [damage[record] for record in sorted(damage)]


def _open_checkpoint(spec: ModelSpec) -> tuple[CheckpointIndex | None, bool, tuple[str, ...]]:
    """As much of the checkpoint as can be opened, whether that is all of it, and why not."""
    index = None
    try:
        index = CheckpointIndex.open(spec.folder)
        SafetensorsStore.open(spec, index).close()
        return index, True, ()
    except FinemoeError as error:
        return index, False, (error.message,)
