"""Packing: the same bytes however often it is interrupted, and nothing damaged where it fails."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offload.errors import CorruptCheckpoint, StorageError
from offload.models.spec import read_spec
from offload.store import packed_writer
from offload.store.open_store import open_store
from offload.store.packed_format import PACK_NAME, PackHead, read_head
from offload.store.packed_header import header_of
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex

PART = f".{PACK_NAME}.part"
LOCK = f".{PACK_NAME}.lock"
EXPERTS = 24

CHILD = """
import os, resource, signal, sys, time
from pathlib import Path
from offload.errors import FinemoeError
from offload.models.spec import read_spec
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex

folder, path, kill_after, largest, pause = Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:6])
if largest:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), resource.RLIM_INFINITY))
calls = 0

def progress(stage, done, total):
    global calls
    calls += stage == "pack"
    print(stage, done, flush=True)
    time.sleep(pause)
    if kill_after and calls >= kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    result = write_pack(read_spec(folder), CheckpointIndex.open(folder), path, progress=progress)
except FinemoeError as error:
    sys.exit(f"{type(error).__name__}: {error.message} ({error.hint})")
print(result.outcome, result.kept)
"""


def start(folder: Path, path: Path, *, kill_after: int = 0, largest: int = 0, pause: float = 0):
    arguments = [str(folder), str(path), str(kill_after), str(largest), str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def pack(folder: Path, path: Path | None = None, **options):
    return write_pack(read_spec(folder), CheckpointIndex.open(folder), path or folder / PACK_NAME, **options)


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A checkpoint of its own."""
    return shutil.copytree(checkpoint(layout="scattered"), tmp_path / "model")


@pytest.fixture
def whole(checkpoint, tmp_path_factory) -> bytes:
    """The pack of that checkpoint, written in one go."""
    path = tmp_path_factory.mktemp("whole") / "pack"
    pack(checkpoint(layout="scattered"), path)
    return path.read_bytes()


def test_only_the_pack_and_its_lock_are_left(folder, whole):
    before = {path.name for path in folder.iterdir()}
    result = pack(folder)
    assert (result.outcome, result.experts, result.kept, result.nbytes) == ("written", EXPERTS, 0, len(whole))
    assert {path.name for path in folder.iterdir()} - before == {PACK_NAME, LOCK}
    assert (folder / PACK_NAME).read_bytes() == whole


@pytest.mark.parametrize("refused", ["open", "pwrite", None])
def test_the_same_bytes_with_and_without_direct_writes(folder, whole, monkeypatch, refused):
    if refused == "open":
        monkeypatch.setattr(packed_writer, "_open_for_direct_writes", lambda path: -1)
    elif refused == "pwrite":
        monkeypatch.setattr(packed_writer, "_write_blocks", lambda fd, content, offset: False)
    pack(folder)
    assert (folder / PACK_NAME).read_bytes() == whole


@pytest.mark.parametrize("after", [1, 10, EXPERTS])
def test_killed_and_resumed_gives_the_same_bytes(folder, whole, after):
    path = folder / PACK_NAME
    for _ in range(2):
        child = start(folder, path, kill_after=after)
        assert child.wait() == -signal.SIGKILL
        child.communicate()
        assert not path.exists()
        store = open_store(read_spec(folder), CheckpointIndex.open(folder))
        assert (store.kind, store.note) == ("safetensors", "")
        store.close()
    result = pack(folder)
    assert result.outcome == "written"
    assert result.kept >= after
    assert path.read_bytes() == whole
    assert not (folder / PART).exists()


def test_interrupted_by_an_exception_and_resumed(folder, whole):
    def interrupt(stage, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, progress=interrupt)
    assert pack(folder).kept > EXPERTS // 2
    assert (folder / PACK_NAME).read_bytes() == whole


def test_records_that_were_lost_or_damaged_are_written_again(folder, whole):
    """As after a power failure: checksums reached the disk, and some records did not."""
    child = start(folder, folder / PACK_NAME, kill_after=EXPERTS)
    child.communicate()
    part = folder / PART
    head = PackHead(header_of(read_spec(folder), "0" * 64), bytes(32 * EXPERTS))
    with part.open("r+b") as file:
        file.seek(head.head_bytes + 3 * head.header.stride)
        file.write(bytes(head.header.stride))
        file.truncate(head.head_bytes + 20 * head.header.stride + 5)
    result = pack(folder)
    assert result.kept == 19
    assert (folder / PACK_NAME).read_bytes() == whole


def test_what_another_checkpoint_left_is_not_continued(folder, checkpoint, whole):
    child = start(checkpoint(layout="per-expert"), folder / PACK_NAME, kill_after=5)
    child.communicate()
    assert (folder / PART).exists()
    assert pack(folder).kept == 0
    assert (folder / PACK_NAME).read_bytes() == whole


def test_a_leftover_that_is_no_pack_at_all(folder, whole):
    (folder / PART).write_bytes(b"?" * 100_000)
    assert pack(folder).kept == 0
    assert (folder / PACK_NAME).read_bytes() == whole


