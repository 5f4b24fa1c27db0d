"""The format of a packed store: one file with one aligned, checksummed record for each expert.

::

    byte 0      preamble, 64 bytes, little-endian:
                     0   8 bytes   magic, b"FINEMOE\\x1a"
                     8   uint32    version of the format
                    12   uint32    header_bytes
                    16   uint64    head_bytes, a multiple of 4096
                    24   8 bytes   zero
                    32  32 bytes   SHA-256 of the head, with these 32 bytes as zeros
         64     header: JSON in ASCII, padded with spaces; 64 + header_bytes is a multiple of 4096
         64 + header_bytes
                table: the SHA-256 of each record, 32 bytes each, then zeros
         head_bytes
                records, ``stride`` bytes each, in the order of experts

Everything before the records is the head. An expert's number is ``layer * num_experts + expert``, ``layer``
counting the layers with routed experts, and its record begins at ``head_bytes + number * stride``. A record in
the precision ``bf16`` is the gate and up rows as one bfloat16 matrix ``[2I, H]`` at its byte ``gate_up``, the
down projection ``[H, I]`` at its byte ``down``, and zeros up to ``stride``, the next multiple of 4096: direct
I/O brings it into a slot in one read. Its checksum covers all of it.

The magic and the place of the version are the same in every version. The precision is one of the header's
fields, so that quantised records need no other version, only a reader that knows them. What a header may hold
is documented in ``docs/packed-format.md``.

SHA-256 because processors compute it in hardware (1.8 GB/s on one core where it was measured, BLAKE2b 0.7),
because 32 zeros can then stand for "not written yet", and because ``dd`` and ``sha256sum`` can check a record.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec
from offload.store.base import BLOCK
from offload.store.blocks import align_up

PACK_NAME = "experts.finemoe"
"""The pack's file name in a model's folder."""
PACK_SUFFIX = ".finemoe"
MAGIC = b"FINEMOE\x1a"
VERSION = 1
BF16 = "bf16"
"""The precision of unquantised records, the only one that is written and read now."""

DIGEST_BYTES = 32
PACK_AGAIN = "pack the model again: finemoe pack --force"

_PREAMBLE = struct.Struct("<8sIIQ8x32s")
_CHECKSUM_AT = 32
_LONGEST_HEADER = 1 << 24
_LONGEST_HEAD = 1 << 28
_FORMAT = "finemoe experts"


@dataclass(frozen=True, slots=True)
class PackHeader:
    """What a pack says about itself.

    Attributes:
        precision: How weights are kept; ``"bf16"``.
        fingerprint: Of the checkpoint that was packed; see :func:`offload.store.fingerprint.fingerprint`.
        model_type: Its family.
        moe_layers: Its layers with routed experts, among all decoder layers.
        num_experts: Routed experts a layer.
        hidden_size: Width of the residual stream, H.
        expert_size: Neurons of one routed expert, I.
        stride: Bytes of one record.
        gate_up: Byte of a record where the gate and up rows begin.
        down: Byte of a record where the down projection begins.
    """

    precision: str
    fingerprint: str
    model_type: str
    moe_layers: tuple[int, ...]
    num_experts: int
    hidden_size: int
    expert_size: int
    stride: int
    gate_up: int
    down: int

    @property
    def records(self) -> int:
        """Records of the pack: one for each routed expert."""
        return len(self.moe_layers) * self.num_experts


@dataclass(frozen=True, slots=True)
class PackHead:
    """Everything that comes before the records.

    Attributes:
        header: What the pack says about itself.
        digests: The SHA-256 of each record, one behind another; 32 zeros where there is no record yet.
    """

    header: PackHeader
    digests: bytes

    @property
    def table_start(self) -> int:
        """Byte of the file where the table of checksums begins."""
        return _PREAMBLE.size + len(_header_text(self.header))

    @property
    def head_bytes(self) -> int:
        """Byte of the file where the first record begins."""
        return align_up(self.table_start + len(self.digests))

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.head_bytes + self.header.records * self.header.stride

    def digest(self, record: int) -> bytes:
        """The checksum that ``record`` must have."""
        return self.digests[record * DIGEST_BYTES : (record + 1) * DIGEST_BYTES]

    def encode(self, *, sealed: bool) -> bytes:
        """The head's bytes; without its own checksum, as long as the pack is being written, unless ``sealed``."""
        text = _header_text(self.header)
        parts = (text, self.digests, bytes(self.head_bytes - self.table_start - len(self.digests)))
        body = b"".join(parts)
        preamble = _PREAMBLE.pack(MAGIC, VERSION, len(text), self.head_bytes, bytes(DIGEST_BYTES))
        if sealed:
            checksum = hashlib.sha256(preamble + body).digest()
            preamble = preamble[:_CHECKSUM_AT] + checksum
        return preamble + body


