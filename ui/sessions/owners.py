"""Who is writing an answer, and whether that process is still alive.

Each store that writes one holds the system's lock on a small file beside the database. The lock goes with the
process, however that ends, so nothing has to be guessed from process numbers, which are used again and mean nothing
in another container. Files are made, and those of the dead removed, within write transactions of the database,
never by two at once.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path


class Owner:
    """A living store's name, and the locked file that stands for its life."""

    def __init__(self, database: Path) -> None:
        """Makes and locks the file.

        Raises:
            OSError: It cannot be made or locked.
        """
        self.name = uuid.uuid4().hex
        self._path = _path(database, self.name)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Somebody may just be looking whether it is locked: that takes no time.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Removes the file and gives the lock up."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def is_alive(database: Path, name: str) -> bool:
    """Whether the store called ``name`` is still open."""
    try:
        descriptor = os.open(_path(database, name), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # Nobody can tell: then nothing is taken from it.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def names(database: Path) -> list[str]:
    """Every name there is a file of, alive or not."""
    prefix = _path(database, "").name
    there = (path.name for path in database.parent.iterdir())
    return [name.removeprefix(prefix) for name in there if name.startswith(prefix)]


def forget(database: Path, name: str) -> None:
    """Removes the file of a dead owner."""
    _path(database, name).unlink(missing_ok=True)


def _path(database: Path, name: str) -> Path:
    return database.with_name(f"{database.name}-writer-{name}")
