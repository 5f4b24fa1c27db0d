"""Boards: real files, written by one process and read by another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from offload.errors import BoardError
from offload.service.board import BoardReader, list_boards
from offload.service.board_format import BoardLayout
from offload.telemetry.frame import DECODE, IDLE, PREFILL
from tests.offload.service.boards import MEMORY, FakeEngine

ROOT = Path(__file__).parents[3]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Waits; what never comes fails the test."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_the_engine_counts_is_what_a_reader_sees(engine: FakeEngine, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for array in (engine.counters.uses, engine.counters.misses, engine.counters.tally, engine.counters.stall_ns):
        array[...] = rng.integers(0, 1 << 60, array.shape)
    engine.state[...] = rng.integers(0, 3, engine.state.shape)
    engine.fresh[...] = rng.integers(0, 2, engine.fresh.shape)
    engine.counters.bytes_demand = [1 << 50, 2]
    engine.counters.bytes_prefetch = [3, 4]
    engine.counters.bytes_prefetch_wasted = [5, 6]
    engine.counters.evictions = [7, 8]
    engine.link.queued, engine.link.in_flight = 9, 10
    engine.policy.note, engine.policy.looks_ahead = "prefetch does not pay — off", True
    with engine.published(tmp_path, profile="low") as writer, BoardReader(writer.path) as reader:
        frame = reader.frame()
        assert reader.facts == frame.facts == engine.facts
        assert np.array_equal(frame.state, engine.state) and frame.state.dtype == np.uint8
        assert np.array_equal(frame.fresh, engine.fresh)
        for name in ("uses", "misses", "tally", "stall_ns"):
            assert np.array_equal(getattr(frame, name), getattr(engine.counters, name))
        assert (frame.bytes_demand, frame.bytes_prefetch) == ((1 << 50, 2), (3, 4))
        assert (frame.bytes_prefetch_wasted, frame.evictions) == ((5, 6), (7, 8))
        assert (frame.queued, frame.reading, frame.prefetching) == (9, 10, True)
        assert (frame.policy, frame.profile, frame.note) == ("demand", "low", "prefetch does not pay — off")
        assert frame.memory == MEMORY
        assert frame.host.available_bytes == 3 << 30 and frame.gpu is None
        assert (frame.phase, frame.requests, frame.tokens, frame.ttft_s) == (IDLE, 0, 0, None)
        assert abs(frame.time_s - time.time()) < 60


def test_phases_tokens_and_marks_follow_the_passes(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        engine.prefill(writer, request=1)
        until(lambda: reader.frame().phase == PREFILL)
        assert reader.frame().ttft_s is None
        engine.decode(writer, request=1, number=0)
        engine.decode(writer, request=1, number=1)
        until(lambda: reader.frame().tokens == 2)
        frame = reader.frame()
        assert frame.phase == DECODE and frame.requests == 1
        assert frame.ttft_s is not None and 0 <= frame.ttft_s < 60
        assert frame.last_token_s > 0
        writer.set_profile("roomy")
        writer.mark("budget", "roomy:\n900 MiB")
        writer.request_ended(ttft_s=1.5)
        until(lambda: reader.frame().phase == IDLE)
        frame = reader.frame()
        assert (frame.ttft_s, frame.profile) == (1.5, "roomy")
        assert [(mark.kind, mark.text) for mark in frame.marks] == [
            ("request", "request 1"),
            ("budget", "roomy: 900 MiB"),
        ]


def test_a_request_that_failed_does_not_run_for_ever(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        engine.decode(writer, request=1, number=0)
        until(lambda: reader.frame().phase == DECODE)
        until(lambda: reader.frame().phase == IDLE)


def test_every_token_has_its_record(engine: FakeEngine, tmp_path: Path) -> None:
    engine.state[:5] = 2
    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        assert reader.records(0) == [] and reader.next_record == 0
        engine.prefill(writer, request=1)
        for number in range(20):
            assert writer.next_record == number
            engine.decode(writer, request=1 + number // 10, number=number)
        until(lambda: reader.next_record == 20)
        records = reader.records(3)
        assert [record.number for record in records] == list(range(3, 20))
        for record in records:
            n = record.number
            assert (record.request, record.token_id, record.pass_ns, record.resident) == (1 + n // 10, n, n, 5)
            assert record.chosen.tolist() == [[(n + layer) % 8] * 2 for layer in range(3)]
            assert record.kinds.tolist() == [[n % 4] * 2] * 3
            assert record.stall_ns.tolist() == [n] * 3
        assert reader.records(20) == [] and reader.records(1000) == []


def test_records_that_are_overwritten_are_gone(tmp_path: Path) -> None:
    engine = FakeEngine(layers=60, experts=32, top_k=16)
    ring = BoardLayout.of(engine.facts).ring
    assert 1024 < ring < 4096  # 8 MiB of them
    last = ring + ring // 2
    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        for number in range(last):
            engine.decode(writer, 1, number)
            if number % 256 == 255:
                until(lambda wanted=number + 1: reader.next_record == wanted)
        until(lambda: reader.next_record == last)
        assert [record.number for record in reader.records(0)] == list(range(last - ring, last))
        records = reader.records(last - 700)  # across the ring's end
        assert [(record.number, record.token_id) for record in records] == [(n, n) for n in range(last - 700, last)]


def test_a_slow_disk_costs_records_and_no_token(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, pwrite = threading.Event(), os.pwrite

    def slow_pwrite(file: int, data: bytes, at: int) -> int:
        assert ready.wait(60)
        return pwrite(file, data, at)

    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        monkeypatch.setattr(os, "pwrite", slow_pwrite)
        for number in range(1500):
            engine.decode(writer, 1, number)
        ready.set()
        until(lambda: reader.next_record == 1500)
        records = reader.records(0)
        assert 512 <= len(records) < 1500
        assert records[-1].number == 1499
        assert all(record.token_id == record.number for record in records)


def test_a_disk_that_fails_costs_the_board_and_no_token(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_pwrite(file: int, data: bytes, at: int) -> int:
        raise OSError(5, "Input/output error")

    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        monkeypatch.setattr(os, "pwrite", no_pwrite)
        engine.decode(writer, 1, 0)
        until(lambda: "Input/output error" in caplog.text)
        engine.decode(writer, 1, 1)
        assert reader.frame().tokens == 0
    assert caplog.text.count("are not published any more") == 1


def test_a_routing_of_another_shape_costs_the_board_and_no_token(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.published(tmp_path) as writer:
        FakeEngine(layers=4, top_k=3).decode(writer, 1, 0)
    assert caplog.text.count("are not published any more") == 1


def test_the_same_frame_is_the_same_object(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        first = reader.frame()
        until(lambda: reader.frame() is not first)
        writer.close()
        assert reader.frame() is reader.frame()


def test_a_closed_board_is_gone_and_its_reader_keeps_the_last_frame(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.published(tmp_path) as writer, BoardReader(writer.path) as reader:
        assert reader.alive()
        writer.close()
        writer.close()
        assert not reader.alive()
        assert not writer.path.exists()
        assert reader.frame().facts == engine.facts
    assert list(tmp_path.iterdir()) == []


def test_a_reader_needs_only_to_read(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.published(tmp_path) as writer:
        assert writer.path.stat().st_mode & 0o777 == 0o600
        before = writer.path.stat().st_mtime_ns, writer.path.stat().st_ino
        writer.path.chmod(0o400)
        tmp_path.chmod(0o500)
        try:
            with BoardReader(writer.path) as reader:
                assert reader.frame().facts == engine.facts and reader.alive()
            assert writer.path.stat().st_ino == before[1]
        finally:
            tmp_path.chmod(0o700)


def test_the_latest_board_comes_first_and_dead_ones_are_swept(tmp_path: Path) -> None:
    old, new, gone = FakeEngine(opened=1.0, pid=1), FakeEngine(opened=2.0, pid=2), FakeEngine(opened=3.0, pid=3)
    with old.published(tmp_path) as first, new.published(tmp_path) as second:
        with gone.published(tmp_path) as third:
            left_behind = third.path.read_bytes()
        (tmp_path / "3-dead.board").write_bytes(left_behind)
        (tmp_path / "4-junk.board").write_bytes(b"junk")
        (tmp_path / "readme.txt").write_text("not ours")
        young, stale = tmp_path / "5-a.board-new", tmp_path / "6-b.board-new"
        for path in (young, stale):
            path.write_bytes(b"")
        os.utime(stale, (0, 0))
        boards = list_boards(tmp_path)
        assert [board.facts.pid for board in boards] == [2, 1]
        kept = {first.path.name, second.path.name, "readme.txt", "5-a.board-new"}
        assert {path.name for path in tmp_path.iterdir()} == kept
        for board in boards:
            board.close()
    assert list_boards(tmp_path) == []
    assert list_boards(tmp_path / "nowhere") == []


def test_boards_that_cannot_be_read_say_why(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.published(tmp_path / "good") as writer:
        good = writer.path.read_bytes()
    path = tmp_path / "x.board"

    def refused(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(BoardError) as caught:
            BoardReader(path)
        assert str(path) in caught.value.message
        return caught.value.message

    assert "it is no board" in refused(b"")
    assert "it is no board" in refused(b"something else" * 1000)
    assert "the board is damaged" in refused(good[:-1])
    assert "the board is damaged" in refused(good[:100])
    assert "the board is damaged" in refused(good + b"\0")
    assert "the board is damaged" in refused(good[:60] + b"#" + good[61:])
    assert "version 2, and this finemoe reads version 1" in refused(good[:8] + b"\2" + good[9:])
    with pytest.raises(BoardError, match="No such file"):
        BoardReader(tmp_path / "nothing.board")
    path.write_bytes(good)
    with BoardReader(path) as reader:
        os.truncate(path, 16_500)
        with pytest.raises(BoardError, match="damaged"):
            reader.frame()


WRITER = """
import sys, time, numpy as np
from pathlib import Path
from tests.offload.service.boards import FakeEngine

