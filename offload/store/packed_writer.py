"""Writing a pack: all of it or nothing at its place, and what was done before an interruption is kept.

The pack grows in a file beside its place, ``.experts.finemoe.part``, under a lock. Its head is there from the
beginning, without its own checksum, so that nobody takes it for a pack; a record's checksum goes into the table
when the record is written. The next run keeps every record that matches its checksum, so neither a kill nor a
power failure costs more than what was under way. At the end the head is sealed, everything is brought to the
disk, and the file moved to its place.

On a full disk the unfinished file is removed: space is what everybody is short of then.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from offload.errors import CorruptCheckpoint, StorageError, UnsupportedModel
from offload.files import Progress, disk_is_full, locked, storage_errors, sync_folder
from offload.models.spec import ModelSpec
from offload.precision import BF16, Precision
from offload.store.blocks import align_down, drop_cached, read_exact
from offload.store.fingerprint import newest_change
from offload.store.open_store import is_older
from offload.store.packed_format import DIGEST_BYTES, PackHead, is_pack, read_head
from offload.store.packed_header import PackHeader
from offload.store.packed_store import PackedStore, pack_header
from offload.store.records import RecordSource
from offload.store.safetensors_index import CheckpointIndex
from offload.store.sweep import sweep
from offload.store.verify import find_damage
from offload.units import MIB, format_bytes

_SPARE_BYTES = 16 * MIB
_NOT_WRITTEN = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was done.

    Attributes:
        path: The pack.
        outcome: ``"written"``; ``"there"``: a pack of this checkpoint was there already; ``"confirmed"``: it
            was there and older, has proved to be equal, and counts as new from now on.
        precision: How its weights are kept.
        experts: Experts in the pack.
        kept: Records that an interrupted run had written.
        nbytes: Bytes of the file.
        error: For each kind of quantised matrices, their error relative to the weights, root mean square.
    """

    path: Path
    outcome: Literal["written", "there", "confirmed"]
    precision: Precision
    experts: int
    kept: int
    nbytes: int
    error: dict[str, float]


def write_pack(
    spec: ModelSpec,
    index: CheckpointIndex,
    path: Path,
    precision: Precision = BF16,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> PackResult:
    """Makes sure that ``path`` is a pack of the model, writing it if it is not.

    A damaged pack, and one of another version, are replaced. Of several runs at a time one writes and the others
    wait for it.

    Args:
        spec: The model's facts.
        index: The places of its tensors.
        path: Where the pack goes; its folder must be there.
        precision: How weights are kept. Quantised packs hold all of the model's weights.
        force: Write it anew in any case, from the beginning, whatever is at ``path``.
        progress: Called with ``"wait"`` (seconds, 0) while another run writes, ``"pack"`` or ``"verify"`` (bytes).
            An exception it raises ends the run, which the next one continues.

    Raises:
        UnsupportedModel: A model that finemoe does not read, or does not quantise.
        CorruptCheckpoint: The checkpoint cannot be read as its configuration asks.
        ExpertReadError: The checkpoint's bytes cannot be read.
        StorageError: Too little space, a place that cannot be written, or something else than a pack of this model
            is there. Nothing at ``path`` has changed.
    """
    report = progress or (lambda stage, done, total: None)
    _check_place(path, force)
    source = RecordSource(spec, index, pack_header(spec, index, precision))
    try:
        with storage_errors(f"the pack of {spec.name}", path), locked(_sibling(path, "lock"), report):
            outcome = None if force else _examine(path, source, index, report)
            kept = 0
            if outcome is None:
                kept = _write(path, source, newest_change(index), report, fresh=force)
            nbytes = path.stat().st_size
            error = dict(read_head(path).header.error)
    finally:
        source.close()
    return PackResult(path, outcome or "written", precision, spec.total_experts, kept, nbytes, error)


def _check_place(path: Path, force: bool) -> None:
    """Refuses to replace what is no pack, before anything is made beside it."""
    if not os.path.lexists(path):
        return
    try:
        replaceable = path.is_file() and (force or is_pack(path))
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "choose another place") from error
    if not replaceable:
        raise StorageError(f"{path} exists and is not a pack of finemoe", "remove it, or choose another place")


def _examine(
    path: Path, source: RecordSource, index: CheckpointIndex, progress: Progress
) -> Literal["there", "confirmed"] | None:
    """Whether what is at ``path`` will do; ``None`` if a pack has to be written there.

    Raises:
        StorageError: Something is there that must not be replaced.
    """
    if not os.path.lexists(path):
        return None
    try:
        head = read_head(path)
    except (CorruptCheckpoint, UnsupportedModel):
        return None
    if head.header.without_error() != source.head.header:
        other = head.header.fingerprint != source.head.header.fingerprint
        what = "another model" if other else f"this model as {head.header.precision}"
        raise StorageError(f"{path} is a pack of {what}", "replace it with --force, or choose another place")
    if not is_older(path, index):
        return "there"
    pack = PackedStore(source.spec, path, head, None)
    try:
        equal = not find_damage(pack, source, progress)
    finally:
        pack.close()
    if not equal:
        return None
    _touch(path, newest_change(index))
    return "confirmed"


