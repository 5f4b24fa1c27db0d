"""The folder of boards: which files there are, whose engine lives, and removing what was left behind."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

SUFFIX = ".board"
UNFINISHED_SUFFIX = ".board-new"

_UNFINISHED_AGE_S = 60


def sweep_boards(folder: Path) -> None:
    """Remove the boards of processes that are no more."""
    for path in [*board_files(folder), *board_files(folder, UNFINISHED_SUFFIX)]:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # Between making a new board and locking it there is a moment.
            age = time.time() - os.fstat(file).st_mtime
            if is_abandoned(file) and (path.suffix == SUFFIX or age > _UNFINISHED_AGE_S):
                path.unlink(missing_ok=True)
        except OSError:
            pass  # It is somebody else's; it does no harm.
        finally:
            os.close(file)


def board_files(folder: Path, suffix: str = SUFFIX) -> list[Path]:
    """The files in `folder`, which need not be there."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == suffix)
    except OSError:
        return []


def is_abandoned(file: int) -> bool:
    """Whether nobody holds the lock of an open file: its writer has closed it, or is no more."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True
