"""Reads ahead go in parts, so that a demand read need not wait for the rest of one, or for one that nobody wants.

A device serves what it has begun with. A read of a whole expert that was guessed would keep a demand read waiting
for most of its time; one of a part keeps it waiting for a part's.
"""

from __future__ import annotations

PARTS = 4
"""Of an expert, unless they would be small."""
SMALLEST = 128 << 10
"""Bytes; smaller reads would cost the disk more than they save."""
_BLOCK = 4096  # as in `offload.store.base`, which this must not need


def part_bytes(record_bytes: int) -> int:
    """Bytes of one part of an expert of `record_bytes` bytes: whole blocks."""
    wanted = max(SMALLEST, -(-record_bytes // PARTS))
    return -(-wanted // _BLOCK) * _BLOCK


def parts_of(record_bytes: int) -> int:
    """Parts that an expert of `record_bytes` bytes is read ahead in."""
    return max(1, round(record_bytes / part_bytes(record_bytes)))
