"""Trace files: what goes in comes out, and of a file that is not whole what is whole in it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import StorageError, TraceError
from offload.trace import writer as trace_writer
from offload.trace.blocks import MAGIC, VERSION
from offload.trace.codec import BadPayload, pack_request, unpack_request
from offload.trace.file import Trace, TraceHeader, TraceWriter
from offload.trace.records import TraceModel, TraceRequest
from tests.support.traces import assert_same_request, models, random_model, random_request, requests

HEADER = TraceHeader(
    created="2026-01-02T03:04:05+00:00", policy="demand", slots=7, sampling={"seed": 1, "top_p": None}
)
MODEL = random_model()
REQUESTS = [random_request(MODEL, number, name=f"c-{number}/1", decoded=number) for number in range(4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.trace"
    Trace.write(path, MODEL, HEADER, REQUESTS)
    return path


@given(data=st.data())
def test_what_goes_in_comes_out(data: st.DataObject) -> None:
    model = data.draw(models())
    request = data.draw(requests(model))
    assert_same_request(unpack_request(memoryview(pack_request(request, model)), model), request)


@settings(max_examples=25)
@given(data=st.data())
def test_so_does_a_whole_trace(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = data.draw(models())
    wanted = data.draw(st.lists(requests(model), max_size=3))
    path = tmp_path_factory.mktemp("any") / "any.trace"
    Trace.write(path, model, HEADER, wanted)
    with Trace.open(path) as trace:
        assert (trace.header, trace.warning, len(trace)) == (HEADER, "", len(wanted))
        assert_same_model(trace.model, model)
        for got, request in zip(trace, wanted, strict=True):
            assert_same_request(got, request)


def test_the_index_tells_without_reading(whole: Path) -> None:
    with Trace.open(whole) as trace:
        entries = trace.entries
    assert [entry.name for entry in entries] == ["c-0/1", "c-1/1", "c-2/1", "c-3/1"]
    assert [(entry.prompt_tokens, entry.decoded_tokens) for entry in entries] == [(5, 0), (5, 1), (5, 2), (5, 3)]


def test_requests_by_number(whole: Path) -> None:
    with Trace.open(whole) as trace:
        assert_same_request(trace[-1], REQUESTS[3])
        assert_same_request(trace[1], REQUESTS[1])
        for number in (4, -5):
            with pytest.raises(IndexError):
                trace[number]


def test_what_was_read_is_kept_within_bounds(whole: Path) -> None:
    with Trace.open(whole) as roomy, Trace.open(whole, cache_bytes=0) as tight:
        assert all(roomy[number] is roomy[number] for number in range(4))
        kept = roomy[0]
        roomy[3]
        assert roomy[0] is kept
        kept = tight[0]
        assert tight[0] is kept  # the last one always is
        tight[1]
        assert tight[0] is not kept


def test_any_beginning_of_a_trace_opens_with_what_is_complete(whole: Path, tmp_path: Path) -> None:
    size = whole.stat().st_size
    with Trace.open(whole) as trace:
        first = trace.entries[0].offset
        ends = [entry.offset + entry.nbytes for entry in trace.entries]
    near = {at for end in (0, first, *ends, size) for at in range(end - 40, end + 40)}
    path = Path(shutil.copy(whole, tmp_path))
    for length in sorted({at for at in (*near, *range(0, size, 37)) if 0 <= at < size}, reverse=True):
        os.truncate(path, length)
        if length < first:
            with pytest.raises(TraceError) as caught:
                Trace.open(path)
            assert str(path) in caught.value.message
            continue
        complete = sum(end <= length for end in ends)
        with Trace.open(path) as trace:
            assert len(trace) == complete
            assert trace.warning.startswith(f"{path} was not finished; it has {complete} request")
            if length in (*ends, *(end - 1 for end in ends), *(end + 1 for end in ends)):
                for got, request in zip(trace, REQUESTS, strict=False):
                    assert_same_request(got, request)


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_byte_is_never_passed_on(data: st.DataObject, whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = whole.with_name("changed.trace")
    path.write_bytes(content)
    try:
        trace = Trace.open(path)
    except TraceError:
        return
    with trace:
        assert_same_model(trace.model, MODEL)
        assert trace.header == HEADER
        damaged = 0
        for number in range(len(trace)):
            try:
                assert_same_request(trace[number], REQUESTS[number])
            except TraceError as error:
                assert f"request c-{number}/1 of {path} is damaged" in error.message
                damaged += 1
        assert damaged or trace.warning


@given(content=st.binary(max_size=200), begins_right=st.booleans())
def test_any_other_file_is_refused(
    content: bytes, begins_right: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("other") / "other"
    path.write_bytes((MAGIC if begins_right else b"") + content)
    with pytest.raises(TraceError):
        Trace.open(path)


@settings(max_examples=200)
@given(content=st.binary(max_size=300), number=st.integers(0, 3), data=st.data())
def test_any_other_payload_is_refused(content: bytes, number: int, data: st.DataObject) -> None:
    """As a checksum that is right by chance would let through."""
    payload = pack_request(REQUESTS[number], MODEL)
    at = data.draw(st.integers(0, len(payload)))
    try:
        request = unpack_request(memoryview(payload[:at] + content), MODEL)
    except BadPayload:
        return
    assert len(request.passes) == len(REQUESTS[number].passes)


def test_not_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("what I did today")
    assert refusal(path) == f"{path} is not a trace"
    path.write_bytes(b"")
    assert refusal(path) == f"{path} is cut off before its first request"
    assert "No such file" in refusal(tmp_path / "nothing")
    assert "Is a directory" in refusal(tmp_path)


def test_a_newer_version(whole: Path, tmp_path: Path) -> None:
    start = MAGIC + struct.pack("<I", VERSION + 1)
    path = tmp_path / "newer.trace"
    path.write_bytes(start + struct.pack("<I", zlib.crc32(start)) + b"whatever comes then")
    assert refusal(path) == f"{path} has version 2 of the format, and this finemoe knows 1"


def test_another_model(whole: Path) -> None:
    with Trace.open(whole) as trace:
        trace.check_model(MODEL.fingerprint)
        with pytest.raises(TraceError, match="recorded with other weights of tiny, or with another model"):
            trace.check_model(random_model(1).fingerprint)


def test_facts_that_a_later_finemoe_adds_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trace_writer.header_payload
    monkeypatch.setattr(
        trace_writer,
        "header_payload",
        lambda *given: ours(*given).replace(b'"recorded": {', b'"recorded": {"mood": 3, '),
    )
    Trace.write(tmp_path / "t", MODEL, HEADER, REQUESTS)
    with Trace.open(tmp_path / "t") as trace:
        assert (trace.header, len(trace)) == (HEADER, 4)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the trace cannot be written to .*: No such file or directory"):
        TraceWriter.create(tmp_path / "no" / "such.trace", MODEL, HEADER)


def test_what_is_there_is_replaced_only_if_asked_to(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    with pytest.raises(TraceError, match="is there already"):
        TraceWriter.create(path, MODEL, HEADER)
    with Trace.open(path) as reader:
        with TraceWriter.create(path, MODEL, HEADER, replace=True) as writer:
            writer.append(REQUESTS[2])
        assert_same_request(reader[3], REQUESTS[3])  # It reads on in the old file.
    with Trace.open(path) as trace:
        assert [entry.name for entry in trace.entries] == ["c-2/1"]


def test_while_it_grows_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "growing.trace"
    with TraceWriter.create(path, MODEL, HEADER) as writer:
        for number, request in enumerate(REQUESTS):
            with Trace.open(path) as trace:
                assert (len(trace), bool(trace.warning)) == (number, True)
            writer.append(request)
        assert writer.nbytes == path.stat().st_size
    with Trace.open(path) as trace:
        assert (len(trace), trace.warning) == (4, "")


def test_a_full_disk_leaves_what_was_complete(whole: Path, tmp_path: Path) -> None:
    with Trace.open(whole) as trace:
        room = trace.entries[2].offset + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "full.trace"
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(StorageError) as caught, TraceWriter.create(path, MODEL, HEADER) as writer:
            for request in REQUESTS:
                writer.append(request)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.message == f"the trace cannot be written to {path}: {os.strerror(errno.EFBIG)}"
    assert "free some space" in caught.value.hint
    with Trace.open(path) as trace:
        for got, request in zip(trace, REQUESTS[:2], strict=True):
            assert_same_request(got, request)


def test_no_room_for_the_front_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(StorageError):
            TraceWriter.create(tmp_path / "full.trace", MODEL, HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_in_mid_write_costs_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stopped.trace"
    write_all = trace_writer.write_all

    def interrupted(descriptor: int, data: bytes, offset: int) -> None:
        write_all(descriptor, data[: len(data) // 2], offset)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), TraceWriter.create(path, MODEL, HEADER) as writer:
        writer.append(REQUESTS[0])
        with monkeypatch.context() as patched:
            patched.setattr(trace_writer, "write_all", interrupted)
            writer.append(REQUESTS[1])
    with Trace.open(path) as trace:
        assert (len(trace), trace.warning) == (1, "")
        assert_same_request(trace[0], REQUESTS[0])


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        Trace.open(path)
    return caught.value.message


def assert_same_model(one: TraceModel, other: TraceModel) -> None:
    plain = [name for name in TraceModel.__slots__ if name != "routers"]
    assert [getattr(one, name) for name in plain] == [getattr(other, name) for name in plain]
    if other.routers is None:
        assert one.routers is None
        return
    assert one.routers is not None
    assert one.routers.eps == other.routers.eps
    for name in ("gate", "norm"):
        for a, b in zip(getattr(one.routers, name), getattr(other.routers, name), strict=True):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_types_are_what_they_say(whole: Path) -> None:
    with Trace.open(whole) as trace:
        request: TraceRequest = trace[3]
    assert all(type(read.expert) is int for each in request.passes for read in each.reads)
