"""What the records of a pack have to be: worked out of the checkpoint, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from offload.errors import UnsupportedModel
from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec
from offload.precision import BF16, Precision, can_be_quantised, check_family, dense_precision
from offload.store.blocks import align_up, aligned_buffer
from offload.store.packed_format import PackHead
from offload.store.packed_header import DensePiece, DenseTensor, PackHeader
from offload.store.quantise import dequantise, quantise
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore

_SAMPLES = 16  # records of each kind that errors are measured on

_KINDS = {
    "self_attn": "attention",
    "shared_expert": "shared_experts",
    "mlp": "dense_mlps",
    "embed_tokens": "embedding",
    "lm_head": "head",
}


def dense_tensors(spec: ModelSpec, index: CheckpointIndex, precision: Precision) -> tuple[DenseTensor, ...]:
    """What a pack keeps beside the experts: nothing in bfloat16, and else every weight that the model has.

    Raises:
        UnsupportedModel: A model that finemoe does not quantise.
    """
    if precision == BF16:
        return ()
    check_family(precision, spec.name, spec.architecture.model_type, spec.architecture.fast_kernels)
    for name, rows, columns in (
        ("the gate projection of its experts", 2 * spec.expert_size, spec.hidden_size),
        ("the down projection of its experts", spec.hidden_size, spec.expert_size),
    ):
        _check_shape(spec, name, rows, columns)
    experts = {key for layer in spec.moe_layers for key in _expert_keys(spec, layer)}
    if spec.tied_embeddings:
        experts.add("lm_head.weight")  # the embedding table once more, where a checkpoint has it
    tensors = []
    for key, entry in index.tensors.items():
        if key in experts or entry.dtype != "BF16":
            continue
        kept = dense_precision(precision, key)
        if kept != BF16:
            if len(entry.shape) != 2:
                raise UnsupportedModel(f"{key} of {spec.name} is no matrix", "run it in bf16")
            _check_shape(spec, key, *entry.shape)
        tensors.append(DenseTensor(key, kept, entry.shape))
    return tuple(sorted(tensors, key=lambda tensor: tensor.name))


class RecordSource:
    """A checkpoint as the records of a pack. Records are worked out on any thread.

    Attributes:
        head: Of the pack, without checksums.
        scratch_bytes: Bytes that working out a record takes beside the record itself.
        record_bytes: Bytes of the largest record.
    """

    def __init__(self, spec: ModelSpec, index: CheckpointIndex, header: PackHeader) -> None:
        """Opens the checkpoint.

        Raises:
            UnsupportedModel, CorruptCheckpoint: Its experts cannot be read as its configuration asks.
        """
        self.spec = spec
        self.head = PackHead(header, b"")
        self._index = index
        self._experts = SafetensorsStore.open(spec, index)
        pieces = self.head.pieces
        self.scratch_bytes = max([self._experts.slot_bytes, *(_source_bytes(piece) for piece in pieces)])
        self.record_bytes = max([header.stride, *(align_up(piece.nbytes) for piece in pieces)])

    def close(self) -> None:
        """Closes the checkpoint. No record may be under way; may be called twice."""
        self._experts.close()

    def fill(self, record: int, scratch: memoryview, out: memoryview) -> memoryview:
        """Writes a record into ``out``, and returns the part of it that it takes.

        Raises:
            ExpertReadError, CorruptCheckpoint: The checkpoint's bytes cannot be read.
        """
        _, nbytes = self.head.place(record)
        target = np.frombuffer(out, np.uint8)[:nbytes]
        end = 0
        for begin, precision, bits in self._matrices(record, scratch):
            kept = _kept_bytes(precision, bits.shape)
            target[end:begin] = 0
            end = begin + kept
            quantise(precision, bits, target[begin:end])
        target[end:] = 0
        return out[:nbytes]

    def errors(self) -> tuple[tuple[str, float], ...]:
        """For each kind of quantised matrices the root mean square of the error over that of the weights.

        Measured on up to 16 records of each kind, evenly spread, so that it is the same whenever it is.

        Raises:
            ExpertReadError, CorruptCheckpoint: The checkpoint's bytes cannot be read.
        """
        header = self.head.header
        if header.precision == BF16:
            return ()
        by_kind: dict[str, list[int]] = {"experts": list(range(header.experts))}
        for number, piece in enumerate(self.head.pieces, header.experts):
            if piece.tensor.precision != BF16:
                by_kind.setdefault(_kind(piece.tensor.name), []).append(number)
        scratch = memoryview(aligned_buffer(self.scratch_bytes))
        return tuple((kind, self._error(_spread(records), scratch)) for kind, records in by_kind.items())

    def _error(self, records: list[int], scratch: memoryview) -> float:
        wrong = all_of_it = 0.0
        for record in records:
            for _, precision, bits in self._matrices(record, scratch):
                packed = np.empty(_kept_bytes(precision, bits.shape), np.uint8)
                quantise(precision, bits, packed)
                weights = dequantise(BF16, bits.reshape(-1).view(np.uint8), *bits.shape)
                difference = dequantise(precision, packed, *bits.shape) - weights
                wrong += float(np.square(difference).sum(dtype=np.float64))
                all_of_it += float(np.square(weights).sum(dtype=np.float64))
        return round((wrong / all_of_it) ** 0.5, 6) if all_of_it else 0.0

    def _matrices(self, record: int, scratch: memoryview) -> Iterator[tuple[int, Precision, NDArray[np.uint16]]]:
        """The matrices of a record as the checkpoint has them: where each begins, how it is kept, its bits."""
        header, spec = self.head.header, self.spec
        if record >= header.experts:
            piece = self.head.pieces[record - header.experts]
            nbytes = _source_bytes(piece)
            row_bytes = BYTES_PER_WEIGHT * piece.tensor.shape[-1]
            self._index.read_range(piece.tensor.name, piece.first * row_bytes, scratch[:nbytes])
            bits = np.frombuffer(scratch[:nbytes], np.uint16)
            yield 0, piece.tensor.precision, bits.reshape(piece.rows, -1) if piece.rows else bits.reshape(1, -1)
            return
        self._experts.read(record, scratch)
        for begin, source, rows, columns in (
            (header.gate_up, self._experts.gate_up_offset, 2 * spec.expert_size, spec.hidden_size),
            (header.down, self._experts.down_offset, spec.hidden_size, spec.expert_size),
        ):
            first = int(source[record])
            matrix = scratch[first : first + BYTES_PER_WEIGHT * rows * columns]
            yield begin, header.precision, np.frombuffer(matrix, np.uint16).reshape(rows, columns)


def record_name(spec: ModelSpec, head: PackHead, record: int) -> str:
    """What a record is of, for people."""
    experts = head.header.experts
    if record < experts:
        layer, expert = divmod(record, spec.num_experts)
        return f"expert {expert} of layer {spec.moe_layers[layer]}"
    piece = head.pieces[record - experts]
    if not piece.rows:
        return piece.tensor.name
    return f"{piece.tensor.name} (rows {piece.first} to {piece.first + piece.rows - 1})"


def _kept_bytes(precision: Precision, shape: tuple[int, ...]) -> int:
    return DenseTensor("", precision, shape).nbytes


def _source_bytes(piece: DensePiece) -> int:
    rows = (piece.rows, *piece.tensor.shape[1:]) if piece.rows else piece.tensor.shape
    return _kept_bytes(BF16, rows)


def _spread(records: list[int]) -> list[int]:
    return records[:: -(-len(records) // _SAMPLES)]


def _kind(name: str) -> str:
    return next(kind for part, kind in _KINDS.items() if part in name)


def _expert_keys(spec: ModelSpec, layer: int) -> Iterator[str]:
    yield from spec.architecture.fused_keys(layer)
    for expert in range(spec.num_experts):
        yield from spec.architecture.expert_keys(layer, expert)


def _check_shape(spec: ModelSpec, name: str, rows: int, columns: int) -> None:
    if not can_be_quantised(rows, columns):
        raise UnsupportedModel(
            f"{name} of {spec.name} has the shape [{rows}, {columns}]; finemoe quantises multiples of [16, 32]",
            "run it in bf16",
        )
