"""Writing safetensors files as a stream.

Tensors are written in the order they are declared, and the header is padded with blanks, to a page if wanted, so
that the data begins on one. The format leaves both free (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = 4096
BYTES_PER_WEIGHT = 2

Float32 = npt.NDArray[np.float32]
BFloat16 = npt.NDArray[np.uint16]
"""Bit patterns of bfloat16, which numpy does not have."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A bfloat16 tensor that a file is to hold: its checkpoint key and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * BYTES_PER_WEIGHT


class ShardWriter:
    """One safetensors file of bfloat16 tensors, written front to back. A context manager.

    Args:
        path: The file to make.
        tensors: What it will hold, in the order in which the data will come.
        align: The data begins at a multiple of so many bytes: a page, or 8 as the safetensors library has it.

    Raises:
        OSError: The file could not be written.
    """

    def __init__(self, path: Path, tensors: list[Tensor], *, align: int = PAGE) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in tensors:
            end = offset + tensor.nbytes
            header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % align)
        self._missing = offset
        self._file = path.open("xb", buffering=0)
        self._write(memoryview(len(text).to_bytes(8, "little") + text))

    def append(self, values: BFloat16) -> int:
        """Write the data of the next tensor or tensors; returns its bytes."""
        data = np.ascontiguousarray(values)
        assert data.dtype == np.uint16 and data.nbytes <= self._missing
        self._write(data.data.cast("B"))
        self._missing -= data.nbytes
        return data.nbytes

    def finish(self) -> None:
        """Bring the file safely to the disk, and out of the page cache."""
        assert self._missing == 0, f"{self._missing} bytes were declared and never written"
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def bfloat16(values: Float32) -> BFloat16:
    """``values`` rounded to bfloat16, ties to even. Finite values only."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
