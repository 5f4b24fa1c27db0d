"""Writing files that others may be reading or writing: one writer at a time, and safely on the disk."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from offload.errors import StorageError

Progress = Callable[[str, int, int], None]
"""What long work reports to: a stage, and how much of how much is done (0 where it is not known)."""

_POLL_SECONDS = 0.2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Within the block no other process holds the lock file ``path``.

    While another one does, ``progress`` is called with ``"wait"``, the seconds waited, and 0; an exception that
    it raises ends the waiting. The lock ends with the process, however that ends; the file stays.

    Raises:
        OSError: The lock file cannot be made.
        StorageError: The filesystem has no locks.
    """
    from filelock import FileLock, Timeout  # Of no use to the many who only read.

    # filelock would try for ever where a file cannot be made; this says so.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
    lock = FileLock(path)
    started = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_POLL_SECONDS)
            break
        except Timeout:
            progress("wait", int(time.monotonic() - started), 0)
        except NotImplementedError as error:
            raise StorageError(
                f"{path.parent} is on a file system without file locks", "choose a folder on a local disk"
            ) from error
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Brings the list of the folder's files safely to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_is_full(error: OSError) -> bool:
    """Whether a write failed for want of space: on the disk, in a quota, or in what one file may take."""
    return error.errno in _FULL


def check_writable(what: str, target: Path) -> None:
    """Make sure that there can be a file at ``target``, for those whose work takes long before they write it.

    Raises:
        StorageError: There cannot: ``what`` cannot be written to it.
    """
    with storage_errors(what, target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=target.absolute().parent):
            pass


@contextmanager
def storage_errors(what: str, target: Path) -> Iterator[None]:
    """Turns the system's failures within the block into one line: ``what`` cannot be written to ``target``.

    Raises:
        StorageError: There was one.
    """
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            hint = "free some space, or choose a folder on another disk"
        elif error.errno == errno.EISDIR:
            hint = "give the name of a file in it"
        else:
            hint = "choose a folder that can be written"
        raise StorageError(f"{what} cannot be written to {target}: {error.strerror or error}", hint) from error
