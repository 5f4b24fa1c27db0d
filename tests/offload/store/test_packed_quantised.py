"""Quantised packs: all of a model, written like the others, and refused where they are not what they should be."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from offload.errors import CorruptCheckpoint, ModelNotFound, StorageError, UnsupportedModel
from offload.models.spec import read_spec
from offload.precision import QUANTISED, Precision, dense_precision
from offload.store.blocks import aligned_buffer
from offload.store.open_store import open_store, pack_in
from offload.store.packed_format import pack_name, read_head
from offload.store.packed_header import PIECE_ROWS, DenseTensor, pieces_of
from offload.store.packed_store import PackedStore, pack_header
from offload.store.packed_writer import write_pack
from offload.store.quantise import dequantise, quantise
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from offload.store.verify import verify_model

EXPERTS = 24
VOCABULARY = PIECE_ROWS + 16  # two records


def pack(folder: Path, precision: Precision, path: Path | None = None, **options):
    spec, index = read_spec(folder), CheckpointIndex.open(folder)
    return write_pack(spec, index, path or folder / pack_name(precision), precision, **options)


def opened(folder: Path, precision: Precision, **options) -> PackedStore:
    store = open_store(read_spec(folder), CheckpointIndex.open(folder), precision, **options)
    assert isinstance(store, PackedStore)
    return store


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A checkpoint of its own."""
    return shutil.copytree(checkpoint(layout="scattered", shared=64, vocab=VOCABULARY), tmp_path / "model")


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> bytes:
    """The int8 pack of that checkpoint, written in one go."""
    path = tmp_path_factory.mktemp("whole") / "pack"
    pack(checkpoint(layout="scattered", shared=64, vocab=VOCABULARY), "int8", path)
    return path.read_bytes()


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("layout", ["per-expert", "fused"])
def test_every_weight_is_that_of_the_checkpoint(checkpoint, tmp_path, precision, layout):
    folder = shutil.copytree(checkpoint(layout=layout, shared=64, shards=2), tmp_path / "model")
    assert pack(folder, precision).precision == precision
    spec, index = read_spec(folder), CheckpointIndex.open(folder)
    store = opened(folder, precision)
    assert (store.kind, store.precision, store.slot_bytes % 4096) == ("packed", precision, 0)
    seen = set()
    for tensor in store.head.header.dense:
        bits = np.empty(tensor.shape, np.uint16)
        index.read_tensor(tensor.name, bits.reshape(-1).view(np.uint8).data)
        expected, got = np.empty(tensor.nbytes, np.uint8), np.empty(tensor.nbytes, np.uint8)
        quantise(tensor.precision, bits.reshape(len(bits), -1), expected)
        store.read_dense(tensor.name, got.data)
        assert np.array_equal(got, expected)
        assert tensor.precision == dense_precision(precision, tensor.name)
        seen.add(tensor.name)
    assert {name for name in index.tensors if ".experts." not in name} == seen
    assert {tensor.precision for tensor in store.head.header.dense} == {"bf16", precision}

    plain = SafetensorsStore.open(spec, index)
    slot, other = (memoryview(aligned_buffer(each.slot_bytes))[: each.slot_bytes] for each in (store, plain))
    shapes = ((2 * spec.expert_size, spec.hidden_size), (spec.hidden_size, spec.expert_size))
    for expert in (0, 5, EXPERTS - 1):
        store.read(expert, slot)
        plain.read(expert, other)
        for ours, theirs, shape in (
            (store.gate_up_offset, plain.gate_up_offset, shapes[0]),
            (store.down_offset, plain.down_offset, shapes[1]),
        ):
            nbytes = DenseTensor("", precision, shape).nbytes
            begin, first = int(ours[expert]), int(theirs[expert])
            weights = np.frombuffer(other, np.uint16)[first // 2 :][: shape[0] * shape[1]]
            back = dequantise(precision, np.frombuffer(slot, np.uint8)[begin : begin + nbytes], *shape)
            original = (weights.astype(np.uint32) << 16).view(np.float32).reshape(shape)
            assert np.linalg.norm(back - original) < {"int8": 0.01, "int4": 0.12}[precision] * np.linalg.norm(
                original
            )
    store.close()
    plain.close()


def test_interrupted_and_resumed_gives_the_same_bytes(folder, whole):
    seen = []

    def interrupt(stage, done, total):
        seen.append(done)
        if done > total * 2 // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, "int8", progress=interrupt)
    result = pack(folder, "int8")
    assert result.kept >= len(seen) - 1
    assert (folder / pack_name("int8")).read_bytes() == whole
    assert pack(folder, "int8").outcome == "there"


def test_packs_lie_side_by_side(folder, whole):
    for precision in ("bf16", *QUANTISED):
        assert pack(folder, precision).outcome == "written"
    names = {pack_name(precision) for precision in ("bf16", *QUANTISED)}
    assert names == {"experts.finemoe", "experts.int8.finemoe", "experts.int4.finemoe"}
    assert (folder / "experts.int8.finemoe").read_bytes() == whole
    report = verify_model(folder)
    assert (report.ok, report.experts, report.compared) == (True, 3 * EXPERTS, True)
    assert {path.name for path in report.packs} == names
    head = read_head(folder / "experts.int4.finemoe")
    assert head.file_bytes == (folder / "experts.int4.finemoe").stat().st_size
    assert dict(head.header.error).keys() == {"experts", "attention", "shared_experts", "embedding", "head"}


def test_an_older_one_is_confirmed_or_written_again(folder, whole):
    path = folder / pack_name("int8")
    pack(folder, "int8")
    os.utime(path, (1, 1))
    with pytest.raises(CorruptCheckpoint, match="is older than the checkpoint") as caught:
        opened(folder, "int8")
    assert caught.value.hint == "pack it: finemoe pack --bits 8 model"
    assert pack(folder, "int8").outcome == "confirmed"
    opened(folder, "int8").close()
    content = bytearray(whole)
    content[-4096] ^= 1
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert pack(folder, "int8").outcome == "written"
    assert path.read_bytes() == whole


def test_damage_is_named(folder, whole):
    path = folder / pack_name("int8")
    path.write_bytes(whole)
    head = read_head(path)
    table = next(n for n, piece in enumerate(head.pieces) if piece.first == PIECE_ROWS)
    tensor = head.pieces[table].tensor.name
    for record, name in ((7, "expert 7 of layer 0"), (EXPERTS + table, f"{tensor} (rows 2048 to 2063)")):
        content = bytearray(whole)
        content[head.place(record)[0]] ^= 4
        path.write_bytes(content)
        (problem,) = verify_model(folder).problems
        assert problem == f"{name} is damaged in {path}: its checksum does not match"


def test_a_weight_that_changed_meanwhile_is_named(folder, whole):
    (folder / pack_name("int8")).write_bytes(whole)
    entry = CheckpointIndex.open(folder).tensors["model.layers.1.self_attn.q_proj.weight"]
    with entry.path.open("r+b") as file:
        file.seek(entry.offset + 3)
        file.write(b"\x41")
    os.utime(entry.path, (1, 1))
    (problem,) = verify_model(folder).problems
    assert problem.startswith("model.layers.1.self_attn.q_proj.weight (rows 0 to 63) in ")


# What cannot be used


def test_there_is_none(folder):
    for packs in (None, folder):
        with pytest.raises(ModelNotFound, match="model is not packed as int4") as caught:
            opened(folder, "int4", packs_folder=packs)
        assert caught.value.hint == "pack it: finemoe pack --bits 4 model"


def test_in_the_folder_of_many(folder, tmp_path):
    packs = tmp_path / "packs"
    packs.mkdir()
    path = pack_in(packs, read_spec(folder), CheckpointIndex.open(folder), "int4")
    assert path.name.endswith(".int4.finemoe")
    pack(folder, "int4", path)
    opened(folder, "int4", packs_folder=packs).close()


def test_another_precision_at_its_place(folder, whole):
    path = folder / pack_name("int4")
    path.write_bytes(whole)
    with pytest.raises(UnsupportedModel, match=r"experts\.int4\.finemoe keeps its weights as int8 and not as int4"):
        opened(folder, "int4")
    with pytest.raises(StorageError, match="is a pack of this model as int8"):
        pack(folder, "int4")
    assert pack(folder, "int4", force=True).outcome == "written"
    opened(folder, "int4").close()


@pytest.mark.parametrize("cut", [5000, -1])
def test_a_truncated_one(folder, whole, cut):
    path = folder / pack_name("int8")
    path.write_bytes(whole[:cut])
    with pytest.raises(CorruptCheckpoint, match="is truncated"):
        opened(folder, "int8")
    assert pack(folder, "int8").outcome == "written"
    assert path.read_bytes() == whole


def test_a_disk_that_is_too_small(folder, monkeypatch):
    free = shutil.disk_usage(folder)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match=r"needs 16\.\d MiB more"):
        pack(folder, "int8")
    assert not list(folder.glob(".*.part"))


