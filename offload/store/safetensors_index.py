"""Where each tensor of a checkpoint folder lies on the disk, from the headers of its safetensors files.

The headers are checked strictly (https://huggingface.co/docs/safetensors), because everything later trusts
them: what is promised here is that every listed byte range lies inside its file and belongs to one tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.store.blocks import drop_cached, open_buffered, read_exact

SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"

_LONGEST_HEADER = 100_000_000  # the format's own limit, bytes
_CHUNK = 8 << 20  # bytes read before the page cache is emptied again
_FETCH_AGAIN = "fetch the model again"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
_DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor's place.

    Attributes:
        path: The file that holds it.
        dtype: The format's name of its type, such as ``"BF16"``.
        shape: Its dimensions, row-major.
        offset: Byte of the file at which its data begin.
        nbytes: Bytes of its data.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class CheckpointIndex:
    """Every tensor of a checkpoint folder by its key.

    Attributes:
        folder: The checkpoint's folder.
        tensors: Every tensor's place by its key; with several shards, those that the shard index lists.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorEntry]) -> None:
        self.folder = folder
        self.tensors = tensors

    @classmethod
    def open(cls, folder: Path) -> CheckpointIndex:
        """Reads and checks the headers of ``folder``'s safetensors files; no weights are read.

        Raises:
            UnsupportedModel: There are only pickle files.
            CorruptCheckpoint: A file is missing, truncated, or contradicts itself or the shard index.
        """
        single = folder / SINGLE_FILE
        if single.is_file():
            return cls(folder, read_header(single))
        index = folder / SHARD_INDEX
        if index.is_file():
            return cls(folder, _read_shards(folder, _read_weight_map(index)))
        raise _no_weights(folder)

    def read_tensor(self, key: str, out: memoryview) -> None:
        """Reads the bytes of tensor ``key`` into ``out`` (bytes, writable, of exactly its size).

        They are not left in the page cache.

        Raises:
            CorruptCheckpoint: There is no such tensor, or its file cannot be read.
        """
        entry = self._entry(key)
        if out.nbytes != entry.nbytes:
            raise ValueError(f"{key} has {entry.nbytes} bytes, the buffer {out.nbytes}")
        self.read_range(key, 0, out)

    def read_range(self, key: str, start: int, out: memoryview) -> None:
        """As :meth:`read_tensor`, from byte ``start`` of the tensor on, as much as ``out`` takes."""
        entry = self._entry(key)
        if start + out.nbytes > entry.nbytes:
            raise ValueError(f"{key} has {entry.nbytes} bytes, and {out.nbytes} are asked for from {start} on")
        read_into(entry.path, entry.offset + start, out)

    def _entry(self, key: str) -> TensorEntry:
        entry = self.tensors.get(key)
        if entry is None:
            raise CorruptCheckpoint(f"{self.folder} has no tensor '{key}'", _FETCH_AGAIN)
        return entry