def header_of(spec: ModelSpec, fingerprint: str) -> PackHeader:
    """The header of a pack of the model ``spec`` in bfloat16."""
    half = spec.expert_size * spec.hidden_size * BYTES_PER_WEIGHT
    return PackHeader(
        precision=BF16,
        fingerprint=fingerprint,
        model_type=spec.architecture.model_type,
        moe_layers=spec.moe_layers,
        num_experts=spec.num_experts,
        hidden_size=spec.hidden_size,
        expert_size=spec.expert_size,
        stride=align_up(spec.expert_bytes),
        gate_up=0,
        down=2 * half,
    )


def is_pack(path: Path) -> bool:
    """Whether the file begins as packs of any version do.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_head(path: Path) -> PackHead:
    """The head of the pack at ``path``, checked byte for byte; the records are not read.

    Raises:
        UnsupportedModel: Another version of the format, or another precision.
        CorruptCheckpoint: No pack, a damaged head, or another size than the head asks for.
    """
    try:
        with path.open("rb") as file:
            preamble = file.read(_PREAMBLE.size)
            size = file.seek(0, 2)
            header_bytes, head_bytes = _check_preamble(path, preamble, size)
            file.seek(0)
            content = file.read(head_bytes)
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror or error}") from error
    begin, end = _CHECKSUM_AT, _CHECKSUM_AT + DIGEST_BYTES
    if hashlib.sha256(content[:begin] + bytes(DIGEST_BYTES) + content[end:]).digest() != content[begin:end]:
        raise _corrupt(path, "has a damaged head: its checksum does not match")
    table_start = _PREAMBLE.size + header_bytes
    header = _parse_header(path, content[_PREAMBLE.size : table_start])
    if header.precision != BF16:
        raise UnsupportedModel(
            f"{path} keeps its experts as {header.precision}, which this finemoe does not read",
            "use a newer finemoe, or pack the model again: finemoe pack --force",
        )
    head = PackHead(header, content[table_start : table_start + header.records * DIGEST_BYTES])
    if len(head.digests) != header.records * DIGEST_BYTES or head.encode(sealed=True) != content:
        raise _corrupt(path, "has a head that contradicts itself")
    if size != head.file_bytes:
        problem = "is truncated" if size < head.file_bytes else "is too long"
        raise _corrupt(path, f"{problem}: it has {size} bytes and its head describes {head.file_bytes}")
    return head


def _check_preamble(path: Path, preamble: bytes, size: int) -> tuple[int, int]:
    """The lengths of header and head, plausible ones."""
    if len(preamble) < _PREAMBLE.size:
        raise _corrupt(path, f"is truncated: it has {size} bytes")
    magic, version, header_bytes, head_bytes, _ = _PREAMBLE.unpack(preamble)
    if magic != MAGIC:
        raise _corrupt(path, "is not a pack of finemoe")
    if version != VERSION:
        raise UnsupportedModel(
            f"{path} is a pack of version {version}; this finemoe reads version {VERSION}",
            "use the finemoe that wrote it, or pack the model again: finemoe pack --force",
        )
    if (
        header_bytes > _LONGEST_HEADER
        or head_bytes > _LONGEST_HEAD
        or head_bytes % BLOCK
        or _PREAMBLE.size + header_bytes > head_bytes
    ):
        raise _corrupt(path, "has a damaged head: it gives impossible lengths")
    if size < head_bytes:
        raise _corrupt(path, f"is truncated: {size} bytes do not hold its head of {head_bytes}")
    return header_bytes, head_bytes


def _header_text(header: PackHeader) -> bytes:
    fields = {
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
            "count": header.records,
            "stride": header.stride,
            "gate_up": header.gate_up,
            "down": header.down,
            "checksum": "sha256",
        },
    }
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    padded = align_up(_PREAMBLE.size + len(text)) - _PREAMBLE.size
    return text.ljust(padded)


def _parse_header(path: Path, text: bytes) -> PackHeader:
    try:
        fields: dict[str, Any] = json.loads(text)
        model, records = fields["model"], fields["records"]
        header = PackHeader(
            precision=str(fields["precision"]),
            fingerprint=str(fields["fingerprint"]),
            model_type=str(model["model_type"]),
            moe_layers=tuple(_count(layer) for layer in model["moe_layers"]),
            num_experts=_count(model["num_experts"]),
            hidden_size=_count(model["hidden_size"]),
            expert_size=_count(model["expert_size"]),
            stride=_count(records["stride"]),
            gate_up=_count(records["gate_up"]),
            down=_count(records["down"]),
        )
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _corrupt(path, f"has a header that cannot be understood: {error!r}") from error
    return header


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _corrupt(path: Path, problem: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{path} {problem}", PACK_AGAIN)
