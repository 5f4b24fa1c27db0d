"""``finemoe top``: numbers of boards as running engines keep them, read by a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from offload.service.board import BoardReader
from tests.finemoe_cli.conftest import Finemoe
from tests.finemoe_cli.test_imports import heavy_imports
from tests.offload.service.boards import MEMORY, FakeEngine
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer

TELEMETRY = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")


@pytest.fixture
def boards(finemoe: Finemoe) -> Path:
    return Path(finemoe.environment["FINEMOE_CACHE_DIR"]) / "boards"


@pytest.fixture
def engine(boards: Path) -> Iterator[FakeEngine]:
    """An engine that has answered once: 20 tokens, half of the third layer's experts missed."""
    engine = FakeEngine()
    engine.counters.tally[0, 3] = 4
    engine.counters.tally[1, 0] = [40, 39, 20]
    engine.counters.tally[1, 3] = [0, 1, 20]
    engine.counters.stall_ns[1] = [0, 10_000_000, 30_000_000]
    engine.counters.bytes_demand = [12 << 20, 40 << 20]
    engine.counters.evictions = [0, 7]
    engine.state[:6] = 2
    with engine.published(boards, profile="low") as writer, BoardReader(writer.path) as reader:
        engine.prefill(writer, 1)
        for number in range(20):
            engine.decode(writer, 1, number)
        writer.request_ended(ttft_s=1.25)
        until(lambda: reader.next_record == 20 and reader.frame().ttft_s == 1.25)
        yield engine


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_nothing_running_is_one_clear_line(finemoe: Finemoe) -> None:
    for arguments in ([], ["--jsonl"], ["--list"], ["123"]):
        result = finemoe("top", *arguments)
        assert result.code == 3
        assert result.error == "no model runs here"


def test_the_table_says_what_the_engine_counts(finemoe: Finemoe, engine: FakeEngine) -> None:
    result = finemoe("top", "--once")
    assert (result.code, result.err) == (0, "")
    rows = [line.split(maxsplit=1) for line in result.out.splitlines()]
    shown = {" ".join(line.split()): None for line in result.out.splitlines()}
    assert rows[0] == ["process", "42 · finemoe chat · tiny · cpu"]
    assert "phase idle · 1 request · 20 tokens" in shown
    assert "prefill hit 0.0% · 12 missed" in shown and "12.0 MiB read · stall 0.00 s · 0 evicted" in shown
    assert "decode hit 82.5% · 99 resident · 21 missed" in shown
    assert "2.00 MiB/token · stall 2.0 ms/token · 7 evicted" in shown
    assert "worst layers 2: hit 50.0% · 1: hit 97.5%" in shown
    assert "policy demand · profile low · fast kernels · bf16" in shown
    assert any("TTFT 1.25 s" in line for line in shown) and any("6 experts in" in line for line in shown)
    assert "host 8.00 GiB in all · 3.00 GiB available" in shown
    assert finemoe("top").out.splitlines()[0] == result.out.splitlines()[0]  # no terminal: the same


def test_the_object_has_every_number_and_the_document_every_name(finemoe: Finemoe, engine: FakeEngine) -> None:
    said = finemoe("top", "--json").json
    assert said["facts"] == {name: getattr(engine.facts, name) for name in engine.facts.__slots__}
    assert (said["phase"], said["policy"], said["profile"], said["requests"]) == ("idle", "demand", "low", 1)
    assert (said["tokens"], said["ttft_s"], said["resident"]) == (20, 1.25, 6)
    assert said["tokens_per_s"] > 0
    decode = said["experts"]["decode"]
    assert decode["hit_rate"] == pytest.approx(99 / 120) and decode["stall_s"] == pytest.approx(0.04)
    assert said["decode_layers"]["missed"] == [0, 1, 20]
    assert said["memory"]["slots"] == MEMORY.slots
    assert said["host"]["total_bytes"] == 8 << 30 and said["gpu"] is None
    assert [mark["text"] for mark in said["marks"]] == ["request 1"]
    assert [name for name in sorted(names(said)) if f"`{name}`" not in TELEMETRY] == []


