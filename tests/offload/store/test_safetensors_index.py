"""Checkpoint headers: accepted is what the safetensors library accepts, and refusals say what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from offload.errors import CorruptCheckpoint, ModelError, UnsupportedModel
from offload.store.safetensors_index import SHARD_INDEX, SINGLE_FILE, CheckpointIndex, read_header

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
}


def write_raw(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def changed(name: str, **fields: object) -> dict[str, object]:
    return {**GOOD, name: {**GOOD[name], **fields}}


def test_places_and_types(tmp_path):
    path = write_raw(tmp_path / SINGLE_FILE, GOOD, bytes(range(16)))
    index = CheckpointIndex.open(tmp_path)
    assert set(index.tensors) == {"a", "b"}
    a, b = index.tensors["a"], index.tensors["b"]
    assert (a.path, a.dtype, a.shape, a.nbytes) == (path, "BF16", (2, 3), 12)
    assert (b.offset, b.nbytes, b.shape) == (a.offset + 12, 4, ())
    out = bytearray(4)
    index.read_tensor("b", memoryview(out))
    assert out == bytes([12, 13, 14, 15])


def test_agrees_with_the_library(checkpoint):
    folder = checkpoint(shards=5)
    index = CheckpointIndex.open(folder)
    seen = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                assert index.tensors[key].path == path
                assert list(index.tensors[key].shape) == file.get_slice(key).get_shape()
                seen.add(key)
    assert seen == set(index.tensors)


def test_one_file_goes_before_an_index_as_in_transformers(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(shards=5), tmp_path / "model")
    write_raw(folder / SINGLE_FILE, GOOD)
    assert set(CheckpointIndex.open(folder).tensors) == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        (GOOD, bytes(15), "is truncated: it has"),
        (GOOD, bytes(17), "1 bytes at its end"),
        (b"{not json", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "appears twice"),
        ([1, 2], b"", "not a JSON object"),
        (changed("b", data_offsets=[8, 12]), bytes(16), "overlap"),
        ({"b": GOOD["b"]}, bytes(16), "12 bytes before the tensor 'b'"),
        (changed("b", data_offsets=[16, 12]), bytes(16), "impossible"),
        (changed("b", data_offsets=[-4, 0]), bytes(16), "impossible"),
        (changed("b", shape=[-1]), bytes(16), "impossible"),
        (changed("b", shape=[True]), bytes(16), "impossible"),
        (changed("b", shape=["1"]), bytes(16), "impossible"),
        (changed("a", shape=[2, 4]), bytes(16), r"12 bytes, which BF16 \[2, 4\] has not"),
        (changed("a", dtype=5), bytes(16), "form"),
        (changed("a", data_offsets=[0]), bytes(16), "form"),
        ({**GOOD, "c": 7}, bytes(16), "form"),
        (changed("b", data_offsets=[12, 10**30], dtype="X9"), bytes(16), "truncated"),
    ],
)
def test_broken_headers(tmp_path, header, data, problem):
    path = write_raw(tmp_path / SINGLE_FILE, header, data)
    with pytest.raises(CorruptCheckpoint, match=problem) as caught:
        CheckpointIndex.open(tmp_path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "truncated"),
        (b"\x10\x00\x00", "truncated"),
        ((1000).to_bytes(8, "little") + b"{}", "do not hold its header of 1000"),
        (b"<html><body>404", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "not a safetensors file"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, problem):
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=problem):
        CheckpointIndex.open(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_an_error_or_harmless(tmp_path, data):
    """Whatever is done to the bytes: an error of ours, or places that lie inside the file."""
    path = write_raw(tmp_path / SINGLE_FILE, GOOD)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read_header(path)
    except CorruptCheckpoint:
        return
    for entry in tensors.values():
        assert 8 <= entry.offset <= entry.offset + entry.nbytes <= path.stat().st_size


def test_a_missing_shard_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(shards=5), tmp_path / "model")
    (folder / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"lacks the shard model-00003-of-00005\.safetensors$"):
        CheckpointIndex.open(folder)
    (folder / "model-00004-of-00005.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"model-00003-of-00005\.safetensors and 1 more$"):
        CheckpointIndex.open(folder)


def test_a_truncated_shard_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(shards=5), tmp_path / "model")
    shard = folder / "model-00002-of-00005.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CorruptCheckpoint, match=r"model-00002-of-00005\.safetensors is truncated"):
        CheckpointIndex.open(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda index: index["weight_map"].update(ghost="model-00001-of-00005.safetensors"), "'ghost'"),
        (lambda index: index["weight_map"].update(ghost="../other.safetensors"), "outside its folder"),
        (lambda index: index["weight_map"].update(ghost=7), "outside its folder"),
        (lambda index: index.update(weight_map={}), "no weight map"),
        (lambda index: index.pop("weight_map"), "no weight map"),
    ],
)
def test_a_shard_index_that_is_wrong(checkpoint, tmp_path, change, problem):
    folder = shutil.copytree(checkpoint(shards=5), tmp_path / "model")
    index = json.loads((folder / SHARD_INDEX).read_text())
    change(index)
    (folder / SHARD_INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpoint, match=problem):
        CheckpointIndex.open(folder)


def test_a_shard_index_that_is_no_json(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(shards=5), tmp_path / "model")
    (folder / SHARD_INDEX).write_text("{")
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        CheckpointIndex.open(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_is_never_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedModel, match="runs code"):
        CheckpointIndex.open(tmp_path)


@pytest.mark.parametrize("name", [None, "README.md", "model-00001-of-00002.safetensors"])
def test_no_weights(tmp_path, name):
    if name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CorruptCheckpoint) as caught:
        CheckpointIndex.open(tmp_path)
    assert caught.value.hint


def test_tensors_that_cannot_be_read(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    index = CheckpointIndex.open(folder)
    with pytest.raises(ModelError, match="no tensor 'ghost'"):
        index.read_tensor("ghost", memoryview(bytearray(1)))
    with pytest.raises(ValueError, match="bytes, the buffer 1"):
        index.read_tensor("lm_head.weight", memoryview(bytearray(1)))
    os.truncate(folder / SINGLE_FILE, 10_000)
    with pytest.raises(CorruptCheckpoint, match="ends"):
        index.read_tensor("model.norm.weight", memoryview(bytearray(index.tensors["model.norm.weight"].nbytes)))
