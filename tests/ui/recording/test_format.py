"""Writing and reading recordings: what goes in comes out, and what is damaged is said to be."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import NotFound, StorageError
from offload.service.messages import Done, Failed, Progress, Ready, Started, Text
from offload.telemetry.frame import Frame, Mark, TokenRecord
from offload.telemetry.probes import DeviceReading
from tests.support.recordings import FOLDER, KINDS, QUESTIONS, record
from tests.support.synthetic import SyntheticEngine
from ui.recording.format import (
    MAGIC,
    PREFIX,
    VERSION,
    Entry,
    Said,
    decode_entries,
    decode_frames,
    decode_records,
    encode_entries,
    encode_frames,
    encode_records,
)
from ui.recording.recorder import SUFFIX, Recorder
from ui.recording.recording import Recording

ROOT = Path(__file__).parents[3]


def same(one: Any, other: Any) -> bool:
    """Whether two frames or records are equal, arrays included."""
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        if isinstance(getattr(one, field.name), np.ndarray)
        else getattr(one, field.name) == getattr(other, field.name)
        for field in fields(one)
    )


def an_engine(seed: int = 7, **options: Any) -> SyntheticEngine:
    return SyntheticEngine(3, 5, 2, slots=6, seed=seed, **options)


texts = st.text(max_size=30)
entries = st.lists(
    st.builds(
        Entry,
        st.floats(0, 4e9),
        st.one_of(
            st.builds(Said, st.sampled_from(["user", "system"]), texts),
            st.builds(Started, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)),
            st.builds(Text, st.integers(0, 99), texts, st.integers(0, 99)),
            st.builds(Done, st.integers(0, 99), st.dictionaries(texts, texts, max_size=3)),
            st.builds(Failed, st.integers(0, 99), texts, texts, texts, st.booleans()),
            st.builds(Progress, st.integers(0, 99), texts, st.integers(0, 99), st.integers(0, 99)),
        ),
    ),
    max_size=10,
)


@given(entries)
def test_entries_come_out_as_they_went_in(given: list[Entry]) -> None:
    assert decode_entries(encode_entries(given)) == given


@given(
    seed=st.integers(0, 99),
    tokens=st.integers(1, 12),
    note=texts,
    ttft=st.none() | st.floats(0, 99),
    gpu=st.none() | st.builds(DeviceReading, total_bytes=st.none() | st.integers(0, 1 << 40), reason=texts),
    mark=st.builds(Mark, st.floats(0, 4e9), st.sampled_from(["budget", "reset"]), texts),
)
@settings(deadline=None, max_examples=30)
def test_frames_come_out_as_they_went_in(
    seed: int, tokens: int, note: str, ttft: float | None, gpu: DeviceReading | None, mark: Mark
) -> None:
    engine = an_engine(seed)
    frames: list[Frame] = list(engine.run(tokens, every=0.01))
    engine.rest(1)
    engine.reset()
    frames += [
        replace(engine.frame(), note=note, ttft_s=ttft, gpu=gpu, marks=(mark,)),
        replace(engine.frame(), state=255 - engine.state, fresh=255 - engine.fresh),
    ]
    out = decode_frames(engine.facts, encode_frames(frames))
    assert len(out) == len(frames)
    assert all(same(one, other) for one, other in zip(out, frames, strict=True))


@given(seed=st.integers(0, 99), tokens=st.integers(1, 20))
@settings(deadline=None, max_examples=20)
def test_records_come_out_as_they_went_in(seed: int, tokens: int) -> None:
    engine = an_engine(seed)
    records: list[TokenRecord] = [engine.token(token) for token in range(tokens)]
    out = decode_records(engine.facts, encode_records(engine.facts, records))
    assert all(same(one, other) for one, other in zip(out, records, strict=True))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticEngine]:
    """A recording and the engine that it is of."""
    path = tmp_path_factory.mktemp("recording") / f"one{SUFFIX}"
    return path, record(path, an_engine(), tokens=30)


def test_a_recording_has_everything(recorded: tuple[Path, SyntheticEngine]) -> None:
    path, engine = recorded
    recording = Recording.open(path)
    assert recording.complete
    assert (recording.title, recording.created) == ("rivers and skies", engine.facts.opened)
    said = [entry.what for entry in recording.entries if isinstance(entry.what, Said)]
    assert said == [Said("user", question) for question, _ in QUESTIONS]
    answers = [entry.what.completion["text"] for entry in recording.entries if isinstance(entry.what, Done)]
    assert answers == [answer for _, answer in QUESTIONS]
    (of_engine,) = recording.engines
    assert of_engine.facts == engine.facts
    assert len(of_engine.records) == 60
    assert all(same(one, other) for one, other in zip(of_engine.records, engine.records(0), strict=True))
    frames = list(recording.frames(float("-inf"), recording.end))
    assert frames[-1].tokens == 60
    assert [frame.time_s for frame in frames] == sorted(frame.time_s for frame in frames)
    assert recording.token_text(engine.records(0)[0].token_id)
    assert recording.token_text(-1) is None
    (ready,) = [entry.what for entry in recording.entries if isinstance(entry.what, Ready)]
    assert (ready.slots, ready.board) == (6, "")


def test_the_frame_at_a_time_is_the_last_before_it(recorded: tuple[Path, SyntheticEngine]) -> None:
    recording = Recording.open(recorded[0])
    frames = list(recording.frames(float("-inf"), recording.end))
    assert recording.frame_at(frames[0].time_s - 1) is None
    for one, following in pairwise(frames):
        middle = recording.frame_at((one.time_s + following.time_s) / 2)
        assert middle is not None
        assert middle.time_s == one.time_s
    last = recording.frame_at(recording.end + 100)
    assert last is not None
    assert last.time_s == frames[-1].time_s


def test_chunks_of_frames_are_decoded_as_often_as_needed(tmp_path: Path) -> None:
    path = tmp_path / f"long{SUFFIX}"
    engine = an_engine()
    recorder = Recorder(path, now=lambda: engine.time)
    for _ in range(400):
        engine.rest(0.25)
        recorder.frame(engine.frame())
    recorder.close()
    recording = Recording.open(path)
    assert len(list(recording.frames(float("-inf"), recording.end))) == 400
    first = recording.frame_at(recording.start)
    assert first is not None
    assert first.time_s == recording.start


@given(cut=st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_what_was_written_before_a_cut_is_there(recorded: tuple[Path, SyntheticEngine], cut: float) -> None:
    path, _ = recorded
    whole = path.read_bytes()
    part = path.with_name("cut")
    kept = whole[: round(PREFIX.size + cut * (len(whole) - PREFIX.size - 1))]
    part.write_bytes(kept)
    recording, complete = Recording.open(part), Recording.open(path)
    assert not recording.complete
    assert recording.entries == complete.entries[: len(recording.entries)]
    for frame in recording.frames(float("-inf"), recording.end):
        other = complete.frame_at(frame.time_s)
        assert other is not None
        assert same(frame, other)


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=30)
def test_a_flipped_bit_is_never_taken_for_data(
    recorded: tuple[Path, SyntheticEngine], place: float, bit: int
) -> None:
    path, _ = recorded
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1 << bit
    damaged = path.with_name("damaged")
    damaged.write_bytes(data)
    complete = Recording.open(path)
    try:
        recording = Recording.open(damaged)
        frames = list(recording.frames(float("-inf"), recording.end))
    except StorageError as error:
        assert "damaged" in error.message or "not a recording" in error.message or "version" in error.message
        return
    # The length of a chunk may say that it goes on behind the end: then it counts as cut off.
    assert not recording.complete or frames == []
    assert recording.entries == complete.entries[: len(recording.entries)]


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(NotFound, match="there is no recording"):
        Recording.open(path)
    with pytest.raises(StorageError, match="cannot be read"):
        Recording.open(tmp_path)
    for data in (b"", b"fine", b"PK\x03\x04 something else entirely"):
        path.write_bytes(data)
        with pytest.raises(StorageError, match="is not a recording"):
            Recording.open(path)


def test_a_newer_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(PREFIX.pack(MAGIC, VERSION + 1))
    with pytest.raises(StorageError, match=f"version {VERSION + 1}, and this finemoe reads up to {VERSION}"):
        Recording.open(path)


def test_fields_may_come_and_go() -> None:
    engine = an_engine()
    frames = [engine.frame()]
    line, _, data = encode_frames(frames).partition(b"\n")
    other = line.replace(b'"queued", "<i8", []', b'"flying", "<i8", []')
    assert other != line
    (out,) = decode_frames(engine.facts, other + b"\n" + data)
    assert out.queued == 0
    assert np.array_equal(out.uses, frames[0].uses)


def test_what_is_not_in_an_older_recording_is_nothing() -> None:
    engine = an_engine()
    line, _, data = encode_frames([engine.frame()]).partition(b"\n")
    other = line.replace(b', "policy_bytes": 0', b"").replace(b'"limit_source": ""', b'"colour": "red"')
    assert len(other) < len(line)
    (out,) = decode_frames(engine.facts, other + b"\n" + data)
    assert same(out, engine.frame())


def test_another_engine_begins_its_own_records(tmp_path: Path) -> None:
    path = tmp_path / "two"
    recorder = Recorder(path)
    for pid in (1, 2):
        engine = an_engine(pid=pid)
        for frame in engine.run(5):
            recorder.frame(frame)
        recorder.records(engine.records(0))
    recorder.close()
    recording = Recording.open(path)
    assert [len(engine.records) for engine in recording.engines] == [5, 5]
    assert [record.number for record in recording.records(engine.facts, 3, float("inf"))] == [3, 4]


def test_frames_and_records_come_in_once(tmp_path: Path) -> None:
    path = tmp_path / "once"
    engine, recorder = an_engine(), Recorder(tmp_path / "once")
    engine.token(1)
    for _ in range(3):
        recorder.frame(engine.frame())
        recorder.records(engine.records(0))
    recorder.close()
    recorder.close()
    recording = Recording.open(path)
    assert len(list(recording.frames(float("-inf"), recording.end))) == 1
    assert len(recording.engines[0].records) == 1


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        Recorder(path)
    assert path.read_text() == "mine"
    with pytest.raises(StorageError, match="cannot be written"):
        Recorder(tmp_path / "nowhere" / "x")


def test_a_full_disk_is_said_once_and_ends_the_recording() -> None:
    script = (
        "import resource, signal, sys, pathlib\n"
        "from offload.errors import StorageError\n"
        "from tests.support.synthetic import SyntheticEngine\n"
        "from ui.recording.recorder import Recorder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "engine = SyntheticEngine(3, 5, 2, slots=6)\n"
        "recorder = Recorder(pathlib.Path(sys.argv[1]))\n"
        "try:\n"
        "    for frame in engine.run(4000):\n"
        "        recorder.frame(frame)\n"
        "        recorder.records(engine.records(engine.tokens - 1))\n"
        "except StorageError as error:\n"
        "    print(error.message)\n"
        "recorder.close()\n"
    )
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"finemoe-full-{os.getpid()}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        assert "the recording cannot be written to" in done.stdout
        assert not Recording.open(path).complete
    finally:
        path.unlink(missing_ok=True)


def test_a_killed_process_leaves_what_it_had_written(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from tests.support.synthetic import SyntheticEngine\n"
        "from ui.recording.recorder import Recorder\n"
        "engine = SyntheticEngine(3, 5, 2, slots=6)\n"
        "recorder = Recorder(pathlib.Path(sys.argv[1]), now=lambda: engine.time)\n"
        "recorder.said('user', 'hello')\n"
        "while True:\n"
        "    engine.token(1)\n"
        "    engine.rest(0.2)\n"
        "    recorder.frame(engine.frame())\n"
        "    recorder.records(engine.records(engine.tokens - 1))\n"
    )
    path = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recording = Recording.open(path)
    assert not recording.complete
    assert recording.entries[0].what == Said("user", "hello")
    frames = list(recording.frames(float("-inf"), recording.end))
    assert len(frames) >= 20
    assert frames[-1].tokens == len(frames)


def test_recordings_are_small(tmp_path: Path) -> None:
    path = tmp_path / "small"
    engine = SyntheticEngine(24, 60, 4)
    recorder = Recorder(path, now=lambda: engine.time)
    frames = 0
    for frame in engine.run(300):
        recorder.frame(frame)
        recorder.records(engine.records(frame.tokens - 8))
        frames += 1
    recorder.close()
    raw = frames * 24 * 60 * 18 + 300 * (24 * 4 * 5 + 24 * 8)
    assert path.stat().st_size < raw / 8


@pytest.mark.parametrize("name", KINDS)
def test_the_fixtures_are_what_their_generator_makes(name: str, tmp_path: Path) -> None:
    kept = Recording.open(FOLDER / f"{name}{SUFFIX}")
    record(tmp_path / "new", SyntheticEngine(12, 16, 2, gpu=KINDS[name]))
    new = Recording.open(tmp_path / "new")
    assert kept.entries == new.entries
    assert all(
        same(one, other) for one, other in zip(kept.frames(-1, kept.end), new.frames(-1, new.end), strict=True)
    )


def test_the_head_of_the_format_is_as_documented() -> None:
    data = (FOLDER / f"cpu{SUFFIX}").read_bytes()
    assert data[:8] == b"finemoeR"
    assert struct.unpack_from("<I", data, 8) == (1,)
    assert data[12:16] == b"HEAD"
