"""What a board's bytes say: whatever is written comes back, and damage is noticed."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import BoardError
from offload.service.board_format import TEXT_BYTES, BoardLayout, Texts, to_frame, to_record
from offload.telemetry.frame import Facts, Mark
from offload.telemetry.probes import DeviceReading, HostReading
from tests.offload.service.boards import MEMORY, FakeEngine


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2000))
def test_no_damage_to_the_head_goes_unnoticed(noise: bytes, at: int) -> None:
    layout = BoardLayout.of(FakeEngine().facts)
    head = layout.head()
    damaged = head[:at] + noise + head[at + len(noise) :]
    try:
        assert BoardLayout.parse(damaged, layout.file_bytes) == layout
    except BoardError:
        assert damaged != head
    else:
        assert damaged[: len(head)] == head  # behind it anything may follow


sizes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4))
texts = st.text(max_size=300)
counts = st.integers(0, (1 << 63) - 1)


@settings(max_examples=60, deadline=None)
@given(sizes, st.data())
def test_frames_and_records_survive_their_bytes(shape: tuple[int, int, int], data: st.DataObject) -> None:
    layers, experts, top_k = shape
    facts = Facts(1, 2.5, "run", data.draw(texts), "cpu", "fast", layers, experts, top_k, 4096)
    layout = BoardLayout.parse(BoardLayout.of(facts).head(), BoardLayout.of(facts).file_bytes)
    assert layout.facts == facts
    for dtype, decode in ((layout.frame_dtype, None), (layout.record_dtype, to_record)):
        row = np.frombuffer(data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)), dtype)[0]
        if decode is None:
            said = Texts(*(data.draw(texts) for _ in range(3)), MEMORY, HostReading(), DeviceReading(), ())
            shown = to_frame(facts, row, said)
            assert shown.phase == row["phase"] and shown.profile == said.profile
            assert shown.ttft_s is None or shown.ttft_s == row["ttft_s"]
        else:
            shown = decode(row)
        for name in dtype.names:
            value = getattr(shown, name, None)
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, row[name]) and value.dtype == dtype[name].base


@settings(max_examples=100, deadline=None)
@given(texts, texts, texts, st.lists(st.builds(Mark, st.floats(0, 1e10), st.just("budget"), texts), max_size=90))
def test_texts_survive_and_always_fit(policy: str, profile: str, note: str, marks: list[Mark]) -> None:
    host = HostReading(limit_bytes=3, limit_source="/x" * 9000, reason=note)
    said = Texts(policy, profile, note, MEMORY, host, DeviceReading(name="GPU"), tuple(marks))
    encoded = said.encode()
    assert len(encoded) <= TEXT_BYTES
    back = Texts.decode(encoded)
    assert (back.policy, back.profile, back.note) == (policy[:200], profile[:200], note[:200])
    assert back.memory == MEMORY and back.gpu == said.gpu
    assert asdict(back.host) == asdict(replace(host, limit_source=host.limit_source[:200], reason=note[:200]))
    kept = [Mark(mark.time_s, mark.kind, mark.text[:200]) for mark in marks]
    assert list(back.marks) == kept[len(kept) - len(back.marks) :]
    assert len(back.marks) >= min(len(marks), 20)
