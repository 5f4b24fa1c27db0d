"""Two that write one trace: the second is refused, and nothing that is written is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from offload.errors import StorageError, TraceError
from offload.trace import claim
from offload.trace.claim import being_made, check_not_being_recorded
from offload.trace.file import Trace, TraceHeader, TraceWriter
from tests.support.traces import random_model, random_request

MODEL = random_model()
REQUEST = random_request(MODEL, 0, name="c/1")
ROOT = Path(__file__).parents[3]


def names(path: Path) -> list[str]:
    with Trace.open(path) as trace:
        return [entry.name for entry in trace.entries]


@pytest.mark.parametrize("there", [False, True])
def test_what_is_being_recorded_is_not_replaced(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "t.trace"
    if there:
        Trace.write(path, MODEL, TraceHeader(), [])
    with TraceWriter.create(path, MODEL, TraceHeader(), replace=True) as writer:
        for _ in range(2):
            with pytest.raises(TraceError, match="another process is recording") as refused:
                TraceWriter.create(path, MODEL, TraceHeader(), replace=True)
            assert refused.value.hint
        with pytest.raises(TraceError, match="another process is recording"):
            check_not_being_recorded(path)
        writer.append(REQUEST)
    assert names(path) == ["c/1"]
    check_not_being_recorded(path)
    TraceWriter.create(path, MODEL, TraceHeader(), replace=True).close()
    assert names(path) == []
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_to_be_replaced_stays_where_there_is_no_room(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    Trace.write(path, MODEL, TraceHeader(), [REQUEST])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(StorageError):
            TraceWriter.create(path, MODEL, TraceHeader(), replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(path) == ["c/1"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_one_left_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    Trace.write(path, MODEL, TraceHeader(), [])
    being_made(path).write_bytes(b"a beginning")
    TraceWriter.create(path, MODEL, TraceHeader(), replace=True).close()
    assert list(tmp_path.iterdir()) == [path]


def test_only_files_are_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TraceError, match="is not a file"):
        TraceWriter.create(pipe, MODEL, TraceHeader(), replace=True)
    assert pipe.is_fifo()


def test_a_file_system_without_locks_has_traces_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(claim.fcntl, "flock", none)
    Trace.write(tmp_path / "t.trace", MODEL, TraceHeader(), [REQUEST])
    assert names(tmp_path / "t.trace") == ["c/1"]


@pytest.mark.parametrize("gone", [False, True])
def test_what_was_replaced_before_it_was_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    path = tmp_path / "t.trace"
    lock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(claim.fcntl, "flock", lock)
        Trace.write(tmp_path / "other.trace", MODEL, TraceHeader(), [REQUEST])
        (tmp_path / "other.trace").replace(path)
        if gone:
            path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(claim.fcntl, "flock", late)
    with pytest.raises(TraceError, match="another process is recording"):
        TraceWriter.create(path, MODEL, TraceHeader(), replace=True)
    assert list(tmp_path.iterdir()) == ([] if gone else [path])
    assert gone or names(path) == ["c/1"]


WRITER = """
import sys
import time
from pathlib import Path
from offload.errors import TraceError
from offload.trace.file import TraceHeader, TraceWriter
from tests.support.traces import random_model, random_request
model = random_model()
print("ready", flush=True)
sys.stdin.readline()
written = 0
while written < 20:
    try:
        with TraceWriter.create(Path(sys.argv[1]), model, TraceHeader(policy=sys.argv[2]), replace=True) as writer:
            writer.append(random_request(model, written, name=f"{sys.argv[2]}/{written}"))
            # Whoever has begun has the file until it ends.
            with Path(sys.argv[1]).open("rb") as there:
                assert sys.argv[2].encode() in there.read()
        written += 1
    except TraceError as error:
        assert "another process is recording" in error.message, error
        time.sleep(0.001)
"""


def test_two_processes_never_write_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in ("first", "second")
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with Trace.open(path) as trace:
        assert (len(trace), trace.warning) == (1, "")
    assert list(tmp_path.iterdir()) == [path]
