"""What a pack says about itself, and where in its file what lies. `packed_format` has the bytes around it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec
from offload.precision import BF16, PRECISIONS, Precision, expert_layout, matrix_bytes
from offload.store.blocks import align_up

PIECE_ROWS = 2048
"""Rows of a dense matrix that are one record. In every precision they fill whole blocks, so that a matrix lies in
one piece however many records it has."""

_FORMAT = "finemoe experts"


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """One weight of a quantised model that is no routed expert.

    Attributes:
        name: Its key in the checkpoint.
        precision: How it is kept; norms, biases and routers of quantised models stay in bfloat16.
        shape: Its dimensions, row-major.
    """

    name: str
    precision: Precision
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, scales included."""
        if self.precision == BF16:
            return math.prod(self.shape) * BYTES_PER_WEIGHT
        rows, columns = self.shape
        return matrix_bytes(self.precision, rows, columns)


@dataclass(frozen=True, slots=True)
class DensePiece:
    """One record of dense weights: some rows of a matrix, or all of a smaller tensor.

    Attributes:
        tensor: Of which tensor.
        first: Its first row.
        rows: How many; 0 for all of a tensor that is no quantised matrix.
        begin: Where it begins in the file, in bytes behind the records of experts; a multiple of a block.
        nbytes: Its bytes, without the zeros behind them.
    """

    tensor: DenseTensor
    first: int
    rows: int
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PackHeader:
    """What a pack says about itself.

    Attributes:
        precision: How weights are kept.
        fingerprint: Of the checkpoint that was packed; see :func:`offload.store.fingerprint.fingerprint`.
        model_type: Its family.
        moe_layers: Its layers with routed experts, among all decoder layers.
        num_experts: Routed experts a layer.
        hidden_size: Width of the residual stream, H.
        expert_size: Neurons of one routed expert, I.
        stride: Bytes of one expert's record.
        gate_up: Byte of it where the gate and up rows begin.
        down: Byte of it where the down projection begins.
        dense: All other weights of a quantised model, in the order of the file; none in bfloat16.
        error: For each kind of matrices, root mean square of the error of weights over that of the weights.
    """

    precision: Precision
    fingerprint: str
    model_type: str
    moe_layers: tuple[int, ...]
    num_experts: int
    hidden_size: int
    expert_size: int
    stride: int
    gate_up: int
    down: int
    dense: tuple[DenseTensor, ...] = ()
    error: tuple[tuple[str, float], ...] = ()

    @property
    def experts(self) -> int:
        """All routed experts; each has a record."""
        return len(self.moe_layers) * self.num_experts

    def without_error(self) -> PackHeader:
        """What follows from the checkpoint's shapes alone."""
        return replace(self, error=())


def header_of(spec: ModelSpec, fingerprint: str, precision: Precision = BF16) -> PackHeader:
    """The header of a pack of the model ``spec``, without dense weights."""
    layout = expert_layout(precision, spec.hidden_size, spec.expert_size)
    return PackHeader(
        precision=precision,
        fingerprint=fingerprint,
        model_type=spec.architecture.model_type,
        moe_layers=spec.moe_layers,
        num_experts=spec.num_experts,
        hidden_size=spec.hidden_size,
        expert_size=spec.expert_size,
        stride=align_up(layout.nbytes),
        gate_up=layout.gate_up,
        down=layout.down,
    )


def pieces_of(dense: Sequence[DenseTensor]) -> tuple[DensePiece, ...]:
    """The records of dense weights, in the order of the file."""
    pieces = []
    cursor = 0
    for tensor in dense:
        if tensor.precision == BF16:
            pieces.append(DensePiece(tensor, 0, 0, cursor, tensor.nbytes))
            cursor += align_up(tensor.nbytes)
            continue
        rows, columns = tensor.shape
        for first in range(0, rows, PIECE_ROWS):
            count = min(PIECE_ROWS, rows - first)
            nbytes = matrix_bytes(tensor.precision, count, columns)
            pieces.append(DensePiece(tensor, first, count, cursor, nbytes))
            cursor += align_up(nbytes)
    return tuple(pieces)


def header_json(header: PackHeader) -> bytes:
    """The header as it is written, without the spaces behind it."""
    fields: dict[str, Any] = {
        "format": _FORMAT,
        "precision": header.precision,
        "fingerprint": header.fingerprint,
        "model": {
            "model_type": header.model_type,
            "moe_layers": header.moe_layers,
            "num_experts": header.num_experts,
            "hidden_size": header.hidden_size,
            "expert_size": header.expert_size,
        },
        "records": {
            "count": header.experts,
            "stride": header.stride,
            "gate_up": header.gate_up,
            "down": header.down,
            "checksum": "sha256",
        },
    }
    if header.precision != BF16:
        fields["dense"] = [[tensor.name, tensor.precision, tensor.shape] for tensor in header.dense]
        fields["error"] = dict(header.error)
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def parse_header(text: bytes) -> PackHeader:
    """The header that was written as ``text``. Its precision may be one that nobody knows.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: It was not written by `header_json`.
    """
    fields: dict[str, Any] = json.loads(text)
    model, records = fields["model"], fields["records"]
    precision = str(fields["precision"])
    dense = [
        DenseTensor(str(name), _known(kept), tuple(_count(size) for size in shape))
        for name, kept, shape in fields.get("dense", ())
    ]
    if any(tensor.precision != BF16 and len(tensor.shape) != 2 for tensor in dense):
        raise ValueError("a quantised tensor is no matrix")
    return PackHeader(
        precision=precision,  # type: ignore[arg-type]
        fingerprint=str(fields["fingerprint"]),
        model_type=str(model["model_type"]),
        moe_layers=tuple(_count(layer) for layer in model["moe_layers"]),
        num_experts=_count(model["num_experts"]),
        hidden_size=_count(model["hidden_size"]),
        expert_size=_count(model["expert_size"]),
        stride=_count(records["stride"]),
        gate_up=_count(records["gate_up"]),
        down=_count(records["down"]),
        dense=tuple(dense),
        error=tuple((str(kind), float(value)) for kind, value in fields.get("error", {}).items()),
    )


def _known(precision: Any) -> Precision:
    if precision not in PRECISIONS:
        raise ValueError(f"{precision!r} is not a precision")
    known: Precision = precision
    return known


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