def test_models_that_are_not_quantised(checkpoint, tmp_path):
    with pytest.raises(UnsupportedModel, match="type mixtral, which finemoe does not quantise"):
        pack(checkpoint(family="mixtral"), "int8", tmp_path / "pack")
    with pytest.raises(
        UnsupportedModel, match=r"has the shape \[64, 48\]; finemoe quantises multiples of \[16, 32\]"
    ):
        pack(checkpoint(), "int8", tmp_path / "pack")
    with pytest.raises(UnsupportedModel, match=r"the down projection of its experts .* has the shape \[64, 24\]"):
        pack(checkpoint(expert_size=24, shared=64), "int4", tmp_path / "pack")
    assert not list(tmp_path.glob("*pack*"))


def test_a_checkpoint_that_lacks_a_dense_weight(folder, whole):
    """It is known when the model is opened; the pack is of what there is."""
    (folder / pack_name("int8")).write_bytes(whole)
    store = opened(folder, "int8")
    with pytest.raises(CorruptCheckpoint, match=r"has no tensor 'model\.nothing'"):
        store.read_dense("model.nothing", memoryview(bytearray(4)))
    store.close()


def test_pieces_touch_and_fill_blocks():
    for precision in QUANTISED:
        for columns in (32, 96, 2048):
            pieces = pieces_of([DenseTensor("a", precision, (5 * PIECE_ROWS + 48, columns))])
            assert [piece.rows for piece in pieces] == [PIECE_ROWS] * 5 + [48]
            for before, piece in pairwise(pieces):
                assert piece.begin == before.begin + before.nbytes
            assert sum(piece.nbytes for piece in pieces) == pieces[0].tensor.nbytes


def test_tied_tables_are_kept_once(checkpoint):
    folder = checkpoint(shared=64, tie_word_embeddings=True)
    header = pack_header(read_spec(folder), CheckpointIndex.open(folder), "int8")
    assert [tensor.name for tensor in header.dense if "embed" in tensor.name or "head" in tensor.name] == [
        "model.embed_tokens.weight"
    ]
