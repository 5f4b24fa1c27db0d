"""Verifying: the expert with a flipped byte is named, wherever the byte lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.errors import ModelNotFound
from offload.models.spec import read_spec
from offload.store.packed_format import PACK_NAME, read_head
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from offload.store.verify import verify_model

HIDDEN = 72  # records then end with zeros, which count too


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A checkpoint with its pack, to be damaged."""
    folder = shutil.copytree(checkpoint(hidden=HIDDEN), tmp_path / "model")
    write_pack(read_spec(folder), CheckpointIndex.open(folder), folder / PACK_NAME)
    return folder


def flip(path: Path, place: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def test_nothing_is_wrong(folder):
    seen = []
    report = verify_model(folder, lambda *progress: seen.append(progress))
    assert report.ok
    assert (report.problems, report.notes) == ((), ())
    assert (report.experts, report.compared, report.packs) == (24, True, (folder / PACK_NAME,))
    assert report.tensors == len(CheckpointIndex.open(folder).tensors)
    assert seen[-1] == ("verify", 24 * 16384, 24 * 16384)  # whole blocks
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_without_a_pack_only_the_headers_are_checked(checkpoint):
    report = verify_model(checkpoint())
    assert report.ok
    assert (report.experts, report.compared, report.packs) == (0, False, ())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(expert=st.integers(0, 23), place=st.integers(0, 4 * 4096 - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_pack(folder, expert, place, bit):
    path = folder / PACK_NAME
    where = read_head(path).head_bytes + expert * 4 * 4096 + place
    flip(path, where, bit)
    try:
        report = verify_model(folder)
        assert not report.ok
        assert report.problems == (
            f"expert {expert % 8} of layer {expert // 8} is damaged in {path}: its checksum does not match",
        )
    finally:
        flip(path, where, bit)


@pytest.mark.parametrize(("layer", "expert", "matrix"), [(0, 0, "gate"), (1, 5, "up"), (2, 7, "down")])
def test_a_flipped_bit_of_the_checkpoint(folder, layer, expert, matrix):
    index = CheckpointIndex.open(folder)
    entry = index.tensors[f"model.layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"]
    flip(entry.path, entry.offset + 17)
    # The kernel's clock for files ticks every few milliseconds: too seldom to tell the two apart by itself.
    os.utime(entry.path, ns=(0, (folder / PACK_NAME).stat().st_mtime_ns + 1_000_000_000))
    report = verify_model(folder)
    assert report.problems == (
        f"expert {expert} of layer {layer} in {folder} is not the one in {folder / PACK_NAME}",
    )
    assert "is older than the checkpoint" in report.notes[0]
    report = verify_model(folder, compare=False)
    assert (report.ok, report.compared) == (True, False)


def test_several_are_named_in_their_order(folder):
    path = folder / PACK_NAME
    for expert in (20, 3, 11):
        flip(path, read_head(path).head_bytes + expert * 4 * 4096)
    problems = verify_model(folder).problems
    assert [problem.split(" is ")[0] for problem in problems] == [
        "expert 3 of layer 0",
        "expert 3 of layer 1",
        "expert 4 of layer 2",
    ]


def test_a_pack_that_cannot_be_opened(folder):
    flip(folder / PACK_NAME, 100)
    report = verify_model(folder)
    assert not report.ok
    assert "damaged head" in report.problems[0]


def test_an_older_pack_is_worth_a_note(folder):
    os.utime(folder / PACK_NAME, (1, 1))
    report = verify_model(folder)
    assert report.ok
    assert "is older than the checkpoint" in report.notes[0]


def test_a_checkpoint_without_its_weights(folder):
    os.truncate(folder / "model.safetensors", 5000)
    report = verify_model(folder)
    assert not report.ok
    assert "is truncated" in report.problems[0]


def test_no_model_at_all(tmp_path):
    with pytest.raises(ModelNotFound):
        verify_model(tmp_path)
