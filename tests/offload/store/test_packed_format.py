"""The pack's head: what is written is read back, and no change to it goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.errors import CorruptCheckpoint, ModelError, UnsupportedModel
from offload.store.packed_format import MAGIC, PackHead, is_pack, read_head
from offload.store.packed_header import DenseTensor, PackHeader

HEADER = PackHeader(
    precision="bf16",
    fingerprint="0123456789abcdef" * 4,
    model_type="qwen2_moe",
    moe_layers=(0, 2),
    num_experts=3,
    hidden_size=64,
    expert_size=32,
    stride=12288,
    gate_up=0,
    down=8192,
)
DIGESTS = bytes(range(6 * 32))

headers = st.builds(
    PackHeader,
    precision=st.just("bf16"),
    fingerprint=st.text("0123456789abcdef", min_size=64, max_size=64),
    model_type=st.sampled_from(["qwen2_moe", "mixtral", "größer"]),
    moe_layers=st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=80).map(sorted).map(tuple),
    num_experts=st.integers(1, 300),
    hidden_size=st.integers(1, 1 << 14),
    expert_size=st.integers(1, 1 << 14),
    stride=st.integers(1, 10).map(lambda blocks: 4096 * blocks),
    gate_up=st.just(0),
    down=st.integers(0, 1 << 20),
)


def write_head(path: Path, head: PackHead) -> Path:
    path.write_bytes(head.encode(sealed=True))
    os.truncate(path, head.file_bytes)
    return path


def seal(content: bytes) -> bytes:
    """``content`` with the checksum it should have, as a writer with other ideas would make it."""
    blank = content[:32] + bytes(32) + content[64:]
    return content[:32] + hashlib.sha256(blank).digest() + content[64:]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers, seed=st.integers(0, 255))
def test_round_trip(tmp_path, header, seed):
    head = PackHead(header, bytes([seed]) * 32 * header.experts)
    assert read_head(write_head(tmp_path / "pack", head)) == head
    assert head.head_bytes % 4096 == 0
    assert head.table_start % 4096 == 0
    assert head.digest(header.experts - 1) == bytes([seed]) * 32


quantised_headers = st.builds(
    replace,
    headers,
    precision=st.sampled_from(["int8", "int4"]),
    dense=st.lists(
        st.builds(
            DenseTensor,
            st.text("abc.", min_size=1),
            st.just("bf16"),
            st.lists(st.integers(1, 300), min_size=1, max_size=2).map(tuple),
        )
        | st.builds(
            DenseTensor,
            st.text("abc.", min_size=1),
            st.sampled_from(["int8", "int4"]),
            st.tuples(st.integers(1, 300).map(lambda n: 16 * n), st.integers(1, 20).map(lambda n: 32 * n)),
        ),
        max_size=5,
    ).map(tuple),
    error=st.lists(st.tuples(st.text("xyz", min_size=1), st.floats(0, 1)), unique_by=lambda pair: pair[0]).map(
        tuple
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=quantised_headers)
def test_round_trip_of_quantised_models(tmp_path, header):
    head = PackHead(header, b"")
    head = PackHead(header, bytes(32 * head.records))
    assert read_head(write_head(tmp_path / "pack", head)) == head
    end = head.head_bytes
    for record in range(head.records):  # no gap, no overlap, whole blocks
        begin, nbytes = head.place(record)
        assert (begin, begin % 4096, nbytes % 4096) == (end, 0, 0)
        end = begin + nbytes
    assert end == head.file_bytes


@pytest.mark.parametrize(
    "dense",
    [[["a", "int3", [16, 32]]], [["a", "int8", [16]]], [["a", "int8"]], [["a", "int8", [16, -32]]], 5, [[1, 2, 3]]],
)
def test_a_list_of_weights_that_makes_no_sense(tmp_path, dense):
    content = PackHead(replace(HEADER, precision="int8"), DIGESTS).encode(sealed=False)
    end = 64 + int.from_bytes(content[12:16], "little")
    text = json.dumps({**json.loads(content[64:end]), "dense": dense}).encode().ljust(end - 64)
    path = tmp_path / "pack"
    path.write_bytes(seal(content[:64] + text + content[end:]))
    with pytest.raises(CorruptCheckpoint, match="has a header that cannot be understood"):
        read_head(path)


def test_the_documented_places(tmp_path):
    content = write_head(tmp_path / "pack", PackHead(HEADER, DIGESTS)).read_bytes()
    assert content[:8] == MAGIC == b"FINEMOE\x1a"
    assert int.from_bytes(content[8:12], "little") == 1
    header_bytes = int.from_bytes(content[12:16], "little")
    head_bytes = int.from_bytes(content[16:24], "little")
    assert (64 + header_bytes, head_bytes) == (4096, 8192)
    header = json.loads(content[64 : 64 + header_bytes])
    assert header["precision"] == "bf16"
    assert header["records"]["count"] == 6
    assert content[4096 : 4096 + 6 * 32] == DIGESTS
    assert len(content) == 8192 + 6 * 12288
    assert seal(content[:head_bytes]) == content[:head_bytes]


def test_every_changed_byte_of_the_head_is_noticed(tmp_path):
    path = write_head(tmp_path / "pack", PackHead(HEADER, DIGESTS))
    with path.open("r+b", buffering=0) as file:
        for place in range(8192):
            byte = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([byte[0] ^ (1 << place % 8)]), place)
            with pytest.raises(ModelError) as caught:
                read_head(path)
            assert "\n" not in caught.value.message
            assert caught.value.hint
            os.pwrite(file.fileno(), byte, place)
    read_head(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 8192 + 6 * 12288 - 1) | st.integers(0, 200))
def test_every_truncation_is_noticed(tmp_path, size):
    path = write_head(tmp_path / "pack", PackHead(HEADER, DIGESTS))
    os.truncate(path, size)
    with pytest.raises(CorruptCheckpoint, match="is truncated"):
        read_head(path)


def test_bytes_at_the_end_are_noticed(tmp_path):
    path = write_head(tmp_path / "pack", PackHead(HEADER, DIGESTS))
    os.truncate(path, path.stat().st_size + 1)
    with pytest.raises(CorruptCheckpoint, match="is too long"):
        read_head(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_bytes_are_an_error_of_ours(tmp_path, data):
    content = bytearray(PackHead(HEADER, DIGESTS).encode(sealed=True))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 500))] = data.draw(st.integers(0, 255))
    resealed = bytes(content) if data.draw(st.booleans()) else seal(bytes(content))
    path = tmp_path / "pack"
    path.write_bytes(resealed)
    os.truncate(path, 8192 + 6 * 12288)
    try:
        head = read_head(path)
    except ModelError:
        return
    assert head.encode(sealed=True) == resealed


def test_a_newer_version(tmp_path):
    path = write_head(tmp_path / "pack", PackHead(HEADER, DIGESTS))
    content = path.read_bytes()
    path.write_bytes(seal(content[:8] + (2).to_bytes(4, "little") + content[12:]))
    with pytest.raises(UnsupportedModel, match="is a pack of version 2; this finemoe reads version 1"):
        read_head(path)
    assert is_pack(path)


def test_another_precision(tmp_path):
    path = write_head(tmp_path / "pack", PackHead(replace(HEADER, precision="int3"), DIGESTS))
    with pytest.raises(UnsupportedModel, match="as int3, which this finemoe does not read"):
        read_head(path)


def test_an_unfinished_pack_is_none(tmp_path):
    path = tmp_path / "pack"
    head = PackHead(HEADER, DIGESTS)
    path.write_bytes(head.encode(sealed=False).ljust(head.file_bytes, b"\0"))
    with pytest.raises(CorruptCheckpoint, match="damaged head"):
        read_head(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "truncated"), (b"GGUF" * 100, "is not a pack"), (MAGIC + bytes(80), "version 0")],
)
def test_files_that_are_something_else(tmp_path, content, problem):
    path = tmp_path / "pack"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        read_head(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CorruptCheckpoint, match="cannot be read: No such file"):
        read_head(tmp_path / "pack")
