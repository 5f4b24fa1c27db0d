"""Where experts live while they are not resident: what every store promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from offload.models.spec import ModelSpec
from offload.precision import Precision

BLOCK = 4096
"""Bytes of one block. Direct I/O moves whole blocks between block-aligned places; slots consist of them."""


class ExpertStore(Protocol):
    """All routed experts of one model, readable one at a time from any thread.

    An expert's number is ``layer * num_experts + expert``, ``layer`` counting the layers with routed experts
    (``spec.moe_layers`` names the decoder layers). After :meth:`read`, the slot holds the gate and up rows as
    one matrix ``[2I, H]`` that begins at byte ``gate_up_offset[number]``, and the down projection as a matrix
    ``[H, I]`` at byte ``down_offset[number]``, both in the store's precision (:mod:`offload.precision`). Nothing is
    said about the slot's other bytes.

    Attributes:
        spec: The model's facts.
        kind: ``"safetensors"`` or ``"packed"``.
        precision: How the weights are kept.
        note: Why a pack that is there is not used, in one line; empty if there is nothing to say.
        record_bytes: Bytes of one expert's weights.
        slot_bytes: Bytes that a slot must have to take any expert; a multiple of :data:`BLOCK`.
        staging_bytes: Bytes of memory that each reading thread takes beside the slots; 0 if none.
        direct: Whether reads go past the page cache.
        direct_refused: Why they do not, in one line; empty if they do.
        gate_up_offset: int64 ``[total_experts]``, bytes, all even; multiples of 32 in quantised records.
        down_offset: int64 ``[total_experts]``, likewise.
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

    def read(self, expert_id: int, slot: memoryview) -> int:
        """Reads one expert into ``slot`` and returns the bytes taken from the disk. Blocks; thread-safe.

        ``slot`` is writable, block-aligned in memory, and has at least ``slot_bytes`` bytes.

        Raises:
            ExpertReadError: The bytes could not be read; the message names file, expert and layer.
        """
        ...

    def read_parts(self, expert_id: int, slot: memoryview, part_bytes: int) -> Iterator[int]:
        """As :meth:`read`, part by part: yields the bytes taken from the disk for each.

        It may be left unfinished, and gone on with on another thread, but never on two at once. One that has to
        arrange what it reads (``staging_bytes``) comes in a single part.

        Args:
            part_bytes: Of one part, about; a multiple of :data:`BLOCK`.

        Raises:
            ExpertReadError: As :meth:`read`.
        """
        ...

    def close(self) -> None:
        """Closes the files. No read may be under way; may be called twice."""
        ...
