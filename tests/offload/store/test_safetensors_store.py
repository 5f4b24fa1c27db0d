"""Experts read in place, compared byte for byte with what the safetensors library loads."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from offload.errors import CorruptCheckpoint, ExpertReadError, StorageError, UnsupportedModel
from offload.models.spec import read_spec
from offload.store.blocks import aligned_buffer
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from tests.support.checkpoints import tensor_bytes, write_safetensors

LAYOUTS = ("per-expert", "fused", "scattered")


def open_store(folder: Path, direct: bool | None = None) -> SafetensorsStore:
    return SafetensorsStore.open(read_spec(folder), CheckpointIndex.open(folder), direct=direct)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder, by the library's own loader."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return tensors


def expected(store: SafetensorsStore, tensors: dict[str, torch.Tensor], number: int) -> tuple[bytes, bytes]:
    """The bytes of expert ``number``: gate over up, and down."""
    layer, expert = divmod(number, store.spec.num_experts)
    layer = store.spec.moe_layers[layer]
    gate_up_key, down_key = store.spec.architecture.fused_keys(layer)
    if gate_up_key in tensors:
        return tensor_bytes(tensors[gate_up_key][expert]), tensor_bytes(tensors[down_key][expert])
    gate, up, down = (tensors[key] for key in store.spec.architecture.expert_keys(layer, expert))
    return tensor_bytes(gate) + tensor_bytes(up), tensor_bytes(down)


def assert_reads_every_expert(store: SafetensorsStore, tensors: dict[str, torch.Tensor]) -> None:
    slot = memoryview(aligned_buffer(store.slot_bytes))[: store.slot_bytes]
    for number in range(store.spec.total_experts):
        slot[:] = b"\xee" * store.slot_bytes
        nbytes = store.read(number, slot)
        gate_up, down = expected(store, tensors, number)
        begin = store.gate_up_offset[number]
        assert slot[begin : begin + len(gate_up)] == gate_up
        begin = store.down_offset[number]
        assert slot[begin : begin + len(down)] == down
        assert nbytes >= store.record_bytes
        if not store.direct:
            assert nbytes == store.record_bytes


@pytest.mark.parametrize("direct", [None, False], ids=["direct", "buffered"])
@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_every_expert_is_read_exactly(checkpoint, family, layout, shards, direct):
    folder = checkpoint(family=family, layout=layout, shards=shards)
    store = open_store(folder, direct)
    assert store.direct or store.direct_refused
    assert store.record_bytes == 3 * 64 * 32 * 2
    assert store.slot_bytes % 4096 == 0
    assert not np.any(store.gate_up_offset % 2)
    assert not np.any(store.down_offset % 2)
    assert_reads_every_expert(store, load_all(folder))
    store.close()


def test_an_expert_in_one_piece_is_one_read_straight_into_the_slot(checkpoint):
    store = open_store(checkpoint())
    assert store.staging_bytes == 0
    assert store.slot_bytes <= store.record_bytes + 2 * 4096
    store.close()


def test_scattered_experts_say_what_staging_they_need(checkpoint):
    store = open_store(checkpoint(layout="scattered"))
    assert store.staging_bytes >= store.record_bytes
    assert np.any(store.gate_up_offset == 0)
    store.close()


@pytest.mark.parametrize("order", ["down gate up", "gate up down", "gate down up", "up gate down"])
def test_any_order_of_the_three_matrices(checkpoint, tmp_path, order):
    tensors = load_all(checkpoint())
    rank = {f"{name}_proj": place for place, name in enumerate(order.split())}

    def place(key: str) -> tuple[str, int]:
        prefix, _, rest = key.partition("_proj")
        prefix, _, name = prefix.rpartition(".")
        return (prefix, rank.get(f"{name}_proj", 0)) if rest else (key, 0)

    folder = copy_config(checkpoint(), tmp_path)
    write_safetensors(folder / "model.safetensors", tensors, sorted(tensors, key=place))
    store = open_store(folder)
    assert (store.staging_bytes == 0) == ("gate up" in order)
    assert_reads_every_expert(store, tensors)
    store.close()


@pytest.mark.parametrize("direct", [None, False], ids=["direct", "buffered"])
def test_odd_places_in_the_file_come_out_even(checkpoint, tmp_path, direct):
    tensors = load_all(checkpoint())
    folder = copy_config(checkpoint(), tmp_path)
    write_safetensors(folder / "model.safetensors", tensors, sorted(tensors), pad_header=1)
    assert CheckpointIndex.open(folder).tensors["lm_head.weight"].offset % 2 == 1
    store = open_store(folder, direct)
    assert store.staging_bytes > 0
    assert_reads_every_expert(store, tensors)
    store.close()


def test_layers_without_experts_are_not_counted(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(layers=4, dense_layers=(0, 2)), tmp_path / "model")
    store = open_store(folder)
    assert store.spec.moe_layers == (1, 3)
    assert_reads_every_expert(store, load_all(folder))
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ExpertReadError, match="expert 2 of layer 3 "):
        store.read(store.spec.num_experts + 2, memoryview(aligned_buffer(store.slot_bytes)))
    store.close()


def test_many_threads_read_at_once(checkpoint):
    folder = checkpoint(layout="scattered", shards=5)
    store, tensors, failures = open_store(folder), load_all(folder), []

    def run():
        try:
            assert_reads_every_expert(store, tensors)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store.close()


@pytest.fixture
def cold_folder(checkpoint, tmp_path):
    """A checkpoint of 18 MiB of which nothing is in the page cache."""
    folder = shutil.copytree(checkpoint(experts=64, expert_size=256), tmp_path / "model")
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are still to be written cannot leave
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(path):
        pytest.skip("this filesystem keeps its files in memory")
    return folder


def test_buffered_reads_leave_nothing_in_the_page_cache(cold_folder):
    store = open_store(cold_folder, direct=False)
    slot = memoryview(aligned_buffer(store.slot_bytes))
    for number in range(store.spec.total_experts):
        store.read(number, slot)
    store.close()
    assert cached_share(cold_folder / "model.safetensors") < 0.02


def test_dense_tensors_leave_nothing_in_the_page_cache(checkpoint, cold_folder):
    index, tensors = CheckpointIndex.open(cold_folder), load_all(checkpoint(experts=64, expert_size=256))
    for key, entry in index.tensors.items():
        out = bytearray(entry.nbytes)
        index.read_tensor(key, memoryview(out))
        assert out == tensor_bytes(tensors[key])
    assert cached_share(cold_folder / "model.safetensors") < 0.02


def test_tmpfs_is_read_too(checkpoint):
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK):
        pytest.skip("needs a writable /dev/shm")
    folder = shared / f"finemoe-test-{os.getpid()}"
    try:
        shutil.copytree(checkpoint(), folder)
        store = open_store(folder)
        assert_reads_every_expert(store, load_all(folder))
        store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("refused", ["open", "preadv"])
def test_a_filesystem_that_refuses_direct_reads(checkpoint, monkeypatch, refused):
    refuse_direct_reads(monkeypatch, refused)
    before = open_descriptors()
    store = open_store(checkpoint())
    assert not store.direct
    assert store.direct_refused == "the filesystem refuses it (Invalid argument)"
    assert_reads_every_expert(store, load_all(checkpoint()))
    store.close()
    with pytest.raises(StorageError, match="refuses it"):
        open_store(checkpoint(), direct=True)
    assert open_descriptors() == before


def test_direct_reads_switched_off(checkpoint):
    store = open_store(checkpoint(), direct=False)
    assert (store.direct, store.direct_refused) == (False, "switched off")
    store.close()


@pytest.mark.parametrize("direct", [None, False], ids=["direct", "buffered"])
def test_a_file_cut_short_after_opening(checkpoint, tmp_path, direct):
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    store = open_store(folder, direct)
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    slot = memoryview(aligned_buffer(store.slot_bytes))
    failed = []
    for number in range(store.spec.total_experts):
        try:
            store.read(number, slot)
        except ExpertReadError as error:
            failed.append(number)
            layer, expert = divmod(number, store.spec.num_experts)
            assert f"expert {expert} of layer {layer}" in error.message
            assert str(path) in error.message
    assert 0 < len(failed) < store.spec.total_experts
    store.close()


def test_reading_after_close_is_an_error_and_closing_twice_is_none(checkpoint):
    before = open_descriptors()
    store = open_store(checkpoint(shards=5))
    store.close()
    store.close()
    assert open_descriptors() == before
    with pytest.raises(ExpertReadError, match="closed"):
        store.read(0, memoryview(aligned_buffer(store.slot_bytes)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_are_refused_by_name(checkpoint, tmp_path, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in load_all(checkpoint()).items()}
    folder = copy_config(checkpoint(), tmp_path)
    write_safetensors(folder / "model.safetensors", tensors, sorted(tensors))
    with pytest.raises(UnsupportedModel, match=r"F16|F32"):
        open_store(folder)


@pytest.mark.parametrize("layout", ["per-expert", "fused"])
def test_shapes_must_be_those_of_the_configuration(checkpoint, tmp_path, layout):
    folder = shutil.copytree(checkpoint(layout=layout), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["moe_intermediate_size"] //= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptCheckpoint, match="has the shape"):
        open_store(folder)


@pytest.mark.parametrize(
    ("layout", "key"), [("per-expert", "experts.5.up_proj"), ("fused", "1.mlp.experts.down_proj")]
)
def test_a_missing_matrix_is_named(checkpoint, tmp_path, layout, key):
    tensors = {name: t for name, t in load_all(checkpoint(layout=layout)).items() if key not in name}
    folder = copy_config(checkpoint(layout=layout), tmp_path)
    write_safetensors(folder / "model.safetensors", tensors, sorted(tensors))
    with pytest.raises(CorruptCheckpoint, match=key):
        open_store(folder)


def copy_config(source: Path, target: Path) -> Path:
    shutil.copy(source / "config.json", target)
    return target


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def refuse_direct_reads(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Makes ``os.open`` or ``os.preadv`` behave as on a filesystem without direct I/O."""
    system_call = getattr(os, call)

    def refusing(subject, *arguments):
        flags = arguments[0] if call == "open" else fcntl.fcntl(subject, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return system_call(subject, *arguments)

    monkeypatch.setattr(os, call, refusing)


def cached_share(path: Path) -> float:
    """The part of the file that lies in the page cache, from mincore(2)."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapping:
        view = np.frombuffer(mapping, np.uint8)
        flags = (ctypes.c_ubyte * pages)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), flags) == 0
        del view
        return sum(flag & 1 for flag in flags) / pages
