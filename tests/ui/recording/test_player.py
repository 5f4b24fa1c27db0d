"""Playing: everything comes in order and once, at any speed, from any place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.service.messages import Done, Event, Text
from tests.support.recordings import FOLDER, QUESTIONS
from tests.support.synthetic import steady_gpu
from ui.panes.history import FrameHistory
from ui.recording.format import Said
from ui.recording.player import SPEEDS, ReplaySource
from ui.recording.recorder import SUFFIX, Recorder
from ui.recording.recording import Recording
from ui.recording.totals import Transcript, totals, totals_line, transcript


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.open(FOLDER / f"cpu{SUFFIX}")


def test_everything_comes_once_and_in_order(recording: Recording) -> None:
    told: list[Event | Said] = []
    source = ReplaySource(recording, told.append)
    history = FrameHistory()
    while not source.ended:
        source.advance(0.1)
        history.follow(source)
    assert told == [entry.what for entry in recording.entries]
    assert history.total().tokens == 80
    assert [record.number for record in history.records] == list(range(80))


@given(
    moves=st.lists(st.tuples(st.sampled_from(["seek", "advance", "speed", "pause"]), st.floats(-2, 8)), max_size=12)
)
@settings(deadline=None, max_examples=30)
def test_a_place_is_the_same_however_it_was_reached(moves: list[tuple[str, float]]) -> None:
    recording = Recording.open(FOLDER / f"cpu{SUFFIX}")
    played, told = Transcript(), Transcript()
    source = ReplaySource(recording, played.take, played.clear)
    history = FrameHistory()
    for move, value in moves:
        if move == "seek":
            history.clear()
            source.seek(value)
        elif move == "advance":
            source.advance(abs(value))
        elif move == "speed":
            source.faster(round(value))
        else:
            source.paused = not source.paused
        for frame in source.new_frames():
            history.add(frame)
        assert 0 <= source.position <= recording.seconds
    for entry in recording.entries:
        if entry.time_s <= source.now:
            told.take(entry.what)
    assert played.turns == told.turns
    assert history.latest is (source.frame() if moves else None)


def test_speed_and_pause(recording: Recording) -> None:
    source = ReplaySource(recording)
    source.speed = 4.0
    source.advance(0.5)
    assert source.position == 2.0
    source.paused = True
    source.advance(1)
    assert source.position == 2.0
    for _ in range(20):
        source.faster(1)
    assert source.speed == SPEEDS[-1]
    for _ in range(20):
        source.faster(-1)
    assert source.speed == SPEEDS[0]


def test_records_do_not_come_before_their_time(recording: Recording) -> None:
    source = ReplaySource(recording)
    source.seek(recording.seconds / 2)
    records = source.records(0)
    assert records
    assert all(record.time_s <= source.now for record in records)
    assert source.records(records[-1].number + 1) == []


def test_a_failing_gpu_replays_as_it_was() -> None:
    recording = Recording.open(FOLDER / f"gpu-lost{SUFFIX}")
    readings = [frame.gpu for frame in recording.frames(-1, recording.end)]
    assert readings[0] == steady_gpu(0)
    assert readings[-1] is not None
    assert readings[-1].reason == "the GPU is lost"


def test_the_transcript_is_the_conversation(recording: Recording) -> None:
    turns = transcript(recording)
    assert [(turn.role, turn.text) for turn in turns] == [
        pair for question, answer in QUESTIONS for pair in (("user", question), ("assistant", answer))
    ]
    pieces = [entry.what.text for entry in recording.entries if isinstance(entry.what, Text)]
    assert "".join(pieces).startswith(QUESTIONS[0][1])
    assert all(turn.completion for turn in turns if turn.role == "assistant")


def test_totals_are_those_of_the_records(recording: Recording) -> None:
    numbers = totals(recording)
    hits = sum(int((record.kinds <= 1).sum()) for record in recording.engines[0].records)
    decode = numbers["experts"]["decode"]
    assert (numbers["replies"], numbers["tokens"], numbers["records"]) == (2, 80, 80)
    assert decode["selections"] == 80 * 12 * 2
    assert decode["hit_rate"] == pytest.approx(hits / decode["selections"])
    stall = sum(int(record.stall_ns.sum()) for record in recording.engines[0].records) / 1e9
    assert decode["stall_s"] == pytest.approx(stall)
    done = [entry.what for entry in recording.entries if isinstance(entry.what, Done)]
    assert len(done) == 2
    assert totals_line(numbers).startswith("0:05 · demo · 2 replies · 80 tokens · hit ")


def test_an_empty_recording_has_no_totals_but_nulls(tmp_path: Path) -> None:
    Recorder(tmp_path / "empty").close()
    recording = Recording.open(tmp_path / "empty")
    numbers = totals(recording)
    assert (numbers["model"], numbers["tokens"], numbers["peak_bytes"], numbers["frames"]) == (None, 0, None, 0)
    assert "no model" in totals_line(numbers)
    source = ReplaySource(recording)
    source.advance(1)
    assert source.ended
    assert source.frame() is None
    assert source.records(0) == []


def test_a_real_recording_of_the_demo_model() -> None:
    """The one that the documents' pictures are drawn from."""
    recording = Recording.open(Path(__file__).parents[3] / "docs" / "pictures" / "demo.finemoe")
    numbers = totals(recording)
    assert recording.complete
    assert (numbers["model"], numbers["replies"]) == ("demo", 2)
    assert numbers["tokens"] == numbers["records"]
    records = recording.engines[0].records
    hits = sum(int((record.kinds <= 1).sum()) for record in records)
    assert numbers["experts"]["decode"]["selections"] == sum(record.kinds.size for record in records)
    assert numbers["experts"]["decode"]["hit_rate"] == pytest.approx(
        hits / numbers["experts"]["decode"]["selections"]
    )
    assert all(recording.token_text(record.token_id) is not None for record in records)
