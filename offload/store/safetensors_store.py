"""Experts read in place from a checkpoint's own safetensors files: no conversion, no second copy.

Where an expert's matrices lie in the file in an order that a kernel can use (gate directly before up), the
whole blocks that cover them are read straight into the slot, and offsets say where in the slot the matrices
begin. Experts that are scattered otherwise go through a small buffer of the reading thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec
from offload.precision import BF16, Precision
from offload.store.blocks import align_down, align_up, aligned_buffer
from offload.store.data_files import DataFiles, read_failure
from offload.store.safetensors_index import CheckpointIndex, TensorEntry


class _Piece(NamedTuple):
    """A byte range of a file with one matrix, or one row block of a matrix."""

    path: Path
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class _Extent(NamedTuple):
    """A gapless range of one file and where its blocks go in the buffer that receives them.

    Attributes:
        file: Number of the file.
        start: Byte of the file where the first block begins.
        skip: Bytes of the first block before the range.
        wanted: Bytes of the range.
        position: Byte of the receiving buffer where the first block goes.
        length: Bytes of all blocks.
    """

    file: int
    start: int
    skip: int
    wanted: int
    position: int
    length: int


class _Copy(NamedTuple):
    """Bytes moved from the staging buffer to the slot."""

    source: int
    target: int
    nbytes: int


class _Plan(NamedTuple):
    """How one expert is read. ``copies`` is empty where the extents land in the slot itself."""

    extents: tuple[_Extent, ...]
    copies: tuple[_Copy, ...]
    gate_up_offset: int
    down_offset: int

    @property
    def landing_bytes(self) -> int:
        """Bytes of the buffer that receives the extents."""
        last = self.extents[-1]
        return last.position + last.length


class SafetensorsStore:
    """An :class:`~offload.store.base.ExpertStore` over a checkpoint's safetensors files.

    See :class:`~offload.store.base.ExpertStore` for the attributes. Use :meth:`open`.
    """

    spec: ModelSpec
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

    def __init__(self, spec: ModelSpec, paths: list[Path], plans: list[_Plan], direct: bool | None) -> None:
        self.spec = spec
        self.kind = "safetensors"
        self.precision = BF16
        self.note = ""
        self.record_bytes = spec.expert_bytes
        staged = [plan.landing_bytes for plan in plans if plan.copies]
        landed = [plan.landing_bytes for plan in plans if not plan.copies]
        self.slot_bytes = max([align_up(self.record_bytes), *landed])
        self.staging_bytes = max(staged, default=0)
        self.gate_up_offset = np.array([plan.gate_up_offset for plan in plans], dtype=np.int64)
        self.down_offset = np.array([plan.down_offset for plan in plans], dtype=np.int64)
        self._plans = plans
        self._local = threading.local()
        self._files = DataFiles(paths, direct)
        self.direct, self.direct_refused = self._files.direct, self._files.direct_refused

    @classmethod
    def open(cls, spec: ModelSpec, index: CheckpointIndex, *, direct: bool | None = None) -> SafetensorsStore:
        """Checks every expert's tensors against ``spec`` and opens the files.

        Args:
            spec: The model's facts.
            index: The places of its tensors.
            direct: Whether to read past the page cache; ``None`` does where the filesystem allows it.

        Raises:
            UnsupportedModel: The experts are not in bfloat16, or have biases.
            CorruptCheckpoint: An expert is missing or has another shape, or a file cannot be opened.
            StorageError: ``direct`` is asked for and the filesystem refuses it.
        """
        _refuse_biases(index)
        files: dict[Path, int] = {}
        plans = []
        for layer in spec.moe_layers:
            for gate, up, down in _layer_pieces(spec, index, layer):
                plans.append(_plan(gate, up, down, files))
        return cls(spec, list(files), plans, direct)

    def read(self, expert_id: int, slot: memoryview) -> int:
        """See :meth:`ExpertStore.read <offload.store.base.ExpertStore.read>`."""
        return sum(self.read_parts(expert_id, slot, max(self.slot_bytes, self.staging_bytes)))

    def read_parts(self, expert_id: int, slot: memoryview, part_bytes: int) -> Iterator[int]:
        """See :meth:`ExpertStore.read_parts <offload.store.base.ExpertStore.read_parts>`."""
        extents, copies, _, _ = self._plans[expert_id]
        target = self._staging() if copies else slot
        done = 0
        for file, start, skip, wanted, position, length in extents:
            into = target[position : position + length]
            try:
                if copies:  # The buffer is the thread's own: nothing else may come between.
                    done += self._files.read(file, start, skip, wanted, into)
                else:
                    yield from self._files.read_parts(file, start, skip, wanted, into, part_bytes)
            except (OSError, EOFError) as error:
                raise read_failure(self.spec, expert_id, self._files.paths[file], error) from error
        if copies:
            # numpy's copy lets other threads run meanwhile; a memoryview's does not.
            source_bytes, slot_bytes = np.frombuffer(target, np.uint8), np.frombuffer(slot, np.uint8)
            for source, begin, nbytes in copies:
                slot_bytes[begin : begin + nbytes] = source_bytes[source : source + nbytes]
            yield done

    def close(self) -> None:
        """See :meth:`ExpertStore.close <offload.store.base.ExpertStore.close>`."""
        self._files.close()

    def _staging(self) -> memoryview:
        """The calling thread's own buffer; it lives as long as the thread."""
        view: memoryview | None = getattr(self._local, "staging", None)
        if view is None:
            view = self._local.staging = memoryview(aligned_buffer(self.staging_bytes))
        return view


