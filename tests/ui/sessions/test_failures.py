"""What can go wrong with the file: one line, a way out, and nothing lost."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from offload.errors import DamagedFile, StorageError
from profiles.paths import DATA_VARIABLE
from tests.ui.sessions.conftest import HEAD, ROOT
from ui.sessions import SessionStore

NOBODY = 65534


@pytest.fixture
def filled(path: Path) -> Path:
    """A store with a hundred messages, closed."""
    with SessionStore.open(path) as store:
        session = store.create("talk")
        with store._database.writing() as connection:
            connection.executemany(
                "INSERT INTO messages (session, role, content, created) VALUES (?, 'user', ?, 0)",
                [(session.id, f"message {number} " * 40) for number in range(100)],
            )
    return path


def the_failure(attempt, kind: type[StorageError] = StorageError) -> StorageError:
    with pytest.raises(StorageError) as caught:
        attempt()
    error = caught.value
    assert type(error) is kind
    assert "\n" not in error.message and not error.message.endswith(".")
    assert error.hint and "\n" not in error.hint
    return error


def test_a_file_that_is_no_database_stays(path):
    path.parent.mkdir()
    path.write_bytes(b"my diary\n" * 1000)
    error = the_failure(lambda: SessionStore.open(path), DamagedFile)
    assert "is damaged" in error.message
    assert "it is kept" in error.hint and "finemoe sessions set-aside" in error.hint
    assert path.read_bytes() == b"my diary\n" * 1000


def test_a_file_cut_short_stays(filled):
    content = filled.read_bytes()
    filled.write_bytes(content[: len(content) // 2])

    def use() -> None:
        with SessionStore.open(filled) as store:
            store.search("message")
            store.messages(1)

    the_failure(use, DamagedFile)
    assert filled.read_bytes()[:100] == content[:100]


def test_overwritten_pages_are_noticed_where_they_are_read(filled):
    content = bytearray(filled.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    filled.write_bytes(content)

    def use() -> None:
        with SessionStore.open(filled) as store:
            store.messages(1)

    the_failure(use, DamagedFile)
    assert filled.read_bytes() == content


def test_set_aside_keeps_everything_and_a_new_store_begins(filled, start):
    process = start("store = SessionStore.open(path); store.create('late'); say('made'); os.kill(os.getpid(), 9)")
    process.communicate()
    assert filled.with_name("sessions.db-wal").stat().st_size > 0
    kept = SessionStore.set_aside(filled)
    assert re.fullmatch(r"sessions-\d{8}-\d{6}\.db", kept.name)
    with SessionStore.open(filled) as store:
        assert store.sessions() == []
    again = SessionStore.set_aside(filled)
    assert again != kept
    with SessionStore.open(kept) as store:
        assert [session.title for session in store.sessions()] == ["late", "talk"]
        assert len(store.messages(1)) == 100


def test_a_newer_store_is_refused_and_stays(filled):
    connection = sqlite3.connect(filled)
    connection.execute("INSERT INTO migrations VALUES ('telepathy', 0)")
    connection.commit()
    connection.close()
    before = filled.read_bytes()
    error = the_failure(lambda: SessionStore.open(filled))
    assert "newer version" in error.message
    assert DATA_VARIABLE in error.hint
    assert filled.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_stays(path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE sessions (cookie TEXT)")
    connection.close()
    error = the_failure(lambda: SessionStore.open(path))
    assert "another program" in error.message
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("sessions",)]
    connection.close()


def test_a_locked_store_is_said_to_be(filled, start):
    holder = start(
        """
import sqlite3
connection = sqlite3.connect(path)
connection.execute("BEGIN IMMEDIATE")
say("locked")
sys.stdin.readline()
"""
    )
    holder.stdout.readline()
    with SessionStore.open(filled, timeout=0.05) as store:
        assert len(store.messages(1)) == 100  # who only reads does not notice
        error = the_failure(lambda: store.rename(1, "x"))
        assert "locked by another process" in error.message
        holder.communicate("\n")
        assert store.rename(1, "x").title == "x"


def test_a_store_locked_for_all_cannot_be_opened(filled, start):
    holder = start(
        """
import sqlite3
connection = sqlite3.connect(path)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
say("locked")
sys.stdin.readline()
"""
    )
    holder.stdout.readline()
    error = the_failure(lambda: SessionStore.open(filled, timeout=0.05))
    assert "locked by another process" in error.message


def test_a_full_database_takes_no_more_and_keeps_what_it_has(store):
    message = store.add(store.create().id, None, "assistant", "")
    (pages,) = store._database._connection.execute("PRAGMA page_count").fetchone()
    store._database._connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    kept = ""

    def write() -> None:
        nonlocal kept
        while True:
            store.append(message.id, "x" * 1000)
            kept += "x" * 1000

    error = the_failure(write)
    assert "full" in error.message and "free some space" in error.hint
    assert store.message(message.id).content == kept != ""
    store._database._connection.execute("PRAGMA max_page_count = 100000")
    assert store.finish(message.id, "error", None).content == kept


def test_a_disk_that_takes_no_more_loses_nothing(path, start):
    writer = start(
        """
import resource
store = SessionStore.open(path)
message = store.add(store.create().id, None, "assistant", "")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
kept = 0
try:
    while True:
        store.append(message.id, "x" * 100)
        kept += 100
except StorageError as error:
    say(kept)
    say(error.message)
    say(error.hint)
assert len(store.message(message.id).content) == kept
os.kill(os.getpid(), 9)
"""
    )
    kept, message, hint = writer.communicate()[0].splitlines()
    assert int(kept) > 0
    assert str(path) in message
    assert "disk" in hint
    with SessionStore.open(path) as store:
        (answer,) = store.messages(1)
        assert (answer.content, answer.finish_reason) == ("x" * int(kept), "interrupted")


def test_a_folder_that_cannot_be_made_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "file" / "data"))
    error = the_failure(lambda: SessionStore.open(tmp_path / "file" / "data" / "sessions.db"))
    assert DATA_VARIABLE in error.hint


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder with a store, in which others may only read."""
    folder = Path(tempfile.mkdtemp(prefix="finemoe-test-"))
    with SessionStore.open(folder / "sessions.db") as store:
        store.create("talk")
    (folder / "sessions.db").chmod(0o444)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_somebody(folder: Path, script: str) -> list[str]:
    """What ``script`` says when a user runs it who may write nothing in ``folder``."""
    code = HEAD.format(root=str(ROOT), path=str(folder / "sessions.db"))
    if os.geteuid() == 0:  # after the imports: Python itself may be where only root can read
        code += f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    done = subprocess.run(
        [sys.executable, "-c", code + script],
        cwd=folder,
        env=os.environ | {DATA_VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


OPEN = """
try:
    SessionStore.open(path)
except StorageError as error:
    say(error.message)
    say(error.hint)
"""


@pytest.mark.parametrize("there", [True, False], ids=["a store", "no store"])
def test_a_read_only_folder_names_the_variable(read_only, there):
    if not there:
        read_only.chmod(0o755)
        (read_only / "sessions.db").unlink()
        read_only.chmod(0o555)
    message, hint = as_somebody(read_only, OPEN)
    assert message.startswith("cannot write to ")
    assert DATA_VARIABLE in hint


def test_setting_aside_in_a_read_only_folder_names_the_variable(read_only):
    message, hint = as_somebody(read_only, OPEN.replace("SessionStore.open", "SessionStore.set_aside"))
    assert message.startswith("cannot write to ")
    assert DATA_VARIABLE in hint
