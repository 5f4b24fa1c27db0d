"""Whose a trace file is while it is written: a lock on the file itself, which lasts as long as its writer."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from offload.errors import TraceError
from offload.files import storage_errors

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_ANOTHER = "wait until it is finished, or choose another name"


def check_not_being_recorded(path: Path) -> None:
    """Make sure that no other process writes the trace at `path`, which need not be there.

    Raises:
        TraceError: One does.
        StorageError: The file cannot be opened.
    """
    with storage_errors("the trace", path):
        held = _hold(path)
    if held is not None:
        os.close(held)


def claim_new(path: Path) -> int:
    """A descriptor of a new, empty file at `path`, locked.

    Raises:
        FileExistsError: There is one.
        TraceError: Another process took it between its making and its locking, to replace it.
        OSError: It cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, path)
        if not _is_at(path, descriptor):
            raise TraceError(f"another process is recording {path}", _ANOTHER)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def claim_in_place(path: Path) -> tuple[int, int | None]:
    """Descriptors of a new, empty file, and of the one at `path` that it will replace, both locked.

    The new one has a name of its own, `being_made`, until there is something in it: then it takes the place of
    the other one by `os.replace`. Where nothing is at `path` it is made there, and the second one is None.

    Raises:
        TraceError: Another process writes the one that is there.
        OSError: It cannot be made.
    """
    while True:
        held = _hold(path)
        try:
            return claim_new(being_made(path) if held is not None else path), held
        except FileExistsError:
            # Left by a process that was killed: whoever holds the one at `path` is alone. Or a file came meanwhile.
            if held is not None:
                being_made(path).unlink()
                os.close(held)
        except BaseException:
            if held is not None:
                os.close(held)
            raise


def being_made(path: Path) -> Path:
    """Where the successor of the trace at `path` is until it takes its place."""
    return path.with_name(f".{path.name}.new")


def _hold(path: Path) -> int | None:
    """The file at `path`, locked; None if there is none."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            _lock(descriptor, path)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TraceError(f"{path} is not a file", "choose another name")
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # Another process has put one in its place since.


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file at `path` is still the open one."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TraceError(f"another process is recording {path}", _ANOTHER) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # Better a trace on such a file system than none.
            raise
