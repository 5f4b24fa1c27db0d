"""One SQLite connection that all threads of the process may use, and every way in which it can fail.

The database is in WAL mode: a chat that writes and commands that read do not wait for one another. Two that
write do, up to the busy timeout. Most transactions are on the disk when they end; those of the streaming autosave
are safe from the process's death at once, and from the machine's with the next of the others.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from offload.errors import DamagedFile, StorageError
from profiles.paths import DATA_VARIABLE, ensure_folder, unwritable
from ui.sessions.schema import MIGRATIONS, applied, apply

_UNWRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_NOT_FAILURES = (sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.InterfaceError)
"""Of the storage; they are mistakes in this program."""

_MOVE = f"set {DATA_VARIABLE} to a folder"


class Database:
    """An open connection.

    Attributes:
        path: The file; None if it is in memory.
    """

    def __init__(self, path: Path | None, timeout: float) -> None:
        """Opens ``path``, creates or upgrades it.

        Args:
            timeout: Seconds to wait for another process that writes.

        Raises:
            StorageError: It cannot be opened.
        """
        self.path = path
        self._lock = threading.RLock()
        self._timeout = timeout
        if path is not None:
            ensure_folder(path.parent)
            _create_private(path)
        with storage_failures(path):
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=timeout, isolation_level=None, check_same_thread=False
            )
        try:
            with storage_failures(path):
                self._connection.execute("PRAGMA foreign_keys = ON")
                _use_wal(self._connection, timeout)
            self._migrate()
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction in which everything is as it was when it began.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self, *, durable: bool = True, patient: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction that writes, whole or not at all.

        Args:
            durable: Wait until it is on the disk.
            patient: Wait for another process that writes, up to the timeout.

        Raises:
            StorageError: The file cannot be written; it is as it was before.
        """
        with self._lock:
            if not patient:
                self._connection.execute("PRAGMA busy_timeout = 0")
            try:
                with self._transaction("BEGIN IMMEDIATE", "FULL" if durable else "NORMAL") as connection:
                    yield connection
            finally:
                if not patient:
                    self._connection.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")

    def close(self) -> None:
        """Closes the connection; closing it again does nothing."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self, begin: str, synchronous: str = "") -> Iterator[sqlite3.Connection]:
        connection = self._connection
        with self._lock, storage_failures(self.path):
            if synchronous:
                connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back after some failures.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    def _migrate(self) -> None:
        known = [migration.name for migration in MIGRATIONS]
        with self.reading() as connection:
            if applied(connection) == known:
                return
        with self.writing() as connection:
            there = applied(connection)
            if there is None:
                raise StorageError(f"{self.path} is a database of another program", f"{_MOVE} of its own")
            if there[: len(known)] != known[: len(there)] or len(there) > len(known):
                raise StorageError(
                    f"{self.path} was written by a newer version of finemoe",
                    f"install that version, or {_MOVE} of its own",
                )
            apply(connection, MIGRATIONS[len(there) :])


@contextmanager
def storage_failures(path: Path | None) -> Iterator[None]:
    """Turns what SQLite says within the block into one line and a hint.

    Raises:
        StorageError: It failed; a :class:`DamagedFile` if the file's contents are not what was written.
    """
    try:
        yield
    except _NOT_FAILURES:
        raise
    except sqlite3.Error as error:
        raise _as_storage_error(path, error) from error


def set_aside(path: Path) -> Path:
    """Renames a database, with what belongs to it, so that the next one begins afresh. Nothing is deleted.

    Returns:
        Its new path.

    Raises:
        StorageError: It cannot be renamed.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    candidates = (f"{path.stem}-{stamp}{suffix}{path.suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 100))))
    kept = next(kept for kept in map(path.with_name, candidates) if not os.path.lexists(kept))
    try:
        # The log goes first: a new database must never find that of another one beside it.
        for ending in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + ending).rename(kept.with_name(kept.name + ending))
    except OSError as error:
        raise unwritable(path, error) from error
    return kept


def _create_private(path: Path) -> None:
    """An empty file that only its owner can read, if there is none; SQLite gives its log the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise unwritable(path, error) from error


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Turns WAL mode on, which SQLite does not wait for if another process is just doing the same."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _primary_code(error) not in _LOCKED or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def _as_storage_error(path: Path | None, error: sqlite3.Error) -> StorageError:
    where = path or "the sessions in memory"
    code = _primary_code(error)
    if code in _DAMAGED or code is None:
        return DamagedFile(
            f"{where} is damaged: {error}",
            "it is kept as it is; 'finemoe sessions set-aside' moves it away, and a new one begins",
        )
    if code in _LOCKED:
        return StorageError(
            f"{where} is locked by another process", "wait until that one is done, or end it, and try again"
        )
    if code in _UNWRITABLE:
        return StorageError(f"cannot write to {where}: {error}", f"{_MOVE} that you can write to")
    if code == sqlite3.SQLITE_FULL:
        return StorageError(f"cannot write to {where}: {error}", f"free some space, or {_MOVE} on another disk")
    if code == sqlite3.SQLITE_IOERR:
        return StorageError(
            f"cannot read or write {where}: {error}", f"see whether the disk is full, or {_MOVE} on another disk"
        )
    return StorageError(f"{where} cannot be used: {error}")


def _primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's code without its extension; None if the error is Python's: text that is not UTF-8."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