def _write(path: Path, source: RecordSource, newest: int, progress: Progress, *, fresh: bool) -> int:
    """Writes the pack, or what of it is missing; returns how many records were there."""
    part = _sibling(path, "part")
    if fresh:
        part.unlink(missing_ok=True)
    try:
        with _Part(part, replace(source.head.header, error=source.errors())) as file:
            _check_space(part, file.head)
            kept = _fill(file, source, progress)
            file.seal(newest)
        part.replace(path)
        sync_folder(path.parent)
        return kept
    except OSError as error:
        if disk_is_full(error):
            part.unlink(missing_ok=True)
        raise


def _fill(file: _Part, source: RecordSource, progress: Progress) -> int:
    records, done, kept = file.head.records, 0, 0
    total = sum(file.head.place(record)[1] for record in range(records))

    def copy(record: int, views: list[memoryview]) -> bool:
        scratch, buffer = views
        if file.has(record, buffer):
            return True
        file.write(record, source.fill(record, scratch, buffer))
        return False

    def take(record: int, was_there: bool) -> None:
        nonlocal done, kept
        done += file.head.place(record)[1]
        kept += was_there
        progress("pack", done, total)

    sweep(range(records), (source.scratch_bytes, source.record_bytes), copy, take)
    return kept


class _Part:
    """A pack that is not finished. All methods but `seal` may be called from any thread.

    Attributes:
        head: Its head, with the checksums that were there at the beginning.
    """

    def __init__(self, path: Path, header: PackHeader) -> None:
        empty = PackHead(header, b"")
        empty = PackHead(header, _NOT_WRITTEN * empty.records)
        self.head = empty
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._direct_fd = _open_for_direct_writes(path)
        try:
            found = _read_table(self._fd, empty)
            if found is None:
                os.ftruncate(self._fd, 0)
                _write_all(self._fd, memoryview(empty.encode(sealed=False)), 0)
            else:
                self.head = PackHead(header, found)
        except BaseException:
            self._close()
            raise
        self._table = self.head.table_start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def has(self, record: int, buffer: memoryview) -> bool:
        """Whether an earlier run wrote ``record`` and it is whole. ``buffer`` takes it meanwhile."""
        digest = self.head.digest(record)
        if digest == _NOT_WRITTEN:
            return False
        place, nbytes = self.head.place(record)
        content = buffer[:nbytes]
        try:
            read_exact(self._fd, place, content)
        except EOFError:
            return False
        drop_cached(self._fd, place, nbytes)
        return hashlib.sha256(content).digest() == digest

    def write(self, record: int, content: memoryview) -> None:
        """Writes a record, and then its checksum.

        Raises:
            OSError: The system's own failure, such as a full disk.
        """
        digest = hashlib.sha256(content).digest()
        place, _ = self.head.place(record)
        if not (self._direct_fd >= 0 and _write_blocks(self._direct_fd, content, place)):
            _write_all(self._fd, content, place)
        _write_all(self._fd, memoryview(digest), self._table + record * DIGEST_BYTES)

    def seal(self, newest: int) -> None:
        """Makes it a pack that is not older than ``newest`` (nanoseconds), safely on the disk."""
        table = bytearray(len(self.head.digests))
        read_exact(self._fd, self._table, memoryview(table))
        sealed = PackHead(self.head.header, bytes(table))
        os.ftruncate(self._fd, sealed.file_bytes)
        _write_all(self._fd, memoryview(sealed.encode(sealed=True)), 0)
        _touch(self._fd, newest)
        os.fsync(self._fd)

    def _close(self) -> None:
        os.close(self._fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)


def _read_table(fd: int, empty: PackHead) -> bytes | None:
    """The table of checksums of an unfinished pack of the same model; ``None`` if it is something else."""
    expected = empty.encode(sealed=False)[: empty.table_start]
    content = bytearray(empty.head_bytes)
    try:
        read_exact(fd, 0, memoryview(content))
    except EOFError:
        return None
    if content[: empty.table_start] != expected:
        return None
    return bytes(content[empty.table_start : empty.table_start + len(empty.digests)])


def _check_space(part: Path, head: PackHead) -> None:
    facts = part.stat()
    missing = max(0, head.file_bytes - facts.st_blocks * 512) + _SPARE_BYTES
    free = shutil.disk_usage(part.parent).free
    if free >= missing:
        return
    if facts.st_size <= head.head_bytes:
        part.unlink()
    raise StorageError(
        f"the pack needs {format_bytes(missing)} more, and {part.parent} has {format_bytes(free)} free",
        f"free {format_bytes(missing - free)}, or choose a folder on another disk",
    )


def _open_for_direct_writes(path: Path) -> int:
    """A descriptor for writes past the page cache; -1 where the filesystem refuses them."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return -1


def _write_blocks(fd: int, content: memoryview, offset: int) -> bool:
    """Writes whole blocks past the page cache; False if the filesystem refuses that after all."""
    done = 0
    while done < len(content):
        start = align_down(done)  # a short write may end inside of a block
        try:
            done = start + os.pwrite(fd, content[start:], offset + start)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
    return True


def _write_all(fd: int, content: memoryview, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(fd, content[done:], offset + done)


def _touch(file: Path | int, newest: int) -> None:
    # A checkpoint whose files carry a time to come would otherwise always count as newer.
    now = max(time.time_ns(), newest)
    os.utime(file, ns=(now, now))


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")