def read_into(path: Path, offset: int, out: memoryview, remedy: str = _FETCH_AGAIN) -> None:
    """Fills ``out`` with the bytes at ``offset`` of a file, which are not left in the page cache.

    Raises:
        CorruptCheckpoint: The file cannot be read, or ends before.
    """
    view = out.cast("B") if out.nbytes else out
    try:
        fd = open_buffered(path)
        try:
            for start in range(0, out.nbytes, _CHUNK):
                count = read_exact(fd, offset + start, view[start : start + _CHUNK])
                drop_cached(fd, offset + start, count)
        finally:
            os.close(fd)
    except (OSError, EOFError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}", remedy) from error


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file by their keys.

    Raises:
        CorruptCheckpoint: The file cannot be read, or breaks the format's rules.
    """
    try:
        fd = open_buffered(path)
        try:
            size = os.fstat(fd).st_size
            text = _header_text(path, fd, size)
        finally:
            os.close(fd)
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (OSError, EOFError) as error:
        raise _corrupt(path, f"cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"has a header that is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "has a header that is not a JSON object")
    header.pop("__metadata__", None)
    begin = 8 + len(text)
    tensors = {key: _entry(path, key, fields, begin) for key, fields in header.items()}
    _check_ranges(path, tensors.items(), begin, size)
    return tensors


def _header_text(path: Path, fd: int, size: int) -> bytearray:
    if size < 8:
        raise _corrupt(path, f"is truncated: it has {size} bytes")
    prefix = bytearray(8)
    read_exact(fd, 0, memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    if length > _LONGEST_HEADER:
        raise _corrupt(path, f"claims a header of {length} bytes: it is not a safetensors file")
    if size < 8 + length:
        raise _corrupt(path, f"is truncated: {size} bytes do not hold its header of {length}")
    text = bytearray(length)
    read_exact(fd, 8, memoryview(text))
    drop_cached(fd, 0, 8 + length)
    return text


def _entry(path: Path, key: str, fields: Any, begin: int) -> TensorEntry:
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise _corrupt(path, f"describes the tensor '{key}' in a form that the format does not have")
    if not all(type(size) is int and size >= 0 for size in shape) or not 0 <= first <= last:
        raise _corrupt(path, f"gives the tensor '{key}' an impossible shape or place")
    width = _DTYPE_BYTES.get(dtype)
    if width is not None and math.prod(shape) * width != last - first:
        raise _corrupt(path, f"gives the tensor '{key}' {last - first} bytes, which {dtype} {shape} has not")
    return TensorEntry(path, dtype, tuple(shape), begin + first, last - first)


def _check_ranges(path: Path, tensors: Iterable[tuple[str, TensorEntry]], begin: int, size: int) -> None:
    """Every byte of the data belongs to exactly one tensor, as the format demands."""
    end = begin
    for key, entry in sorted(tensors, key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset < end:
            raise _corrupt(path, f"lets the tensor '{key}' overlap another one")
        if entry.offset > end:
            raise _corrupt(path, f"leaves {entry.offset - end} bytes before the tensor '{key}' to nobody")
        end += entry.nbytes
    if end > size:
        raise _corrupt(path, f"is truncated: it has {size} bytes and its header describes {end}")
    if end < size:
        raise _corrupt(path, f"has {size - end} bytes at its end that belong to no tensor")


def _read_weight_map(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"cannot be read: {error}") from error
    match index:
        case {"weight_map": dict(weight_map)} if weight_map:
            pass
        case _:
            raise _corrupt(path, "has no weight map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise _corrupt(path, f"names a shard outside its folder: {name!r}")
    return weight_map


def _read_shards(folder: Path, weight_map: dict[str, str]) -> dict[str, TensorEntry]:
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CorruptCheckpoint(f"{folder} lacks the shard {missing[0]}{more}", _FETCH_AGAIN)
    shards = {name: read_header(folder / name) for name in names}
    tensors = {}
    for key, name in weight_map.items():
        entry = shards[name].get(key)
        if entry is None:
            raise _corrupt(folder / name, f"lacks the tensor '{key}' that {SHARD_INDEX} says it has")
        tensors[key] = entry
    return tensors


def _no_weights(folder: Path) -> UnsupportedModel | CorruptCheckpoint:
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if any(path.suffix == ".safetensors" for path in files):
        return CorruptCheckpoint(
            f"{folder} has safetensors files, but neither {SINGLE_FILE} nor {SHARD_INDEX}", _FETCH_AGAIN
        )
    pickles = [path.name for path in files if path.suffix in _PICKLE_SUFFIXES]
    if pickles:
        return UnsupportedModel(
            f"{folder} has its weights only as pickle ({pickles[0]}), which runs code when it is loaded; "
            "finemoe does not load it",
            "use a checkpoint with safetensors files",
        )
    return CorruptCheckpoint(f"{folder} has no safetensors weights", _FETCH_AGAIN)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name appears twice")
    return fields


def _corrupt(path: Path, problem: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{path} {problem}", _FETCH_AGAIN)
