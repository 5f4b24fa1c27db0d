"""Files of what policies have learnt: safetensors, with a version, the facts and a checksum in its metadata.

Such a file is replaced whole, under a lock beside it: whoever reads it sees the old one or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from offload.errors import KnowledgeError
from offload.files import locked, storage_errors, sync_folder

VERSION = 1
_AGAIN = "learn or export it again; finemoe maps clear deletes what is kept of a model"
_NEWER = "use the finemoe that wrote it, or a newer one"


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a file: facts that JSON can say, and arrays by name."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


def read(path: Path, kind: str) -> Content:
    """What is in the file at `path`.

    Raises:
        KnowledgeError: There is none, it is not of this kind, of a newer version, or damaged.
    """
    try:
        path.open("rb").close()  # safetensors reports failures of the system as its own
        with safe_open(path, framework="np") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("kind") != f"finemoe {kind}":
                raise KnowledgeError(f"{path} is no file of finemoe's {kind}", "choose another file")
            if not metadata.get("version", "").isdecimal():
                raise damaged(path, "it has no version")
            if int(metadata["version"]) > VERSION:
                raise _newer(path, metadata["version"])
            arrays = {name: tensors.get_tensor(name) for name in sorted(tensors.keys())}
            text = metadata.get("facts", "")
    except FileNotFoundError as error:
        raise KnowledgeError(f"there is no file {path}", "see what there is: finemoe maps info") from error
    except OSError as error:
        raise KnowledgeError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
    if metadata.get("checksum") != _checksum(kind, text, arrays):
        raise damaged(path, "it does not have its checksum")
    return Content(json.loads(text), arrays)


def check_not_newer(path: Path) -> None:
    """Make sure that the file at `path`, if there is one, may be replaced: a newer finemoe's knows more than ours.

    Raises:
        KnowledgeError: It is of a newer version.
    """
    try:
        with safe_open(path, framework="np") as tensors:
            version = (tensors.metadata() or {}).get("version", "")
    except (OSError, SafetensorError):
        return
    if version.isdecimal() and int(version) > VERSION:
        raise _newer(path, version)


def write(path: Path, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put a file at `path`, whole or not at all.

    Raises:
        StorageError: It cannot be written; what was there before is still there.
    """
    text = json.dumps(facts)
    metadata = {
        "kind": f"finemoe {kind}",
        "version": str(VERSION),
        "facts": text,
        "checksum": _checksum(kind, text, arrays),
    }
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    with storage_errors("what was learnt", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as target:
                target.write(data)
                target.flush()
                os.fsync(target.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block no other process changes the file at `path`. Also takes away what killed ones have left.

    Raises:
        StorageError: Its folder cannot be written.
    """
    with ExitStack() as held:
        with storage_errors("what was learnt", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path.with_name(f"{path.name}.lock"), lambda stage, done, total: None))
            for left in path.parent.glob(f".{path.name}.*"):
                left.unlink(missing_ok=True)
        yield


def remove(path: Path) -> None:
    """Delete the file at `path`, whatever is in it.

    Raises:
        StorageError: It cannot be deleted.
    """
    with writing(path), storage_errors("what was learnt", path):
        path.unlink(missing_ok=True)


def damaged(path: Path, why: str) -> KnowledgeError:
    """The error for a file that is not what was written."""
    return KnowledgeError(f"{path} is damaged: {why}", _AGAIN)


def _newer(path: Path, version: str) -> KnowledgeError:
    return KnowledgeError(f"{path} has version {version} of the format, and this finemoe knows {VERSION}", _NEWER)


def _checksum(kind: str, facts: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    value = zlib.crc32(f"{kind}\n{facts}".encode())
    for name in sorted(arrays):
        array = arrays[name]
        value = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return f"{value:08x}"