engine = FakeEngine(layers=20, experts=200, top_k=4)
pace = float(sys.argv[2])
with engine.published(Path(sys.argv[1])) as writer:
    # Its own thread would make 20 frames a second; this one makes as many as it can.
    writer._ending = True
    writer._wake.set()
    writer._thread.join()
    print(writer.path, flush=True)
    number = 0
    counters = engine.counters
    while True:
        # Everything in one frame follows from one number.
        engine.state[:] = number % 251
        for array in (counters.uses, counters.misses, counters.tally, counters.stall_ns):
            array[:] = number
        counters.bytes_demand[:] = [number, number]
        engine.policy.note = "n" * (number % 150) + str(number)
        engine.decode(writer, 1, number)
        writer._captured_at = float("-inf")
        writer._publish()
        number += 1
        if pace:
            time.sleep(pace)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Callable[[float], tuple[subprocess.Popen[str], Path]]]:
    """Starts processes that write a board as fast as they can, or with a pause after each frame."""
    started: list[subprocess.Popen[str]] = []

    def start(pace: float) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(pace)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("pace", [0.0, 0.0005])
def test_no_frame_is_ever_torn(writing: Callable[[float], tuple[subprocess.Popen[str], Path]], pace: float) -> None:
    _, path = writing(pace)
    rng = np.random.default_rng(7)
    with BoardReader(path) as reader:
        seen, records_seen = set(), 0
        until(lambda: reader.next_record > 3)
        for _ in range(3000):
            frame = reader.frame()
            number = int(frame.uses[0])
            seen.add(number)
            assert (frame.uses == number).all() and (frame.misses == number).all()
            assert (frame.tally == number).all() and (frame.stall_ns == number).all()
            assert (frame.state == number % 251).all()
            assert frame.bytes_demand == (number, number)
            records = reader.records(max(0, reader.next_record - int(rng.integers(1, 40))))
            for record in records:
                n = record.number
                assert record.token_id == n and (record.stall_ns == n).all() and (record.kinds == n % 4).all()
                assert record.chosen.tolist() == [[(n + layer) % 200] * 4 for layer in range(20)]
            records_seen += len(records)
        assert len(seen) > 10 and records_seen > 1000


def test_readers_that_come_and_die_disturb_nobody(
    writing: Callable[[float], tuple[subprocess.Popen[str], Path]],
) -> None:
    process, path = writing(0.0005)
    script = (
        "import sys\nfrom pathlib import Path\nfrom offload.service.board import BoardReader\n"
        "reader = BoardReader(Path(sys.argv[1]))\nprint('here', flush=True)\n"
        "while True: reader.frame(), reader.records(0), reader.alive()"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    with BoardReader(path) as reader:
        for other in readers:
            assert other.stdout is not None and other.stdout.readline() == "here\n"
            other.kill()
            other.wait()
            other.stdout.close()
            before = reader.next_record
            until(lambda before=before: reader.next_record > before + 5)
        assert reader.alive() and process.poll() is None


def test_a_killed_writer_is_seen_to_be_dead(writing: Callable[[float], tuple[subprocess.Popen[str], Path]]) -> None:
    process, path = writing(0.0)
    with BoardReader(path) as reader:
        assert reader.frame().facts.model == "tiny"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not reader.alive()
        reader.frame()  # the last whole one, wherever it was killed
        assert path.exists()
        assert list_boards(path.parent) == []
        assert not path.exists()