def test_the_one_opened_last_is_watched_and_any_by_its_number(
    finemoe: Finemoe, engine: FakeEngine, boards: Path
) -> None:
    newer = FakeEngine(pid=77, opened=2000.0)
    with newer.published(boards):
        assert finemoe("top", "--json").json["facts"]["pid"] == 77
        assert finemoe("top", "--json", "42").json["facts"]["pid"] == 42
        listed = finemoe("top", "--list").out.splitlines()
        assert [line.split()[0] for line in listed] == ["pid", "77", "42"]
        assert finemoe("top", "--once", "4242").error == "process 4242 runs no model"


def test_in_a_terminal_it_is_a_screen_until_q(finemoe: Finemoe, engine: FakeEngine) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = finemoe.start("top", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    try:
        while b"finemoe chat" not in seen:
            seen += os.read(master, 1 << 16)
        os.write(master, b"q")
        reading = threading.Thread(target=drain, args=(master,), daemon=True)
        reading.start()
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(master)
    assert b"Traceback" not in seen


def drain(descriptor: int) -> None:
    """Takes what nobody needs."""
    try:
        while os.read(descriptor, 1 << 16):
            pass
    except OSError:
        pass


def test_two_ways_at_once_are_refused(finemoe: Finemoe) -> None:
    result = finemoe("top", "--json", "--once")
    assert (result.code, result.error) == (2, "both --once and --json are given")
    assert finemoe("top", "--jsonl", "--interval", "0").code == 2


def test_a_board_that_cannot_be_read_is_not_there(finemoe: Finemoe, boards: Path) -> None:
    boards.mkdir(parents=True)
    (boards / "1-x.board").write_bytes(b"noise")
    assert finemoe("top").error == "no model runs here"


def test_a_stream_ends_with_the_process_that_is_watched(finemoe: Finemoe, boards: Path) -> None:
    engine = FakeEngine()
    with engine.published(boards) as writer:
        process = finemoe.start("top", "--jsonl", "--interval", "0.05")
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert lines[0]["time_s"] <= lines[2]["time_s"]
        assert lines[0]["tokens_per_s"] is None
        writer.close()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    for line in out.splitlines():
        json.loads(line)


def test_ctrl_c_ends_a_stream(finemoe: Finemoe, engine: FakeEngine) -> None:
    process = finemoe.start("top", "--jsonl", "--interval", "30")
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_a_reader_that_goes_away_ends_a_stream_quietly(finemoe: Finemoe, engine: FakeEngine) -> None:
    process = finemoe.start("top", "--jsonl", "--interval", "0.05")
    assert process.stdout is not None and process.stderr is not None and process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_run_can_be_watched_and_leaves_no_board(finemoe: Finemoe, boards: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", eos_token_id=None, max_position_embeddings=8192)
    tiny_tokenizer(model, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)
    arguments = ("--model", str(model), "--kernels", "reference", "-p", "roomy", "-n", "4000", "--no-stream", "Hi")
    running = finemoe.start("run", *arguments)
    until(lambda: list(boards.glob("*.board")) or running.poll() is not None, 120)
    said: Mapping[str, Any] = {}
    while not said.get("tokens"):
        said = finemoe("top", "--json").json
    assert (said["facts"]["command"], said["facts"]["model"], said["profile"]) == ("run", "tiny", "roomy")
    assert said["facts"]["pid"] == running.pid and said["phase"] == "decode"
    selections = said["experts"]["decode"]["selections"]
    assert selections >= said["tokens"] > 0 and selections % (3 * 2) == 0
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert list(boards.iterdir()) == []


def test_asking_for_help_is_light(finemoe: Finemoe) -> None:
    assert heavy_imports(finemoe, ["top", "--help"]) == set()
    assert heavy_imports(finemoe, ["top"]) <= {"numpy"}


def names(value: object) -> Iterator[str]:
    """The names of all fields of a JSON value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner)
