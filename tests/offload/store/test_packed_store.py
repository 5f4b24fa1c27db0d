"""Experts read from a pack are those of the checkpoint; a pack that does not fit is refused or passed over."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from offload.errors import CorruptCheckpoint, ExpertReadError, FinemoeError, StorageError, UnsupportedModel
from offload.models.architectures import ARCHITECTURES
from offload.models.spec import read_spec
from offload.store.blocks import aligned_buffer
from offload.store.fingerprint import fingerprint
from offload.store.open_store import open_store, pack_in
from offload.store.packed_format import PACK_NAME
from offload.store.packed_store import PackedStore
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from tests.offload.store.test_safetensors_store import assert_reads_every_expert, load_all, open_descriptors
from tests.support.checkpoints import tiny_checkpoint


def model(folder: Path):
    """What every store is opened with."""
    return read_spec(folder), CheckpointIndex.open(folder)


def pack(folder: Path, path: Path | None = None) -> Path:
    return write_pack(*model(folder), path or folder / PACK_NAME).path


@pytest.fixture
def packed(checkpoint, tmp_path):
    """A checkpoint with its pack, to be damaged."""
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    pack(folder)
    return folder


@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize("layout", ["per-expert", "fused", "scattered"])
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_expert_is_that_of_the_checkpoint(checkpoint, tmp_path, family, layout, shards):
    folder = checkpoint(family=family, layout=layout, shards=shards)
    pack(folder, tmp_path / "pack")
    for direct in (None, False):
        store = PackedStore.open(*model(folder), tmp_path / "pack", direct=direct)
        assert (store.kind, store.staging_bytes) == ("packed", 0)
        assert store.slot_bytes == store.record_bytes == 3 * 64 * 32 * 2
        assert store.direct or store.direct_refused
        assert_reads_every_expert(store, load_all(folder))
        store.close()


@pytest.mark.parametrize("direct", [None, False], ids=["direct", "buffered"])
def test_records_that_do_not_fill_their_blocks(checkpoint, tmp_path, direct):
    folder = checkpoint(hidden=72)
    store = PackedStore.open(*model(folder), pack(folder, tmp_path / "pack"), direct=direct)
    assert store.record_bytes < store.slot_bytes == 4 * 4096
    assert_reads_every_expert(store, load_all(folder))
    store.close()


def test_layers_without_experts_have_no_records(checkpoint, tmp_path):
    folder = checkpoint(layers=4, dense_layers=(0, 2))
    store = PackedStore.open(*model(folder), pack(folder, tmp_path / "pack"))
    assert_reads_every_expert(store, load_all(folder))
    os.truncate(tmp_path / "pack", 12_000)
    with pytest.raises(ExpertReadError, match=r"expert 2 of layer 3 cannot be read from .*pack"):
        store.read(store.spec.num_experts + 2, memoryview(aligned_buffer(store.slot_bytes)))
    store.close()


def test_reading_after_close_is_an_error_and_closing_twice_is_none(packed):
    before = open_descriptors()
    store = PackedStore.open(*model(packed), packed / PACK_NAME)
    store.close()
    store.close()
    assert open_descriptors() == before
    with pytest.raises(ExpertReadError, match="closed"):
        store.read(0, memoryview(aligned_buffer(store.slot_bytes)))


# Choosing


def test_the_pack_is_chosen_by_itself(packed):
    store = open_store(*model(packed))
    assert isinstance(store, PackedStore)
    assert (store.kind, store.note) == ("packed", "")
    store.close()


def test_without_a_pack_the_checkpoint_is_read_in_place(checkpoint, tmp_path):
    store = open_store(*model(checkpoint()), packs_folder=tmp_path / "nowhere")
    assert isinstance(store, SafetensorsStore)
    assert (store.kind, store.note) == ("safetensors", "")
    store.close()


def test_a_pack_in_the_folder_of_packs_is_found_wherever_the_model_lies(checkpoint, tmp_path):
    packs = tmp_path / "packs"
    packs.mkdir()
    folder = shutil.copytree(checkpoint(), tmp_path / "here")
    path = pack(folder, pack_in(packs, *model(folder)))
    moved = folder.rename(tmp_path / "there")
    store = open_store(*model(moved), packs_folder=packs)
    assert isinstance(store, PackedStore)
    assert store.path == path
    store.close()


def test_an_older_pack_is_passed_over(packed, caplog):
    changed = (packed / "model.safetensors").stat().st_mtime_ns
    os.utime(packed / PACK_NAME, ns=(changed, changed))
    open_store(*model(packed)).close()
    os.utime(packed / PACK_NAME, ns=(changed, changed - 1))
    with caplog.at_level(logging.WARNING, "finemoe"):
        store = open_store(*model(packed))
    assert store.kind == "safetensors"
    assert "is older than the checkpoint and not used" in store.note
    assert store.note in caplog.text
    assert_reads_every_expert(store, load_all(packed))
    store.close()


DAMAGES = {
    "truncated": (lambda path: os.truncate(path, 20_000), CorruptCheckpoint, "is truncated"),
    "empty": (lambda path: os.truncate(path, 0), CorruptCheckpoint, "is truncated"),
    "header": (lambda path: overwrite(path, 200, b"?"), CorruptCheckpoint, "damaged head"),
    "table": (lambda path: overwrite(path, 4100, b"????"), CorruptCheckpoint, "damaged head"),
    "version": (lambda path: overwrite(path, 8, b"\x07"), UnsupportedModel, "version 7"),
    "something else": (lambda path: path.write_bytes(b"GGUF" * 4000), CorruptCheckpoint, "not a pack"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), CorruptCheckpoint, "cannot be read: Is a directory"),
    "a dead link": (lambda path: (path.unlink(), path.symlink_to("x")), CorruptCheckpoint, "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_pack_that_cannot_be_used(packed, damage, caplog):
    path = packed / PACK_NAME
    change, kind, problem = DAMAGES[damage]
    change(path)
    before = open_descriptors()
    with pytest.raises(kind, match=problem) as caught:
        open_store(*model(packed), pack=path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    with caplog.at_level(logging.WARNING, "finemoe"):
        store = open_store(*model(packed))
    assert store.kind == "safetensors"
    assert problem in store.note
    assert store.note in caplog.text
    store.close()
    assert open_descriptors() == before


def test_a_pack_of_a_sibling_with_the_same_shapes_is_refused(packed, tmp_path):
    sibling = tiny_checkpoint(tmp_path / "sibling", seed=1)
    path = shutil.copy(packed / PACK_NAME, sibling / PACK_NAME)
    with pytest.raises(CorruptCheckpoint, match="is a pack of another model than"):
        PackedStore.open(*model(sibling), path)
    store = open_store(*model(sibling))
    assert "another model" in store.note
    assert_reads_every_expert(store, load_all(sibling))
    store.close()


def test_a_pack_is_not_for_another_configuration(packed):
    config = json.loads((packed / "config.json").read_text())
    config["mlp_only_layers"] = [0]
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptCheckpoint, match="another model"):
        PackedStore.open(*model(packed), packed / PACK_NAME)


def test_direct_reads_that_are_asked_for_and_refused(packed, monkeypatch):
    def refuse(path):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("offload.store.data_files.open_direct", refuse)
    store = open_store(*model(packed))
    assert (store.kind, store.direct) == ("packed", False)
    assert store.direct_refused == "the filesystem refuses it (Invalid argument)"
    store.close()
    with pytest.raises(StorageError, match="refuses it"):
        open_store(*model(packed), pack=packed / PACK_NAME, direct=True)


# The fingerprint


def test_copies_share_a_fingerprint(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    os.utime(copy / "model.safetensors", (1, 1))
    assert fingerprint(*model(copy)) == fingerprint(*model(packed))
    store = open_store(*model(copy))
    assert store.kind == "packed"
    store.close()


def test_other_checkpoints_have_other_fingerprints(checkpoint):
    options = [{}, {"layout": "fused"}, {"shards": 5}, {"experts": 4}, {"family": "qwen3_moe"}, {"seed": 1}]
    assert len({fingerprint(*model(checkpoint(**each))) for each in options}) == len(options)


def test_a_checkpoint_that_cannot_be_read_has_no_fingerprint(packed):
    spec, index = model(packed)
    os.truncate(packed / "model.safetensors", 5000)
    with pytest.raises(FinemoeError, match="cannot be read"):
        fingerprint(spec, index)


def overwrite(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)