def test_two_at_once_write_one(folder, whole):
    path = folder / PACK_NAME
    first = start(folder, path, pause=0.05)
    assert first.stdout.readline().startswith("pack ")
    first.send_signal(signal.SIGSTOP)  # until the second is there, however busy the machine
    second = start(folder, path)
    said = second.stdout.readline()
    first.send_signal(signal.SIGCONT)
    outputs = [child.communicate()[0].splitlines() for child in (first, second)]
    assert [child.returncode for child in (first, second)] == [0, 0]
    assert [lines[-1] for lines in outputs] == ["written 0", "there 0"]
    assert said.startswith("wait ")
    assert path.read_bytes() == whole


# What is there already


def test_a_second_run_has_nothing_to_do(folder):
    pack(folder)
    before = (folder / PACK_NAME).stat()
    assert pack(folder).outcome == "there"
    assert (folder / PACK_NAME).stat().st_mtime_ns == before.st_mtime_ns
    assert pack(folder, force=True).outcome == "written"
    assert (folder / PACK_NAME).stat().st_ino != before.st_ino


def test_an_older_pack_that_is_still_right_counts_as_new_again(folder):
    pack(folder)
    os.utime(folder / PACK_NAME, (1, 1))
    before = (folder / PACK_NAME).stat().st_ino
    assert pack(folder).outcome == "confirmed"
    assert (folder / PACK_NAME).stat().st_ino == before
    store = open_store(read_spec(folder), CheckpointIndex.open(folder))
    assert store.kind == "packed"
    store.close()


def test_an_older_pack_that_is_wrong_is_written_again(folder, whole):
    pack(folder)
    with (folder / PACK_NAME).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    os.utime(folder / PACK_NAME, (1, 1))
    assert pack(folder).outcome == "written"
    assert (folder / PACK_NAME).read_bytes() == whole


def test_files_from_the_future(folder):
    os.utime(folder / "model.safetensors", (4e9, 4e9))
    pack(folder)
    assert pack(folder).outcome == "there"


@pytest.mark.parametrize("place", [8, 300, 5000])
def test_a_damaged_pack_is_replaced(folder, whole, place):
    pack(folder)
    with (folder / PACK_NAME).open("r+b") as file:
        file.seek(place)
        file.write(b"?")
    assert pack(folder).outcome == "written"
    assert (folder / PACK_NAME).read_bytes() == whole


def test_a_pack_of_another_model_is_replaced_only_by_force(folder, whole, checkpoint, tmp_path):
    path = tmp_path / "pack"
    pack(checkpoint(layout="fused"), path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is a pack of another model"):
        pack(folder, path)
    assert path.read_bytes() == before
    pack(folder, path, force=True)
    assert path.read_bytes() == whole


def test_what_is_no_pack_is_replaced_only_by_force(folder, whole, tmp_path):
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(StorageError, match="exists and is not a pack"):
        pack(folder, path)
    assert path.read_text() == "precious"
    assert not (tmp_path / ".precious.lock").exists()
    pack(folder, path, force=True)
    assert path.read_bytes() == whole
    for other in (tmp_path, Path("/dev/null")):
        with pytest.raises(StorageError, match="exists and is not a pack"):
            pack(folder, other, force=True)


# Where it cannot be written


@pytest.mark.parametrize("records", [0, 7])
def test_a_disk_that_gets_full(folder, whole, records):
    """A limit to the size of files fails as a full disk does, after some records."""
    path, head = folder / PACK_NAME, 8192
    child = start(folder, path, largest=head + records * 12288 + 100)
    _, said = child.communicate()
    assert child.returncode == 1
    assert said.splitlines() == [
        f"StorageError: the pack of model cannot be written to {path}: File too large "
        "(free some space, or choose a folder on another disk)"
    ]
    assert not path.exists()
    assert not (folder / PART).exists()
    pack(folder)
    assert path.read_bytes() == whole


def test_the_old_pack_outlives_a_failed_new_one(folder):
    path = folder / PACK_NAME
    pack(folder)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    os.utime(path, (1, 1))
    damaged = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            pack(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == damaged


def test_space_is_checked_before_anything_is_written(folder, monkeypatch):
    free = shutil.disk_usage(folder)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match=r"needs 16\.3 MiB more, and .* has 1\.00 MiB free") as caught:
        pack(folder)
    assert caught.value.hint.startswith("free 15.3 MiB")
    assert not (folder / PART).exists()


def test_a_folder_that_is_not_there(folder, tmp_path):
    with pytest.raises(StorageError, match=r"cannot be written to .*: No such file or directory"):
        pack(folder, tmp_path / "nowhere" / "pack")


def test_a_checkpoint_that_is_cut_short_meanwhile(folder):
    def cut(stage, done, total):
        os.truncate(folder / "model.safetensors", 5000)

    with pytest.raises(Exception, match="cannot be read") as caught:
        pack(folder, progress=cut)
    assert "\n" not in str(caught.value)
    assert not (folder / PACK_NAME).exists()
    with pytest.raises(CorruptCheckpoint):
        pack(folder)


def test_the_head_of_a_finished_pack_is_readable(folder):
    pack(folder)
    assert read_head(folder / PACK_NAME).header.experts == EXPERTS
