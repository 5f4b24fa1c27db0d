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
                records of experts, ``stride`` bytes each, in the order of experts
         head_bytes + experts * stride
                quantised models only: records of all other weights, whole blocks each

Everything before the records is the head. An expert's number is ``layer * num_experts + expert``, ``layer``
counting the layers with routed experts, and its record begins at ``head_bytes + number * stride``. A record is the
gate and up rows as one matrix ``[2I, H]`` at its byte ``gate_up``, the down projection ``[H, I]`` at its byte
``down``, and zeros up to ``stride``, the next multiple of 4096: direct I/O brings it into a slot in one read. Its
checksum covers all of it. How a matrix lies there in each precision is said in :mod:`offload.precision`.

The magic and the place of the version are the same in every version. The precision is one of the header's
fields, so that quantised records need no other version, only a reader that knows them. What a header may hold
is documented in ``docs/packed-format.md``.

SHA-256 because processors compute it in hardware (1.8 GB/s on one core where it was measured, BLAKE2b 0.7),
because 32 zeros can then stand for "not written yet", and because ``dd`` and ``sha256sum`` can check a record.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.precision import BF16, PRECISIONS, Precision
from offload.store.base import BLOCK
from offload.store.blocks import align_up
from offload.store.packed_header import DensePiece, PackHeader, header_json, parse_header, pieces_of

PACK_NAME = "experts.finemoe"
"""The file name of a model's pack in bfloat16, in the model's folder."""
MAGIC = b"FINEMOE\x1a"
VERSION = 1
DIGEST_BYTES = 32
PACK_AGAIN = "pack the model again: finemoe pack --force"

_PREAMBLE = struct.Struct("<8sIIQ8x32s")
_CHECKSUM_AT = 32
_LONGEST_HEADER = 1 << 24
_LONGEST_HEAD = 1 << 28


def pack_name(precision: Precision, stem: str = "experts") -> str:
    """The file name of a pack: ``experts.finemoe``, ``experts.int8.finemoe``, ``experts.int4.finemoe``."""
    return f"{stem}.finemoe" if precision == BF16 else f"{stem}.{precision}.finemoe"


@dataclass(frozen=True)
class PackHead:
    """Everything that comes before the records.

    Attributes:
        header: What the pack says about itself.
        digests: The SHA-256 of each record, one behind another; 32 zeros where there is no record yet.
    """

    header: PackHeader
    digests: bytes

    @cached_property
    def pieces(self) -> tuple[DensePiece, ...]:
        """The records behind those of experts."""
        return pieces_of(self.header.dense)

    @property
    def records(self) -> int:
        """Records of the pack: one for each routed expert, then those of dense weights."""
        return self.header.experts + len(self.pieces)

    @property
    def table_start(self) -> int:
        """Byte of the file where the table of checksums begins."""
        return _PREAMBLE.size + len(_header_text(self.header))

    @cached_property
    def head_bytes(self) -> int:
        """Byte of the file where the first record begins."""
        return align_up(self.table_start + self.records * DIGEST_BYTES)

    @property
    def dense_start(self) -> int:
        """Byte of the file behind the records of experts."""
        return self.head_bytes + self.header.experts * self.header.stride

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        begin, nbytes = self.place(self.records - 1)
        return begin + nbytes

    def place(self, record: int) -> tuple[int, int]:
        """Where ``record`` begins in the file, and its bytes: whole blocks."""
        experts, stride = self.header.experts, self.header.stride
        if record < experts:
            return self.head_bytes + record * stride, stride
        piece = self.pieces[record - experts]
        return self.dense_start + piece.begin, align_up(piece.nbytes)

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
    if header.precision not in PRECISIONS:
        raise UnsupportedModel(
            f"{path} keeps its experts as {header.precision}, which this finemoe does not read",
            "use a newer finemoe, or pack the model again: finemoe pack --force",
        )
    table_bytes = PackHead(header, b"").records * DIGEST_BYTES
    head = PackHead(header, content[table_start : table_start + table_bytes])
    if not header.experts or len(head.digests) != table_bytes or head.encode(sealed=True) != content:
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
    text = header_json(header)
    padded = align_up(_PREAMBLE.size + len(text)) - _PREAMBLE.size
    return text.ljust(padded)


def _parse_header(path: Path, text: bytes) -> PackHeader:
    try:
        return parse_header(text)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _corrupt(path, f"has a header that cannot be understood: {error!r}") from error


def _corrupt(path: Path, problem: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{path} {problem}", PACK_AGAIN)