def _refuse_biases(index: CheckpointIndex) -> None:
    biased = next((key for key in index.tensors if ".experts." in key and key.endswith("bias")), None)
    if biased is not None:
        raise UnsupportedModel(
            f"the experts in {index.folder} have biases ('{biased}'), which finemoe does not add",
            "use a model without them",
        )


def _layer_pieces(spec: ModelSpec, index: CheckpointIndex, layer: int) -> list[tuple[_Piece, _Piece, _Piece]]:
    """The byte ranges of gate, up and down of each expert of decoder layer ``layer``."""
    wide, narrow = spec.expert_size, spec.hidden_size
    half = wide * narrow * BYTES_PER_WEIGHT
    gate_up_key, down_key = spec.architecture.fused_keys(layer)
    pieces = []
    if gate_up_key in index.tensors:
        gate_up = _checked(index, gate_up_key, (spec.num_experts, 2 * wide, narrow))
        down = _checked(index, down_key, (spec.num_experts, narrow, wide))
        for expert in range(spec.num_experts):
            begin = gate_up.offset + expert * 2 * half
            pieces.append(
                (
                    _Piece(gate_up.path, begin, half),
                    _Piece(gate_up.path, begin + half, half),
                    _Piece(down.path, down.offset + expert * half, half),
                )
            )
        return pieces
    for expert in range(spec.num_experts):
        shapes = ((wide, narrow), (wide, narrow), (narrow, wide))
        keys = spec.architecture.expert_keys(layer, expert)
        entries = [_checked(index, key, shape) for key, shape in zip(keys, shapes, strict=True)]
        gate, up, down_piece = (_Piece(entry.path, entry.offset, entry.nbytes) for entry in entries)
        pieces.append((gate, up, down_piece))
    return pieces


def _checked(index: CheckpointIndex, key: str, shape: tuple[int, ...]) -> TensorEntry:
    entry = index.tensors.get(key)
    if entry is None:
        raise CorruptCheckpoint(f"{index.folder} has no tensor '{key}'", "fetch the model again")
    if entry.dtype != "BF16":
        raise UnsupportedModel(
            f"{index.folder} keeps its experts as {entry.dtype} ('{key}'); finemoe reads BF16",
            "use the bfloat16 checkpoint",
        )
    if entry.shape != shape:
        raise CorruptCheckpoint(
            f"'{key}' in {entry.path} has the shape {list(entry.shape)}; config.json asks for {list(shape)}",
            "fetch the model again",
        )
    return entry


def _plan(gate: _Piece, up: _Piece, down: _Piece, files: dict[Path, int]) -> _Plan:
    """How to read one expert. Files met for the first time are numbered and added to ``files``."""
    extents: list[_Extent] = []
    places: dict[_Piece, int] = {}
    position = 0
    for run in _gapless_runs([gate, up, down]):
        start = align_down(run[0].offset)
        length = align_up(run[-1].end) - start
        skip = run[0].offset - start
        file = files.setdefault(run[0].path, len(files))
        extents.append(_Extent(file, start, skip, run[-1].end - run[0].offset, position, length))
        for piece in run:
            places[piece] = position + piece.offset - start
        position += length
    usable = places[up] == places[gate] + gate.nbytes
    if usable and places[gate] % BYTES_PER_WEIGHT == 0 and places[down] % BYTES_PER_WEIGHT == 0:
        return _Plan(tuple(extents), (), places[gate], places[down])
    copies = (
        _Copy(places[gate], 0, gate.nbytes),
        _Copy(places[up], gate.nbytes, up.nbytes),
        _Copy(places[down], gate.nbytes + up.nbytes, down.nbytes),
    )
    return _Plan(tuple(extents), copies, 0, gate.nbytes + up.nbytes)


def _gapless_runs(pieces: list[_Piece]) -> list[list[_Piece]]:
    """The pieces in the order of the disk, those that touch one another together."""
    ordered = sorted(pieces)
    runs = [[ordered[0]]]
    for before, piece in pairwise(ordered):
        if piece.path == before.path and piece.offset == before.end:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs
